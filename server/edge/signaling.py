"""The HTTP edge: offers, live options, health, statistics and the page's files.

Every refusal is a problem body (RFC 9457) made in one place from the error tree; nothing is
half open behind it.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from server import __version__
from server.access.turn import ice_servers_json
from server.edge.answers import deepstack_refusal
from server.edge.gate import GATE, authorize, hold, json_body, options_body, principal_of
from server.errors import (
    MalformedError,
    ModelError,
    RequestError,
    UnavailableError,
)
from server.metrics import CONTENT_TYPE, metrics_text
from server.model_change import ModelChanger
from server.offer import parse_offer
from server.registry import Registry
from server.settings import MODES, Settings
from server.status import Status, model_json, session_json, statistics_json

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Whoever calls below it expects refusals in DeepStack's shape.
DEEPSTACK_ROOT = "/v1/"
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob: mediastream:; "
        "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), display-capture=(self)",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Signaling:
    """The handlers; everything they need is handed in."""

    settings: Settings
    registry: Registry
    status: Status
    model_changer: ModelChanger
    web_root: Path

    def routes(self) -> list[web.AbstractRouteDef]:
        return [
            web.get("/", self.index),
            web.post("/offer", self.offer),
            web.get("/sessions/{id}", self.read_session),
            web.patch("/sessions/{id}", self.update_session),
            web.delete("/sessions/{id}", self.end_session),
            web.get("/api/client-config", self.client_config),
            web.get("/api/models", self.models),
            web.put("/api/model", self.change_model),
            web.get("/api/stats", self.stats),
            web.get("/healthz", self.healthz),
            web.get("/readyz", self.readyz),
            web.get("/metrics", self.metrics_page),
            web.static("/web", self.web_root, append_version=False),
        ]

    # --- calls ---

    async def offer(self, request: web.Request) -> web.Response:
        """`POST /offer`: a camera comes in, the annotated picture goes back."""
        offer = parse_offer(await json_body(request))
        if offer.stream:
            authorize(request, "publish", offer.stream)
        answer = await self.registry.open(offer)
        session = answer.session
        hold(request, session.id, session.end, offer.stream or None)
        return web.json_response(
            {
                "sdp": answer.sdp,
                "type": "answer",
                "session": session.id,
                "options": session.options.to_json(),
                **session.described(),
            }
        )

    async def read_session(self, request: web.Request) -> web.Response:
        """What a call is doing."""
        session = self.registry.get(request.match_info["id"])
        return web.json_response(session_json(session.statistics()))

    async def update_session(self, request: web.Request) -> web.Response:
        """Other options from now on; all of the change or none of it."""
        changes = await options_body(request)
        options = self.registry.update(request.match_info["id"], changes)
        return web.json_response({"options": options.to_json()})

    async def end_session(self, request: web.Request) -> web.Response:
        """End a call; nothing of it leaves after the answer."""
        await self.registry.end(request.match_info["id"])
        return web.json_response({"ended": True})

    # --- the detector ---

    async def models(self, request: web.Request) -> web.Response:
        """The models that could run now, and the one that does."""
        choices = [
            {"name": choice.name, "licence": choice.licence}
            for choice in self.model_changer.choices()
        ]
        running = model_json(self.status.inference())
        return web.json_response({"models": choices, "running": running})

    async def change_model(self, request: web.Request) -> web.Response:
        """`PUT /api/model`: another detector from the next frame on, without ending a call."""
        body = await json_body(request)
        name = body.get("model") if isinstance(body, dict) else None
        if not isinstance(name, str) or not name or len(name) > 400 or set(body) != {"model"}:
            raise MalformedError("body: not a JSON object with model, a name of /api/models")
        await self.model_changer.change(name.split("+"))
        return web.json_response({"model": model_json(self.status.inference())})

    # --- what is known ---

    async def index(self, request: web.Request) -> web.StreamResponse:
        """The call page for browsers; for others what a health check of a client wants."""
        if "text/html" in request.headers.get("Accept", ""):
            return web.FileResponse(self.web_root / "index.html")
        return web.json_response(
            {
                "status": "ok",
                "model_loaded": bool(self.status.inference().engines),
                "version": __version__,
                "ready": self.status.is_ready,
            }
        )

    async def client_config(self, request: web.Request) -> web.Response:
        """What the page needs before it makes an offer."""
        required = request.app[GATE].authority.required
        principal = principal_of(request)
        servers = ice_servers_json(
            self.settings, principal.identity, relays=not required or bool(principal.scopes)
        )
        return web.json_response(
            {
                "version": __version__,
                "auth_required": required,
                "ice_servers": servers,
                "modes": list(MODES),
                "defaults": {
                    "mode": self.settings.session.mode,
                    "confidence": self.settings.session.confidence,
                },
                "demo": self.settings.sources.demo == "on",
                "limits": {"max_sessions": self.settings.session.max_sessions},
                "model": model_json(self.status.inference()),
            }
        )

    async def stats(self, request: web.Request) -> web.Response:
        """Everything there is to know about the running server."""
        gate, snapshot = request.app[GATE].statistics(), self.status.statistics()
        # The text takes milliseconds, of hundreds of calls tens: no picture waits for it.
        text = await asyncio.to_thread(lambda: json.dumps({**statistics_json(snapshot), **gate}))
        return web.json_response(text=text)

    async def healthz(self, request: web.Request) -> web.Response:
        """Alive: the loop answers. Depends on nothing else, so that nothing else restarts us."""
        return web.json_response({"status": "ok"})

    async def readyz(self, request: web.Request) -> web.Response:
        """Able to serve new calls."""
        inference, ready = self.status.inference(), self.status.is_ready
        detector = {
            "none": "none: passing video through",
            "running": "+".join(engine.model for engine in inference.engines),
        }.get(inference.state, inference.state)
        return web.json_response(
            {
                "ready": ready,
                "detector": detector,
                "last_error": inference.last_error,
                "calls": self.registry.count,
                "max_sessions": self.settings.session.max_sessions,
            },
            status=200 if ready else 503,
        )

    async def metrics_page(self, request: web.Request) -> web.Response:
        """The same for Prometheus."""
        gate, snapshot = request.app[GATE].statistics(), self.status.statistics()
        body = await asyncio.to_thread(metrics_text, snapshot, gate)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


@web.middleware
async def refuse_honestly(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors to HTTP, and the security headers, on every answer."""
    try:
        response = await handler(request)
    except ModelError as error:
        response = _problem(request, 422, "The model cannot be used", str(error))
    except (RequestError, UnavailableError) as error:
        response = _problem(request, error.status, error.title, str(error))
        response.headers.update(error.headers)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        response = _problem(request, error.status, error.reason, _router_s_refusal(request, error))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
    except ConnectionResetError:
        raise
    except Exception:
        # The top of a request: a fault of ours is one 500 and a line in the log.
        logger.exception("%s %s failed", request.method, request.path)
        response = _problem(request, 500, "Internal error", "the server failed; its log says more")
    if not response.prepared:
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Cache-Control", "no-store")
    return response


def _router_s_refusal(request: web.Request, error: web.HTTPException) -> str:
    """What the router knows only as a status, in a sentence that helps."""
    if error.status == 404:
        return "no such address here, or no such id in it; /api/openapi.json lists the routes"
    if error.status == 405:
        return f"{request.method} is not taken here; {error.headers.get('Allow', 'nothing')} is"
    return error.reason


def _problem(request: web.Request, status: int, title: str, detail: str) -> web.Response:
    if request.path.startswith(DEEPSTACK_ROOT):
        return web.json_response(deepstack_refusal(status, detail), status=status)
    return web.json_response(
        {"type": "about:blank", "title": title, "status": status, "detail": detail},
        status=status,
        content_type="application/problem+json",
    )
