"""HTTP for what happened: search, one event, its picture, and that somebody has seen it."""

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from server.analysis.events import KINDS, Search, StoredEvent
from server.clock import unix_ms
from server.edge.gate import authorize, principal_of
from server.edge.query import (
    INTEGER_AT_MOST,
    PAGE,
    PAGE_AT_MOST,
    check_query,
    choice,
    make_cursor,
    number,
    read_cursor,
)
from server.errors import NotFoundError
from server.history.journal import Journal

EVENT_ID = r"{id:[0-9a-f]{32}}"
KNOWN = (
    "stream", "class", "zone", "kind", "since", "until", "acknowledged", "limit", "cursor",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HistoryApi:
    """The handlers. Where nothing is stored yet, nothing is found."""

    journal: Journal

    def routes(self) -> list[web.AbstractRouteDef]:
        return [
            web.get("/api/events", self.search),
            web.get(f"/api/events/{EVENT_ID}", self.read),
            web.get(f"/api/events/{EVENT_ID}/snapshot.jpg", self.snapshot),
            web.post(f"/api/events/{EVENT_ID}/acknowledge", self.acknowledge),
        ]

    async def search(self, request: web.Request) -> web.Response:
        """Events of all streams that the caller may view, newest first, by pages."""
        query = check_query(request.query, KNOWN)
        stream = query.get("stream")
        if stream is not None:
            authorize(request, "view", stream)
        limit = number(query, "limit", PAGE, 1, PAGE_AT_MOST)
        wish = Search(
            patterns=principal_of(request).streams,
            stream=stream,
            class_name=query.get("class"),
            zone=query.get("zone"),
            kind=choice(query, "kind", KINDS),
            since_unix_ms=number(query, "since", None, 0, INTEGER_AT_MOST),
            until_unix_ms=number(query, "until", None, 0, INTEGER_AT_MOST),
            acknowledged={"true": True, "false": False, None: None}[
                choice(query, "acknowledged", ("true", "false"))
            ],
            after=read_cursor(query.get("cursor")),
            limit=limit or PAGE,
        )
        store = self.journal.reach()
        if store is None:
            return web.json_response({"events": [], "next": None})
        found = await store.search(wish)
        following = None
        if len(found) == wish.limit:
            following = make_cursor(found[-1].event.started_unix_ms, found[-1].event.id)
        return web.json_response({"events": [e.to_json() for e in found], "next": following})

    async def read(self, request: web.Request) -> web.Response:
        """One event."""
        return web.json_response((await self._event(request, "view")).to_json())

    async def snapshot(self, request: web.Request) -> web.Response:
        """The picture that shows the event best."""
        event = await self._event(request, "view")
        store = self.journal.reach()
        jpeg = await store.snapshot(event.event.id) if store is not None else None
        if jpeg is None:
            raise NotFoundError("snapshot: this event has none")
        return web.Response(body=jpeg, content_type="image/jpeg", headers=PICTURE_HEADERS)

    async def acknowledge(self, request: web.Request) -> web.Response:
        """Somebody has seen it; the first who says so stands. On the disk before the answer."""
        event = await self._event(request, "control")
        store = self.journal.reach()
        assert store is not None, "the event came from it"
        by = principal_of(request).identity
        done = await store.acknowledge(event.event.id, by, round(unix_ms()))
        if done is None:
            raise NotFoundError("event: no such event, or it was deleted")
        return web.json_response(done.to_json())

    async def _event(self, request: web.Request, scope: str) -> StoredEvent:
        """One that the caller may see; others are as if they were not."""
        store = self.journal.reach()
        found = None
        if store is not None:
            found = await store.get(request.match_info["id"])
        allows: Callable[[str, str], bool] = principal_of(request).allows
        if found is None or not allows("view", found.event.stream):
            raise NotFoundError("event: no such event, or it was deleted")
        authorize(request, scope, found.event.stream)
        return found


PICTURE_HEADERS = {"Cache-Control": "private, max-age=60"}
