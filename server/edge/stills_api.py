"""Snapshots and MJPEG over HTTP.

An MJPEG reader counts as a viewer of its stream, like everybody who watches. It ends with its
token, with the stream, when it takes nothing for too long, and when the server stops.
"""

import asyncio
import secrets
import socket
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from aiohttp import web

from server.clock import NS_PER_S, now_ns
from server.edge.gate import CALLER, hold
from server.edge.query import number, per_second
from server.errors import (
    MalformedError,
    NotFoundError,
    NotLiveError,
    TooManyError,
    UnavailableError,
)
from server.hub import FULL
from server.latest import LatestClosed
from server.settings import StreamSettings
from server.stills import Kind, Reader, Stills, StillsStatistics
from server.stream import ANNOTATED, Stream, WatcherFacts
from server.streams import Streams

BOUNDARY = "frame"
WIDTHS = (16, 7680)
RATES = (0.1, 30.0)
USUAL_FPS = 10.0
RETRY_AFTER_S = 5
# A stream that rests until it is watched, and a camera that is just being opened, get so long.
FIRST_PICTURE_S = 3.0
# How often a stream that has fallen silent is looked at, and a connection that takes nothing.
LOOK_S = 1.0
# What the system may hold back for a reader: what is in it gets old.
SYSTEM_BYTES = 64 * 1024


class Onlooker:
    """Somebody who sees a stream's pictures over HTTP, as the stream knows it."""

    view = ANNOTATED
    listens = False

    def __init__(self, group: str) -> None:
        self.id = f"pictures-{secrets.token_urlsafe(18)}"
        self.group = group
        self.on_end: Callable[[], None] | None = None
        self._reason = ""
        self._came_at_ns = now_ns()

    def facts(self) -> WatcherFacts:
        return WatcherFacts(
            way="mjpeg",
            view=self.view,
            rung=FULL,
            codec="JPEG",
            state="live",
            age_s=round((now_ns() - self._came_at_ns) / NS_PER_S, 1),
            rtt_ms=None,
            packets_sent=0,
            packets_resent=0,
        )

    def watches(self, codec: str, rung: str) -> bool:
        return False

    def tell(self, text: str) -> None:
        """Pictures have no place for words."""

    def end(self, reason: str) -> None:
        """Send nothing more; the first reason stands."""
        if not self._reason and self.on_end is not None:
            self._reason = reason
            self.on_end()


@dataclass(slots=True)
class StillsApi:
    """The handlers. `has` tells who may still be ended, `close` ends all. A reader that takes
    nothing for `patience_s` is let go."""

    settings: StreamSettings
    streams: Streams
    executor: Executor
    patience_s: float
    _stills: weakref.WeakKeyDictionary[Stream, Stills] = field(
        default_factory=weakref.WeakKeyDictionary
    )
    _onlookers: dict[str, Onlooker] = field(default_factory=dict)
    _closed: bool = False

    def routes(self) -> list[web.AbstractRouteDef]:
        root = "/api/streams/{stream}"
        return [
            web.get(f"{root}/snapshot.jpg", self.snapshot, allow_head=False),
            web.get(f"{root}/mjpeg", self.mjpeg, allow_head=False),
        ]

    async def snapshot(self, request: web.Request) -> web.Response:
        """The stream's newest picture as JPEG, with boxes unless told otherwise."""
        kind = _kind(request)
        stream = self.streams.get(request.match_info["stream"])
        onlooker = Onlooker("")
        # Like any viewer: a stream that rests begins for it.
        stream.join(onlooker)
        try:
            jpeg = await self._of(stream).newest(kind, FIRST_PICTURE_S)
        except TimeoutError:
            raise NotLiveError("stream: no picture has come yet", RETRY_AFTER_S) from None
        finally:
            stream.leave(onlooker)
        return web.Response(
            body=jpeg, content_type="image/jpeg", headers={"Cache-Control": "no-store"}
        )

    async def newest(self, name: str) -> bytes | None:
        """The newest picture of a stream, with boxes, for other parts of the server; None where
        there is none. Wakes nothing that rests and counts for no viewer."""
        try:
            stills = self._of(self.streams.get(name))
            return await stills.newest(Kind(annotated=True, width=0), FIRST_PICTURE_S)
        except (NotFoundError, TimeoutError):
            return None

    async def mjpeg(self, request: web.Request) -> web.StreamResponse:
        """The stream as motion JPEG, until one side ends it."""
        kind, fps = _kind(request), per_second(request.query, "fps", USUAL_FPS, *RATES)
        stream = self.streams.get(request.match_info["stream"])
        onlooker = self._admit(request)
        stills = self._of(stream)
        try:
            stream.join(onlooker)
            reader = stills.join(kind, fps)
            onlooker.on_end = reader.pictures.close
            hold(request, onlooker.id, onlooker.end, stream.name, is_call=False)
            response = web.StreamResponse(
                headers={
                    "Content-Type": f"multipart/x-mixed-replace; boundary={BOUNDARY}",
                    "Cache-Control": "no-store",
                    "X-Content-Type-Options": "nosniff",
                    # nginx would collect the pictures otherwise.
                    "X-Accel-Buffering": "no",
                }
            )
            response.force_close()
            try:
                await response.prepare(request)
                await self._send(request, response, reader, stills)
            except ConnectionError:
                onlooker.end("left")
            finally:
                stills.leave(kind, reader)
        finally:
            stream.leave(onlooker)
            del self._onlookers[onlooker.id]
        return response

    async def _send(
        self, request: web.Request, response: web.StreamResponse, reader: Reader, stills: Stills
    ) -> None:
        transport = request.transport
        if transport is None:
            return
        own = transport.get_extra_info("socket")
        if own is not None:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SYSTEM_BYTES)
        while not transport.is_closing():
            try:
                async with asyncio.timeout(LOOK_S):
                    jpeg = await reader.pictures.wait_next()
            except TimeoutError:
                stills.refresh()
                continue
            except LatestClosed:
                return
            head = (
                f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            )
            try:
                async with asyncio.timeout(self.patience_s):
                    await response.write(head.encode() + jpeg + b"\r\n")
            except TimeoutError:
                # What waits in it is never read: nothing is gained by a polite end.
                transport.abort()
                return

    # --- who looks ---

    def has(self, onlooker_id: str) -> bool:
        return onlooker_id in self._onlookers

    def close(self) -> None:
        """End them all, and admit nobody any more."""
        self._closed = True
        for onlooker in list(self._onlookers.values()):
            onlooker.end("server stops")

    def statistics_of(self, stream: Stream) -> StillsStatistics:
        stills = self._stills.get(stream)
        return stills.statistics() if stills is not None else StillsStatistics(0, 0, 0, 0)

    def _admit(self, request: web.Request) -> Onlooker:
        caller = request[CALLER]
        group = "" if caller.is_local else caller.group
        most, each = self.settings.max_mjpeg_viewers, self.settings.max_mjpeg_per_address
        if self._closed:
            raise UnavailableError("the server is stopping", RETRY_AFTER_S)
        if len(self._onlookers) >= most:
            raise UnavailableError(f"max_mjpeg_viewers: {most} look already", RETRY_AFTER_S)
        if group and each:
            here = Counter(other.group for other in self._onlookers.values())[group]
            if here >= each:
                raise TooManyError(
                    f"max_mjpeg_per_address: {each} of this address look already", RETRY_AFTER_S
                )
        onlooker = Onlooker(group)
        self._onlookers[onlooker.id] = onlooker
        return onlooker

    def _of(self, stream: Stream) -> Stills:
        stills = self._stills.get(stream)
        if stills is None:
            stills = self._stills[stream] = Stills(stream.hub, self.executor)
        return stills


def _kind(request: web.Request) -> Kind:
    annotated = request.query.get("annotated", "1")
    if annotated not in ("0", "1"):
        raise MalformedError(f"annotated: {annotated!r:.20} is not 0 or 1")
    width = number(request.query, "width", 0, *WIDTHS)
    return Kind(annotated == "1", width or 0)
