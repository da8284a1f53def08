"""Pictures are put together from payloads as FFmpeg's own parser would, only sooner."""

import fractions
import re
from collections.abc import Iterator

import av
import numpy as np
import pytest
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext

from server.pull.slices import START, SliceJoiner, begins_key

pytestmark = pytest.mark.unit

MTU = 1400
Payload = tuple[bytes, int]


def encoded(slices: int, pictures: int = 12) -> list[bytes]:
    """Access units of noise that moves, each cut into so many slices."""
    context = av.CodecContext.create("libx264", "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height, context.pix_fmt = 320, 240, "yuv420p"
    context.time_base = fractions.Fraction(1, 30)
    context.options = {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "x264-params": f"slices={slices}:keyint=6:sliced-threads=0:aud=1",
    }
    noise = np.random.default_rng(1).integers(0, 255, (360, 320), dtype=np.uint8)
    units = []
    for number in range(pictures):
        frame = av.VideoFrame.from_ndarray(np.roll(noise, 4 * number, 1), format="yuv420p")
        frame.pts = number
        units += [bytes(packet) for packet in context.encode(frame)]
    return units + [bytes(packet) for packet in context.encode(None)]


def units_of(access_unit: bytes) -> list[bytes]:
    """NAL units, each with a long start code."""
    parts = re.split(rb"\x00\x00\x00?\x01", access_unit)
    return [START + part for part in parts if part]


def payloads(access_units: list[bytes], mtu: int = MTU) -> Iterator[Payload]:
    """As FFmpeg's depacketizer hands them on: a cut unit has its start code in its first piece."""
    for number, access_unit in enumerate(access_units):
        for unit in units_of(access_unit):
            for at in range(0, len(unit), mtu):
                yield unit[at : at + mtu], number * 3000


def decoder(chunks: bool) -> VideoCodecContext:
    context = av.CodecContext.create("h264", "r")
    assert isinstance(context, VideoCodecContext)
    context.thread_count = 1
    context.flags |= Flags.low_delay
    if chunks:
        context.options = {"flags2": "+chunks"}
    return context


@pytest.mark.parametrize("slices", [1, 2, 4])
def test_pictures_are_the_same_and_there_before_the_next_one_begins(slices: int) -> None:
    access_units = encoded(slices)
    plain = decoder(chunks=False)
    wanted = [f.to_ndarray() for unit in access_units for f in plain.decode(av.Packet(unit))]
    joiner, joined = SliceJoiner(), decoder(chunks=True)
    came: list[tuple[int, np.ndarray]] = []
    for data, pts in payloads(access_units):
        for whole, _ in joiner.add(data, pts):
            came += [(pts, frame.to_ndarray()) for frame in joined.decode(av.Packet(whole))]
    # The very last is not waited for either.
    assert [pts for pts, _ in came] == [3000 * number for number in range(len(access_units))]
    assert all(np.array_equal(one, two) for (_, one), two in zip(came, wanted, strict=True))


def test_each_part_carries_the_time_of_its_own_picture() -> None:
    joiner = SliceJoiner()
    parts = [part for item in payloads(encoded(2, 4)) for part in joiner.add(*item)]
    assert {pts for _, pts in parts} == {0, 3000, 6000, 9000}


def test_small_pieces_are_learnt_to_be_pieces() -> None:
    """A sender with a tiny MTU costs a picture or two, and no more."""
    access_units = encoded(1)
    joiner, joined = SliceJoiner(), decoder(chunks=True)
    shown = 0
    for data, pts in payloads(access_units, mtu=400):
        for whole, _ in joiner.add(data, pts):
            try:
                shown += len(joined.decode(av.Packet(whole)))
            except av.FFmpegError:
                continue
    assert shown >= len(access_units) - 2


def test_a_slice_that_is_lost_shows_no_later_than_with_the_next_picture() -> None:
    joiner, given = SliceJoiner(), []
    items = list(payloads(encoded(4, 6)))
    # The last piece of the third picture.
    lost = max(index for index, (_, pts) in enumerate(items) if pts == 6000)
    for index, (data, pts) in enumerate(items):
        if index != lost:
            given += [(at, pts) for _, at in joiner.add(data, pts)]
    assert all(then is not None and now - then <= 3000 for then, now in given)
    assert {then for then, _ in given} == {3000 * number for number in range(6)}


def test_what_never_ends_is_given_on_in_parts() -> None:
    joiner = SliceJoiner()
    piece = b"\xff" * 100_000
    given = sum(
        len(list(joiner.add(piece if i else START + b"\x65" + piece, 0))) for i in range(200)
    )
    assert given >= 2


def test_empty_and_headless_payloads_do_no_harm() -> None:
    joiner = SliceJoiner()
    for data in (b"", START, START + b"\x65", b"\x00", b"\x41\x42", START[:3]):
        list(joiner.add(data, None))
        assert begins_key(data) is (data == START + b"\x65")
