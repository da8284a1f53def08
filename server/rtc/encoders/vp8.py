"""VP8 by libvpx in real time, with a rate that changes in flight.

FFmpeg's wrapper hands libvpx its rate once, at the start. But libvpx spends bits by media time:
at a constant rate a picture that lasts half as long gets half the bits. So the codec is opened
at the ceiling and lives on a clock of its own, in which each picture lasts as long as the
wanted bits take at that rate. The same clock takes care of cadences other than 30.
"""

from fractions import Fraction

import av
from av import VideoFrame
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext

from server.rtc.bitrate import NOMINAL_FPS, ceiling_bps
from server.rtc.encoders.base import (
    PAYLOAD_MAX,
    Borrowed,
    EncodedPicture,
    EncodeError,
    as_yuv420p,
)

# Quality against time, measured (README.md): from -10 on the picture loses over 1 dB.
CPU_USED = -8
# Seconds of the ceiling rate that the codec may run ahead.
BUFFER_S = 0.25
# A key frame may take this many per cent of an average picture's bits.
KEYFRAME_PERCENT = 600
KEYFRAME_DISTANCE = 18_000
TIME_BASE = Fraction(1, 1_000_000)

# VP8 payload descriptor (RFC 7741): extended, with a 15-bit picture id; S marks the first.
DESCRIPTOR_SIZE = 4
EXTENDED = 0x80
START_OF_PARTITION = 0x10
PICTURE_ID_PRESENT = 0x80
PICTURE_ID_COUNT = 1 << 15


def threads_for(size_wh: tuple[int, int], cpus: int) -> int:
    """Threads for one libvpx encoder.

    They wait for each other by spinning: with fewer free cores than threads single pictures
    took 60 to 170 ms instead of 7 (README.md).
    """
    if size_wh[0] * size_wh[1] < 1280 * 720 or cpus < 8:
        return 1
    return 2 if size_wh[0] * size_wh[1] < 1920 * 1080 else 4


def packetise(bitstream: bytes, picture_id: int, limit: int = PAYLOAD_MAX) -> tuple[bytes, ...]:
    """RTP payloads of one picture."""
    identity = (PICTURE_ID_COUNT | picture_id).to_bytes(2, "big")
    first = bytes((EXTENDED | START_OF_PARTITION, PICTURE_ID_PRESENT)) + identity
    later = bytes((EXTENDED, PICTURE_ID_PRESENT)) + identity
    step = limit - DESCRIPTOR_SIZE
    return tuple(
        (later if at else first) + bitstream[at : at + step]
        for at in range(0, len(bitstream), step)
    )


class Vp8Encoder:
    """A `VideoEncoder`. A change of picture size opens the codec anew, with a key frame."""

    def __init__(
        self,
        min_bps: int,
        max_bps: int,
        cpus: int,
        first_picture_id: int = 0,
        cpu_used: int = CPU_USED,
    ) -> None:
        self._cpu_used = cpu_used
        self._min_bps = min_bps
        self._max_bps = max_bps
        self._cpus = cpus
        self._picture_id = first_picture_id % PICTURE_ID_COUNT
        self._codec: VideoCodecContext | None = None
        self._opened_bps = 0
        self._pts_us = 0

    @property
    def name(self) -> str:
        return "libvpx"

    @property
    def note(self) -> str:
        return ""

    @property
    def codec(self) -> VideoCodecContext | None:
        """The open codec; the same object until the picture size changes."""
        return self._codec

    def encode(
        self, video_frame: VideoFrame, keyframe: bool, bits_per_s: int, fps: float
    ) -> EncodedPicture:
        picture = as_yuv420p(video_frame)
        codec = self._codec
        if codec is None or (codec.width, codec.height) != (picture.width, picture.height):
            self._codec = None
            codec = self._codec = self._open((picture.width, picture.height))
        pts_us = self._pts_us
        bits = bits_per_s / fps
        self._pts_us += max(1, round(bits / self._opened_bps * 1_000_000))
        with Borrowed(picture, pts_us, TIME_BASE, keyframe) as lent:
            packets = codec.encode(lent)
        if not packets:
            return EncodedPicture((), False)
        picture_id = self._picture_id
        self._picture_id = (picture_id + 1) % PICTURE_ID_COUNT
        bitstream = b"".join(map(bytes, packets))
        return EncodedPicture(packetise(bitstream, picture_id), any(p.is_keyframe for p in packets))

    def _open(self, size_wh: tuple[int, int]) -> VideoCodecContext:
        self._opened_bps = ceiling_bps(size_wh, NOMINAL_FPS, self._min_bps, self._max_bps)
        rate = str(self._opened_bps)
        codec = av.CodecContext.create("libvpx", "w")
        assert isinstance(codec, VideoCodecContext)
        codec.width, codec.height = size_wh
        codec.pix_fmt = "yuv420p"
        codec.framerate = Fraction(int(NOMINAL_FPS), 1)
        codec.time_base = TIME_BASE
        codec.bit_rate = self._opened_bps
        codec.gop_size = KEYFRAME_DISTANCE
        codec.qmin, codec.qmax = 2, 63
        codec.thread_count = threads_for(size_wh, self._cpus)
        codec.options = {
            "deadline": "realtime",
            "cpu-used": str(self._cpu_used),
            "lag-in-frames": "0",
            "error-resilient": "0",
            # The three rates equal: constant rate.
            "minrate": rate,
            "maxrate": rate,
            "bufsize": str(int(self._opened_bps * BUFFER_S)),
            "undershoot-pct": "100",
            "overshoot-pct": "15",
            "max-intra-rate": str(KEYFRAME_PERCENT),
            "noise-sensitivity": "0",
            "static-thresh": "1",
        }
        try:
            codec.open()
        except (FFmpegError, ValueError) as error:
            raise EncodeError(
                f"libvpx did not open at {size_wh[0]}x{size_wh[1]}: {error}"
            ) from error
        return codec
