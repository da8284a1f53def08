"""What a feed shows carries the numbers of tracks, and in `smooth` has moved with its objects."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from server.analysis.analyst import Analyst
from server.call_options import CallOptions
from server.clock import NS_PER_MS, NS_PER_S
from server.detections import Detections
from server.feed import Feed
from server.frame import Frame, Stamps, Submission
from server.shot import Shot
from tests.fakes import grey_video_frame

pytestmark = pytest.mark.unit


class Worker:
    """Stands for the inference thread: answers when the test says so."""

    names: tuple[str, ...] = ("person", "car")

    def __init__(self) -> None:
        self.publish: Callable[[Frame, Detections | None], None] = lambda frame, detections: None
        self.frames: list[Frame] = []

    def attach(
        self, key: str, publish: Callable[[Frame, Detections | None], None], *, patient: bool
    ) -> None:
        self.publish = publish

    def submit(self, key: str, frame: Frame, *, next_in_ns: int | None) -> Submission:
        self.frames.append(frame)
        return Submission.WAITING

    def detach(self, key: str) -> None:
        self.publish = lambda frame, detections: None

    def answer(self, *boxes: Sequence[float]) -> None:
        xyxy = np.array([box[:4] for box in boxes], np.float32).reshape(-1, 4)
        confidence = np.array([box[4] for box in boxes], np.float32)
        found = Detections(xyxy, confidence, np.zeros(len(boxes), np.int32), (640, 480))
        self.publish(self.frames[-1], found)


def fed(mode: str, analyst: Analyst | None) -> tuple[Feed, Worker, list[Shot], list[Detections]]:
    worker = Worker()
    shots: list[Shot] = []
    ahead: list[Detections] = []
    options = CallOptions(mode=mode, confidence=0.4)
    feed = Feed(
        "call", 300, options, worker, shots.append, lambda _, found: ahead.append(found), analyst
    )
    feed.open()
    return feed, worker, shots, ahead


def take(feed: Feed, at_ms: int) -> None:
    at_ns = NS_PER_S + at_ms * NS_PER_MS
    feed.take(grey_video_frame(), at_ms * 90, Stamps(at_ns, at_ns, at_ns))


def test_shown_boxes_carry_numbers() -> None:
    feed, worker, shots, _ = fed("exact", Analyst(tracking=True))
    for at_ms in (0, 50):
        take(feed, at_ms)
        worker.answer((10, 10, 60, 60, 0.9), (300, 10, 360, 60, 0.2))
    shown = shots[-1].detections
    assert shown is not None
    assert [row[6] for row in shown.to_rows()] == [1]


def test_without_tracking_nothing_is_added() -> None:
    for analyst in (None, Analyst(tracking=False)):
        feed, worker, shots, _ = fed("exact", analyst)
        for at_ms in (0, 50):
            take(feed, at_ms)
            worker.answer((10, 10, 60, 60, 0.9))
        shown = shots[-1].detections
        assert shown is not None
        assert shown.track_id is None
        assert shown.velocity is None


def test_smooth_moves_boxes_to_where_their_objects_are_by_now() -> None:
    feed, worker, shots, ahead = fed("smooth", Analyst(tracking=True))
    for step in range(20):
        take(feed, 50 * step)
        x = 10 + 10 * step
        worker.answer((x, 100, x + 60, 160, 0.9))
    # 100 ms after the picture whose boxes are known, at 200 pixels a second.
    take(feed, 50 * 19 + 100)
    shown = shots[-1].detections
    assert shown is not None
    assert shown.xyxy[0, 0] - ahead[-1].xyxy[0, 0] == pytest.approx(20, abs=2)
    assert shown.to_rows()[0][6] == 1


def test_smooth_without_tracking_leaves_boxes_where_they_were() -> None:
    feed, worker, shots, ahead = fed("smooth", None)
    for step in range(5):
        take(feed, 50 * step)
        worker.answer((10 + 10 * step, 100, 70 + 10 * step, 160, 0.9))
    take(feed, 300)
    assert shots[-1].detections is ahead[-1]


class Failing(Analyst):
    """Follows nothing."""

    def track(self, detections: Detections, at_ns: int, confidence: float) -> Detections:
        raise ValueError("no numbers today")


def test_a_picture_whose_objects_cannot_be_followed_leaves_with_its_boxes() -> None:
    feed, worker, shots, _ = fed("exact", Failing(tracking=True))
    for at_ms in (0, 33):
        take(feed, at_ms)
        worker.answer((10, 10, 50, 50, 0.9))
    assert [len(shot.detections or ()) for shot in shots] == [1, 1]
    assert feed.statistics(NS_PER_S).untracked == 2
