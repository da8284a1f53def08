"""The streams there are, over HTTP: list, read, begin one by pulling, change its options, end it.

It is the same for every kind of stream. A caller sees those it may view; who begins, changes or
ends a stream for everybody needs `control` of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from server.access.auth import Principal
from server.edge.gate import GATE, authorize, json_body, options_body, principal_of
from server.errors import MalformedError, UnprocessableError
from server.pull.pulls import Pulls, PullStatistics
from server.settings import STREAM_NAME, STREAM_NAME_RULE
from server.status import plain
from server.stills import StillsStatistics
from server.stream import Stream, StreamStatistics
from server.streams import Streams


@dataclass(frozen=True, slots=True)
class StreamsApi:
    """The handlers; everything they need is handed in."""

    streams: Streams
    pulls: Pulls
    stills: Callable[[Stream], StillsStatistics]

    def routes(self) -> list[web.AbstractRouteDef]:
        one = "/api/streams/{stream}"
        return [
            web.get("/api/streams", self.list_all),
            web.post("/api/streams", self.begin),
            web.get(one, self.read),
            web.patch(one, self.change),
            web.delete(one, self.end),
            web.get(f"{one}/viewers", self.viewers),
        ]

    async def list_all(self, request: web.Request) -> web.Response:
        """The streams that the caller may view."""
        principal = principal_of(request)
        streams = [
            self._json(stream.name)
            for stream in self.streams.statistics()
            if may_view(principal, stream.name)
        ]
        return web.json_response({"streams": streams})

    async def begin(self, request: web.Request) -> web.Response:
        """Begin a stream whose pictures the server fetches itself."""
        body = await json_body(request)
        wish = body if isinstance(body, dict) else {}
        unknown = sorted(set(wish) - {"name", "source", "options"})
        if unknown:
            raise MalformedError(f"{unknown[0][:40]}: unknown; known are name, source, options")
        name, source, options = wish.get("name"), wish.get("source"), wish.get("options", {})
        if (
            not isinstance(name, str)
            or not isinstance(source, str)
            or not isinstance(options, dict)
        ):
            raise MalformedError("body: not a JSON object with name, source and perhaps options")
        if not STREAM_NAME.fullmatch(name):
            raise UnprocessableError(f"name: {STREAM_NAME_RULE}")
        authorize(request, "control", name)
        await self.pulls.add_for_caller(name, source, options)
        response = self._one(name, status=201)
        response.headers["Location"] = f"/api/streams/{name}"
        return response

    async def read(self, request: web.Request) -> web.Response:
        """One stream as it stands."""
        return self._one(request.match_info["stream"])

    async def change(self, request: web.Request) -> web.Response:
        """Other options from the next picture on, for everybody who watches."""
        changes = await options_body(request)
        name = request.match_info["stream"]
        self.streams.get(name).update(changes)
        return self._one(name)

    async def end(self, request: web.Request) -> web.Response:
        """End a stream, with its source and its viewers."""
        self.streams.end(request.match_info["stream"], "stream ended by the API")
        return web.json_response({"ended": True})

    async def viewers(self, request: web.Request) -> web.Response:
        """Who watches a stream, by which key or token and from where; first come, first told."""
        holdings = request.app[GATE].holdings
        told = []
        for watcher in self.streams.get(request.match_info["stream"]).viewers:
            held = holdings.find(watcher.id)
            # Whoever is still being answered, or takes one picture and leaves, is nobody's yet.
            if held is not None:
                who = {"name": held.principal.name, "by": held.principal.identity}
                told.append({**who, "address": held.address, **plain(watcher.facts())})
        return web.json_response({"viewers": told})

    def _one(self, name: str, status: int = 200) -> web.Response:
        return web.json_response(self._json(name), status=status)

    def _json(self, name: str) -> dict[str, Any]:
        stream = self.streams.get(name)
        pull = self.pulls.statistics_of(name)
        return stream_json(stream.statistics(), pull, self.stills(stream))


def may_view(principal: Principal, stream: str) -> bool:
    """Whether a stream is listed for this caller."""
    return principal.allows("view", stream)


def stream_json(
    stream: StreamStatistics, pull: PullStatistics | None, stills: StillsStatistics
) -> dict[str, Any]:
    """One stream as the API tells it; `options` is null while its source is away, `pull` where
    somebody sends it."""
    body: dict[str, Any] = {
        name: value for name, value in plain(stream).items() if name != "size_wh"
    }
    root = f"/api/streams/{stream.name}"
    return body | {
        "size": list(stream.size_wh),
        "pull": plain(pull),
        "mjpeg": plain(stills),
        "urls": {
            "whep": f"/whep/{stream.name}",
            "whip": f"/whip/{stream.name}",
            "snapshot": f"{root}/snapshot.jpg",
            "mjpeg": f"{root}/mjpeg",
            "detections": f"{root}/detections",
        },
    }
