"""A client of a Sightline server: pictures in, detections and events out, streams and tokens.

    from sightline.client import Sightline

    async with Sightline("http://127.0.0.1:8080") as server:
        picture = await server.detect(Path("street.jpg").read_bytes())
        print([box.class_name for box in picture.boxes])
        async for notice in server.follow("events"):
            print(notice.stream, notice.message["kind"])

asyncio, on aiohttp and nothing else: this one file may be copied. Made and used in one event loop.
Unknown keys of answers are ignored, so that an older client works with a newer server.
"""

import asyncio
import json
import random
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp

TIMEOUT_S = 30.0
# The server says something at least every `keep_alive_s`, 15 s unless it was changed.
SILENT_AFTER_S = 45.0
FIRST_PAUSE_S, MOST_PAUSE_S = 0.5, 30.0
MESSAGE_BYTES_AT_MOST = 16 * 2**20
# Refusals that the same question will meet again; all others are worth another try.
FINAL = frozenset({400, 401, 403, 404, 405, 406, 413, 415, 422})


class ServerError(Exception):
    """The server refused: status of HTTP, or of a WebSocket that it closed, and the reason; when
    to come back where it says so."""

    def __init__(self, status: int, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Box:
    """One object, in pixels of the picture; right and bottom are exclusive."""

    xyxy: tuple[float, float, float, float]
    confidence: float
    class_id: int
    class_name: str
    track_id: int | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """What was found in one picture; `error` where it could not be read."""

    boxes: tuple[Box, ...]
    size_wh: tuple[int, int] = (0, 0)
    server_ms: float = 0.0
    error: str = ""
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """All that the server said."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream as it stands."""

    name: str
    live: bool
    source: str
    size_wh: tuple[int, int]
    fps: float
    viewers: int
    body: Mapping[str, Any] = field(repr=False)
    """All that the server said."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened: `topic` is detections, events or status."""

    topic: str
    stream: str
    message: Mapping[str, Any]
    names: tuple[str, ...] = ()
    """What the class ids of detections mean."""

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Those of detections; empty for other topics."""
        return tuple(
            Box(
                (row[0], row[1], row[2], row[3]),
                row[5],
                row[4],
                self.names[row[4]] if row[4] < len(self.names) else f"cls{row[4]}",
                row[6],
            )
            for row in self.message.get("boxes", ())
        )


class PictureSocket:
    """One connection for many pictures; made by `Sightline.pictures`. One question at a time."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, timeout_s: float) -> None:
        self._socket = socket
        self._timeout_s = timeout_s

    async def detect(self, image: bytes) -> Picture:
        """What is in one JPEG or PNG, in whole pixels. A wrong picture has an `error`."""
        async with asyncio.timeout(self._timeout_s):
            await self._socket.send_bytes(image)
            message = await self._socket.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise ServerError(self._socket.close_code or 0, str(message.extra or "closed"))
        body: dict[str, Any] = json.loads(message.data)
        if "error" in body:
            return Picture((), error=str(body.get("detail", body["error"])), body=body)
        boxes = tuple(
            Box(tuple(row["box"]), row["score"], row["label"], row["name"])
            for row in body["detections"]
        )
        width, height = body.get("size", (0, 0))
        return Picture(boxes, (width, height), body.get("server_ms", 0.0), body=body)


class Sightline:
    """One server. `secret` is an API key or token; `verify` an SSL context for a certificate that
    the system does not know."""

    def __init__(
        self,
        url: str,
        secret: str = "",
        *,
        timeout_s: float = TIMEOUT_S,
        silent_after_s: float = SILENT_AFTER_S,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self._timeout_s = timeout_s
        self._silent_after_s = silent_after_s
        self._verify = verify
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            connector=aiohttp.TCPConnector(ssl=self._verify),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Idempotent."""
        if self._http is not None:
            await self._http.close()

    # --- pictures ---

    async def detect(
        self,
        image: bytes,
        *,
        confidence: float | None = None,
        classes: Sequence[str] | None = None,
    ) -> Picture:
        """What is in one JPEG or PNG."""
        query = _choice(confidence, classes)
        body = await self._json("POST", "/api/detect", query=query, data=image)
        return _picture(body["pictures"][0])

    async def detect_all(
        self,
        images: Mapping[str, bytes],
        *,
        confidence: float | None = None,
        classes: Sequence[str] | None = None,
    ) -> dict[str, Picture]:
        """The same for several in one request, by name; one that cannot be read has an `error`."""
        form = aiohttp.FormData(default_to_multipart=True)
        for name, image in images.items():
            form.add_field("image", image, filename=name, content_type="application/octet-stream")
        query = _choice(confidence, classes)
        body = await self._json("POST", "/api/detect", query=query, data=form)
        return {row["name"]: _picture(row) for row in body["pictures"]}

    async def annotate(
        self,
        image: bytes,
        *,
        confidence: float | None = None,
        classes: Sequence[str] | None = None,
    ) -> bytes:
        """The picture with boxes drawn, as JPEG."""
        query = _choice(confidence, classes) | {"annotate": "1"}
        return await self._bytes("POST", "/api/detect", query=query, data=image)

    @asynccontextmanager
    async def pictures(
        self,
        *,
        stream: str = "",
        confidence: float | None = None,
        classes: Sequence[str] | None = None,
    ) -> AsyncIterator[PictureSocket]:
        """Many pictures over one connection, the quickest way; with `stream` others can watch."""
        query = _choice(confidence, classes) | ({"stream": stream} if stream else {})
        try:
            socket = await self._session.ws_connect(
                self._url + "/ws/stream",
                params=query,
                max_msg_size=MESSAGE_BYTES_AT_MOST,
                compress=0,
            )
        except aiohttp.WSServerHandshakeError as error:
            raise ServerError(error.status, error.message) from None
        async with socket:
            yield PictureSocket(socket, self._timeout_s)

    # --- streams ---

    async def streams(self) -> list[Stream]:
        """All that this caller may view."""
        body = await self._json("GET", "/api/streams")
        return [_stream(row) for row in body["streams"]]

    async def stream(self, name: str) -> Stream:
        return _stream(await self._json("GET", f"/api/streams/{name}"))

    async def add_stream(
        self, name: str, source: str, options: Mapping[str, Any] | None = None
    ) -> Stream:
        """Have the server fetch a camera or a file, such as `rtsp://camera/1`."""
        wish: dict[str, Any] = {"name": name, "source": source}
        if options is not None:
            wish["options"] = dict(options)
        return _stream(await self._json("POST", "/api/streams", json=wish))

    async def change_stream(self, name: str, **options: Any) -> Stream:
        """Other options at once: `mode`, `confidence`, `classes`."""
        body = await self._json("PATCH", f"/api/streams/{name}", json={"options": options})
        return _stream(body)

    async def end_stream(self, name: str) -> None:
        await self._json("DELETE", f"/api/streams/{name}")

    async def snapshot(self, name: str, *, annotated: bool = True) -> bytes:
        """The newest picture of a stream, as JPEG."""
        query = {"annotated": "1" if annotated else "0"}
        return await self._bytes("GET", f"/api/streams/{name}/snapshot.jpg", query=query)

    # --- what happens ---

    async def follow(
        self,
        *topics: str,
        streams: Sequence[str] = (),
        fps: float | None = None,
    ) -> AsyncGenerator[Notice, None]:
        """What happens from now on: topics `detections`, `events`, `status` (the latter two when
        none is named), of these streams or of all that may be viewed; `fps` is the most
        detections a second of each.

        Goes on for ever: a lost connection is made again, with the events in between. Raises
        ServerError where another try would be refused as well.
        """
        query = {"topics": ",".join(topics or ("events", "status"))}
        if streams:
            query["stream"] = ",".join(streams)
        if fps is not None:
            query["fps"] = str(fps)
        last_id, failures = "", 0
        names: tuple[str, ...] = ()
        while True:
            wait_s = 0.0
            try:
                async with aclosing(self._events(query, last_id)) as events:
                    async for kind, data, event_id in events:
                        failures, last_id = 0, event_id
                        body = json.loads(data)
                        if kind == "hello":
                            names = tuple(body["names"])
                        elif topic := _TOPICS.get(kind):
                            yield Notice(topic, body.get("stream", ""), body, names)
            except ServerError as error:
                if error.status in FINAL:
                    raise
                wait_s = error.retry_after_s or 0.0
            except (aiohttp.ClientError, OSError, TimeoutError):
                # Lost or silent: once more.
                pass
            failures += 1
            await asyncio.sleep(max(wait_s, _pause_s(failures)))

    def detections(self, stream: str, *, fps: float | None = None) -> AsyncGenerator[Notice, None]:
        """The newest detections of one stream, whether or not it is there yet."""
        return self.follow("detections", streams=[stream], fps=fps)

    async def _events(
        self, query: Mapping[str, str], last_id: str
    ) -> AsyncGenerator[tuple[str, str, str], None]:
        """Kind, data and the last id there was, of each event of one connection."""
        headers = {"Last-Event-ID": last_id} if last_id else {}
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._timeout_s, sock_read=self._silent_after_s
        )
        async with self._session.get(
            self._url + "/api/events/live", params=query, headers=headers, timeout=timeout
        ) as reply:
            await _check(reply)
            kind, data = "message", ""
            buffered = b""
            async for chunk in reply.content.iter_any():
                *lines, buffered = (buffered + chunk).split(b"\n")
                if len(buffered) > MESSAGE_BYTES_AT_MOST:
                    raise aiohttp.ClientPayloadError("an event without an end")
                for line in lines:
                    name, _, value = line.decode().partition(":")
                    value = value.removeprefix(" ")
                    if name == "event":
                        kind = value
                    elif name == "data":
                        data += value
                    elif name == "id":
                        last_id = value
                    elif not line:
                        if data:
                            yield kind, data, last_id
                        kind, data = "message", ""

    # --- the server ---

    async def stats(self) -> dict[str, Any]:
        """All that the server counts (`/api/stats`)."""
        return await self._json("GET", "/api/stats")

    async def issue_token(
        self, scopes: Sequence[str], streams: Sequence[str] = ("*",), ttl: str = "1h"
    ) -> dict[str, Any]:
        """`token` to hand on, `id` to revoke it by, and what it is good for."""
        wish = {"scopes": list(scopes), "streams": list(streams), "ttl": ttl}
        return await self._json("POST", "/api/tokens", json=wish)

    async def revoke_token(self, token_id: str) -> None:
        """What was opened with it ends."""
        await self._json("DELETE", f"/api/tokens/{token_id}")

    async def issue_ticket(self) -> str:
        """Good once and for seconds, for what can send no header: `?ticket=...`."""
        body = await self._json("POST", "/api/tickets")
        return str(body["ticket"])

    # --- small parts ---

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            raise RuntimeError("use it as: async with Sightline(...) as server")
        return self._http

    async def _json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        json: Any = None,
        data: Any = None,
    ) -> dict[str, Any]:
        async with self._session.request(
            method, self._url + path, params=query, json=json, data=data
        ) as reply:
            await _check(reply)
            body: dict[str, Any] = await reply.json()
            return body

    async def _bytes(
        self, method: str, path: str, *, query: Mapping[str, str], data: bytes | None = None
    ) -> bytes:
        async with self._session.request(
            method, self._url + path, params=query, data=data
        ) as reply:
            await _check(reply)
            return await reply.read()


# What a topic is called on the wire.
_TOPICS = {"detections": "detections", "event": "events", "status": "status"}


async def _check(reply: aiohttp.ClientResponse) -> None:
    """Refusals are problem bodies (RFC 9457); whatever stands in between may say other things."""
    if reply.status < 400:
        return
    detail = reply.reason or ""
    if reply.content_type == "application/problem+json":
        body = await reply.json(content_type=None)
        detail = str(body.get("detail", detail))
    wished = reply.headers.get("Retry-After", "")
    raise ServerError(reply.status, detail, float(wished) if wished.isdecimal() else None)


def _choice(confidence: float | None, classes: Sequence[str] | None) -> dict[str, str]:
    query = {}
    if confidence is not None:
        query["confidence"] = str(confidence)
    if classes is not None:
        query["classes"] = ",".join(classes)
    return query


def _picture(row: Mapping[str, Any]) -> Picture:
    if "error" in row:
        return Picture((), error=str(row["error"]), body=row)
    boxes = tuple(
        Box(tuple(found["box"]), found["confidence"], found["class_id"], found["class"])
        for found in row["detections"]
    )
    width, height = row["size"]
    return Picture(boxes, (width, height), row.get("server_ms", 0.0), body=row)


def _stream(row: Mapping[str, Any]) -> Stream:
    width, height = row["size"]
    return Stream(
        name=row["name"],
        live=row["live"],
        source=row["source"],
        size_wh=(width, height),
        fps=row["fps"],
        viewers=row["viewers"],
        body=row,
    )


def _pause_s(failures: int) -> float:
    """Longer each time, half of it by chance: a thousand clients do not come back at once."""
    whole_s: float = min(MOST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10))
    return whole_s * random.uniform(0.5, 1.0)
