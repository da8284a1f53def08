"""One source's pictures on their way through the detector, to whoever shows them.

`take` is called on the thread that decodes; results come on the inference thread. On either,
`deliver` is called with what is to be shown next, and must not wait. Between `open` and `close`
the detector works for this feed; a result in the making when it closes is dropped.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from server.call_options import CallOptions
from server.clock import NS_PER_S, ns_to_ms
from server.detections import Detections
from server.frame import Frame, Stamps, Submission
from server.shot import Found, Shot
from server.telemetry import RateMeter

if TYPE_CHECKING:
    from av import VideoFrame

logger = logging.getLogger(__name__)

# The newest interval counts for one in so many.
PACE_SHARE = 4


class Inference(Protocol):
    """What a feed needs of the inference thread; every method may be called on any thread."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def attach(
        self, key: str, publish: Callable[[Frame, Detections | None], None], *, patient: bool
    ) -> None: ...

    def submit(self, key: str, frame: Frame, *, next_in_ns: int | None) -> Submission: ...

    def detach(self, key: str) -> None: ...


class Analyst(Protocol):
    """What looks at a feed's pictures and boxes on their way (`analysis/analyst.py`)."""

    @property
    def covers(self) -> bool:
        """Whether `cover` hides anything; on any thread."""
        ...

    def cover(self, video_frame: "VideoFrame") -> "VideoFrame":
        """On the decoder thread: the picture without what nobody may see."""
        ...

    def track(self, detections: Detections, at_ns: int, confidence: float) -> Detections:
        """On the inference thread: all boxes of a picture taken at this instant, to be the same
        rows with the numbers of their tracks. `confidence` is the least that will be shown."""
        ...

    def look(self, frame: Frame, shown: Detections, names: Sequence[str]) -> None:
        """On the inference thread: what is shown of a picture. Must not wait."""
        ...

    def close(self) -> None:
        """No more pictures. On the loop."""
        ...


@dataclass(frozen=True, slots=True)
class FeedStatistics:
    """What came in so far."""

    frames: int
    fps: float
    size_wh: tuple[int, int]
    dropped_replaced: int
    """A newer frame came before the detector had time for it."""
    dropped_stale: int
    """It had waited for the detector for too long."""
    passed_without_boxes: int
    """No detector would look at it."""
    untracked: int
    """Boxes were shown without numbers, because following their objects failed."""


class Feed:
    """See the module. `on_detected` hears, on the inference thread, of boxes whose own picture has
    left without waiting for them (modes `smooth` and `data`). A `patient` one sends its next
    picture only after the answer to the last, so that none is given up for its successor."""

    def __init__(
        self,
        key: str,
        fade_ms: float,
        options: CallOptions,
        inference: Inference,
        deliver: Callable[[Shot], None],
        on_detected: Callable[[Frame, Detections], None] | None = None,
        analyst: Analyst | None = None,
        *,
        patient: bool = False,
    ) -> None:
        self.options = options
        """Replaced as a whole, at any time, on any thread."""
        self._key = key
        self._fade_ms = fade_ms
        self._inference = inference
        self._deliver = deliver
        self._on_detected = on_detected
        self._analyst = analyst
        self._patient = patient
        # Written on the decoder thread.
        self._frames = 0
        self._rate = RateMeter()
        self._received_at_ns = 0
        self._interval_ns = 0
        self._size_wh = (0, 0)
        self._dropped_replaced = 0
        self._dropped_stale = 0
        self._passed_without_boxes = 0
        # Written on the inference thread; the newest boxes are read on the decoder thread.
        self._untracked = 0
        self._newest: tuple[Frame, Detections] | None = None

    def open(self) -> None:
        """Results come from now on."""
        self._inference.attach(self._key, self._detected, patient=self._patient)

    def close(self) -> None:
        """No new results. Idempotent."""
        self._inference.detach(self._key)
        # Whoever owns this feed is let go of; a decoder or a result may still be on its way.
        self._deliver, self._on_detected = _shown_to_nobody, None
        if self._analyst is not None:
            self._analyst.close()

    def take(self, video_frame: "VideoFrame", rtp_timestamp: int, stamps: Stamps) -> None:
        """On the decoder thread: to the detector, and in `smooth` straight out as well."""
        if self._analyst is not None:
            video_frame = self._analyst.cover(video_frame)
        frame = Frame(video_frame, self._frames, rtp_timestamp, stamps)
        self._frames += 1
        self._rate.add(stamps.decoded_at_ns)
        self._size_wh = frame.size_wh
        next_in_ns = None if self._patient else self._next_in_ns(stamps.received_at_ns)
        submission = self._inference.submit(self._key, frame, next_in_ns=next_in_ns)
        if self.options.mode == "smooth":
            self._show(frame, *self._newest_boxes(stamps))
        elif submission is Submission.REFUSED:
            self._passed_without_boxes += 1
            self._show(frame, None, 1.0)
        elif submission is Submission.REPLACED:
            self._dropped_replaced += 1
        elif submission is Submission.STALE:
            self._dropped_stale += 1

    def _next_in_ns(self, received_at_ns: int) -> int:
        """When the source's next frame is expected, from the pace of those before."""
        if self._received_at_ns:
            interval_ns = received_at_ns - self._received_at_ns
            self._interval_ns += (interval_ns - self._interval_ns) // PACE_SHARE
        self._received_at_ns = received_at_ns
        return self._interval_ns

    def _detected(self, frame: Frame, detections: Detections | None) -> None:
        """On the inference thread; None when the detector failed."""
        options, analyst, on_detected = self.options, self._analyst, self._on_detected
        shown = None
        if detections is not None:
            if analyst is not None:
                detections = self._tracked(analyst, detections, frame.stamps.received_at_ns)
            shown = detections.select(options.confidence, self._class_ids(options))
            # A patient feed shows each picture with its own boxes, and keeps none.
            self._newest = None if self._patient else (frame, shown)
        if options.mode != "smooth":
            self._show(frame, shown, 1.0)
        if options.mode != "exact" and shown is not None and on_detected is not None:
            on_detected(frame, shown)
        if analyst is not None and shown is not None:
            # Last: the picture is on its way.
            analyst.look(frame, shown, self._inference.names)

    def _tracked(self, analyst: Analyst, detections: Detections, at_ns: int) -> Detections:
        try:
            return analyst.track(detections, at_ns, self.options.confidence)
        except Exception:
            # Broad on purpose: objects without numbers are better than no picture.
            self._untracked += 1
            if self._untracked == 1:
                logger.exception(
                    "Objects of %s get no numbers; further ones are counted", self._key
                )
            return detections

    def _show(
        self,
        frame: Frame,
        detections: Detections | None,
        opacity: float,
        found: Found | None = None,
    ) -> None:
        self._deliver(Shot(frame, detections, self._inference.names, opacity, found))

    def _newest_boxes(self, stamps: Stamps) -> tuple[Detections | None, float, Found | None]:
        """The newest boxes, moved to where their objects are expected by now, how strongly to
        draw them (they fade out over the last third), and as what they were found."""
        newest = self._newest
        if newest is None or not self._fade_ms:
            return None, 1.0, None
        frame, detections = newest
        age_ms = ns_to_ms(stamps.decoded_at_ns - frame.stamps.received_at_ns)
        if age_ms >= self._fade_ms:
            return None, 1.0, None
        moved_ns = stamps.received_at_ns - frame.stamps.received_at_ns
        opacity = min(1.0, 3 * (self._fade_ms - age_ms) / self._fade_ms)
        return detections.moved(moved_ns / NS_PER_S), opacity, (frame, detections)

    def _class_ids(self, options: CallOptions) -> list[int] | None:
        if options.classes is None:
            return None
        wanted = set(options.classes)
        return [index for index, name in enumerate(self._inference.names) if name in wanted]

    def statistics(self, at_ns: int) -> FeedStatistics:
        """On any thread."""
        return FeedStatistics(
            frames=self._frames,
            fps=round(self._rate.per_second(at_ns), 1),
            size_wh=self._size_wh,
            dropped_replaced=self._dropped_replaced,
            dropped_stale=self._dropped_stale,
            passed_without_boxes=self._passed_without_boxes,
            untracked=self._untracked,
        )


def _shown_to_nobody(shot: Shot) -> None:
    """What becomes of a picture after the end."""
