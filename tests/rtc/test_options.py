from dataclasses import fields
from typing import Any

import pytest

from server.errors import SettingsError
from server.rtc.options import RtcOptions

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"video_codecs": ()}, "video_codecs: empty"),
        ({"video_codecs": ("AV1",)}, "video_codecs: AV1 is not among H264, VP8"),
        ({"h264_encoder": "qsv"}, "h264_encoder: qsv is not one of auto, libx264, h264_nvenc"),
        ({"bitrate_min_bps": 1}, "bitrate_min_bps, bitrate_max_bps: 1, "),
        ({"bitrate_min_bps": 7_000_000}, "do not rise within"),
        ({"announced": ("example.org",)}, "announce: 'example.org' is not an IP address"),
        ({"port_range": (80, 90)}, "port_range: 80-90 does not rise within 1024..65535"),
        ({"port_range": (50_001, 50_000)}, "port_range: 50001-50000"),
        ({"gather_timeout_s": 0}, "gather_timeout_s: 0 is outside 0.1..10.0"),
        ({"frame_deadline_ms": 1}, "frame_deadline_ms: 1 is outside 20..2000"),
        ({"decode_queue_frames": 0}, "decode_queue_frames: 0 is outside 2..120"),
        ({"pli_interval_ms": 0}, "pli_interval_ms: 0 is outside 50..10000"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_range(
    change: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        RtcOptions(**change)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_switch_is_on_by_default() -> None:
    options = RtcOptions()
    switches = {
        field.name: getattr(options, field.name)
        for field in fields(options)
        if field.type is bool and field.name != "loopback_candidates"
    }
    assert len(switches) >= 6
    assert all(switches.values()), switches
