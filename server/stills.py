"""Pictures of a stream as JPEG, for what cannot do WebRTC: one when asked, or one after another.

A kind of picture (with boxes or without, of a width) is encoded once however many ask for it, on
the encode threads, and only while somebody asks. Readers get the newest; one that reads slowly
misses pictures, which are counted. On the loop.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from server.clock import NS_PER_S, now_ns
from server.hub import NO_SIGNAL, Hub
from server.latest import Latest
from server.overlay import Painter
from server.pixels import copy_yuv420p, jpeg_bytes, plane_views
from server.shot import Shot

logger = logging.getLogger(__name__)

QUALITY = 80
# Kinds of one stream that nobody reads and that are kept for the next who asks.
KINDS_KEPT = 8


@dataclass(frozen=True, slots=True)
class StillsStatistics:
    """Of one stream since it began."""

    readers: int
    encoded: int
    sent: int
    dropped_slow: int
    """Newer pictures came before a reader took them."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a picture is to look like; a width of 0 is that of the stream."""

    annotated: bool
    width: int


class Reader:
    """One who is sent picture after picture. Bound: one waits; a newer one replaces it."""

    def __init__(self, least_ns: int) -> None:
        self.pictures: Latest[bytes] = Latest()
        self._least_ns = least_ns
        self._due_at_ns = 0

    def is_due(self, at_ns: int) -> bool:
        return at_ns >= self._due_at_ns

    def give(self, jpeg: bytes, at_ns: int) -> None:
        # From when it was due, so that a source's own unevenness does not add up.
        self._due_at_ns = max(self._due_at_ns + self._least_ns, at_ns - self._least_ns)
        self.pictures.set(jpeg)


class _Press:
    """Makes one kind of picture of one stream, each at most once, one at a time."""

    def __init__(self, kind: Kind, executor: Executor) -> None:
        self._kind = kind
        self._executor = executor
        self._painter = Painter()
        self._made: tuple[Shot, str, bytes] | None = None
        self._making: asyncio.Future[bytes] | None = None
        self.readers: set[Reader] = set()
        self.encoded = 0

    @property
    def is_busy(self) -> bool:
        return self._making is not None

    async def print(self, shot: Shot, caption: str) -> bytes:
        """This picture; of one that was just made, the same bytes."""
        while True:
            if self._made is not None and self._made[0] is shot and self._made[1] == caption:
                return self._made[2]
            going_on = self._making
            if going_on is None:
                break
            # Not awaited itself: whoever asked may leave, and others wait for the same picture.
            await asyncio.wait([going_on])
        loop = asyncio.get_running_loop()
        making = self._making = loop.run_in_executor(self._executor, self._draw, shot, caption)
        making.add_done_callback(partial(self._done, shot, caption))
        await asyncio.wait([making])
        return making.result()

    def _done(self, shot: Shot, caption: str, making: asyncio.Future[bytes]) -> None:
        self._making = None
        if not making.cancelled() and making.exception() is None:
            self._made = shot, caption, making.result()
            self.encoded += 1

    def _draw(self, shot: Shot, caption: str) -> bytes:
        """On an encode thread."""
        picture = shot.frame.video_frame
        # Boxes of a picture that is not live any more would be taken for what is there now.
        boxes = shot.detections if self._kind.annotated and not caption else None
        if caption or (boxes is not None and len(boxes)):
            picture = copy_yuv420p(picture)
            if boxes is not None:
                self._painter.draw(plane_views(picture), boxes, shot.names, shot.opacity)
            if caption:
                self._painter.caption(plane_views(picture), caption)
        return jpeg_bytes(picture, self._kind.width, QUALITY)


class Stills:
    """The pictures of one stream. `close` ends its readers."""

    def __init__(self, hub: Hub, executor: Executor) -> None:
        self._hub = hub
        self._executor = executor
        self._presses: OrderedDict[Kind, _Press] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sent = 0
        self._dropped_slow = 0
        self._encoded = 0
        self._unlook: Callable[[], None] | None = None

    async def newest(self, kind: Kind, timeout_s: float) -> bytes:
        """The picture as it is now; waits for the first. Raises TimeoutError without one."""
        shot = self._hub.newest
        if shot is None:
            first: asyncio.Future[Shot] = asyncio.get_running_loop().create_future()

            def take(shot: Shot) -> None:
                if not first.done():
                    first.set_result(shot)

            unlook = self._hub.look(take)
            try:
                async with asyncio.timeout(timeout_s):
                    shot = await first
            finally:
                unlook()
        return await self._press(kind).print(shot, self._caption())

    def join(self, kind: Kind, fps: float) -> Reader:
        """A reader of at most so many pictures a second; whoever joins leaves."""
        reader = Reader(round(NS_PER_S / fps))
        self._press(kind).readers.add(reader)
        if self._unlook is None:
            self._unlook = self._hub.look(self._on_shot)
        if self._hub.newest is not None:
            self._on_shot(self._hub.newest)
        return reader

    def leave(self, kind: Kind, reader: Reader) -> None:
        """Idempotent."""
        press = self._presses.get(kind)
        if press is None or reader not in press.readers:
            return
        press.readers.discard(reader)
        reader.pictures.close()
        told = reader.pictures.statistics()
        self._sent += told.taken
        self._dropped_slow += told.dropped_replaced
        if not any(press.readers for press in self._presses.values()) and self._unlook:
            self._unlook()
            self._unlook = None

    def refresh(self) -> None:
        """Show again what was last, for readers of a stream that has fallen silent."""
        if self._hub.newest is not None and not self._hub.has_signal:
            self._on_shot(self._hub.newest)

    def statistics(self) -> StillsStatistics:
        readers = [reader for press in self._presses.values() for reader in press.readers]
        told = [reader.pictures.statistics() for reader in readers]
        return StillsStatistics(
            readers=len(readers),
            encoded=self._encoded + sum(press.encoded for press in self._presses.values()),
            sent=self._sent + sum(each.taken for each in told),
            dropped_slow=self._dropped_slow + sum(each.dropped_replaced for each in told),
        )

    # --- small parts ---

    def _on_shot(self, shot: Shot) -> None:
        """The stream's next picture: for every kind with a reader who is due for one."""
        at_ns = now_ns()
        for press in self._presses.values():
            due = [reader for reader in press.readers if reader.is_due(at_ns)]
            # While one is being made the next waits for nothing: a newer one will come.
            if due and not press.is_busy:
                task = asyncio.create_task(self._serve(press, shot), name="stills")
                self._tasks.add(task)
                task.add_done_callback(self._served)

    async def _serve(self, press: _Press, shot: Shot) -> None:
        jpeg = await press.print(shot, self._caption())
        at_ns = now_ns()
        for reader in press.readers:
            if reader.is_due(at_ns):
                reader.give(jpeg, at_ns)

    def _served(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("A picture could not be made", exc_info=error)

    def _caption(self) -> str:
        return "" if self._hub.has_signal else NO_SIGNAL

    def _press(self, kind: Kind) -> _Press:
        press = self._presses.get(kind)
        if press is None:
            press = self._presses[kind] = _Press(kind, self._executor)
            idle = [other for other, at in self._presses.items() if not at.readers]
            for other in idle[: max(0, len(idle) - KINDS_KEPT)]:
                self._encoded += self._presses.pop(other).encoded
        else:
            self._presses.move_to_end(kind)
        return press
