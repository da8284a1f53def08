"""`WS /ws/stream`: a picture in, its detections out, in order, always an answer.

The protocol is stream-yolo's: each binary message is a JPEG or PNG, each answer a text message
of JSON. A wrong picture gets `{"error": ...}` and the socket stays. A client that sends nothing,
or reads nothing, is let go after a while. With `?stream=` the pictures are a stream that others
can watch.
"""

import asyncio
import json
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from server.call_options import CallOptions, query_options
from server.clock import NS_PER_S, now_ns
from server.desk import Answer, Asker, Desk
from server.edge.answers import server_ms, stages_json, stream_yolo_rows
from server.edge.gate import GATE, authorize, hold
from server.errors import (
    MalformedError,
    SightlineError,
    UnauthorizedError,
    UnavailableError,
    UnprocessableError,
)
from server.feed import Analyst
from server.logs import log_event, short
from server.settings import ImageSettings
from server.stream import Publication
from server.streams import Streams

logger = logging.getLogger(__name__)

DOOR = "websocket"
# What stream-yolo's servers send.
CONFIDENCE = 0.4
SIGN_IN_S = 5.0
# Sockets that have not said who they are: each may send a large message before we know.
STRANGERS_AT_MOST = 16
SEND_S = 10.0
CLOSE_S = 2.0
RETRY_AFTER_S = 5


class Sockets:
    """All of them. On the loop; `close` ends every one and refuses new ones."""

    def __init__(
        self,
        settings: ImageSettings,
        desk: Desk,
        streams: Streams,
        make_analyst: Callable[[str], Analyst | None],
    ) -> None:
        self._settings = settings
        self._desk = desk
        self._streams = streams
        self._make_analyst = make_analyst
        self._sockets: dict[str, PictureSocket] = {}
        self._strangers = 0
        self._ended: Counter[str] = Counter()
        self._closed = False

    def routes(self) -> list[web.AbstractRouteDef]:
        return [web.get("/ws/stream", self.serve)]

    def has(self, socket_id: str) -> bool:
        return socket_id in self._sockets

    @property
    def count(self) -> int:
        return len(self._sockets)

    @property
    def ended(self) -> dict[str, int]:
        """Sockets that have ended, by reason."""
        return dict(self._ended)

    async def close(self) -> None:
        """End them all; each gets a close frame and has CLOSE_S to answer."""
        self._closed = True
        closing = [socket.close("the server stops") for socket in self._sockets.values()]
        if closing:
            await asyncio.wait(closing, timeout=2 * CLOSE_S)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """`GET /ws/stream`: a WebSocket; each binary message is a picture, each answer JSON.

        Query: `confidence`, `classes`, and `stream` to let others watch. Where a key or token is
        needed: as Bearer, as a one-use ticket, or as the first message `{"token": "..."}`.
        """
        self._desk.count_request(DOOR)
        reason, opened_at_ns = "failed", now_ns()
        try:
            socket = self._admit(request)
            self._sockets[socket.id] = socket
            try:
                reason = await socket.run()
            finally:
                del self._sockets[socket.id]
                self._ended[reason] += 1
        except SightlineError as error:
            self._desk.count_refusal(DOOR, error)
            raise
        log_event(
            logger,
            "socket ended",
            session=short(socket.id),
            stream=request.query.get("stream", ""),
            reason=reason,
            age_s=(now_ns() - opened_at_ns) / NS_PER_S,
            pictures=socket.pictures,
        )
        return socket.response

    def _admit(self, request: web.Request) -> "PictureSocket":
        if self._closed:
            raise UnavailableError("the server is stopping", RETRY_AFTER_S)
        if len(self._sockets) >= self._settings.max_sockets:
            raise UnavailableError(
                f"max_sockets: {self._settings.max_sockets} WebSockets send pictures", RETRY_AFTER_S
            )
        options = query_options(request.query, CONFIDENCE)
        response = web.WebSocketResponse(
            timeout=CLOSE_S,
            compress=False,
            # Refused from here on, so that a message of the limit itself is taken.
            max_msg_size=self._settings.max_image_mib * 2**20 + 1,
        )
        if not response.can_prepare(request).ok:
            raise MalformedError("Upgrade: a WebSocket is wanted here")
        return PictureSocket(request, response, options, self)

    # --- what sockets need ---

    def claim(self, request: web.Request) -> Publication | None:
        """The stream that the query names, if it does."""
        name = request.query.get("stream", "")
        if not name:
            return None
        authorize(request, "publish", name)
        return self._streams.claim(name, DOOR, returns_picture=False)

    def asker(self, socket_id: str, options: CallOptions, publication: Publication | None) -> Asker:
        if publication is None:
            return self._desk.asker(DOOR, socket_id, options, in_turns=False)
        return self._desk.asker(
            DOOR,
            socket_id,
            options,
            in_turns=False,
            on_shot=publication.offer,
            analyst=self._make_analyst(publication.stream.name),
        )

    async def sign_in(self, request: web.Request, response: web.WebSocketResponse) -> None:
        """Who is there, by the first message, where it was not said before."""
        if self._strangers >= STRANGERS_AT_MOST:
            raise UnavailableError("too many have not yet said who they are", RETRY_AFTER_S)
        self._strangers += 1
        try:
            message = await response.receive(SIGN_IN_S)
            await request.app[GATE].sign_in(request, f"Bearer {_token(message.data)}")
        except TimeoutError:
            raise UnauthorizedError(f"no first message with a token in {SIGN_IN_S:g} s") from None
        finally:
            self._strangers -= 1

    def count_refusal(self, error: SightlineError) -> None:
        self._desk.count_refusal(DOOR, error)

    def count_refused(self, reason: str) -> None:
        self._desk.count_refused(DOOR, reason)

    @property
    def idle_s(self) -> float:
        return self._settings.socket_idle_s


class PictureSocket:
    """One of them, from its opening to its end."""

    def __init__(
        self,
        request: web.Request,
        response: web.WebSocketResponse,
        options: CallOptions,
        sockets: Sockets,
    ) -> None:
        self.id = secrets.token_urlsafe(12)
        self.response = response
        self.pictures = 0
        self._request = request
        self._options = options
        self._asker: Asker | None = None
        self._sockets = sockets
        self._why = ""
        self._closing: asyncio.Task[None] | None = None

    @property
    def dropped(self) -> dict[str, int]:
        """None: every picture is answered."""
        return {}

    async def run(self) -> str:
        """Live until the client leaves, falls silent or is told to; returns the reason."""
        publication: Publication | None = None
        sockets, request = self._sockets, self._request
        try:
            stranger = request.app[GATE].needs_sign_in(request)
            if not stranger:
                publication = sockets.claim(request)
            await self.response.prepare(request)
            if stranger:
                await sockets.sign_in(request, self.response)
                publication = sockets.claim(request)
            hold(request, self.id, self.end, publication.stream.name if publication else None)
            if publication is not None:
                publication.owner = self
            self._asker = sockets.asker(self.id, self._options, publication)
            return await self._answer_all(self._asker)
        except SightlineError as error:
            if not self.response.prepared:
                raise
            # The upgrade is done: what would have been a status is said, and then closed.
            sockets.count_refusal(error)
            await self._send({"error": str(error)})
            await self._close(WSCloseCode.POLICY_VIOLATION, _short(error))
            return "refused"
        except (ConnectionError, TimeoutError):
            self._drop()
            return self._why or "the client reads nothing"
        finally:
            if self._asker is not None:
                self._asker.close()
            if publication is not None:
                publication.end()
            if self._closing is not None:
                await asyncio.wait([self._closing])

    @property
    def options(self) -> CallOptions:
        return self._options

    def update(self, changes: Mapping[str, object]) -> CallOptions:
        """What is told from now on; refuses the whole change if any part is wrong."""
        options = self._options.updated(changes)
        if options.mode != "exact":
            raise UnprocessableError("options.mode: a picture that wants its answer is exact")
        self._options = options
        if self._asker is not None:
            self._asker.feed.options = options
        return options

    def end(self, reason: str) -> None:
        """Ask it to end; the first reason stands."""
        self.close(reason)

    def close(self, reason: str) -> "asyncio.Task[None]":
        """The same, and what to wait for."""
        if self._closing is None:
            self._why = reason
            self._closing = asyncio.create_task(
                self._close(WSCloseCode.GOING_AWAY, reason), name=f"close socket {self.id}"
            )
        return self._closing

    async def _answer_all(self, asker: Asker) -> str:
        while True:
            try:
                message = await self.response.receive(self._sockets.idle_s)
            except TimeoutError:
                await self._close(WSCloseCode.OK, "idle")
                return "idle"
            if message.type is WSMsgType.BINARY:
                await self._send(await self._answer(asker, message.data))
            elif message.type is WSMsgType.TEXT:
                self._sockets.count_refused("text")
                await self._send({"error": "a picture as a binary message is wanted, not text"})
            else:
                return self._ending(message)

    async def _answer(self, asker: Asker, data: bytes) -> dict[str, Any]:
        try:
            answer = await asker.ask(data)
        except SightlineError as error:
            self._sockets.count_refusal(error)
            if isinstance(error, MalformedError):
                return {"error": "invalid image", "detail": str(error)}
            return {"error": str(error)}
        message = _message(answer, self.pictures)
        self.pictures += 1
        return message

    async def _send(self, message: dict[str, Any]) -> None:
        async with asyncio.timeout(SEND_S):
            await self.response.send_str(json.dumps(message, separators=(",", ":")))

    async def _close(self, code: int, why: str) -> None:
        try:
            async with asyncio.timeout(2 * CLOSE_S):
                await self.response.close(code=code, message=why.encode()[:120])
        except (ConnectionError, TimeoutError):
            self._drop()

    def _drop(self) -> None:
        """Without a word: the client takes none."""
        if self._request.transport is not None:
            self._request.transport.abort()

    def _ending(self, message: WSMessage) -> str:
        if self._why:
            return self._why
        if message.type is not WSMsgType.ERROR:
            return "the client left"
        if getattr(message.data, "code", 0) == WSCloseCode.MESSAGE_TOO_BIG:
            self._sockets.count_refused("too_large")
            return "message too large"
        return "protocol error"


def _message(answer: Answer, seq: int) -> dict[str, Any]:
    return {
        "detections": stream_yolo_rows(answer.detections, answer.shot.names),
        "seq": seq,
        "size": list(answer.detections.size_wh),
        "stages_ms": stages_json(answer.stamps),
        "server_ms": server_ms(answer.stamps),
    }


def _token(data: object) -> str:
    try:
        body = json.loads(data) if isinstance(data, str) and len(data) <= 8192 else None
    except (ValueError, RecursionError):
        body = None
    token = body.get("token") if isinstance(body, dict) else None
    if not isinstance(token, str):
        raise UnauthorizedError('the first message is not {"token": "..."}')
    return token


def _short(error: SightlineError) -> str:
    return str(error)[:100]
