"""One stream's pictures on their way to its viewers: drawn once, encoded once per codec and rung.

A rung is a size: `full`, and `low` with half the sides, which exists only while watched. When
pictures stop coming, the last one is shown with `no signal` until they come again. On the
loop; drawing happens on the encode threads.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from server.clock import NS_PER_S, now_ns, s_to_ns
from server.frame import Stamps
from server.overlay import Painter
from server.pixels import copy_yuv420p, plane_views
from server.rtc.encoders import Renderable
from server.rtc.fanout import Fanout, FanoutStatistics
from server.rtc.options import RtcOptions
from server.rtc.picture_source import SharedPicture
from server.shot import Shot

if TYPE_CHECKING:
    from av import VideoFrame

FULL, LOW = "full", "low"
RUNGS = (FULL, LOW)
NO_SIGNAL = "no signal"
# The least that a viewer is sent while nothing comes in, and how long a picture that is wished
# for may take to come by itself.
REPEAT_S = 1.0
WISH_S = 0.15
# Without a picture for so long there is no signal.
SILENT_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class SentShot:
    """A shot that has left for all viewers of one encoding."""

    shot: Shot
    codec: str
    rung: str
    rtp_timestamp: int
    stamps: Stamps


class Drawing:
    """A shot drawn by whichever encode thread comes first, then copied for each encoder."""

    def __init__(
        self, shot: Shot, painter: Painter, lock: threading.Lock, caption: str, takers: int
    ) -> None:
        self.shot = shot
        self._painter = painter
        # The painter's, so that it draws one picture at a time.
        self._lock = lock
        self._caption = caption
        self._takers = takers
        self._drawn: VideoFrame | None = None
        self.handed_out_at_ns = 0
        self.drawn_at_ns = 0

    def take(self) -> "VideoFrame":
        """A frame of the caller's own: an encoder writes into it."""
        with self._lock:
            if self._drawn is None:
                self.handed_out_at_ns = now_ns()
                self._drawn = self._draw()
                self.drawn_at_ns = now_ns()
            return self._drawn if self._takers == 1 else copy_yuv420p(self._drawn)

    def _draw(self) -> "VideoFrame":
        shot = self.shot
        picture = copy_yuv420p(shot.frame.video_frame)
        if shot.detections is not None and len(shot.detections):
            self._painter.draw(plane_views(picture), shot.detections, shot.names, shot.opacity)
        if self._caption:
            self._painter.caption(plane_views(picture), self._caption)
        return picture


class RungPicture:
    """A drawing in the size of one rung, for one encoder."""

    def __init__(self, drawing: Drawing, rung: str) -> None:
        self.drawing = drawing
        self._rung = rung
        self.stamps = drawing.shot.frame.stamps

    def render(self) -> "VideoFrame":
        """On an encode thread."""
        picture = self.drawing.take()
        if self._rung == LOW:
            width, height = picture.width // 4 * 2, picture.height // 4 * 2
            smaller = picture.reformat(max(width, 2), max(height, 2), "yuv420p")
            smaller.pts = picture.pts
            return smaller
        return picture

    def sent(self, encode_started_at_ns: int, encoded_at_ns: int, sent_at_ns: int) -> None:
        """The last viewer's last packet has left."""
        self.stamps = replace(
            self.stamps,
            handed_out_at_ns=self.drawing.handed_out_at_ns,
            drawn_at_ns=self.drawing.drawn_at_ns,
            encoded_at_ns=encoded_at_ns,
            sent_at_ns=sent_at_ns,
        )


@dataclass(frozen=True, slots=True)
class EncodingStatistics:
    """One encoding: which, and what it did."""

    rung: str
    fanout: FanoutStatistics


class Hub:
    """See the module. `on_sent` hears of every shot with its own boxes that left. Ends by
    `close`; a shot that comes later is ignored."""

    def __init__(
        self,
        options: RtcOptions,
        encode_executor: Executor,
        on_sent: Callable[[SentShot], None],
    ) -> None:
        self._options = options
        self._encode_executor = encode_executor
        self._on_sent = on_sent
        self._loop = asyncio.get_running_loop()
        self._painter = Painter()
        self._painter_lock = threading.Lock()
        self._fanouts: dict[tuple[str, str], Fanout] = {}
        self._newest: Shot | None = None
        self._lookers: dict[Callable[[Shot], object], None] = {}
        self._newest_at_ns = 0
        self._has_source = False
        # The source's media time of its first picture, and when that was; None before.
        self._epoch: tuple[int, int] | None = None
        self._wish: asyncio.TimerHandle | None = None
        self._repeat: asyncio.TimerHandle | None = self._loop.call_later(REPEAT_S, self._keep_alive)
        self._closed = False

    # --- the source's side ---

    def source_came(self) -> None:
        """Pictures with another media time begin."""
        self._has_source = True
        self._epoch = None

    def source_left(self) -> None:
        """The last picture stays, marked as such at once."""
        self._has_source = False
        self._show_again()

    def forget(self) -> None:
        """What was shown last is not shown again: the source rests until it is watched."""
        self._newest = None
        self._newest_at_ns = 0
        self._epoch = None

    def offer(self, shot: Shot) -> None:
        """The stream's next picture."""
        if self._closed:
            return
        self._newest = shot
        self._newest_at_ns = now_ns()
        for looker in list(self._lookers):
            looker(shot)
        self._hand_out(shot, "", self._ticks(shot))

    @property
    def newest(self) -> Shot | None:
        """What was offered last; None before, and after `forget` and `close`."""
        return self._newest

    def look(self, looker: Callable[[Shot], object]) -> Callable[[], None]:
        """Hear of every picture offered, until what this returns is called. Must not wait."""
        self._lookers[looker] = None

        def unlook() -> None:
            self._lookers.pop(looker, None)

        return unlook

    @property
    def has_signal(self) -> bool:
        """Whether pictures come in."""
        silent_ns = now_ns() - self._newest_at_ns
        return self._has_source and silent_ns < s_to_ns(SILENT_AFTER_S)

    def close(self) -> None:
        """Show nothing any more. Idempotent."""
        self._closed = True
        self._newest = None
        # Those who watch hold their encoding until they are gone; it and the stream lead back here.
        self._fanouts.clear()
        self._on_sent = _told_to_nobody
        for timer in (self._wish, self._repeat):
            if timer is not None:
                timer.cancel()

    # --- the viewers' side ---

    def fanout(self, codec: str, rung: str) -> Fanout:
        """The encoding for viewers of this codec and rung; made when first asked for."""
        key = (codec, rung)
        found = self._fanouts.get(key)
        if found is None:

            def on_sent(picture: Renderable, shared: SharedPicture) -> None:
                self._sent(picture, shared, codec, rung)

            found = self._fanouts[key] = Fanout(
                codec, self._options, self._encode_executor, on_sent, self._on_wish
            )
        return found

    @property
    def watched(self) -> bool:
        """Whether anything is drawn and encoded for somebody."""
        return any(fanout.watched for fanout in self._fanouts.values())

    def statistics(self) -> tuple[EncodingStatistics, ...]:
        return tuple(
            EncodingStatistics(rung, fanout.statistics())
            for (_, rung), fanout in self._fanouts.items()
        )

    # --- pictures out ---

    def _hand_out(self, shot: Shot, caption: str, ticks: int) -> None:
        watched = [(key, fanout) for key, fanout in self._fanouts.items() if fanout.watched]
        if not watched:
            return
        drawing = Drawing(shot, self._painter, self._painter_lock, caption, len(watched))
        captured_at_ns = shot.frame.stamps.received_at_ns
        for (_, rung), fanout in watched:
            fanout.offer(RungPicture(drawing, rung), ticks, captured_at_ns)

    def _ticks(self, shot: Shot) -> int:
        """Media time that goes on evenly from one source to the next, in 1/90000 s."""
        picture, stamps = shot.frame.video_frame, shot.frame.stamps
        if picture.pts is None or not picture.time_base:
            return _ticks_at(stamps.received_at_ns)
        source_ticks = int(picture.pts * picture.time_base * 90_000)
        if self._epoch is None:
            self._epoch = source_ticks, _ticks_at(stamps.received_at_ns)
        began, began_at = self._epoch
        return began_at + source_ticks - began

    def _sent(self, picture: Renderable, shared: SharedPicture, codec: str, rung: str) -> None:
        assert isinstance(picture, RungPicture)
        result = shared.result
        assert result is not None, "a fan-out encodes what it sends"
        picture.sent(result.encode_started_at_ns, result.encoded_at_ns, now_ns())
        shot = picture.drawing.shot
        self._on_sent(SentShot(shot, codec, rung, shared.rtp_timestamp, picture.stamps))

    # --- when nothing comes ---

    def _on_wish(self) -> None:
        """A viewer waits for a key frame; the source may be slow, or gone."""
        if self._wish is None and not self._closed:
            self._wish = self._loop.call_later(WISH_S, self._fulfil)

    def _fulfil(self) -> None:
        self._wish = None
        if now_ns() - self._newest_at_ns > s_to_ns(WISH_S):
            self._show_again()

    def _keep_alive(self) -> None:
        self._repeat = self._loop.call_later(REPEAT_S, self._keep_alive)
        if not self.has_signal:
            self._show_again()

    def _show_again(self) -> None:
        """The last picture once more, with what there is to say about it."""
        shot = self._newest
        if shot is None or self._closed:
            return
        at_ns = now_ns()
        caption = "" if self.has_signal else NO_SIGNAL
        # Boxes of a picture that is not live any more would be taken for what is there now.
        shown = replace(shot, detections=None) if caption else shot
        self._hand_out(shown, caption, _ticks_at(at_ns))


def _told_to_nobody(sent: SentShot) -> None:
    """What becomes of a shot that leaves after the end."""


def _ticks_at(at_ns: int) -> int:
    return at_ns * 90_000 // NS_PER_S
