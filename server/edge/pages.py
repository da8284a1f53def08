"""The pages beside the call page: the component for other sites, one stream in a frame, the
dashboard, and the QR codes it shows.

Each page has a policy of its own: only `/embed` may be shown in a frame of another site, and
only by the origins in `frame_ancestors`.
"""

import asyncio
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import segno
from aiohttp import web

from server.access.callers import checked_origin
from server.errors import MalformedError
from server.settings import Settings
from server.streams import check_name
from server.urls import split_url

QR_LENGTH_AT_MOST = 300


@dataclass(frozen=True, slots=True)
class Pages:
    """The handlers; `web_root` is where the files are."""

    settings: Settings
    web_root: Path

    def routes(self) -> list[web.AbstractRouteDef]:
        return [
            web.get("/tile.js", self.tile),
            web.get("/embed/{stream}", self.embed),
            web.get("/dashboard", self.dashboard),
            web.get("/api/qr", self.qr),
        ]

    async def tile(self, request: web.Request) -> web.FileResponse:
        """The component as one module; other origins may load it if the settings name them."""
        headers = {"Cache-Control": "no-cache", "Content-Type": "text/javascript; charset=utf-8"}
        if self.settings.auth.allowed_origins:
            # A module is fetched with CORS, which the gate answers; this is for pages that
            # isolate themselves.
            headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        return web.FileResponse(self.web_root / "tile.js", headers=headers)

    async def embed(self, request: web.Request) -> web.FileResponse:
        """One stream, for a frame in another page. Whether there is such a stream is not told
        here: the page asks with its token."""
        check_name(request.match_info["stream"])
        ancestors = self.settings.auth.frame_ancestors
        headers = {"Content-Security-Policy": embed_policy(ancestors)}
        if ancestors:
            headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        return web.FileResponse(self.web_root / "embed.html", headers=headers)

    async def dashboard(self, request: web.Request) -> web.FileResponse:
        """All streams at once."""
        return web.FileResponse(self.web_root / "dashboard.html")

    async def qr(self, request: web.Request) -> web.Response:
        """`GET /api/qr?text=URL` as SVG; addresses of this server only."""
        text = request.query.get("text", "")
        parts = split_url(text) if len(text) <= QR_LENGTH_AT_MOST else None
        if (
            parts is None
            or parts.scheme not in ("http", "https")
            or parts.netloc.lower() != request.host.lower()
        ):
            raise MalformedError(
                f"text: not an address of {request.host[:100]}, of {QR_LENGTH_AT_MOST} "
                "characters at most"
            )
        svg = await asyncio.to_thread(qr_code, text)
        return web.Response(body=svg, content_type="image/svg+xml")


def qr_code(text: str) -> bytes:
    """As SVG. Up to 20 ms: not on the loop."""
    drawing = io.BytesIO()
    segno.make(text, error="m", micro=False).save(drawing, kind="svg", border=2, scale=4)
    return drawing.getvalue()


def embed_policy(ancestors: Sequence[str]) -> str:
    """The policy of `/embed`: what it may load, and who may frame it.

    Raises SettingsError for what is no origin: in this header a stray word would mean more.
    """
    framing = " ".join(["'self'", *(checked_origin(text, "frame_ancestors") for text in ancestors)])
    return (
        "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob: mediastream:; "
        f"object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors {framing}"
    )
