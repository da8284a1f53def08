"""Clips of what happens around events, from the packets that viewers get: no second encoder.

While a stream's zones are watched, its recorder is one more viewer of the H264 encoding: it keeps
the last seconds, so that a clip begins before its event. Events that overlap share a clip. A
clip is made into a file on the recorder's own thread, and counts once it is in the store.

Bounds, each with a counter: bytes of all pictures kept in memory (`clips_memory_mib`; a clip that
finds no room ends early, another does not begin), seconds of a clip (`clip_at_most_s`), clips
that wait for the database (UNWRITTEN_AT_MOST). When the disk refuses a file, recording stops with
an alarm and is tried again RETRY_S later; video goes on.
"""

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from server.analysis.events import APPEAR, DWELL, ENTER, SIGNAL, Clip, Event, new_event_id
from server.analysis.scene import Happening
from server.clock import now_ns, unix_ms
from server.errors import NotFoundError, SightlineError
from server.history.mp4 import make_movie
from server.history.reel import OpenClip, Reel
from server.hub import FULL
from server.outlets.bulletin import ENDED, EVENTS, LIVE, NO_SIGNAL, STATUS, Bulletin
from server.settings import ClipSettings
from server.streams import Streams

logger = logging.getLogger(__name__)

CODEC = "H264"
KEEP_EVERY_S = 60.0
# Files younger than that may be another server's in the making. What a crash left behind just
# before this start is old enough the second time.
SWEEPS = 2
RETRY_S = 60.0
UNWRITTEN_AT_MOST = 256
FORGET_AT_ONCE = 50
DAY_MS = 86_400_000
STOPPED = "recording_stopped"
# What is told twice: when it begins, and when it ends.
LASTING = (ENTER, DWELL, APPEAR)


class ClipStore(Protocol):
    """What the recorder needs of the store."""

    async def write_clip(self, clip: Clip) -> None: ...

    async def clip(self, clip_id: str) -> Clip | None: ...

    async def clip_bytes(self) -> int: ...

    async def oldest_clips(self, limit: int) -> list[Clip]: ...

    async def forget_clips(self, identities: list[str]) -> None: ...


@dataclass(frozen=True, slots=True)
class ClipStatistics:
    """Counts since start."""

    state: str
    """`off`, `ready`, or `stopped` by the disk."""
    last_error: str
    recording: int
    """Streams whose last seconds are kept."""
    open: int
    """Clips that go on."""
    written: int
    cut: int
    """Clips that ended early for want of memory."""
    lost: int
    """Clips that were not written, or never begun."""
    forgotten: int
    memory_bytes: int


class ClipRecorder:
    """All streams' reels and the thread that makes files. On the loop."""

    def __init__(
        self,
        settings: ClipSettings,
        folder: Path,
        rates: tuple[int, int],
        streams: Streams,
        bulletin: Bulletin,
        watched: Callable[[str], bool],
        store: Callable[[], ClipStore | None],
        alarm: Callable[[Happening], None],
    ) -> None:
        self._settings = settings
        self.folder = folder
        self._rates = rates
        self._streams = streams
        self._bulletin = bulletin
        self._watched = watched
        self._store = store
        self._alarm = alarm
        self._reels: dict[str, Reel] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clips")
        self._jobs: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._unwritten: deque[Clip] = deque()
        self._memory = 0
        # The disk refused the last file; and the alarm that tells of it, until one is written.
        self._paused = False
        self._alarming: Event | None = None
        self._resume: asyncio.TimerHandle | None = None
        self._sweeps_left = SWEEPS
        self._last_error = ""
        self._written = 0
        self._cut = 0
        self._lost = 0
        self._forgotten = 0

    def start(self) -> None:
        """Record from now on, if the settings say so."""
        if self._settings.clips:
            self._tasks = [
                asyncio.create_task(self._follow(), name="clips"),
                asyncio.create_task(self._keep(), name="retention of clips"),
            ]

    async def close(self, timeout_s: float) -> None:
        """End all clips and write them, within the deadline."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._resume is not None:
            self._resume.cancel()
        for name in list(self._reels):
            self._detach(name)
        if self._jobs:
            _, late = await asyncio.wait(list(self._jobs), timeout=timeout_s)
            for job in late:
                job.cancel()
            if late:
                self._lost += len(late)
                logger.warning("%d clips were not written", len(late))
                await asyncio.wait(late)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def path(self, clip_id: str) -> Path:
        """Of a clip's file."""
        return self.folder / f"{clip_id}.mp4"

    def forget_pictures(self, stream: str) -> None:
        """What is kept in memory of the stream shows what may not be seen any more."""
        reel = self._reels.pop(stream, None)
        if reel is not None:
            self._lost += reel.open is not None
            reel.close(lost=True)
            self._attach(stream)

    # --- what happens in the streams ---

    async def _follow(self) -> None:
        listener = self._bulletin.subscribe([EVENTS, STATUS])
        try:
            async for notice in listener:
                try:
                    if notice.topic == STATUS:
                        self._on_status(notice.stream, notice.message)
                    else:
                        self._on_event(notice.stream, notice.message)
                except Exception:
                    # The top of the task: one stream's trouble is not the others'.
                    logger.exception("A clip of %s failed", notice.stream)
        finally:
            listener.close()

    def _on_status(self, stream: str, message: Mapping[str, Any]) -> None:
        if message["state"] == LIVE and self._watched(stream):
            self._attach(stream)
        elif message["state"] == NO_SIGNAL and stream in self._reels:
            self._reels[stream].pause()
        elif message["state"] == ENDED:
            self._detach(stream)

    def _on_event(self, stream: str, message: Mapping[str, Any]) -> None:
        if message["kind"] == SIGNAL:
            return
        lasts = message["ended_unix_ms"] is None
        ends = not lasts and message["kind"] in LASTING
        reel = self._reels.get(stream) or (None if ends else self._attach(stream))
        if reel is None:
            return
        if reel.open is None and not ends and not self._weigh(0):
            self._lost += 1
            return
        reel.event(message["id"], ends=ends, lasts=lasts)

    def _attach(self, stream: str) -> Reel | None:
        if self._paused:
            return None
        reel = self._reels.get(stream)
        if reel is None:
            try:
                fanout = self._streams.get(stream).hub.fanout(CODEC, FULL)
            except NotFoundError:
                return None
            reel = self._reels[stream] = Reel(
                fanout,
                self._settings,
                self._rates,
                self._weigh,
                lambda clip: self._make(stream, clip),
            )
        return reel

    def _detach(self, stream: str) -> None:
        reel = self._reels.pop(stream, None)
        if reel is not None:
            reel.close()

    def _weigh(self, size: int) -> bool:
        """Count bytes that are kept, or not any more; whether there is room."""
        self._memory += size
        return self._memory <= self._settings.clips_memory_mib * 2**20

    # --- files ---

    def _make(self, stream: str, clip: OpenClip) -> None:
        if not clip.pictures:
            self._lost += 1
            return
        self._cut += not self._weigh(0)
        job = asyncio.create_task(self._write(stream, clip), name=f"clip of {stream}")
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def _write(self, stream: str, opened: OpenClip) -> None:
        clip_id = new_event_id(opened.started_unix_ms)
        loop = asyncio.get_running_loop()
        try:
            clip = await loop.run_in_executor(self._thread, self._to_disk, stream, clip_id, opened)
        except OSError as error:
            self._lost += 1
            self._stop(stream, error)
            return
        except (SightlineError, RuntimeError) as error:
            self._lost += 1
            self._last_error = str(error)
            logger.warning("A clip of %s was not made: %s", stream, error)
            return
        finally:
            self._weigh(-opened.size)
        self._go_on()
        if len(self._unwritten) >= UNWRITTEN_AT_MOST:
            self._lost += 1
            self._unlink(self._unwritten.popleft().id)
        self._unwritten.append(clip)
        await self._enter()

    def _to_disk(self, stream: str, clip_id: str, opened: OpenClip) -> Clip:
        """On the recorder's thread: a whole file or none."""
        before = sum(at_ns < opened.event_at_ns for at_ns, _ in opened.pictures)
        movie = make_movie([picture for _, picture in opened.pictures], before)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        reserve = self._settings.clips_reserve_mib * 2**20
        if shutil.disk_usage(self.folder).free < len(movie.data) + reserve:
            raise OSError(errno.ENOSPC, f"less than {self._settings.clips_reserve_mib} MiB left")
        part = self.folder / f"{clip_id}.{secrets.token_hex(4)}.part"
        try:
            number = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(number, "wb") as file:
                file.write(movie.data)
                file.flush()
                os.fsync(number)
            part.replace(self.path(clip_id))
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
        return Clip(
            id=clip_id,
            stream=stream,
            started_unix_ms=opened.started_unix_ms,
            duration_ms=movie.duration_ms,
            size_bytes=len(movie.data),
            size_wh=movie.size_wh,
            event_id=opened.event_id,
            thumbnail=movie.thumbnail,
        )

    async def _enter(self) -> None:
        """Files that are complete into the store; what it does not take now waits."""
        while self._unwritten:
            store, clip = self._store(), self._unwritten[0]
            if store is None:
                return
            try:
                await store.write_clip(clip)
            except (SightlineError, TimeoutError) as error:
                self._last_error = str(error)
                return
            # Another job may have been here meanwhile; writing twice changes nothing.
            if self._unwritten and self._unwritten[0] is clip:
                self._unwritten.popleft()
                self._written += 1

    # --- the disk ---

    def _stop(self, stream: str, error: OSError) -> None:
        """The disk takes nothing: no stream is recorded until it is tried again."""
        reason = error.strerror or type(error).__name__
        self._last_error = f"clips: {reason}"
        self._paused = True
        if self._alarming is None:
            logger.error("Recording stops: %s", reason)
            at_unix_ms = round(unix_ms())
            self._alarming = Event(
                id=new_event_id(at_unix_ms),
                stream=stream,
                kind=SIGNAL,
                class_name=STOPPED,
                track_id=None,
                zone="",
                started_unix_ms=at_unix_ms,
                ended_unix_ms=None,
                score=1.0,
            )
            self._alarm(Happening(self._alarming, True, None, now_ns()))
        for name in list(self._reels):
            reel = self._reels.pop(name)
            self._lost += reel.open is not None
            reel.close(lost=True)
        if self._resume is not None:
            self._resume.cancel()
        self._resume = asyncio.get_running_loop().call_later(RETRY_S, self._try_again)

    def _try_again(self) -> None:
        """Record again; the next file decides whether it goes on."""
        self._resume = None
        self._paused = False
        for statistics in self._streams.statistics():
            if statistics.live and self._watched(statistics.name):
                self._attach(statistics.name)

    def _go_on(self) -> None:
        """A file was written: the alarm is over."""
        alarming, self._alarming = self._alarming, None
        if alarming is not None:
            self._last_error = ""
            logger.info("Recording goes on")
            ended = replace(alarming, ended_unix_ms=max(round(unix_ms()), alarming.started_unix_ms))
            self._alarm(Happening(ended, False, None, now_ns()))

    # --- retention ---

    async def _keep(self) -> None:
        while True:
            try:
                await self._enter()
                store = self._store()
                if store is not None:
                    if self._sweeps_left:
                        await self._sweep(store)
                        self._sweeps_left -= 1
                    await self.forget(store)
            except (SightlineError, OSError, TimeoutError) as error:
                logger.debug("Nothing was forgotten: %s", error)
            await asyncio.sleep(KEEP_EVERY_S if self._sweeps_left < SWEEPS else 1.0)

    async def forget(self, store: ClipStore) -> None:
        """Delete what is too old, and the oldest until the rest fits."""
        before_unix_ms = unix_ms() - self._settings.clips_keep_days * DAY_MS
        over = await store.clip_bytes() - self._settings.clips_max_mib * 2**20
        while True:
            gone = []
            for clip in await store.oldest_clips(FORGET_AT_ONCE):
                if clip.started_unix_ms >= before_unix_ms and over <= 0:
                    break
                over -= clip.size_bytes
                gone.append(clip.id)
            if not gone:
                return
            # First from the store: what is listed is there.
            await store.forget_clips(gone)
            await asyncio.to_thread(self._unlink, *gone)
            self._forgotten += len(gone)

    async def _sweep(self, store: ClipStore) -> None:
        """Files that a crash left behind: half written, or not in the store."""
        for file in await asyncio.to_thread(self._files):
            waiting = any(clip.id == file.stem for clip in self._unwritten)
            known = file.suffix == ".mp4" and (waiting or await store.clip(file.stem) is not None)
            if not known:
                await asyncio.to_thread(file.unlink, missing_ok=True)

    def _files(self) -> list[Path]:
        started_s = (unix_ms() - KEEP_EVERY_S * 1000) / 1000
        found = [*self.folder.glob("*.mp4"), *self.folder.glob("*.part")]
        return [file for file in found if file.stat().st_mtime < started_s]

    def _unlink(self, *clip_ids: str) -> None:
        for clip_id in clip_ids:
            with contextlib.suppress(OSError):
                self.path(clip_id).unlink()

    def statistics(self) -> ClipStatistics:
        state = "off"
        if self._settings.clips:
            state = "ready" if self._alarming is None else "stopped"
        return ClipStatistics(
            state=state,
            last_error=self._last_error,
            recording=len(self._reels),
            open=sum(reel.open is not None for reel in self._reels.values()),
            written=self._written,
            cut=self._cut,
            lost=self._lost,
            forgotten=self._forgotten,
            memory_bytes=self._memory,
        )
