import queue
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from server.clock import NS_PER_MS, NS_PER_S, now_ns
from server.detections import Detections
from server.frame import Frame, Submission
from server.inference import FAILURES_TO_TRIP, STALL_NS, Detector, InferenceWorker
from server.settings import SchedulingSettings
from tests.fakes import FakeDetector, decoded_frame

pytestmark = pytest.mark.unit

Published = tuple[Frame, Detections | None]
DEADLINE_S = 20


class Inbox:
    """Collects what is published for one session."""

    def __init__(self) -> None:
        self.items: queue.Queue[Published] = queue.Queue()

    def __call__(self, frame: Frame, detections: Detections | None) -> None:
        self.items.put((frame, detections))

    def wait(self) -> Published:
        return self.items.get(timeout=DEADLINE_S)


@contextmanager
def working(
    detector: Detector | None, sessions: str = "a", rules: SchedulingSettings | None = None
) -> Iterator[tuple[InferenceWorker, dict[str, Inbox]]]:
    """A worker at work with an inbox for each session, one letter each; it ends in time."""
    worker = InferenceWorker(detector, rules or SchedulingSettings())
    inboxes = {key: Inbox() for key in sessions}
    for key, inbox in inboxes.items():
        worker.attach(key, inbox)
    worker.start()
    yield worker, inboxes
    assert worker.stop(DEADLINE_S)


def occupy(worker: InferenceWorker, detector: FakeDetector) -> None:
    """The detector looks at frame 0 of session a until it is told to go on."""
    detector.go_on.clear()
    worker.submit("a", decoded_frame(0))
    assert detector.entered.wait(DEADLINE_S)


@pytest.fixture
def let_pass(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Time passes, in nanoseconds, for the frames that wait."""

    def let_pass(duration_ns: int) -> None:
        monkeypatch.setattr("server.mailbox.now_ns", lambda: now_ns() + duration_ns)

    return let_pass


def test_a_frame_comes_back_with_boxes_and_rising_stamps() -> None:
    detector = FakeDetector()
    with working(detector) as (worker, inboxes):
        assert worker.submit("a", decoded_frame(7)) is Submission.WAITING
        frame, detections = inboxes["a"].wait()
    assert frame.frame_seq == 7
    assert detections is not None
    assert len(detections) == 1
    stamps = frame.stamps
    assert stamps.decoded_at_ns <= stamps.taken_at_ns <= stamps.prepared_at_ns
    assert stamps.inferred_at_ns <= stamps.boxed_at_ns
    assert detector.threads == {"inference"}
    assert detector.closed


def test_only_the_newest_frame_of_a_session_is_looked_at_while_busy() -> None:
    detector = FakeDetector()
    with working(detector) as (worker, inboxes):
        occupy(worker, detector)
        assert worker.submit("a", decoded_frame(1)) is Submission.WAITING
        assert worker.submit("a", decoded_frame(2)) is Submission.REPLACED
        detector.go_on.set()
        assert [inboxes["a"].wait()[0].frame_seq for _ in range(2)] == [0, 2]
    assert worker.statistics().mailbox.dropped_replaced == 1


def test_frames_of_several_sessions_run_as_one_batch_where_the_model_allows_it() -> None:
    detector = FakeDetector(max_batch=4)
    with working(detector, "abc") as (worker, inboxes):
        occupy(worker, detector)
        for key in inboxes:
            worker.submit(key, decoded_frame(1))
        detector.go_on.set()
        for inbox in inboxes.values():
            assert inbox.wait()[1] is not None
    assert detector.batches == [1, 3]


def test_a_frame_that_waited_too_long_gives_way_to_a_successor_that_is_due(
    let_pass: Callable[[int], None],
) -> None:
    detector = FakeDetector()
    with working(detector, "ab", SchedulingSettings(max_wait_ms=1)) as (worker, inboxes):
        occupy(worker, detector)
        worker.submit("b", decoded_frame(0), next_in_ns=0)
        worker.submit("a", decoded_frame(1))
        let_pass(5 * NS_PER_MS)
        detector.go_on.set()
        assert [inboxes["a"].wait()[0].frame_seq for _ in range(2)] == [0, 1]
        assert worker.submit("b", decoded_frame(1)) is Submission.STALE
        assert inboxes["b"].wait()[0].frame_seq == 1


def test_a_frame_whose_successor_is_far_off_keeps_its_turn(
    let_pass: Callable[[int], None],
) -> None:
    detector = FakeDetector()
    with working(detector, "ab", SchedulingSettings(max_wait_ms=1)) as (worker, inboxes):
        occupy(worker, detector)
        worker.submit("b", decoded_frame(7), next_in_ns=60 * NS_PER_S)
        let_pass(5 * NS_PER_MS)
        detector.go_on.set()
        assert inboxes["b"].wait()[0].frame_seq == 7


def test_a_batch_stays_as_small_as_the_budget_asks() -> None:
    detector = FakeDetector(max_batch=4)
    with working(detector, "abc", SchedulingSettings(batch_budget_ms=1)) as (worker, inboxes):
        occupy(worker, detector)
        for key in inboxes:
            worker.submit(key, decoded_frame(1))
        detector.go_on.set()
        for inbox in inboxes.values():
            assert inbox.wait()[1] is not None
    assert detector.batches == [1, 1, 1, 1]


def test_a_detector_that_raises_costs_boxes_not_video() -> None:
    detector = FakeDetector()
    detector.failure = RuntimeError("out of memory\nsecond line")
    with working(detector) as (worker, inboxes):
        for seq in range(FAILURES_TO_TRIP):
            assert worker.submit("a", decoded_frame(seq)) is Submission.WAITING
            frame, detections = inboxes["a"].wait()
            assert (frame.frame_seq, detections) == (seq, None)
        statistics = worker.statistics()
        assert statistics.state == "failing"
        assert statistics.failed == FAILURES_TO_TRIP
        assert statistics.last_error == "RuntimeError: out of memory"
        assert worker.submit("a", decoded_frame(9)) is Submission.REFUSED


def test_a_failing_detector_that_recovers_serves_again() -> None:
    detector = FakeDetector()
    with working(detector) as (worker, inboxes):
        detector.failure = ValueError("once")
        worker.submit("a", decoded_frame(0))
        assert inboxes["a"].wait()[1] is None
        detector.failure = None
        worker.submit("a", decoded_frame(1))
        assert inboxes["a"].wait()[1] is not None
        assert worker.statistics().state == "running"


def test_a_detector_that_hangs_is_noticed_and_frames_are_refused() -> None:
    detector = FakeDetector()
    with working(detector) as (worker, _):
        occupy(worker, detector)
        waited_from_ns = now_ns()
        while worker.statistics().state != "stalled":
            assert now_ns() - waited_from_ns < 20 * STALL_NS, "the hang was never noticed"
        assert worker.submit("a", decoded_frame(1)) is Submission.REFUSED
        assert worker.stop(0.01) is False, "a thread that hangs cannot be ended"
        detector.go_on.set()


def test_a_result_for_a_session_that_left_is_dropped() -> None:
    detector = FakeDetector()
    with working(detector, "ab") as (worker, inboxes):
        occupy(worker, detector)
        worker.detach("a")
        worker.submit("b", decoded_frame())
        detector.go_on.set()
        inboxes["b"].wait()
        assert inboxes["a"].items.empty()


def test_no_frame_of_a_session_that_left_is_kept() -> None:
    detector = FakeDetector()
    with working(detector, "ab") as (worker, inboxes):
        occupy(worker, detector)
        worker.detach("a")
        late = decoded_frame(1)
        held = sys.getrefcount(late)
        # Its decoder was at work while it left. In a moment it would be too old to be taken.
        assert worker.submit("a", late, next_in_ns=0) is Submission.REFUSED
        assert sys.getrefcount(late) == held
        worker.submit("b", decoded_frame())
        detector.go_on.set()
        inboxes["b"].wait()
        assert detector.batches == [1, 1]


def test_without_a_detector_frames_are_refused_and_stop_is_clean() -> None:
    with working(None) as (worker, _):
        assert worker.submit("a", decoded_frame()) is Submission.REFUSED
        assert worker.statistics().state == "none"
    assert worker.stop(DEADLINE_S), "a second stop is harmless"


def test_stop_before_start_is_harmless() -> None:
    worker = InferenceWorker(FakeDetector())
    assert worker.stop(DEADLINE_S)


def test_a_new_detector_takes_over_between_two_frames() -> None:
    old, new = FakeDetector(name="old"), FakeDetector(name="new")
    with working(old) as (worker, inboxes):
        worker.submit("a", decoded_frame(0))
        inboxes["a"].wait()
        worker.replace(new).result(DEADLINE_S)
        assert worker.names == ("new",)
        assert old.closed
        worker.submit("a", decoded_frame(1))
        assert inboxes["a"].wait()[1] is not None
        assert new.batches == [1]
        assert worker.statistics().swaps == 1
    assert new.closed


def test_the_first_detector_may_come_later() -> None:
    with working(None) as (worker, inboxes):
        worker.replace(FakeDetector()).result(DEADLINE_S)
        assert worker.submit("a", decoded_frame()) is Submission.WAITING
        assert inboxes["a"].wait()[1] is not None


def test_a_detector_that_was_never_adopted_gives_way_to_a_newer_one() -> None:
    busy, second, third = FakeDetector(), FakeDetector(), FakeDetector()
    with working(busy) as (worker, _):
        occupy(worker, busy)
        waiting = worker.replace(second)
        adopted = worker.replace(third)
        assert waiting.cancelled()
        assert second.closed
        busy.go_on.set()
        adopted.result(DEADLINE_S)
    assert third.closed


def test_publishing_happens_outside_the_lock() -> None:
    detector = FakeDetector()
    worker = InferenceWorker(detector)
    done: queue.Queue[str] = queue.Queue()

    def publish(frame: Frame, detections: Detections | None) -> None:
        # Would deadlock if the worker still held its lock.
        worker.attach("b", publish)
        worker.detach("b")
        worker.submit("b", frame)
        done.put("published")

    worker.attach("a", publish)
    worker.start()
    worker.submit("a", decoded_frame())
    assert done.get(timeout=DEADLINE_S) == "published"
    assert worker.stop(DEADLINE_S)
