"""Moving synthetic pictures, real decoders and a small SPS reader for the encoder tests."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from aiortc.codecs.h264 import H264PayloadDescriptor
from aiortc.codecs.vpx import VpxPayloadDescriptor
from av import VideoFrame
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

TIME_BASE = Fraction(1, 90_000)


def planes_at(index: int, size_wh: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Three planes of a moving pattern with texture: it costs bits, as cameras do."""
    width, height = size_wh
    noise = np.random.default_rng(7).integers(0, 24, (64, 64), dtype=np.uint8)
    y, x = np.mgrid[0:height, 0:width]
    shift = index * 3
    luma = (
        110
        + 60 * np.sin((x + shift) / 17.0)
        + 30 * np.cos((y - shift) / 11.0)
        + noise[(y + index) % 64, (x - shift) % 64]
    )
    half = ((height + 1) // 2, (width + 1) // 2)
    cb = np.full(half, 90 + index % 64)
    cr = np.full(half, 160 - index % 64)
    return [np.clip(plane, 0, 255).astype(np.uint8) for plane in (luma, cb, cr)]


def picture(index: int, size_wh: tuple[int, int] = (320, 240), fps: float = 30.0) -> VideoFrame:
    """The pattern as a yuv420p frame with media time."""
    frame = VideoFrame(*size_wh, "yuv420p")
    for plane, pixels in zip(frame.planes, planes_at(index, size_wh), strict=True):
        memory = np.frombuffer(plane, np.uint8)  # type: ignore[call-overload]
        rows = memory.reshape(plane.height, plane.line_size)
        rows[:, : plane.width] = pixels[: plane.height, : plane.width]
    frame.pts = round(index * 90_000 / fps)
    frame.time_base = TIME_BASE
    return frame


def luma_of(frame: VideoFrame) -> NDArray[np.int16]:
    """The brightness plane without padding."""
    plane = frame.planes[0]
    memory = np.frombuffer(plane, np.uint8)  # type: ignore[call-overload]
    rows = memory.reshape(plane.height, plane.line_size)
    return rows[:, : plane.width].astype(np.int16)


def psnr(first: VideoFrame, second: VideoFrame) -> float:
    """Likeness of two pictures in dB, over the part that both have."""
    a, b = luma_of(first), luma_of(second)
    high, wide = min(a.shape[0], b.shape[0]), min(a.shape[1], b.shape[1])
    error = ((a[:high, :wide] - b[:high, :wide]).astype(np.float64) ** 2).mean()
    return 99.0 if error == 0 else float(10 * np.log10(255 * 255 / error))


class Receiver:
    """Puts payloads together with aiortc's own parsers and decodes with FFmpeg's decoders."""

    def __init__(self, codec: str) -> None:
        self._codec = codec
        decoder = av.CodecContext.create("h264" if codec == "H264" else "vp8", "r")
        assert isinstance(decoder, VideoCodecContext)
        decoder.thread_count = 1
        self._decoder = decoder

    @property
    def decoder(self) -> VideoCodecContext:
        return self._decoder

    def bitstream(self, payloads: Sequence[bytes]) -> bytes:
        if self._codec == "H264":
            return b"".join(H264PayloadDescriptor.parse(p)[1] for p in payloads)
        return b"".join(VpxPayloadDescriptor.parse(p)[1] for p in payloads)

    def decode(self, payloads: Sequence[bytes]) -> list[VideoFrame]:
        return self._decoder.decode(av.Packet(self.bitstream(payloads)))


@dataclass(frozen=True, slots=True)
class Sps:
    """What a decoder learns from an H264 sequence parameter set that matters for delay."""

    profile_idc: int
    constraints: int
    level_idc: int
    has_restriction: bool
    num_reorder_frames: int | None
    max_dec_frame_buffering: int | None


def _bits(data: bytes) -> Iterator[int]:
    for byte in data.replace(b"\x00\x00\x03", b"\x00\x00"):
        for shift in range(7, -1, -1):
            yield byte >> shift & 1


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._source = _bits(data)

    def u(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | next(self._source)
        return value

    def ue(self) -> int:
        zeros = 0
        while not next(self._source):
            zeros += 1
        return (1 << zeros) - 1 + self.u(zeros)


def parse_sps(unit: bytes) -> Sps:
    """Read a Baseline SPS without HRD parameters (H.264 7.3.2.1.1 and E.1.1)."""
    assert unit[0] & 0x1F == 7
    profile, constraints, level = unit[1:4]
    assert profile == 66, "other profiles have more fields"
    read = _Reader(unit[4:])
    read.ue()  # seq_parameter_set_id
    read.ue()  # log2_max_frame_num_minus4
    order = read.ue()
    if order == 0:
        read.ue()
    assert order != 1
    read.ue()  # max_num_ref_frames
    read.u(1)
    read.ue()
    read.ue()  # size in macroblocks
    assert read.u(1), "frames only"
    read.u(1)
    if read.u(1):  # cropping
        for _ in range(4):
            read.ue()
    if not read.u(1):
        return Sps(profile, constraints, level, False, None, None)
    if read.u(1) and read.u(8) == 255:  # aspect ratio
        read.u(32)
    if read.u(1):
        read.u(1)  # overscan
    if read.u(1):  # video signal
        read.u(4)
        if read.u(1):
            read.u(24)
    if read.u(1):
        read.ue()
        read.ue()  # chroma location
    if read.u(1):
        read.u(65)  # timing
    assert not read.u(1)
    assert not read.u(1), "no HRD expected"
    read.u(1)  # pic_struct
    if not read.u(1):
        return Sps(profile, constraints, level, False, None, None)
    read.u(1)
    for _ in range(4):
        read.ue()
    return Sps(profile, constraints, level, True, read.ue(), read.ue())
