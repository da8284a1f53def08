"""The bar code survives what happens to a picture on its way, and says so when it did not."""

from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.barcode import (
    NUMBER_BITS,
    SMALLEST_WH,
    TIME_BITS,
    Mark,
    UInt8Array,
    clear_chroma,
    decode_bits,
    encode_bits,
    read,
    stamp,
    unwrap,
)
from bench.planes import plane_view

pytestmark = pytest.mark.unit

MARK = Mark(time_us=0xDEADBEEF, number=0x1234)


def textured(width: int, height: int, number: int) -> av.VideoFrame:
    """A picture that moves and has detail everywhere, also under the strips."""
    video_frame = av.VideoFrame(width, height, "yuv420p")
    y, x = np.mgrid[:height, :width]
    luma = 128 + 60 * np.sin((x + 5 * number) / 7) + 50 * np.cos((y - 3 * number) / 11)
    noise = np.random.default_rng(number).normal(0, 4, (height, width))
    plane_view(video_frame, 0)[:] = np.clip(luma + noise, 0, 255).astype(np.uint8)
    for index in (1, 2):
        plane = plane_view(video_frame, index)
        plane[:] = (np.arange(plane.shape[1]) * 3 + number) % 256
    clear_chroma(plane_view(video_frame, 1), plane_view(video_frame, 2))
    video_frame.pts = number
    video_frame.time_base = Fraction(1, 30)
    return video_frame


def luma_of(width: int, height: int) -> UInt8Array:
    return plane_view(textured(width, height, 0), 0).copy()


def through_codec(codec: str, video_frames: list[av.VideoFrame], bps: int) -> list[av.VideoFrame]:
    encoder = av.CodecContext.create(codec, "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height = video_frames[0].width, video_frames[0].height
    encoder.pix_fmt = "yuv420p"
    encoder.time_base = Fraction(1, 30)
    encoder.framerate = Fraction(30, 1)
    encoder.bit_rate = bps
    encoder.options = (
        {"preset": "superfast", "tune": "zerolatency"}
        if codec == "libx264"
        else {"deadline": "realtime", "cpu-used": "-6", "lag-in-frames": "0"}
    )
    decoder = av.CodecContext.create("h264" if codec == "libx264" else "libvpx", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    packets = [packet for frame in [*video_frames, None] for packet in encoder.encode(frame)]
    return [frame for packet in [*packets, None] for frame in decoder.decode(packet)]


@pytest.mark.parametrize("codec", ["libx264", "libvpx"])
@pytest.mark.parametrize(
    ("width", "height", "bps"),
    [
        (640, 480, 2_000_000),  # what the bench sends
        (640, 480, 300_000),  # the server's least bitrate
        (320, 240, 150_000),
        (480, 640, 300_000),  # a phone held upright
        (1280, 720, 600_000),
        (854, 480, 400_000),  # columns of a broken number of pixels
    ],
)
def test_every_mark_survives_a_real_codec(codec: str, width: int, height: int, bps: int) -> None:
    sent = [textured(width, height, number) for number in range(12)]
    marks = [Mark(number * 0x01234567 % (1 << TIME_BITS), number * 997) for number in range(12)]
    for video_frame, mark in zip(sent, marks, strict=True):
        stamp(plane_view(video_frame, 0), mark)

    returned = through_codec(codec, sent, bps)

    readings = [read(plane_view(video_frame, 0)) for video_frame in returned]
    assert [reading and reading.mark for reading in readings] == marks


@pytest.mark.parametrize("codec", ["libx264", "libvpx"])
def test_a_box_over_the_upper_strip_leaves_the_lower_one(codec: str) -> None:
    sent = [textured(640, 480, number) for number in range(8)]
    for number, video_frame in enumerate(sent):
        luma = plane_view(video_frame, 0)
        stamp(luma, Mark(number, number))
        luma[0:24, 100:260] = 200  # a label
        luma[20:400, 100:104] = 255

    returned = through_codec(codec, sent, 1_000_000)

    readings = [read(plane_view(video_frame, 0)) for video_frame in returned]
    assert [(r.mark.number, r.copy) for r in readings if r is not None] == [
        (number, 1) for number in range(8)
    ]


@pytest.mark.parametrize(
    ("from_wh", "to_wh"),
    [
        ((640, 480), (320, 240)),
        ((640, 480), (1280, 960)),
        ((1280, 720), (640, 360)),
        ((640, 480), (600, 450)),
        ((1920, 1080), (854, 480)),
    ],
)
def test_a_scaled_picture_still_reads(from_wh: tuple[int, int], to_wh: tuple[int, int]) -> None:
    video_frame = textured(*from_wh, 0)
    stamp(plane_view(video_frame, 0), MARK)
    scaled = video_frame.reformat(*to_wh, format="yuv420p")
    reading = read(plane_view(scaled, 0))
    assert reading is not None
    assert reading.mark == MARK


@given(st.integers(SMALLEST_WH[0], 700), st.integers(SMALLEST_WH[1], 500))
def test_any_size_reads_what_was_stamped(width: int, height: int) -> None:
    luma = np.full((height, width), 128, np.uint8)
    stamp(luma, MARK)
    reading = read(luma)
    assert reading is not None
    assert (reading.mark, reading.copy) == (MARK, 0)


def test_both_strips_covered_reads_nothing() -> None:
    luma = luma_of(640, 480)
    stamp(luma, MARK)
    luma[:, 200:300] = 128
    assert read(luma) is None


@pytest.mark.parametrize("value", [0, 48, 128, 208, 255])
def test_a_plain_picture_has_no_mark(value: int) -> None:
    assert read(np.full((480, 640), value, np.uint8)) is None


def test_a_picture_too_small_to_hold_a_mark_reads_nothing() -> None:
    assert read(np.zeros((48, 64), np.uint8)) is None


def test_a_picture_too_small_to_stamp_is_refused() -> None:
    with pytest.raises(ValueError, match="128x96"):
        stamp(np.zeros((48, 64), np.uint8), MARK)


def test_the_mark_covers_less_than_a_tenth_of_the_picture() -> None:
    luma = np.zeros((480, 640), np.uint8)
    stamp(luma, MARK)
    assert np.count_nonzero(luma) / luma.size < 0.1
    assert not luma[20:460].any()


@given(st.integers(0, (1 << TIME_BITS) - 1), st.integers(0, (1 << NUMBER_BITS) - 1))
def test_bits_hold_every_time_and_number(time_us: int, number: int) -> None:
    assert decode_bits(encode_bits(Mark(time_us, number))) == Mark(time_us, number)


@given(st.integers(0, 48), st.integers(1, (1 << 16) - 1))
def test_a_smear_of_up_to_sixteen_cells_is_noticed(start: int, pattern: int) -> None:
    bits = encode_bits(MARK)
    bits[start : start + 16] ^= np.unpackbits(np.array([pattern >> 8, pattern & 255], np.uint8))
    assert decode_bits(bits) is None


@pytest.mark.parametrize(
    ("value", "near", "meant"),
    [
        (5, 0, 5),
        (65535, 65530, 65535),
        (3, 65534, 65539),  # wrapped forwards
        (65534, 65539, 65534),  # a late one from before the wrap
        (0, 131072, 131072),
    ],
)
def test_unwrap_finds_the_closest_number(value: int, near: int, meant: int) -> None:
    assert unwrap(value, near, 16) == meant
