"""Two pictures at a time, while none that the detector is shown is watched live."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from server.detections import Detected
from server.frame import Submission
from server.inference import STALL_NS, InferenceWorker
from server.pixels import Picture
from tests.fakes import FakeDetector, decoded_frame
from tests.test_inference import DEADLINE_S, Inbox, occupy

pytestmark = pytest.mark.unit


class Look:
    """One picture with a `PairDetector`: done when the test says so."""

    def __init__(self, answer: Detected, on_done: Callable[[], None]) -> None:
        self._answer: Detected | Exception = answer
        self._on_done = on_done
        self._done = threading.Event()

    def end(self, failure: Exception | None = None) -> None:
        self._answer = failure or self._answer
        self._done.set()
        self._on_done()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def wait(self) -> Detected:
        assert self._done.wait(DEADLINE_S), "the test never let the picture be done"
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


class PairDetector(FakeDetector):
    """Looks at pictures side by side, unless `refuses`."""

    def __init__(self, *, refuses: bool = False, name: str = "pair") -> None:
        super().__init__(name=name)
        self._refuses = refuses
        self._looks: queue.Queue[Look] = queue.Queue()

    def begin(self, picture: Picture, on_done: Callable[[], None]) -> Look | None:
        if self._refuses:
            return None
        [answer] = FakeDetector().detect([picture])
        look = Look(answer, on_done)
        self._looks.put(look)
        return look

    def next_look(self) -> Look:
        return self._looks.get(timeout=DEADLINE_S)

    @property
    def idle(self) -> bool:
        return self._looks.empty()


@contextmanager
def some_waiting(
    detector: FakeDetector, *, sessions: str = "bc", live: str = ""
) -> Iterator[tuple[InferenceWorker, dict[str, Inbox]]]:
    """A worker that has looked at frame 0 of `a` while frame 1 of `b`, and 2 of `c`, came."""
    worker = InferenceWorker(detector)
    inboxes = {key: Inbox() for key in "abc"}
    for key, inbox in inboxes.items():
        worker.attach(key, inbox, patient=key not in live)
    worker.start()
    occupy(worker, detector)
    for seq, key in enumerate(sessions, 1):
        worker.submit(key, decoded_frame(seq))
    detector.go_on.set()
    assert inboxes["a"].wait()[0].frame_seq == 0
    yield worker, inboxes
    assert worker.stop(DEADLINE_S)


def test_two_that_wait_are_looked_at_together_and_told_as_they_are_done() -> None:
    detector = PairDetector()
    with some_waiting(detector) as (worker, inboxes):
        first, second = detector.next_look(), detector.next_look()
        second.end()
        frame, detections = inboxes["c"].wait()
        assert (frame.frame_seq, detections is None) == (2, False)
        assert inboxes["b"].items.empty()
        first.end()
        assert inboxes["b"].wait()[0].frame_seq == 1
        assert worker.statistics().inferred == 3
    assert detector.batches == [1], "only the first was looked at alone"
    assert detector.closed


def test_who_comes_meanwhile_begins_when_one_is_done_and_no_sooner() -> None:
    detector = PairDetector()
    with some_waiting(detector) as (worker, inboxes):
        first, second = detector.next_look(), detector.next_look()
        worker.submit("a", decoded_frame(3))
        assert detector.idle, "never more than two"
        first.end()
        third = detector.next_look()
        assert inboxes["b"].wait()[0].frame_seq == 1
        third.end()
        assert inboxes["a"].wait()[0].frame_seq == 3
        # One is left, and there is room beside it.
        worker.submit("b", decoded_frame(4))
        fourth = detector.next_look()
        fourth.end()
        assert inboxes["b"].wait()[0].frame_seq == 4
        second.end()
        assert inboxes["c"].wait()[0].frame_seq == 2
        # Alone again: with all threads.
        worker.submit("a", decoded_frame(5))
        assert inboxes["a"].wait()[0].frame_seq == 5
    assert detector.batches == [1, 1]


def test_one_that_came_while_another_had_its_turn_leaves_room_beside_it() -> None:
    detector = PairDetector()
    with some_waiting(detector, sessions="b") as (worker, inboxes):
        look = detector.next_look()
        worker.submit("a", decoded_frame(3))
        detector.next_look().end()
        assert inboxes["a"].wait()[0].frame_seq == 3
        look.end()
        assert inboxes["b"].wait()[0].frame_seq == 1
        # It comes when nothing is looked at: alone, with all threads.
        worker.submit("b", decoded_frame(4))
        assert inboxes["b"].wait()[0].frame_seq == 4
    assert detector.batches == [1, 1]


def test_one_by_one_while_somebody_watches_live() -> None:
    detector = PairDetector()
    with some_waiting(detector, live="a") as (worker, inboxes):
        assert [inboxes[key].wait()[0].frame_seq for key in "bc"] == [1, 2]
        assert detector.idle
        assert detector.batches == [1, 1, 1]
        worker.detach("a")
        detector.entered.clear()
        detector.go_on.clear()
        worker.submit("b", decoded_frame(3))
        assert detector.entered.wait(DEADLINE_S)
        worker.attach("d", inboxes["a"], patient=True)
        worker.submit("c", decoded_frame(4))
        worker.submit("d", decoded_frame(5))
        detector.go_on.set()
        for _ in range(2):
            detector.next_look().end()
        assert inboxes["a"].wait()[0].frame_seq == 5


def test_a_live_one_that_comes_is_next_and_alone() -> None:
    detector = PairDetector()
    with some_waiting(detector) as (worker, inboxes):
        first, second = detector.next_look(), detector.next_look()
        worker.attach("camera", inboxes["a"])
        worker.submit("camera", decoded_frame(7))
        first.end()
        assert inboxes["b"].wait()[0].frame_seq == 1
        second.end()
        assert inboxes["a"].wait()[0].frame_seq == 7, "not begun beside the second"
        assert detector.idle
    assert detector.batches == [1, 1]


def test_one_by_one_where_the_detector_does_not_take_two() -> None:
    detector = PairDetector(refuses=True)
    with some_waiting(detector) as (_, inboxes):
        assert [inboxes[key].wait()[0].frame_seq for key in "bc"] == [1, 2]
    assert detector.batches == [1, 1, 1]


def test_one_that_fails_costs_its_own_boxes() -> None:
    detector = PairDetector()
    with some_waiting(detector) as (worker, inboxes):
        first, second = detector.next_look(), detector.next_look()
        first.end(RuntimeError("out of memory"))
        assert inboxes["b"].wait()[1] is None
        second.end()
        assert inboxes["c"].wait()[1] is not None
        statistics = worker.statistics()
        assert (statistics.failed, statistics.last_error) == (1, "RuntimeError: out of memory")


def test_a_detector_that_fails_to_begin_fails_as_it_does_alone() -> None:
    class Broken(PairDetector):
        def begin(self, picture: Picture, on_done: Callable[[], None]) -> Look | None:
            raise ValueError("no such picture")

    detector = Broken()
    with some_waiting(detector) as (_, inboxes):
        assert inboxes["b"].wait()[1] is not None
        assert inboxes["c"].wait()[1] is not None
    assert detector.batches == [1, 1, 1]


def test_another_detector_takes_over_when_both_are_done() -> None:
    old, new = PairDetector(name="old"), FakeDetector(name="new")
    with some_waiting(old) as (worker, inboxes):
        looks = old.next_look(), old.next_look()
        adopted = worker.replace(new)
        worker.submit("a", decoded_frame(3))
        assert not adopted.done()
        for look in looks:
            look.end()
        adopted.result(DEADLINE_S)
        assert old.closed
        assert old.idle
        assert inboxes["a"].wait()[0].frame_seq == 3
        assert new.batches == [1]


def test_two_that_hang_are_given_up_and_what_waits_is_looked_at_by_another() -> None:
    old, fresh = PairDetector(name="hangs"), FakeDetector(name="fresh")
    with some_waiting(old) as (worker, inboxes):
        first, second = old.next_look(), old.next_look()
        second.end()
        assert inboxes["c"].wait()[0].frame_seq == 2
        # There is room beside the one that hangs, so its thread waits for another frame.
        waited = threading.Event()
        while worker.statistics().state != "stalled":
            assert not waited.wait(STALL_NS / 20e9)
        assert worker.submit("a", decoded_frame(3)) is Submission.REFUSED
        assert worker.take_over(fresh)
        for seq in (4, 5, 6):
            assert worker.submit("a", decoded_frame(seq)) is Submission.WAITING
            assert inboxes["a"].wait()[0].frame_seq == seq
        assert worker.statistics().abandoned == 1, "its thread waits for what hangs"
        first.end()
        while not old.closed:
            assert not waited.wait(0.01)
        assert worker.statistics().abandoned == 0
        assert inboxes["b"].items.empty()
        assert not fresh.closed


def test_stopping_waits_for_those_that_are_looked_at() -> None:
    detector = PairDetector()
    with some_waiting(detector) as (worker, inboxes):
        looks = detector.next_look(), detector.next_look()
        assert worker.stop(0.01) is False
        for look in looks:
            look.end()
        assert worker.stop(DEADLINE_S)
        assert {inboxes[key].wait()[0].frame_seq for key in "bc"} == {1, 2}
    assert detector.closed
