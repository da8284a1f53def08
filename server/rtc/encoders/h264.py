"""H264 by libx264 or NVENC: one key frame when asked, no reordering, rate changed in flight.

libx264 can change its rate without a restart only while it runs at a constant rate, and never
above the rate it was opened with. So it is opened at the ceiling of its picture size and then
told the wanted rate at once; the buffer keeps its bits, and with them the size of the largest
picture. FFmpeg's NVENC wrapper follows the same field.
"""

import math
from fractions import Fraction

import av
from av import VideoFrame
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext

from server.rtc.bitrate import NOMINAL_FPS, ceiling_bps
from server.rtc.encoders.base import (
    Borrowed,
    EncodedPicture,
    EncodeError,
    as_yuv420p,
    cropped_to_even,
)
from server.rtc.encoders.h264_payload import packetise
from server.rtc.encoders.probe import LIBX264, NVENC, H264Choice

# Seconds of the ceiling rate that the largest picture may take: the less, the sooner a key
# frame is through, and the worse it looks. README.md has the figures.
BUFFER_S = 0.2
# Room over the nominal ceiling, for slower cadences: at 12 frames a second a picture may use
# 1.25 times the bits it has at 30.
HEADROOM = 1.25
# Quality against time, measured (README.md).
PRESET = "superfast"
# scenecut=0: key frames only when asked; a cut costs the same bits without one. Whole macroblocks
# and even quantisers cost a tenth less time than the preset's own, at the same PSNR (README.md).
X264_PARAMS = "scenecut=0:partitions=none:aq-mode=0"
# Frames between key frames that nobody asked for: about ten minutes.
KEYFRAME_DISTANCE = 18_000
TIME_BASE = Fraction(1, int(NOMINAL_FPS))

# H.264 table A-1, from 3.1, which every WebRTC endpoint decodes: level, macroblocks a second,
# macroblocks a frame, kbit/s.
LEVELS: tuple[tuple[str, int, int, int], ...] = (
    ("3.1", 108_000, 3_600, 14_000),
    ("3.2", 216_000, 5_120, 20_000),
    ("4.0", 245_760, 8_192, 20_000),
    ("4.2", 522_240, 8_704, 50_000),
    ("5.0", 589_824, 22_080, 135_000),
    ("5.1", 983_040, 36_864, 240_000),
    ("5.2", 2_073_600, 36_864, 240_000),
)


def level_for(size_wh: tuple[int, int], fps: float, bits_per_s: int) -> str:
    """The lowest level from 3.1 up that carries such pictures. Raises `EncodeError`."""
    wide, high = math.ceil(size_wh[0] / 16), math.ceil(size_wh[1] / 16)
    blocks = wide * high
    for level, blocks_per_s, blocks_per_frame, kbit_per_s in LEVELS:
        longest = math.isqrt(8 * blocks_per_frame)
        if (
            blocks <= blocks_per_frame
            and blocks * fps <= blocks_per_s
            and max(wide, high) <= longest
            and bits_per_s <= kbit_per_s * 1000
        ):
            return level
    raise EncodeError(f"no H264 level carries {size_wh[0]}x{size_wh[1]} at {fps:.0f} frames/s")


def threads_for(size_wh: tuple[int, int], cpus: int) -> int:
    """Threads for one x264 encoder, each with a slice of the picture.

    Up to 720p one: a second gains nothing measurable there and takes time from the detector.
    """
    if size_wh[0] * size_wh[1] <= 1280 * 720 or cpus < 4:
        return 1
    return 2 if cpus < 8 else 4


class H264Encoder:
    """A `VideoEncoder`. A change of picture size opens the codec anew, with a key frame."""

    def __init__(
        self, choice: H264Choice, min_bps: int, max_bps: int, cpus: int, preset: str = PRESET
    ) -> None:
        self._choice = choice
        self._preset = preset
        self._min_bps = min_bps
        self._max_bps = max_bps
        self._cpus = cpus
        self._codec: VideoCodecContext | None = None
        self._opened_bps = 0
        self._frame_count = 0

    @property
    def name(self) -> str:
        return self._choice.name

    @property
    def note(self) -> str:
        return self._choice.note

    @property
    def codec(self) -> VideoCodecContext | None:
        """The open codec; the same object until the picture size changes."""
        return self._codec

    def encode(
        self, video_frame: VideoFrame, keyframe: bool, bits_per_s: int, fps: float
    ) -> EncodedPicture:
        picture = cropped_to_even(as_yuv420p(video_frame))
        codec = self._codec
        if codec is None or (codec.width, codec.height) != (picture.width, picture.height):
            # A codec that cannot be opened must not be mistaken for the last one.
            self._codec = None
            codec = self._codec = self._open((picture.width, picture.height))
        # The codec believes in its nominal cadence: what it spends per picture is right when
        # the rate is told in that measure.
        wanted_bps = min(int(bits_per_s * NOMINAL_FPS / fps), self._opened_bps)
        if codec.bit_rate != wanted_bps:
            codec.bit_rate = wanted_bps
        pts = self._frame_count
        self._frame_count += 1
        with Borrowed(picture, pts, TIME_BASE, keyframe) as lent:
            packets = codec.encode(lent)
        if not packets:
            return EncodedPicture((), False)
        bitstream = b"".join(map(bytes, packets))
        return EncodedPicture(packetise(bitstream), any(p.is_keyframe for p in packets))

    def _open(self, size_wh: tuple[int, int]) -> VideoCodecContext:
        ceiling = ceiling_bps(size_wh, NOMINAL_FPS, self._min_bps, self._max_bps)
        self._opened_bps = int(ceiling * HEADROOM)
        codec = av.CodecContext.create(self._choice.name, "w")
        assert isinstance(codec, VideoCodecContext)
        codec.width, codec.height = size_wh
        codec.pix_fmt = "yuv420p"
        codec.framerate = Fraction(int(NOMINAL_FPS), 1)
        codec.time_base = TIME_BASE
        codec.bit_rate = self._opened_bps
        codec.gop_size = KEYFRAME_DISTANCE
        codec.max_b_frames = 0
        options = {
            "level": level_for(size_wh, NOMINAL_FPS, self._opened_bps),
            "maxrate": str(self._opened_bps),
            "bufsize": str(int(ceiling * BUFFER_S)),
            "profile": "baseline",
            "forced-idr": "1",
        }
        if self._choice.name == NVENC:
            options |= {
                "preset": "p1",
                "tune": "ull",
                "rc": "cbr",
                "delay": "0",
                "zerolatency": "1",
            }
        elif self._choice.name == LIBX264:
            options |= {
                "preset": self._preset,
                "tune": "zerolatency",
                "x264-params": X264_PARAMS,
            }
            codec.thread_count = threads_for(size_wh, self._cpus)
        codec.options = options
        try:
            codec.open()
        except (FFmpegError, ValueError) as error:
            raise EncodeError(
                f"{self._choice.name} did not open at {size_wh[0]}x{size_wh[1]}: {error}"
            ) from error
        return codec
