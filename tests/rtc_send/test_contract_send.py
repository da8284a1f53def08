"""What we replace and lean on in aiortc and PyAV, pinned: an upgrade must fail here first.

A hash that differs says: read the new method, see whether our replacement still does all that
it does, then write the new hash.
"""

import asyncio
import hashlib
import importlib.metadata
import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import av
import pytest
from aiortc import rtcrtpsender, rtp
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpsender import RTCRtpSender
from aiortc.rtp import RtcpRtpfbPacket
from av.video.codeccontext import VideoCodecContext

from server.rtc.options import RtcOptions
from server.rtc.sender import VideoSender

pytestmark = pytest.mark.unit

# Method: parameters, first 16 digits of the SHA-256 of its source. First those we replace,
# then those that we keep and that share private state with ours.
PINNED: dict[str, tuple[str, str]] = {
    "RTCRtpSender._run_rtp": ("self codec", "ff597a1d554cb373"),
    "RTCRtpSender._next_encoded_frame": ("self codec", "89dd9fa4fb33741c"),
    "RTCRtpSender._handle_rtcp_packet": ("self packet", "a4ee4c7355f8de7a"),
    "RTCRtpSender._retransmit": ("self sequence_number", "ae0b2491944b52dc"),
    "RTCRtpSender._send_keyframe": ("self", "26c49629470d1928"),
    "RTCRtpSender._send_rtcp": ("self packets", "36c0f53aeac6b686"),
    "RTCRtpSender.replaceTrack": ("self track", "f95eeade19829aa4"),
    "RTCRtpSender.__init__": ("self trackOrKind transport", "beb1bc0ae04db20d"),
    "RTCRtpSender.send": ("self parameters", "3969482b77a2a65f"),
    "RTCRtpSender.stop": ("self", "38c1e92baf8e2997"),
    "RTCRtpSender.getStats": ("self", "5da0142919c095e3"),
    "RTCRtpSender._run_rtcp": ("self", "51e0a924eac4e39b"),
    "RTCDtlsTransport._send_rtp": ("self data", "763b02bceb0b0ab9"),
    "RtcpRtpfbPacket.parse": ("data fmt", "1d2540018f872085"),
    "rtp.unpack_remb_fci": ("data", "11efa01d8fcc503b"),
    "rtp.wrap_rtx": ("packet payload_type sequence_number ssrc", "0f099d4ba56fb887"),
    "rtcrtpsender.random_sequence_number": ("", "b12c28bd2a5c6634"),
}


def digest(method: Any) -> str:
    return hashlib.sha256(inspect.getsource(method).encode()).hexdigest()[:16]


def resolve(path: str) -> Any:
    owner, _, name = path.rpartition(".")
    places = {
        "RTCRtpSender": RTCRtpSender,
        "RTCDtlsTransport": RTCDtlsTransport,
        "RtcpRtpfbPacket": RtcpRtpfbPacket,
        "rtp": rtp,
        "rtcrtpsender": rtcrtpsender,
    }
    return getattr(places[owner], name)


def test_versions_are_those_that_were_read() -> None:
    assert importlib.metadata.version("aiortc") == "1.16.0"
    assert importlib.metadata.version("av") == "18.1.0"


@pytest.mark.parametrize("path", PINNED)
def test_method_is_the_one_that_was_read(path: str) -> None:
    parameters, source = PINNED[path]
    method = resolve(path)
    assert " ".join(inspect.signature(method).parameters) == parameters
    assert digest(method) == source


def test_private_state_that_we_share_exists() -> None:
    class Transport:
        state = "new"

    async def made() -> VideoSender:
        return VideoSender(
            "video",
            cast(RTCDtlsTransport, Transport()),
            options=RtcOptions(),
            encode_executor=ThreadPoolExecutor(1),
        )

    sender = asyncio.run(made())
    shared = [n for n in VideoSender.__annotations__ if n.startswith("_RTCRtpSender__")]
    assert len(shared) == 12
    for name in shared:
        assert hasattr(sender, name), name


def test_overridden_methods_still_exist_below() -> None:
    ours = [
        name
        for name, member in vars(VideoSender).items()
        if inspect.isfunction(member) and hasattr(RTCRtpSender, name) and name != "__init__"
    ]
    assert {f"RTCRtpSender.{name}" for name in ours} <= set(PINNED)


def test_ffmpeg_tells_x264_of_a_new_rate() -> None:
    # The whole of "bitrate without a new encoder" rests on this field staying writable.
    codec = av.CodecContext.create("libx264", "w")
    assert isinstance(codec, VideoCodecContext)
    codec.width = codec.height = 64
    codec.pix_fmt = "yuv420p"
    codec.bit_rate = 1_000_000
    codec.open()
    codec.bit_rate = 500_000
    assert codec.bit_rate == 500_000
