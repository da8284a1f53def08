"""Events on their way into the store, and only then to whoever listens.

`happened` is called on the inference thread. A thread of the journal's makes the picture; the
writer, a task on the loop, commits what has come together since its last commit and posts it
behind. While the database is away events wait.

Bounds, each with a counter: pictures that wait to be made (PICTURES_AT_MOST; beyond it an event
goes without), events that wait to be written (ENTRIES_AT_MOST, and PICTURE_BYTES_AT_MOST of
pictures; what comes when they are full is lost).
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from server.analysis.events import Entry
from server.analysis.scene import Happening
from server.clock import now_ns, ns_to_ms, unix_ms
from server.errors import SightlineError, StoreRefusedError, UnavailableError
from server.history.thumbnail import thumbnail
from server.settings import StoreSettings
from server.telemetry import DurationRecorder, Summary

if TYPE_CHECKING:
    from server.history.store.store import Store

logger = logging.getLogger(__name__)

PICTURES_AT_MOST = 32
ENTRIES_AT_MOST = 4096
PICTURE_BYTES_AT_MOST = 32 * 2**20
ENTRIES_AT_ONCE = 256
RETRY_FIRST_S, RETRY_LAST_S = 0.2, 5.0
DAY_MS = 86_400_000
KEEP_EVERY_S = 60.0
RETRY_AFTER_S = 5


class EventStore(Protocol):
    """What the journal needs of a store (`store/store.py`)."""

    async def open(self) -> None: ...

    async def write(self, entries: Sequence[Entry]) -> None: ...

    async def forget_events(self, before_unix_ms: int, bytes_at_most: int) -> int: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class JournalStatistics:
    """Counts since start."""

    state: str
    """`off`, `idle` (nothing to store yet), `ready` or `away`."""
    last_error: str
    written: int
    waiting: int
    lost: int
    """Events that are in no database and were told to nobody."""
    pictures_lost: int
    forgotten: int
    """Events that were too old or too many."""
    write_ms: Summary
    """From the picture in which something was seen to the commit."""


@dataclass(slots=True)
class _Waiting:
    entry: Entry
    pictured: bool
    seen_at_ns: int


class Journal:
    """Made and used on the loop, but for `happened`. Without a store events are only told."""

    def __init__(
        self,
        settings: StoreSettings,
        make_store: Callable[[], EventStore] | None,
        post: Callable[[str, Mapping[str, Any]], None],
        *,
        eager: bool,
    ) -> None:
        self._settings = settings
        self._make_store = make_store
        self._post = post
        self._eager = eager
        self.store: EventStore | None = None
        """The open database; None before there is one and while it could not be opened."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pictures = ThreadPoolExecutor(1, thread_name_prefix="events")
        # Frames between the inference thread and the pictures' thread; both only add.
        self._frames_in = 0
        self._frames_out = 0
        self._entries: deque[_Waiting] = deque()
        self._picture_bytes = 0
        self._ready = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []
        self._state = "off" if make_store is None else "idle"
        self._last_error = ""
        self._written = 0
        self._lost = 0
        self._pictures_lost = 0
        self._forgotten = 0
        self._write_ms = DurationRecorder()

    @property
    def stores(self) -> bool:
        """Whether there is to be a store."""
        return self._make_store is not None

    @property
    def unreached(self) -> str:
        """Why what the database holds cannot be told now; empty where it can, or holds nothing."""
        if self.store is not None:
            return ""
        if self._state == "away":
            return "the database is away"
        # There was one when we started: not yet opened is not empty.
        return "the database is being opened" if self._eager and self._state == "idle" else ""

    def reach(self) -> "Store | None":
        """The open database, for those who search it; None where there is nothing yet. Refuses
        while there is one that cannot be reached."""
        if why := self.unreached:
            raise UnavailableError(f"store: {why}", RETRY_AFTER_S)
        # What the journal itself needs of it is less.
        return cast("Store | None", self.store)

    # --- in ---

    def happened(self, happening: Happening) -> None:
        """On the inference thread: an event began or ended."""
        loop = self._loop
        if loop is None:
            return
        frame = happening.frame
        if frame is not None and self._frames_in - self._frames_out >= PICTURES_AT_MOST:
            self._pictures_lost += 1
            frame = None
        if frame is not None:
            self._frames_in += 1

        def prepare() -> None:
            jpeg = None
            if frame is not None:
                try:
                    jpeg = thumbnail(frame.video_frame)
                except Exception:
                    # Broad on purpose: an event without a picture is still an event.
                    self._pictures_lost += 1
                    logger.debug("No picture of an event", exc_info=True)
                self._frames_out += 1
            entry = Entry(happening.event, jpeg)
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._take, entry, happening)

        # The journal may have closed: the server stops while this thread still had a frame.
        with contextlib.suppress(RuntimeError):
            self._pictures.submit(prepare)

    def _take(self, entry: Entry, happening: Happening) -> None:
        if self._make_store is None:
            self._tell(entry, False)
            return
        if self._closing or len(self._entries) >= ENTRIES_AT_MOST:
            self._lost += 1
            return
        size = len(entry.jpeg or b"")
        if self._picture_bytes + size > PICTURE_BYTES_AT_MOST:
            self._pictures_lost += 1
            entry, size = replace(entry, jpeg=None), 0
        self._picture_bytes += size
        # An event that ends got its picture when it began.
        pictured = entry.jpeg is not None or not happening.begins
        self._entries.append(_Waiting(entry, pictured, happening.seen_at_ns))
        self._settled.clear()
        self._ready.set()

    # --- out ---

    def start(self) -> None:
        """Begin to write. On the loop."""
        self._loop = asyncio.get_running_loop()
        if self._make_store is not None:
            self._tasks = [
                asyncio.create_task(self._run(), name="journal"),
                asyncio.create_task(self._keep(), name="retention of events"),
            ]

    async def close(self, timeout_s: float) -> None:
        """Write what waits, within the deadline; what is left then is counted as lost."""
        pictures = asyncio.to_thread(self._pictures.shutdown)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await pictures
                await asyncio.sleep(0)  # what the last one handed over
                await self._settled.wait()
        self._closing = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._entries:
            self._lost += len(self._entries)
            logger.warning("%d events were not written", len(self._entries))
        if self.store is not None:
            await self.store.close()

    async def _run(self) -> None:
        retry_s = RETRY_FIRST_S
        while True:
            if not self._eager and self.store is None:
                await self._ready.wait()
            try:
                if self.store is None:
                    self.store = await self._opened()
                if not self._entries:
                    # Else the write tells: a full disk lets a database be opened.
                    self._say("ready", "")
                await self._ready.wait()
                await self._write_some(self.store)
                self._say("ready", "")
                retry_s = RETRY_FIRST_S
            except (SightlineError, TimeoutError) as error:
                self._say("away", str(error) or "store: the database is too slow")
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, RETRY_LAST_S)
            except Exception as error:
                # The top of the task: it must not end, or events would be lost unseen.
                logger.exception("The journal failed")
                self._say("away", f"{type(error).__name__}")
                await asyncio.sleep(RETRY_LAST_S)

    async def _opened(self) -> EventStore:
        assert self._make_store is not None
        store = self._make_store()
        try:
            await store.open()
        except BaseException:
            # Cancelled at the server's end, too: the database's threads must not outlive us.
            await store.close()
            raise
        return store

    async def _write_some(self, store: EventStore) -> None:
        """One commit; then those in it are told."""
        batch = [self._entries[index] for index in range(min(len(self._entries), ENTRIES_AT_ONCE))]
        taken = []
        try:
            await store.write([waiting.entry for waiting in batch])
            taken = batch
        except StoreRefusedError:
            # One of them is to blame: each alone.
            for waiting in batch:
                try:
                    await store.write([waiting.entry])
                    taken.append(waiting)
                except StoreRefusedError as error:
                    self._lost += 1
                    logger.warning("An event was not written: %s", error)
        at_ns = now_ns()
        for _ in batch:
            waiting = self._entries.popleft()
            self._picture_bytes -= len(waiting.entry.jpeg or b"")
        if not self._entries:
            self._ready.clear()
            self._settled.set()
        self._written += len(taken)
        for waiting in taken:
            self._write_ms.add_ms(ns_to_ms(at_ns - waiting.seen_at_ns))
            self._tell(waiting.entry, waiting.pictured)

    def _tell(self, entry: Entry, pictured: bool) -> None:
        message = entry.event.to_json()
        if not pictured:
            message["snapshot_url"] = None
        self._post(entry.event.stream, message)

    async def _keep(self) -> None:
        """Retention, for as long as the journal runs."""
        while True:
            await asyncio.sleep(KEEP_EVERY_S)
            if self.store is None:
                continue
            try:
                before_unix_ms = int(unix_ms() - self._settings.events_keep_days * DAY_MS)
                limit = self._settings.events_max_mib * 2**20
                self._forgotten += await self.store.forget_events(before_unix_ms, limit)
            except (SightlineError, TimeoutError) as error:
                # The writer says that the database is away; the next round makes up for this one.
                logger.debug("Nothing was forgotten: %s", error)

    def _say(self, state: str, error: str) -> None:
        if state != self._state:
            if state == "away":
                logger.warning("Events wait: %s", error)
            elif self._state == "away":
                logger.info("Events are written again")
        self._state = state
        self._last_error = error

    def statistics(self) -> JournalStatistics:
        """On the loop."""
        return JournalStatistics(
            state=self._state,
            last_error=self._last_error,
            written=self._written,
            waiting=len(self._entries),
            lost=self._lost,
            pictures_lost=self._pictures_lost,
            forgotten=self._forgotten,
            write_ms=self._write_ms.statistics(),
        )
