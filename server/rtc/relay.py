"""A source's own pictures for many viewers: nothing decoded, drawn or encoded on the way.

Whole frames come from the source's receiver and leave with each viewer's own headers and
encryption (`fanout_sender.py`), so a loss between the source and us is a frame that does not
leave, never a gap in a viewer's packets. Loop only.

Bounds: `PENDING_AT_MOST` frames wait while viewers are served by turns; outgoing times are
remembered of `TIMES_KEPT` frames; a joining viewer is given at once what a fan-out would give.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from aiortc.utils import random32

from server.clock import NS_PER_S, now_ns
from server.rtc.assembly import EncodedFrame
from server.rtc.picture_source import VIEWERS_AT_ONCE, PictureSource, SharedPicture, Viewer
from server.rtc.sender_guards import RtpTimeline

PENDING_AT_MOST = 8
# Boxes follow their frame after the detector's time; four seconds at 30 a second.
TIMES_KEPT = 128


@dataclass(frozen=True, slots=True)
class RelayStatistics:
    """Counts since the relay was made."""

    codec: str
    """Of what the source sends; empty before the first frame."""
    viewers: int
    pictures: int
    keyframes: int
    keyframes_wished: int
    replays: int


@dataclass(frozen=True, slots=True)
class RelayedTime:
    """When a frame left, in the viewers' media time and in ours."""

    rtp_timestamp: int
    sent_at_ns: int


class RelayedTimes:
    """When frames left, by their media time as they came. Bound: `TIMES_KEPT`, the oldest goes."""

    def __init__(self) -> None:
        self._times: OrderedDict[int, RelayedTime] = OrderedDict()

    def note(self, source_rtp_timestamp: int, time: RelayedTime) -> None:
        self._times[source_rtp_timestamp] = time
        if len(self._times) > TIMES_KEPT:
            self._times.popitem(last=False)

    def of(self, source_rtp_timestamp: int) -> RelayedTime | None:
        """None for a frame that did not leave, or too long ago."""
        return self._times.get(source_rtp_timestamp)

    def clear(self) -> None:
        self._times.clear()


class Relay(PictureSource):
    """See the module. `call_soon` hands the rest of the viewers to the loop's next turn."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        super().__init__()
        self._call_soon = call_soon
        self._wish_at_source: Callable[[], None] | None = None
        self._timeline = RtpTimeline(random32())
        # The source's media time of its first frame, and when that was; None before.
        self._epoch: tuple[int, int] | None = None
        self._times = RelayedTimes()
        self._pending: deque[tuple[SharedPicture, list[Viewer]]] = deque()
        self._codec = ""
        self._pictures = 0
        self._keyframes = 0
        self._keyframes_wished = 0

    @property
    def codec(self) -> str:
        """What the source sends; empty while it has sent nothing that can be passed on."""
        return self._codec

    def statistics(self) -> RelayStatistics:
        return RelayStatistics(
            codec=self._codec,
            viewers=len(self._viewers),
            pictures=self._pictures,
            keyframes=self._keyframes,
            keyframes_wished=self._keyframes_wished,
            replays=self._replays,
        )

    # --- the source ---

    def source_came(self) -> None:
        """Frames with another media time, and maybe of another codec, begin."""
        self._epoch = None
        self._codec = ""
        self._wish_at_source = None
        self._recent.clear()
        self._times.clear()

    def offer(self, frame: EncodedFrame, ticks: int, wish_at_source: Callable[[], None]) -> None:
        """The source's next frame; `ticks` is its media time in 1/90000 s."""
        if not frame.payloads:
            return
        self._codec = frame.codec_name
        began = self._wish_at_source is None
        self._wish_at_source = wish_at_source
        if not self._viewers:
            return
        if began and not frame.is_key:
            # Viewers of the source before wait for this one's first key frame.
            self.wish_keyframe()
        at_ns = now_ns()
        if self._epoch is None:
            self._epoch = ticks, at_ns * 90_000 // NS_PER_S
        first_ticks, began_at_ticks = self._epoch
        rtp_timestamp = self._timeline.timestamp(began_at_ticks + ticks - first_ticks)
        self._times.note(frame.rtp_timestamp, RelayedTime(rtp_timestamp, at_ns))
        size = sum(map(len, frame.payloads))
        picture = SharedPicture(
            frame.payloads, frame.is_key, rtp_timestamp, frame.received_at_ns, size
        )
        self._pictures += 1
        self._keyframes += frame.is_key
        self._recent.add(picture)
        self._pending.append((picture, list(self._viewers)))
        if len(self._pending) == 1 or len(self._pending) > PENDING_AT_MOST:
            self._serve()

    def relayed(self, source_rtp_timestamp: int) -> RelayedTime | None:
        """When a frame of the source left; None when it did not, or too long ago."""
        return self._times.of(source_rtp_timestamp)

    # --- viewers ---

    def wish_keyframe(self) -> None:
        # The source's receiver bounds how often it is asked.
        self._keyframes_wished += 1
        if self._wish_at_source is not None:
            self._wish_at_source()

    def _let_go(self) -> None:
        self._pending.clear()

    def _serve(self) -> None:
        """Some viewers now, the rest after the loop has looked at something else; all of them
        when too much waits."""
        while self._pending:
            picture, viewers = self._pending[0]
            turn, rest = viewers[:VIEWERS_AT_ONCE], viewers[VIEWERS_AT_ONCE:]
            for viewer in turn:
                if viewer in self._viewers:
                    viewer.send_picture(picture)
            if rest:
                self._pending[0] = picture, rest
            else:
                self._pending.popleft()
            if self._pending and len(self._pending) <= PENDING_AT_MOST:
                self._call_soon(self._serve)
                return
