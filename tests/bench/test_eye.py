"""Every returned picture is counted as exactly one thing."""

from dataclasses import dataclass

import av
import pytest

from bench.barcode import Mark, stamp
from bench.eye import Eye, EyeStatistics
from bench.planes import plane_view

pytestmark = pytest.mark.unit


@dataclass
class FakeDecoded:
    """What the decoder thread hands over, as far as the eye looks at it."""

    video_frame: av.VideoFrame
    received_at_ns: int = 0


def decoded(mark: Mark | None) -> FakeDecoded:
    video_frame = av.VideoFrame(320, 240, "yuv420p")
    luma = plane_view(video_frame, 0)
    luma[:] = 128
    if mark is not None:
        stamp(luma, mark)
    return FakeDecoded(video_frame)


def look(handed_at_ns: list[int], marks: list[Mark | None]) -> tuple[Eye, list[int]]:
    first: list[int] = []
    eye = Eye(handed_at_ns, lambda: first.append(1))
    for mark in marks:
        eye.see(decoded(mark))  # type: ignore[arg-type]
    return eye, first


def test_new_pictures_are_returned_once_with_the_time_they_were_handed_over() -> None:
    handed_at_ns = [5_000_001, 9_000_001, 12_000_001]
    marks = [Mark(at_ns // 1000, number) for number, at_ns in enumerate(handed_at_ns)]
    eye, first = look(handed_at_ns, [marks[0], marks[0], marks[2], marks[1]])
    assert [(r.number, r.handed_at_ns) for r in eye.returned] == [(0, 5_000_001), (2, 12_000_001)]
    assert eye.statistics() == EyeStatistics(pictures=4, unreadable=0, misread=0, repeated=2)
    assert first == [1]


def test_a_picture_without_a_mark_is_unreadable() -> None:
    eye, first = look([1], [None, None])
    assert eye.statistics() == EyeStatistics(pictures=2, unreadable=2, misread=0, repeated=0)
    assert not first


@pytest.mark.parametrize(
    "mark",
    [
        Mark(time_us=7, number=0),  # a number that was sent, at another instant
        Mark(time_us=5_000, number=3),  # a number that was never sent
        Mark(time_us=5_000, number=65_535),
    ],
)
def test_a_mark_that_was_never_sent_is_misread(mark: Mark) -> None:
    eye, _ = look([5_000_000], [mark])
    assert eye.statistics() == EyeStatistics(pictures=1, unreadable=0, misread=1, repeated=0)
    assert eye.returned == []


def test_frame_numbers_beyond_sixteen_bits_are_recognised() -> None:
    handed_at_ns = [number * 33_000_000 for number in range(70_000)]
    numbers = [0, 20_000, 40_000, 65_535, 65_536, 69_999]
    marks: list[Mark | None] = [Mark(handed_at_ns[n] // 1000, n % 65_536) for n in numbers]
    eye, _ = look(handed_at_ns, marks)
    assert [r.number for r in eye.returned] == numbers


def test_pictures_are_kept_to_be_looked_at_one_of_so_many() -> None:
    handed_at_ns = [number * 1_000_000 for number in range(10)]
    eye = Eye(handed_at_ns, lambda: None)
    marks = [Mark(number * 1000, number) for number in range(10)]
    eye.see(decoded(marks[0]))  # type: ignore[arg-type]
    assert eye.kept == []
    eye.keep(2, 4)
    for mark in marks[1:]:
        eye.see(decoded(mark))  # type: ignore[arg-type]
    assert [kept.number for kept in eye.kept] == [1, 5]
