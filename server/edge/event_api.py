"""The bulletin over HTTP: Server-Sent Events, and the same as a WebSocket.

Whoever reads slowly gets fewer detections, never old ones; whoever does not read at all is let
go. A reconnecting listener names the last id it saw and gets the events in between.
"""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from aiohttp import WSCloseCode, WSMsgType, web

from server.clock import now_ns, s_to_ns
from server.edge.gate import CALLER, authorize, hold, principal_of
from server.edge.query import per_second
from server.errors import MalformedError, NotFoundError
from server.outlets.audience import LEFT, SLOW, STREAM_ENDED, Audience, Listener
from server.outlets.bulletin import (
    DETECTIONS,
    ENDED,
    EVENTS,
    STATUS,
    TOPICS,
    Bulletin,
    Closed,
    Notice,
    Subscription,
)
from server.settings import OutletSettings
from server.streams import Streams

# How often a listener that is told nothing is looked at: a closed connection says so by itself
# only when something is written to it.
LOOK_S = 2.0
# What may wait in a connection before newer detections replace older ones.
WAITING_BYTES = 16 * 1024
RETRY_MS = 3000
STREAMS_AT_MOST = 64
RATES = (0.01, 1000.0)
MESSAGE_BYTES_AT_MOST = 1024
# What a topic is called on the wire: one message of it.
KINDS = {DETECTIONS: "detections", EVENTS: "event", STATUS: "status"}

Send = Callable[[str, str, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a listener asks for."""

    topics: tuple[str, ...]
    streams: tuple[str, ...]
    """Empty: all it may view."""
    detections_every_s: float
    after: int | None


@dataclass(frozen=True, slots=True)
class EventApi:
    """The handlers. `names` are the classes of the running detector."""

    settings: OutletSettings
    bulletin: Bulletin
    audience: Audience
    streams: Streams
    names: Callable[[], Sequence[str]]

    def routes(self) -> list[web.AbstractRouteDef]:
        return [
            web.get("/api/streams/{stream}/detections", self.follow_stream, allow_head=False),
            web.get("/api/events/live", self.follow_all, allow_head=False),
            web.get("/ws/detections", self.websocket, allow_head=False),
        ]

    # --- Server-Sent Events ---

    async def follow_stream(self, request: web.Request) -> web.StreamResponse:
        """Detections of one stream as Server-Sent Events, until it ends."""
        name = request.match_info["stream"]
        self.streams.get(name)
        wish = self._wish(request, (DETECTIONS, STATUS))
        wish = Wish(wish.topics, (name,), wish.detections_every_s, wish.after)
        return await self._serve_events(request, wish, ends_with=name)

    async def follow_all(self, request: web.Request) -> web.StreamResponse:
        """Events of all streams that the caller may view, as Server-Sent Events."""
        return await self._serve_events(request, self._wish(request, (EVENTS, STATUS)))

    async def _serve_events(
        self, request: web.Request, wish: Wish, ends_with: str = ""
    ) -> web.StreamResponse:
        listener = self._admit(request, wish, "sse")
        try:
            response = web.StreamResponse(
                headers={
                    "Content-Type": "text/event-stream",
                    "Cache-Control": "no-store",
                    "X-Content-Type-Options": "nosniff",
                    # nginx would collect the messages otherwise.
                    "X-Accel-Buffering": "no",
                }
            )
            response.force_close()
            await response.prepare(request)

            async def send(kind: str, text: str, notice_id: str) -> None:
                line = f"id: {notice_id}\n" if notice_id else ""
                await response.write(f"event: {kind}\n{line}data: {text}\n\n".encode())

            async def keep_alive() -> None:
                await response.write(b": still here\n\n")

            await response.write(f"retry: {RETRY_MS}\n\n".encode())
            with self._listening(wish):
                await self._relay(request, listener, wish, send, keep_alive, ends_with)
            if listener.reason not in (LEFT, SLOW):
                await send("end", json.dumps({"type": "end", "reason": listener.reason}), "")
        except ConnectionError:
            listener.end(LEFT)
        finally:
            self.audience.leave(listener)
        return response

    # --- WebSocket ---

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        """The same as JSON text messages: `?stream=porch,yard`, `?topics=detections,events`."""
        wish = self._wish(request, (DETECTIONS, STATUS))
        if not web.WebSocketResponse().can_prepare(request).ok:
            raise MalformedError("Upgrade: a WebSocket is wanted here")
        listener = self._admit(request, wish, "websocket")
        reader: asyncio.Task[None] | None = None
        try:
            socket_response = web.WebSocketResponse(
                heartbeat=self.settings.keep_alive_s,
                compress=False,
                max_msg_size=MESSAGE_BYTES_AT_MOST,
            )
            await socket_response.prepare(request)
            reader = asyncio.create_task(_drain(socket_response, listener), name=listener.id)

            async def send(kind: str, text: str, notice_id: str) -> None:
                if kind not in ("hello", KINDS[DETECTIONS]):
                    # As on the data channel detections have no type, all else has.
                    own_id = f'"notice_id":"{notice_id}",' if notice_id else ""
                    text = f'{{"type":"{kind}",{own_id}{text[1:]}'
                await socket_response.send_str(text)

            async def keep_alive() -> None:
                """aiohttp pings by itself."""

            with self._listening(wish):
                await self._relay(request, listener, wish, send, keep_alive)
            gone = listener.reason in (LEFT, SLOW)
            code = WSCloseCode.OK if gone else WSCloseCode.GOING_AWAY
            async with asyncio.timeout(LOOK_S):
                await socket_response.close(code=code, message=listener.reason.encode())
        except (ConnectionError, TimeoutError):
            listener.end(LEFT)
        finally:
            self.audience.leave(listener)
            if reader is not None:
                reader.cancel()
                await asyncio.wait([reader])
        return socket_response

    # --- what both do ---

    async def _relay(
        self,
        request: web.Request,
        listener: Listener,
        wish: Wish,
        send: Send,
        keep_alive: Callable[[], Awaitable[None]],
        ends_with: str = "",
    ) -> None:
        """Tell the listener until one side ends it; its reason says which."""
        transport = request.transport
        if transport is None:
            raise ConnectionResetError
        _keep_little(transport)
        subscription, settings = listener.subscription, self.settings
        look_s = min(LOOK_S, settings.keep_alive_s)
        names = self.names()
        await send("hello", _hello(names), self._id(self.bulletin.number, wish))
        spoke_at_ns = now_ns()
        while True:
            notice = await _next(subscription, look_s)
            if transport.is_closing():
                listener.end(LEFT)
            if listener.reason:
                return
            if notice is None:
                if now_ns() - spoke_at_ns >= s_to_ns(settings.keep_alive_s):
                    spoke_at_ns = now_ns()
                    await keep_alive()
                continue
            if notice.topic == DETECTIONS and notice.names != names:
                names = notice.names
                await send("hello", _hello(names), "")
            own_id = f"{self.bulletin.run}-{notice.number}" if notice.topic == EVENTS else ""
            try:
                async with asyncio.timeout(settings.listener_timeout_s):
                    await send(KINDS[notice.topic], notice.text, own_id)
                    # Until the reader has taken most of it: what came meanwhile goes as one.
                    await request.writer.drain()
            except TimeoutError:
                listener.end(SLOW)
                # What waits in it is never read: nothing is gained by a polite end.
                transport.abort()
                return
            listener.sent += 1
            spoke_at_ns = now_ns()
            if ends_with and notice.message.get("state") == ENDED:
                listener.end(STREAM_ENDED)
                return

    @contextmanager
    def _listening(self, wish: Wish) -> Iterator[None]:
        """Streams that are named are wanted: those whose source rests meanwhile are begun."""
        found = []
        for name in wish.streams if DETECTIONS in wish.topics else ():
            with suppress(NotFoundError):
                found.append(self.streams.get(name))
        for stream in found:
            stream.listen()
        try:
            yield
        finally:
            for stream in found:
                stream.unlisten()

    def _id(self, number: int, wish: Wish) -> str:
        """That of the greeting: events from here on are missed by who leaves before the first.
        Not while older ones are still to come."""
        return "" if wish.after is not None else f"{self.bulletin.run}-{number}"

    def _admit(self, request: web.Request, wish: Wish, kind: str) -> Listener:
        caller = request[CALLER]
        group = "" if caller.is_local else caller.group
        self.audience.check(group)
        principal = principal_of(request)
        wanted = frozenset(wish.streams)

        def allows(stream: str) -> bool:
            return (not wanted or stream in wanted) and principal.allows("view", stream)

        subscription = self.bulletin.subscribe(
            wish.topics,
            wish.streams[0] if len(wish.streams) == 1 else None,
            allows=allows,
            detections_every_s=wish.detections_every_s,
            after=wish.after,
        )
        listener = self.audience.admit(kind, group, subscription)
        stream = wish.streams[0] if len(wish.streams) == 1 else None
        hold(request, listener.id, listener.end, stream, is_call=False)
        return listener

    def _wish(self, request: web.Request, topics: tuple[str, ...]) -> Wish:
        chosen = _list(request, "topics") or topics
        for topic in chosen:
            if topic not in TOPICS:
                raise MalformedError(f"topics: {topic!r:.40} is not one of {', '.join(TOPICS)}")
        streams = _list(request, "stream")
        if len(streams) > STREAMS_AT_MOST:
            raise MalformedError(f"stream: over {STREAMS_AT_MOST} names; leave it out for all")
        for stream in streams:
            authorize(request, "view", stream)
        fps = per_second(request.query, "fps", 0.0, *RATES)
        return Wish(chosen, streams, 1 / fps if fps else 0.0, self._after(request))

    def _after(self, request: web.Request) -> int | None:
        """The last id that the listener saw. One of an earlier run means all since the start."""
        given = request.headers.get("Last-Event-ID") or request.query.get("last_event_id", "")
        run, _, number = given.partition("-")
        if len(given) > 40 or not number.isdecimal() or not number.isascii():
            return None
        return int(number) if run == self.bulletin.run else 0


async def _next(subscription: Subscription, look_s: float) -> Notice | None:
    """The next notice; None when it is time to look at the connection, or at the end."""
    try:
        async with asyncio.timeout(look_s):
            return await subscription.next()
    except (TimeoutError, Closed):
        return None


def _keep_little(transport: asyncio.Transport) -> None:
    """Small buffers, here and in the system: what is in them cannot be replaced by newer
    detections."""
    transport.set_write_buffer_limits(high=WAITING_BYTES, low=WAITING_BYTES)
    own = transport.get_extra_info("socket")
    if own is not None:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * WAITING_BYTES)


async def _drain(socket_response: web.WebSocketResponse, listener: Listener) -> None:
    """Nothing is expected from a listener but that it leaves."""
    async for message in socket_response:
        if message.type == WSMsgType.ERROR:
            break
    listener.end(LEFT)


def _hello(names: Sequence[str]) -> str:
    return json.dumps({"type": "hello", "names": list(names)}, separators=(",", ":"))


def _list(request: web.Request, name: str) -> tuple[str, ...]:
    """`?x=a,b` and `?x=a&x=b` are the same."""
    parts = ",".join(request.query.getall(name, ())).split(",")
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
