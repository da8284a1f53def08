"""HTTP for zones, lines and masks of a stream, and what was counted in them."""

from dataclasses import dataclass

from aiohttp import web

from server.analysis.scenes import Scenes
from server.analysis.zones import parse_layout
from server.edge.gate import json_body


@dataclass(frozen=True, slots=True)
class ZonesApi:
    """The handlers. A stream may get its zones before its first picture."""

    scenes: Scenes

    def routes(self) -> list[web.AbstractRouteDef]:
        path = "/api/streams/{stream}/zones"
        return [
            web.get(path, self.read),
            web.put(path, self.write),
            web.get("/api/streams/{stream}/counts", self.counts),
        ]

    async def read(self, request: web.Request) -> web.Response:
        """Zones, lines and masks of a stream, in shares of the picture's sides."""
        return web.json_response(self.scenes.peek(request.match_info["stream"]).layout.to_json())

    async def write(self, request: web.Request) -> web.Response:
        """Replace them all, from the next picture on; refused as a whole."""
        stream = request.match_info["stream"]
        layout = parse_layout(await json_body(request))
        await self.scenes.change(stream, layout)
        return web.json_response(layout.to_json())

    async def counts(self, request: web.Request) -> web.Response:
        """Who is inside, and who came, went and crossed since the server started."""
        return web.json_response(self.scenes.peek(request.match_info["stream"]).counts())
