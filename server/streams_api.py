"""The streams there are, over HTTP: list, read, begin one by pulling, change its options, end it.

It is the same for every kind of stream. A caller sees those it may view; who begins, changes or
ends a stream for everybody needs `control` of it.
"""

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from server.auth import Principal
from server.errors import MalformedError
from server.gate import json_body, principal_of
from server.status import plain
from server.streams import Streams, StreamStatistics


@dataclass(frozen=True, slots=True)
class StreamsApi:
    """The handlers; everything they need is handed in."""

    streams: Streams

    def routes(self) -> list[web.AbstractRouteDef]:
        one = "/api/streams/{stream}"
        return [
            web.get("/api/streams", self.list_all),
            web.get(one, self.read),
            web.patch(one, self.change),
            web.delete(one, self.end),
        ]

    async def list_all(self, request: web.Request) -> web.Response:
        """The streams that the caller may view."""
        principal = principal_of(request)
        streams = [
            stream_json(stream)
            for stream in self.streams.statistics()
            if may_view(principal, stream.name)
        ]
        return web.json_response({"streams": streams})

    async def read(self, request: web.Request) -> web.Response:
        """One stream as it stands."""
        return self._one(request.match_info["stream"])

    async def change(self, request: web.Request) -> web.Response:
        """Other options from the next picture on, for everybody who watches."""
        body = await json_body(request)
        if not isinstance(body, dict) or not isinstance(body.get("options"), dict):
            raise MalformedError("body: not a JSON object with options")
        unknown = sorted(set(body) - {"options"})
        if unknown:
            raise MalformedError(f"{unknown[0][:40]}: unknown; known is options")
        name = request.match_info["stream"]
        self.streams.get(name).update(body["options"])
        return self._one(name)

    async def end(self, request: web.Request) -> web.Response:
        """End a stream, with its source and its viewers."""
        self.streams.end(request.match_info["stream"], "stream ended by the API")
        return web.json_response({"ended": True})

    def _one(self, name: str, status: int = 200) -> web.Response:
        return web.json_response(stream_json(self.streams.get(name).statistics()), status=status)


def may_view(principal: Principal, stream: str) -> bool:
    """Whether a stream is listed for this caller."""
    return principal.allows("view", stream)


def stream_json(stream: StreamStatistics) -> dict[str, Any]:
    """One stream as the API tells it; `options` is null while its source is away."""
    body: dict[str, Any] = {
        name: value for name, value in plain(stream).items() if name != "size_wh"
    }
    root = f"/api/streams/{stream.name}"
    return body | {
        "size": list(stream.size_wh),
        "urls": {
            "whep": f"/whep/{stream.name}",
            "whip": f"/whip/{stream.name}",
            "snapshot": f"{root}/snapshot.jpg",
            "mjpeg": f"{root}/mjpeg",
            "detections": f"{root}/detections",
        },
    }
