"""`python -m bench rtsp` with a real camera, and what it makes of what it saw."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import WRONG_USAGE, main
from bench.errors import UsageError
from bench.rtsp import Found, RtspSettings, describe, many_of, summary_of
from bench.statistics import distribution
from tests.sources.cameras import want_camera

pytestmark = pytest.mark.loopback


@pytest.mark.long
def test_both_parts_run_and_write_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    want_camera()
    given = ["--seconds", "1", "--warmup", "0.2", "--streams", "2", "--no-detector", "--json"]
    given += ["--size", "320x240"]
    assert main(["rtsp", *given, "--out", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["bench"] == "rtsp"
    assert record["summary"]["glass_ms"]["count"] > 0
    many = record["summary"]["many"]
    assert (many["streams"], many["reconnects"]) == (2, 0)
    assert many["fps_slowest"] > 0
    assert len(list(tmp_path.glob("rtsp-*.json"))) == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"fps": 0}, "--fps"),
        ({"streams": 0}, "--streams"),
        ({"size_wh": (64, 64)}, "--width"),
        ({"size_wh": (641, 360)}, "--size"),
        ({"seconds": 0}, "--seconds"),
    ],
)
def test_a_wrong_setting_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=f"^{named}"):
        RtspSettings(**change)


def test_an_unknown_transport_is_wrong_usage() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["rtsp", "--transport", "pigeon"])
    assert ended.value.code == WRONG_USAGE


def look(frames: tuple[int, int], late: int, inferred: int) -> dict[str, Any]:
    return {
        "inference": {"inferred": inferred},
        "streams": [
            {
                "name": str(index),
                "frames": count,
                "pull": {"dropped": {"late": late}, "connects": 2},
            }
            for index, count in enumerate(frames)
        ],
    }


def test_rates_and_drops_are_differences_between_two_looks() -> None:
    samples = [
        {"at_s": at, "rss_mib": 100 + at, "threads": 12, "open_files": 9, "inferred": 0}
        for at in (0.0, 1.0, 2.0, 3.0, 4.0)
    ]
    many = many_of(look((10, 20), 1, 5), look((50, 40), 4, 65), samples, 80.0, 4.0)
    assert (many.fps_slowest, many.fps_fastest, many.inferred_per_s) == (5.0, 10.0, 15.0)
    assert (many.dropped, many.reconnects) == ({"late": 6}, 2)
    assert many.rss_mib_per_hour is not None
    assert round(many.rss_mib_per_hour.per_hour) == 3600
    found = Found(glass_ms=distribution([10.0, 20.0]), glass_pictures=2, many=many)
    text = describe(found)
    assert "p50 15.0" in text
    assert "+3600 MiB/h" in text
    assert set(summary_of(found)) == {"glass_ms", "unreadable", "many"}
    assert describe(Found()) == "nothing came back"
