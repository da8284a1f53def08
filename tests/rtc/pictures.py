"""Real encoded pictures whose brightness tells which one they are."""

from fractions import Fraction

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext

from server.rtc.assembly import EncodedFrame

ENCODERS = {
    "VP8": ("libvpx", {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}),
    "H264": ("libx264", {"preset": "ultrafast", "tune": "zerolatency"}),
}


def grey(level: int, size_wh: tuple[int, int] = (64, 48)) -> av.VideoFrame:
    """A picture of one brightness."""
    picture = av.VideoFrame(*size_wh, "yuv420p")
    for plane, value in zip(picture.planes, (level, 128, 128), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    return picture


def level_of(picture: av.VideoFrame) -> int:
    """The brightness of `grey`, as decoded."""
    plane = picture.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return round(float(rows[: picture.height, : picture.width].mean()))


def encode(
    codec_name: str, levels: list[int], size_wh: tuple[int, int] = (64, 48), gop: int = 1000
) -> list[EncodedFrame]:
    """One frame per level, the first a key frame, then one each `gop`."""
    library, options = ENCODERS[codec_name]
    context = av.CodecContext.create(library, "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height = size_wh
    context.pix_fmt = "yuv420p"
    context.time_base = Fraction(1, 30)
    context.gop_size = gop
    context.options = options
    frames = []
    for index, level in enumerate(levels):
        picture = grey(level, size_wh)
        picture.pts, picture.time_base = index, Fraction(1, 30)
        [packet] = context.encode(picture)
        frames.append(
            EncodedFrame(
                codec_name=codec_name,
                data=bytes(packet),
                rtp_timestamp=90_000 + 3000 * index,
                is_key=packet.is_keyframe,
                follows_loss=False,
                received_at_ns=index + 1,
                assembled_at_ns=index + 1,
            )
        )
    return frames
