"""A server that asks for keys and tokens, as tests of the gate need it."""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
from aiohttp import ClientSession, web

from server.access.auth import AUDIENCE, TOKEN_TYPE
from server.app import SIGNALING, make_app
from server.clock import unix_ms
from server.edge.gate import GATE, Gate, make_runner
from server.registry import Registry
from server.settings import Settings
from tests.fakes import FakeDetector
from tests.serving import changed

SECRET = "a secret of the tests that is long enough for every digest there is in a JWT"
ADMIN = "admin-key-of-the-tests-0123456789"
PUBLISHER = "publisher-key-of-the-tests-01234"
FRONT = "front-viewer-key-of-the-tests-012"
KEYS = (f"{ADMIN}", f"publish:*:{PUBLISHER}", f"view+control:front-*:{FRONT}")


def guarded_settings(**groups: dict[str, Any]) -> Settings:
    """Auth on, with three keys, a given secret and whatever else a test changes."""
    settings = changed(**groups)
    auth: dict[str, Any] = {"auth": "on", "api_keys": KEYS, "token_secret": SECRET}
    auth |= groups.get("auth", {})
    return dataclasses.replace(settings, auth=dataclasses.replace(settings.auth, **auth))


@dataclasses.dataclass(frozen=True, slots=True)
class Guarded:
    """Where it listens, and its parts. Has what `tests.serving.Caller.call` needs."""

    url: str
    host: str
    port: int
    http: ClientSession
    registry: Registry
    gate: Gate
    app: web.Application

    async def ask(
        self, method: str, path: str, secret: str | None = None, **more: Any
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON body."""
        headers = dict(more.pop("headers", {}))
        if secret is not None:
            headers["Authorization"] = f"Bearer {secret}"
        async with self.http.request(method, self.url + path, headers=headers, **more) as reply:
            if not reply.content_type.endswith("json"):
                return reply.status, {}
            return reply.status, await reply.json()

    async def stream(self, name: str) -> dict[str, Any]:
        """One stream, as the API tells it to whoever the session is."""
        return (await self.ask("GET", f"/api/streams/{name}"))[1]


@asynccontextmanager
async def guarded(
    settings: Settings | None = None, secret: str | None = None
) -> AsyncIterator[Guarded]:
    """The application on a free loopback port, as `python -m server` would run it; `secret` is
    sent with every request."""
    settings = settings or guarded_settings()
    app = make_app(settings, FakeDetector())
    runner = make_runner(app, settings)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    try:
        async with ClientSession(headers=headers) as http:
            url = f"http://{host}:{port}"
            yield Guarded(url, host, port, http, app[SIGNALING].registry, app[GATE], app)
    finally:
        await runner.cleanup()


def token(
    *, secret: str = SECRET, algorithm: str = "HS256", typ: str = TOKEN_TYPE, **claims: Any
) -> str:
    """A token as ours are, but for what a test changes; a claim of None is left out."""
    at_unix_s = int(unix_ms() / 1000)
    body = {
        "aud": AUDIENCE,
        "iat": at_unix_s,
        "exp": at_unix_s + 3600,
        "jti": "test-token",
        "scope": "control publish view",
        "streams": ["*"],
        **claims,
    }
    body = {name: value for name, value in body.items() if value is not None}
    key = "" if algorithm == "none" else secret
    return jwt.encode(body, key, algorithm, headers={"typ": typ})
