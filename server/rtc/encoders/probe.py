"""Which H264 encoder runs here, found out by encoding one picture, not by asking for names."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import av
from av import VideoFrame
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext

LIBX264 = "libx264"
NVENC = "h264_nvenc"


@dataclass(frozen=True, slots=True)
class H264Choice:
    """The encoder to use; `note` says why it is not the one asked for or hoped for."""

    name: str
    note: str = ""


@cache
def refusal(name: str) -> str:
    """Why this encoder does not work on this machine, or nothing.

    Encodes one small picture; with a driver present this takes tenths of a second, so it is
    done once per process, and never on the loop.
    """
    try:
        codec = av.CodecContext.create(name, "w")
        assert isinstance(codec, VideoCodecContext)
        codec.width, codec.height = 256, 256
        codec.pix_fmt = "yuv420p"
        codec.time_base = Fraction(1, 30)
        codec.framerate = Fraction(30, 1)
        picture = VideoFrame(256, 256, "yuv420p")
        picture.pts = 0
        packets = codec.encode(picture) + codec.encode(None)
    except FFmpegError as error:
        return f"{name}: {error.strerror or error}"
    except ValueError as error:
        return f"{name}: {error}"
    return "" if packets else f"{name}: gave no packet for a test picture"


def choose_h264(wish: str) -> H264Choice:
    """The encoder for a setting of auto, libx264 or h264_nvenc. Not on the loop."""
    if wish == LIBX264:
        return H264Choice(LIBX264)
    reason = refusal(NVENC)
    return H264Choice(LIBX264, reason) if reason else H264Choice(NVENC)
