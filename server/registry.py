"""The calls there are: admits, finds, counts and ends them, and owns their tasks."""

import asyncio
import contextlib
import json
import logging
import random
import secrets
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from server.access.limits import Turns
from server.call_options import CallOptions
from server.clock import NS_PER_S, now_ns, s_to_ns
from server.errors import NotFoundError, UnavailableError
from server.link_counts import link_counts
from server.logs import log_event
from server.offer import Offer
from server.session import Session, SessionStatistics
from server.settings import SessionSettings
from server.stream import ANNOTATED, Publication, Stream, StreamStatistics
from server.streams import Streams
from server.viewer import Viewer, ViewerStatistics

logger = logging.getLogger(__name__)

NEGOTIATION_TIMEOUT_S = 5.0
RETRY_AFTER_S = 5
# Those who are told to reconnect come back within so long.
SPREAD_S = 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller gets back for its offer."""

    session: Session
    sdp: str


@dataclass(frozen=True, slots=True)
class ViewerAnswer:
    """What a viewer gets back for its offer."""

    viewer: Viewer
    sdp: str


@dataclass(frozen=True, slots=True)
class RegistryStatistics:
    """Counts since start and the calls as they stand."""

    opened: int
    refused_full: int
    refused_offer: int
    ended: dict[str, int]
    frames_in: int
    frames_out: int
    dropped: dict[str, int]
    sessions: tuple[SessionStatistics, ...]
    viewers_opened: int = 0
    viewers_ended: dict[str, int] = field(default_factory=dict)
    links: dict[str, int] = field(default_factory=dict)
    """Of all peer connections since start; see `link_counts.py`."""
    viewers: tuple[ViewerStatistics, ...] = ()
    streams: tuple[StreamStatistics, ...] = ()


class Registry:
    """On the loop only. `close` ends every call and refuses new ones from then on."""

    def __init__(
        self,
        settings: SessionSettings,
        make_session: Callable[[str, CallOptions, Publication | None], Session],
        streams: Streams,
        make_viewer: Callable[[str, Stream, str, str], Viewer],
        turns: Turns,
    ) -> None:
        self._settings = settings
        self._make_session = make_session
        self._make_viewer = make_viewer
        self._turns = turns
        self._streams = streams
        self._viewers: dict[str, Viewer] = {}
        self._viewers_opened = 0
        self._sessions: dict[str, Session] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._draining = False
        # Set whenever a call or viewer is gone.
        self._left = asyncio.Event()
        self._opened = 0
        self._refused_full = 0
        self._refused_offer = 0
        self._ended: dict[str, int] = {}
        # Of calls that have ended; those of live calls are added in a snapshot.
        self._frames: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._links: Counter[str] = Counter()
        self._viewers_ended: dict[str, int] = {}

    async def open(self, offer: Offer) -> Answer:
        """Admit and answer a call; refused calls leave nothing behind."""
        self._admit()
        options = self._options(offer)
        publication = None
        if offer.stream:
            publication = self._streams.claim(offer.stream, "call", returns_picture=True)
        return await self._open(offer, options, publication)

    async def publish(self, offer: Offer, stream_name: str) -> Answer:
        """Admit and answer the source of a stream, which gets no picture back."""
        self._admit()
        options = self._options(offer)
        publication = self._streams.claim(stream_name, "whip", returns_picture=False)
        return await self._open(offer, options, publication)

    async def _open(
        self, offer: Offer, options: CallOptions, publication: Publication | None
    ) -> Answer:
        try:
            session = self._make_session(secrets.token_urlsafe(18), options, publication)
        except BaseException:
            # Whatever it was, cancelling included: the name is free again.
            if publication is not None:
                publication.end()
            raise
        if publication is not None:
            publication.owner = session
        # In the table before the first await, so that the limit counts calls being answered.
        self._sessions[session.id] = session
        try:
            sdp = await self._negotiated(session, offer)
        except BaseException:
            # A caller that went away cancels this: half a call must not stay in the table.
            self._refused_offer += 1
            del self._sessions[session.id]
            self._left.set()
            self._keep(session.close("refused"), f"close {session.id}")
            raise
        self._opened += 1
        self._keep(self._live(session), f"session {session.id}")
        return Answer(session=session, sdp=sdp)

    async def view(
        self, offer: Offer, stream_name: str, rung: str, view: str = ANNOTATED
    ) -> ViewerAnswer:
        """Admit and answer a viewer of a stream; a refused one leaves nothing behind."""
        if self._draining:
            raise UnavailableError("the server is stopping", RETRY_AFTER_S)
        stream = self._streams.get(stream_name)
        viewer = self._make_viewer(secrets.token_urlsafe(18), stream, rung, view)
        self._viewers[viewer.id] = viewer
        try:
            sdp = await self._negotiated(viewer, offer)
        except BaseException:
            # As for a call.
            del self._viewers[viewer.id]
            self._left.set()
            self._keep(viewer.close("refused"), f"close {viewer.id}")
            raise
        self._viewers_opened += 1
        self._keep(self._watch(viewer), f"viewer {viewer.id}")
        return ViewerAnswer(viewer=viewer, sdp=sdp)

    def viewer(self, session_id: str) -> Viewer:
        """The viewer with this id; the id is what entitles to it."""
        viewer = self._viewers.get(session_id)
        if viewer is None:
            raise NotFoundError("session: no such viewer, or it has ended")
        return viewer

    def get(self, session_id: str) -> Session:
        """The call with this id; the id is what entitles to it."""
        session = self._sessions.get(session_id)
        if session is None:
            raise NotFoundError("session: no such call, or it has ended")
        return session

    def has(self, session_id: str) -> bool:
        """Whether this call or viewer is alive."""
        return session_id in self._sessions or session_id in self._viewers

    def update(self, session_id: str, changes: Mapping[str, object]) -> CallOptions:
        return self.get(session_id).update(changes)

    async def end(self, session_id: str) -> None:
        """End a call or a viewer and wait until it is closed."""
        member = self._viewers.get(session_id) or self.get(session_id)
        await member.close("ended by the caller")

    async def drain(self, timeout_s: float) -> None:
        """Take nobody in any more, tell those who are in to go elsewhere, and wait until they have
        gone; whoever is left then is ended by `close`."""
        self._draining = True
        members: dict[str, Session | Viewer] = {**self._sessions, **self._viewers}
        for member in members.values():
            # Spread, so that whatever takes over is not met by everybody at once.
            message = {
                "type": "reconnect",
                "reason": "the server is stopping",
                "after_ms": random.randint(0, int(1000 * min(timeout_s / 2, SPREAD_S))),
            }
            member.announce(json.dumps(message))
        deadline_ns = now_ns() + s_to_ns(timeout_s)
        while (left_ns := deadline_ns - now_ns()) > 0 and (self._sessions or self._viewers):
            self._left.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_ns / NS_PER_S):
                    await self._left.wait()
        log_event(
            logger, "drained", told=len(members), left=len(self._sessions) + len(self._viewers)
        )

    async def close(self, timeout_s: float) -> None:
        """End all calls at once, each within its own close deadline."""
        self._draining = True
        for session in self._sessions.values():
            session.end("server stops")
        for viewer in self._viewers.values():
            viewer.end("server stops")
        self._streams.close()
        if not self._tasks:
            return
        _, pending = await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in pending:
            logger.warning("Still running after %.1f s: %s", timeout_s, task.get_name())
            task.cancel()

    def statistics(self) -> RegistryStatistics:
        sessions = tuple(session.statistics() for session in self._sessions.values())
        frames, dropped = self._frames.copy(), self._dropped.copy()
        for session in sessions:
            _add_frames(session, frames, dropped)
        viewers = tuple(viewer.statistics() for viewer in self._viewers.values())
        peers = [session.peer for session in sessions] + [viewer.peer for viewer in viewers]
        links = self._links + link_counts(peers)
        return RegistryStatistics(
            opened=self._opened,
            refused_full=self._refused_full,
            refused_offer=self._refused_offer,
            ended=dict(self._ended),
            frames_in=frames["in"],
            frames_out=frames["out"],
            dropped=dict(dropped),
            sessions=sessions,
            viewers_opened=self._viewers_opened,
            viewers_ended=dict(self._viewers_ended),
            links=dict(links),
            viewers=viewers,
            streams=self._streams.statistics(),
        )

    @property
    def count(self) -> int:
        """Calls that are up or being answered."""
        return len(self._sessions)

    @property
    def draining(self) -> bool:
        return self._draining

    def _admit(self) -> None:
        if self._draining:
            raise UnavailableError("the server is stopping", RETRY_AFTER_S)
        limit = self._settings.max_sessions
        if len(self._sessions) >= limit:
            self._refused_full += 1
            raise UnavailableError(
                f"max_sessions: all {limit} calls this server may hold are taken", RETRY_AFTER_S
            )

    async def _negotiated(self, member: Session | Viewer, offer: Offer) -> str:
        try:
            async with asyncio.timeout(NEGOTIATION_TIMEOUT_S):
                await self._turns.take()
                return await member.negotiate(offer)
        except TimeoutError:
            # Hardly ever the offer's fault: whoever is told so comes back, and is not turned away.
            raise UnavailableError(
                f"negotiation: not done within {NEGOTIATION_TIMEOUT_S:g} s", RETRY_AFTER_S
            ) from None

    async def _live(self, session: Session) -> None:
        try:
            reason = await session.run()
            self._ended[reason] = self._ended.get(reason, 0) + 1
        finally:
            self._sessions.pop(session.id, None)
            self._left.set()
            last = session.statistics()
            _add_frames(last, self._frames, self._dropped)
            self._links += link_counts([last.peer])

    async def _watch(self, viewer: Viewer) -> None:
        try:
            reason = await viewer.run()
            self._viewers_ended[reason] = self._viewers_ended.get(reason, 0) + 1
        finally:
            self._viewers.pop(viewer.id, None)
            self._links += link_counts([viewer.statistics().peer])
            self._left.set()

    def _options(self, offer: Offer) -> CallOptions:
        settings = self._settings
        start = CallOptions(mode=settings.mode, confidence=settings.confidence)
        return start.updated(offer.options)

    def _keep(self, coroutine: Coroutine[Any, Any, object], name: str) -> None:
        """Own a task until it is done; an exception in it is a bug and is logged as one."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed", task.get_name(), exc_info=error)


def _add_frames(session: SessionStatistics, frames: Counter[str], dropped: Counter[str]) -> None:
    frames["in"] += session.frames_in
    frames["out"] += session.frames_out
    dropped.update(session.dropped)
