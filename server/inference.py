"""The thread that owns the detector.

It takes the newest frame of each session in fair turns, runs the detector, and calls the
session's publish function, still on this thread. It knows no event loop and no pixels. A
detector that raises costs boxes, never video: the frame is published without any.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol

from server.batching import BatchPlan
from server.clock import NS_PER_MS, NS_PER_S, now_ns, ns_to_ms
from server.detections import Detected, Detections, EngineReport
from server.frame import Frame, Stamps, Submission
from server.mailbox import NEVER_NS, Left, Mailbox, MailboxStatistics
from server.pixels import Picture, YuvPicture
from server.settings import SchedulingSettings

logger = logging.getLogger(__name__)

# A frame that has been with the detector for longer is taken for a hang: video goes on without.
STALL_NS = NS_PER_S // 2
# After so many failures in a row only one frame a second is tried.
FAILURES_TO_TRIP = 5
RETRY_NS = NS_PER_S
SUBMISSIONS = {
    Left.WAITING: Submission.WAITING,
    Left.REPLACED: Submission.REPLACED,
    Left.STALE: Submission.STALE,
    Left.CLOSED: Submission.REFUSED,
}


class Detector(Protocol):
    """What the worker needs; made elsewhere, used and closed on the inference thread only."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def max_batch(self) -> int: ...

    def detect(self, pictures: Sequence[Picture]) -> list[Detected]: ...

    def reports(self) -> tuple[EngineReport, ...]: ...

    def close(self) -> None: ...


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
        self._detector = detector
        self._handover: _Handover | None = None
        self._names = detector.names if detector else ()
        self._engines = detector.reports() if detector else ()
        self._busy_since_ns = 0
        self._inferred = 0
        self._failed = 0
        self._failures_in_row = 0
        self._retry_at_ns = 0
        self._swaps = 0
        self._last_error = ""
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End the thread; False if it still hangs in the detector after `timeout_s`.

        The thread is a daemon because native code that hangs cannot be ended from outside.
        """
        self._stopped = True
        self._mailbox.close()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def attach(self, key: str, publish: Publish) -> None:
        """Results for `key` go to `publish` from now on."""
        with self._lock:
            self._publish_by_key[key] = publish

    def detach(self, key: str) -> None:
        """Forget `key`; a result in the making is dropped."""
        with self._lock:
            self._publish_by_key.pop(key, None)
        self._mailbox.remove(key)

    def submit(self, key: str, frame: Frame, *, perishable: bool = False) -> Submission:
        """Leave the newest frame of `key`; a refused one the caller lets pass as it is.

        A perishable one is of no use once it has waited for longer than `max_wait_ms`, or than
        the detector takes for a frame: its successor will be nearer to what is there now.
        """
        at_ns = now_ns()
        if self._state(at_ns) not in ("running", "failing"):
            return Submission.REFUSED
        if self._failures_in_row >= FAILURES_TO_TRIP and at_ns < self._retry_at_ns:
            return Submission.REFUSED
        until_ns = at_ns + self._max_wait_ns() if perishable else NEVER_NS
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

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    def statistics(self) -> InferenceStatistics:
        return InferenceStatistics(
            mailbox=self._mailbox.statistics(),
            inferred=self._inferred,
            failed=self._failed,
            swaps=self._swaps,
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
        busy_since_ns = self._busy_since_ns
        if busy_since_ns and at_ns - busy_since_ns > STALL_NS:
            return "stalled"
        return "failing" if self._failures_in_row >= FAILURES_TO_TRIP else "running"

    def _adopt(self, handover: "_Handover") -> None:
        """Let the new detector take over. Inference thread."""
        previous, self._detector = self._detector, handover.detector
        self._names = handover.detector.names
        self._engines = handover.detector.reports()
        self._failures_in_row = 0
        self._plan = BatchPlan(self._rules.batch_budget_ms)
        self._swaps += 1
        if previous is not None:
            previous.close()
        if handover.adopted.set_running_or_notify_cancel():
            handover.adopted.set_result(None)

    def _run(self) -> None:
        while (batch := self._mailbox.take(self._batch_limit())) is not None:
            with self._lock:
                handover, self._handover = self._handover, None
            if handover is not None:
                self._adopt(handover)
            # Read after the wait: the first detector may have come meanwhile.
            detector = self._detector
            if batch:
                assert detector is not None, "frames are submitted only to a detector"
                self._serve(detector, batch)
        if self._detector is not None:
            self._detector.close()

    def _batch_limit(self) -> int:
        detector = self._detector
        if detector is None or detector.max_batch == 1:
            return 1
        return self._plan.limit(detector.max_batch, ns_to_ms(self._max_wait_ns()))

    def _max_wait_ns(self) -> int:
        if not self._rules.max_wait_ms:
            return NEVER_NS
        return int(max(self._rules.max_wait_ms, self._plan.single_ms) * NS_PER_MS)

    def _serve(self, detector: Detector, batch: list[tuple[str, Frame]]) -> None:
        taken_at_ns = self._busy_since_ns = now_ns()
        try:
            answers = detector.detect([YuvPicture(frame.video_frame) for _, frame in batch])
        except Exception as error:
            self._count_failure(error, len(batch))
            answers = None
        else:
            self._inferred += len(batch)
            self._failures_in_row = 0
            self._plan.ran(len(batch), ns_to_ms(now_ns() - taken_at_ns))
        self._busy_since_ns = 0
        for index, (key, frame) in enumerate(batch):
            detected = answers[index] if answers else None
            stamps = _stamp(frame.stamps, taken_at_ns, detected)
            with self._lock:
                publish = self._publish_by_key.get(key)
            if publish is not None:
                publish(replace(frame, stamps=stamps), detected.detections if detected else None)
        engines = detector.reports()
        if engines != self._engines:
            # The engine fell back to another provider while running.
            self._engines = engines

    def _count_failure(self, error: Exception, frames: int) -> None:
        # Broad on purpose: whatever a detector raises ends one frame, not the thread.
        self._failed += frames
        self._failures_in_row += 1
        self._last_error = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        self._retry_at_ns = now_ns() + RETRY_NS
        if self._failures_in_row in (1, FAILURES_TO_TRIP):
            logger.exception("The detector failed; frames pass without boxes")


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
