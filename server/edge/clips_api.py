"""HTTP for clips: what there is of a stream, the films, and their small pictures."""

from dataclasses import dataclass

from aiohttp import web

from server.analysis.events import Clip
from server.edge.gate import principal_of
from server.edge.query import (
    INTEGER_AT_MOST,
    PAGE,
    PAGE_AT_MOST,
    check_query,
    make_cursor,
    number,
    read_cursor,
)
from server.errors import NotFoundError
from server.history.clips import ClipRecorder
from server.history.journal import Journal

CLIP_ID = r"{id:[0-9a-f]{32}}"
KNOWN = ("since", "until", "limit", "cursor")
# A clip never changes: its name is its own.
HEADERS = {"Cache-Control": "private, max-age=86400, immutable"}


@dataclass(frozen=True, slots=True)
class ClipsApi:
    """The handlers."""

    recorder: ClipRecorder
    journal: Journal

    def routes(self) -> list[web.AbstractRouteDef]:
        return [
            web.get("/api/streams/{stream}/clips", self.of_stream),
            web.get(f"/api/clips/{CLIP_ID}.mp4", self.film),
            web.get(f"/api/clips/{CLIP_ID}.jpg", self.thumbnail),
        ]

    async def of_stream(self, request: web.Request) -> web.Response:
        """Clips of a stream, newest first, by pages."""
        query = check_query(request.query, KNOWN)
        limit = number(query, "limit", PAGE, 1, PAGE_AT_MOST) or PAGE
        since = number(query, "since", None, 0, INTEGER_AT_MOST)
        until = number(query, "until", None, 0, INTEGER_AT_MOST)
        after = read_cursor(query.get("cursor"))
        store = self.journal.reach()
        if store is None:
            return web.json_response({"clips": [], "next": None})
        found = await store.clips(request.match_info["stream"], since, until, after, limit)
        following = None
        if len(found) == limit:
            following = make_cursor(found[-1].started_unix_ms, found[-1].id)
        clips = [clip.to_json() for clip in found]
        return web.json_response({"clips": clips, "next": following})

    async def film(self, request: web.Request) -> web.StreamResponse:
        """The clip as MP4; parts of it by Range."""
        clip = await self._clip(request)
        file = self.recorder.path(clip.id)
        if not file.is_file():
            raise NotFoundError("clip: no such clip, or it was deleted")
        return web.FileResponse(file, headers={**HEADERS, "Content-Type": "video/mp4"})

    async def thumbnail(self, request: web.Request) -> web.Response:
        """What the clip shows when its event begins."""
        clip = await self._clip(request)
        if clip.thumbnail is None:
            raise NotFoundError("thumbnail: this clip has none")
        return web.Response(body=clip.thumbnail, content_type="image/jpeg", headers=HEADERS)

    async def _clip(self, request: web.Request) -> Clip:
        """One that the caller may see; others are as if they were not."""
        store = self.journal.reach()
        found = await store.clip(request.match_info["id"]) if store is not None else None
        if found is None or not principal_of(request).allows("view", found.stream):
            raise NotFoundError("clip: no such clip, or it was deleted")
        return found
