"""The thread that owns the detector.

It takes the newest frame of each session in fair turns, runs the detector, and calls the
session's publish function, still on this thread. It knows no event loop and no pixels. A
detector that raises costs boxes, never video: the frame is published without any.
"""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Protocol

from server.batching import BatchPlan
from server.clock import NS_PER_MS, NS_PER_S, now_ns, ns_to_ms
from server.detections import Detected, Detections, EngineReport
from server.frame import Frame, Stamps, Submission
from server.mailbox import NEVER_NS, Left, Mailbox, MailboxStatistics
from server.pixels import Picture, picture_of
from server.settings import SchedulingSettings

logger = logging.getLogger(__name__)

# A frame that has been with the detector for longer is taken for a hang: video goes on without.
STALL_NS = NS_PER_S // 2
# Pictures that are looked at together while nobody watches live.
SIDE_BY_SIDE = 2
# After so many failures in a row only one frame a second is tried.
FAILURES_TO_TRIP = 5
RETRY_NS = NS_PER_S
SUBMISSIONS = {
    Left.WAITING: Submission.WAITING,
    Left.REPLACED: Submission.REPLACED,
    Left.STALE: Submission.STALE,
    Left.CLOSED: Submission.REFUSED,
}


class Begun(Protocol):
    """A picture that is looked at beside another."""

    @property
    def done(self) -> bool: ...

    def wait(self) -> Detected:
        """Called once; raises what `detect` raises."""
        ...


class Detector(Protocol):
    """What the worker needs; made elsewhere, used and closed on the inference thread only."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def max_batch(self) -> int: ...

    def detect(self, pictures: Sequence[Picture]) -> list[Detected]: ...

    def begin(self, picture: Picture, on_done: Callable[[], None]) -> Begun | None:
        """Look at one picture beside another, each for longer and both together for less long;
        `on_done` is called on any thread. None where that cannot be (yet): `detect` it then."""
        ...

    def reports(self) -> tuple[EngineReport, ...]: ...

    def close(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Turn:
    """One inference thread's time in office. Under the worker's lock, but for its own thread."""

    busy_since_ns: int = 0
    """Since when its frame is with the detector; 0 between frames."""
    abandoned: bool = False
    """Another thread has its place; what it still gives is dropped."""
    thread: threading.Thread = field(init=False)


@dataclass(frozen=True, slots=True)
class _Look:
    """A frame that the detector looks at beside another."""

    key: str
    frame: Frame
    taken_at_ns: int
    begun: Begun


@dataclass(frozen=True, slots=True)
class _Handover:
    """A detector on its way to the inference thread."""

    detector: Detector
    adopted: Future[None]


Publish = Callable[[Frame, Detections | None], None]
"""Called on the inference thread; None for the detections when the detector failed."""


@dataclass(frozen=True, slots=True)
class InferenceStatistics:
    """Counts since start and what runs now."""

    mailbox: MailboxStatistics
    inferred: int
    failed: int
    swaps: int
    taken_over: int
    """Times that a fresh detector took the place of one that hung."""
    abandoned: int
    """Threads that still hang in a detector that was replaced."""
    publish_failed: int
    """Results that whoever they were for failed to take."""
    state: str
    """`none` (no detector), `running`, `stalled` (a frame takes too long), `failing`, `stopped`."""
    last_error: str
    names: tuple[str, ...]
    engines: tuple[EngineReport, ...]


class InferenceWorker:
    """Start and stop it once; every other method may be called on any thread."""

    def __init__(self, detector: Detector | None, rules: SchedulingSettings | None = None) -> None:
        self._rules = rules or SchedulingSettings()
        self._plan = BatchPlan(self._rules.batch_budget_ms)
        self._mailbox: Mailbox[str, Frame] = Mailbox()
        self._lock = threading.Lock()
        self._publish_by_key: dict[str, Publish] = {}
        # Those of them whose frames are shown live, so that each counts for when it comes.
        self._live: set[str] = set()
        self._detector = detector
        self._handover: _Handover | None = None
        self._names = detector.names if detector else ()
        self._engines = detector.reports() if detector else ()
        self._inferred = 0
        self._failed = 0
        self._settled_at_ns = 0
        self._failures_in_row = 0
        self._failing_since_ns = 0
        self._retry_at_ns = 0
        self._swaps = 0
        self._taken_over = 0
        self._abandoned = 0
        self._publish_failed = 0
        self._last_error = ""
        self._stopped = False
        self._turn = self._new_turn()

    def _new_turn(self) -> _Turn:
        turn = _Turn()
        # A daemon because native code that hangs cannot be ended from outside.
        turn.thread = threading.Thread(
            target=self._run, args=(turn,), name="inference", daemon=True
        )
        return turn

    def begin_with(self, detector: Detector) -> None:
        """The first detector, where it was not there yet when this was made; before `start`."""
        self._install(detector)

    def start(self) -> None:
        self._turn.thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End the thread; False if it still hangs in the detector after `timeout_s`."""
        with self._lock:
            self._stopped = True
            thread = self._turn.thread
        self._mailbox.close()
        if thread.is_alive():
            thread.join(timeout_s)
        return not thread.is_alive()

    def attach(self, key: str, publish: Publish, *, patient: bool = False) -> None:
        """Results for `key` go to `publish` from now on. While all are `patient`, the detector
        looks at two frames at a time where two wait: more are answered, the first a little later.
        """
        with self._lock:
            self._publish_by_key[key] = publish
            if not patient:
                self._live.add(key)
        self._mailbox.add(key)

    def detach(self, key: str) -> None:
        """Forget `key`; a result in the making is dropped, and what is submitted later refused."""
        with self._lock:
            self._publish_by_key.pop(key, None)
            self._live.discard(key)
        self._mailbox.remove(key)

    def submit(self, key: str, frame: Frame, *, next_in_ns: int | None = None) -> Submission:
        """Leave the newest frame of `key`; a refused one the caller lets pass as it is.

        `next_in_ns` is when its successor is expected. A frame that has waited for longer than
        `max_wait_ms`, and than the detector takes for one, is passed over once its successor
        would be there first: that shows what is there now. None waits for as long as it takes.
        """
        at_ns = now_ns()
        if self._state(at_ns) not in ("running", "failing"):
            return Submission.REFUSED
        if self._failures_in_row >= FAILURES_TO_TRIP and at_ns < self._retry_at_ns:
            return Submission.REFUSED
        until_ns = NEVER_NS if next_in_ns is None else at_ns + self._patience_ns(next_in_ns)
        return SUBMISSIONS[self._mailbox.put(key, frame, until_ns)]

    def replace(self, detector: Detector) -> Future[None]:
        """Hand over a loaded and warmed detector; it takes over between two frames, which the
        future tells. One that waits already is dropped for the newer one."""
        handover = _Handover(detector, Future())
        with self._lock:
            unused, self._handover = self._handover, handover
        if unused is not None:
            unused.detector.close()
            unused.adopted.cancel()
        self._mailbox.nudge()
        return handover.adopted

    def take_over(self, detector: Detector) -> bool:
        """Put a loaded and warmed detector in the place of one that hangs, on a thread of its own;
        False, and nothing happens, when it does not hang (any more).

        What hangs cannot be ended: its thread and its memory stay until it returns.
        """
        turn = self._new_turn()
        with self._lock:
            if self._stopped or not self._hangs(now_ns()):
                return False
            self._turn.abandoned = True
            self._abandoned += 1
            self._taken_over += 1
            self._turn = turn
            self._install(detector)
            turn.thread.start()
        return True

    @property
    def trouble_since_ns(self) -> int | None:
        """Since when the detector gives nothing, because it hangs or fails; None while it does."""
        at_ns = now_ns()
        if self._hangs(at_ns):
            return self._turn.busy_since_ns or at_ns
        if self._state(at_ns) == "failing":
            return self._failing_since_ns
        return None

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    def statistics(self) -> InferenceStatistics:
        return InferenceStatistics(
            mailbox=self._mailbox.statistics(),
            inferred=self._inferred,
            failed=self._failed,
            swaps=self._swaps,
            taken_over=self._taken_over,
            abandoned=self._abandoned,
            publish_failed=self._publish_failed,
            state=self._state(now_ns()),
            last_error=self._last_error,
            names=self._names,
            engines=self._engines,
        )

    def _state(self, at_ns: int) -> str:
        if self._stopped:
            return "stopped"
        if self._detector is None:
            return "none"
        if self._hangs(at_ns):
            return "stalled"
        return "failing" if self._failures_in_row >= FAILURES_TO_TRIP else "running"

    def _hangs(self, at_ns: int) -> bool:
        busy_since_ns = self._turn.busy_since_ns
        return bool(busy_since_ns) and at_ns - busy_since_ns > STALL_NS

    def _install(self, detector: Detector) -> Detector | None:
        """Make this the detector; returns the one before."""
        previous, self._detector = self._detector, detector
        self._names = detector.names
        self._engines = detector.reports()
        self._failures_in_row = 0
        self._plan = BatchPlan(self._rules.batch_budget_ms)
        return previous

    def _adopt(self, handover: "_Handover") -> None:
        """Let the new detector take over. Inference thread."""
        previous = self._install(handover.detector)
        self._swaps += 1
        if previous is not None:
            previous.close()
        if handover.adopted.set_running_or_notify_cancel():
            handover.adopted.set_result(None)

    def _run(self, turn: _Turn) -> None:
        while (batch := self._mailbox.take(self._batch_limit())) is not None:
            with self._lock:
                handover, self._handover = self._handover, None
            if handover is not None:
                self._adopt(handover)
            # Read after the wait: the first detector may have come meanwhile.
            detector = self._detector
            if batch:
                assert detector is not None, "frames are submitted only to a detector"
                if detector.max_batch == 1 and not self._live and self._waited(batch):
                    self._serve_side_by_side(turn, detector, batch)
                else:
                    self._serve(turn, detector, batch)
            if turn.abandoned:
                assert detector is not None, "only what hangs in a detector is given up"
                self._let_go(detector)
                return
        if self._detector is not None:
            self._detector.close()

    def _batch_limit(self) -> int:
        detector = self._detector
        if detector is None or detector.max_batch == 1:
            return 1 if self._live else SIDE_BY_SIDE
        return self._plan.limit(detector.max_batch, ns_to_ms(self._max_wait_ns()))

    def _patience_ns(self, next_in_ns: int) -> int:
        """For how long a frame is worth a turn, when its successor comes in so long."""
        single_ns = int(self._plan.single_ms * NS_PER_MS)
        return max(self._max_wait_ns(), next_in_ns - single_ns)

    def _max_wait_ns(self) -> int:
        if not self._rules.max_wait_ms:
            return NEVER_NS
        return int(max(self._rules.max_wait_ms, self._plan.single_ms) * NS_PER_MS)

    def _serve(self, turn: _Turn, detector: Detector, batch: list[tuple[str, Frame]]) -> None:
        taken_at_ns = turn.busy_since_ns = now_ns()
        answers, failure = None, None
        try:
            answers = detector.detect([picture_of(frame.video_frame) for _, frame in batch])
        except Exception as error:
            # Broad on purpose: whatever a detector raises ends one frame, not the thread.
            failure = error
        if answers is not None:
            self._plan.ran(len(batch), ns_to_ms(now_ns() - taken_at_ns))
        self._settle(turn, detector, batch, answers, failure, taken_at_ns)

    def _serve_side_by_side(
        self, turn: _Turn, detector: Detector, batch: list[tuple[str, Frame]]
    ) -> None:
        """Two at a time, these and what comes meanwhile, until nothing waits any more."""
        waiting, looks = deque(batch), list[_Look]()
        while (waiting or looks) and not turn.abandoned:
            begun = self._begin(detector, waiting[0]) if waiting else None
            done = next((look for look in looks if look.begun.done), None)
            if begun is not None:
                looks.append(begun)
                waiting.popleft()
                turn.busy_since_ns = looks[0].taken_at_ns
            elif waiting and not looks:
                self._serve(turn, detector, [waiting.popleft()])
            elif done is not None or waiting or self._must_end():
                self._finish(turn, detector, looks, done or looks[0])
            else:
                # More frames, or the nudge of one that is done.
                waiting.extend(self._mailbox.take(SIDE_BY_SIDE - len(looks)) or ())
        if turn.abandoned:
            # What this thread took while it waited belongs to the one that has its place.
            for key, frame in waiting:
                self._mailbox.put(key, frame)
            self._mailbox.nudge()
            for look in looks:
                with contextlib.suppress(Exception):
                    look.begun.wait()

    def _let_go(self, detector: Detector) -> None:
        """On the thread that another has the place of, when it comes back."""
        with self._lock:
            self._abandoned -= 1
        logger.warning("A detector that was given up for hanging came back; it is let go")
        detector.close()

    def _waited(self, batch: list[tuple[str, Frame]]) -> bool:
        """Whether more comes than is looked at: two wait, or one came while another had its turn.
        Then the next is not far."""
        return len(batch) > 1 or batch[0][1].stamps.decoded_at_ns < self._settled_at_ns

    def _must_end(self) -> bool:
        """Whether no more may be begun side by side."""
        return self._stopped or self._handover is not None or bool(self._live)

    def _begin(self, detector: Detector, item: tuple[str, Frame]) -> _Look | None:
        key, frame = item
        taken_at_ns = now_ns()
        try:
            begun = detector.begin(picture_of(frame.video_frame), self._mailbox.nudge)
        except Exception:
            # It will be raised, and counted, once more when the frame is served alone.
            begun = None
        return None if begun is None else _Look(key, frame, taken_at_ns, begun)

    def _finish(self, turn: _Turn, detector: Detector, looks: list[_Look], look: _Look) -> None:
        """Wait for this one of them and publish it."""
        answers, failure = None, None
        try:
            answers = [look.begun.wait()]
        except Exception as error:
            # As in `_serve`.
            failure = error
        looks.remove(look)
        others_since_ns = looks[0].taken_at_ns if looks else 0
        batch = [(look.key, look.frame)]
        self._settle(turn, detector, batch, answers, failure, look.taken_at_ns, others_since_ns)

    def _settle(
        self,
        turn: _Turn,
        detector: Detector,
        batch: list[tuple[str, Frame]],
        answers: list[Detected] | None,
        failure: Exception | None,
        taken_at_ns: int,
        busy_since_ns: int = 0,
    ) -> None:
        """Count and publish what became of these; others may be looked at since an instant."""
        with self._lock:
            turn.busy_since_ns = busy_since_ns
            if turn.abandoned:
                return
        self._settled_at_ns = now_ns()
        if failure is not None:
            self._count_failure(failure, len(batch))
        else:
            self._inferred += len(batch)
            self._failures_in_row = 0
        for index, (key, frame) in enumerate(batch):
            detected = answers[index] if answers else None
            stamps = _stamp(frame.stamps, taken_at_ns, detected)
            self._publish(
                key, replace(frame, stamps=stamps), detected.detections if detected else None
            )
        engines = detector.reports()
        if engines != self._engines:
            # The engine fell back to another provider while running.
            self._engines = engines

    def _publish(self, key: str, frame: Frame, detections: Detections | None) -> None:
        with self._lock:
            publish = self._publish_by_key.get(key)
        if publish is None:
            return
        try:
            publish(frame, detections)
        except Exception:
            # Not ours: what one taker raises must not end the thread that serves them all.
            self._publish_failed += 1
            if self._publish_failed == 1:
                logger.exception("A result was not taken; further ones are counted")

    def _count_failure(self, error: Exception, frames: int) -> None:
        self._failed += frames
        if not self._failures_in_row:
            self._failing_since_ns = now_ns()
        self._failures_in_row += 1
        self._last_error = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        self._retry_at_ns = now_ns() + RETRY_NS
        if self._failures_in_row in (1, FAILURES_TO_TRIP):
            logger.error("The detector failed; frames pass without boxes", exc_info=error)


def _stamp(stamps: Stamps, taken_at_ns: int, detected: Detected | None) -> Stamps:
    if detected is None:
        return replace(stamps, taken_at_ns=taken_at_ns)
    return replace(
        stamps,
        taken_at_ns=taken_at_ns,
        prepared_at_ns=detected.prepared_at_ns,
        inferred_at_ns=detected.inferred_at_ns,
        boxed_at_ns=detected.boxed_at_ns,
    )
