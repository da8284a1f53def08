"""The gate before every handler: origin, rate, key or token, load, and the body's deadline.

What a route needs stands in `RULES`; a route without a rule needs control of everything, and a
test fails until it has one. With `auth` off everybody may do everything and only origins, rates
and load are looked at.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import hdrs, web

from server.access.auth import ANYONE, NOBODY, Authority, Principal
from server.access.callers import Caller, Callers
from server.access.holdings import Holdings
from server.access.limits import Limits
from server.errors import (
    ForbiddenError,
    MalformedError,
    NotFoundError,
    TimedOutError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedTypeError,
)
from server.settings import STREAM_NAME, STREAM_NAME_RULE, Settings

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# In a URL a secret ends in logs, histories and Referer headers.
SECRET_PARAMETERS = ("token", "access_token", "api_key", "key", "authorization", "jwt")
EXPOSED = "Location, ETag, Link, Retry-After, Accept-Post, Accept-Patch, WWW-Authenticate"
CORS_METHODS = "GET, POST, PUT, PATCH, DELETE, OPTIONS"
CORS_HEADERS = "Authorization, Content-Type, If-Match"
# How long what is left of a refused body is read, so that the answer gets through.
LINGERING_S = 2.0
BODY_PART_BYTES = 1 << 16
HSTS = "max-age=31536000"
DRAINING_RETRY_AFTER_S = 5


@dataclass(frozen=True, slots=True)
class Rule:
    """What a route needs.

    `scope` None takes any principal. `of` says on what: `path` is the stream named in the path,
    `any` at least one stream, `all` the server as a whole. `held`: the session of the path must
    be the caller's own. `opens`: it starts something, so rates and load are looked at first.
    `ticket`: a one-use ticket in the URL will do. `late`: who sends no credentials with the headers
    is let in as nobody, and the handler calls `Gate.sign_in` with what comes in the body or the
    first message. `streams_body`: the handler reads the body itself, in bounded parts.
    """

    scope: str | None = None
    of: Literal["path", "any", "all"] = "any"
    public: bool = False
    held: bool = False
    opens: bool = False
    calls: bool = False
    ticket: bool = False
    late: bool = False
    streams_body: bool = False


PUBLIC = Rule(public=True)
SERVER_CONTROL = Rule("control", of="all")
OWN_SESSION = Rule(held=True)

# By method and path as the router has it; HEAD follows GET.
RULES: Mapping[tuple[str, str], Rule] = {
    ("GET", "/"): PUBLIC,
    ("GET", "/web"): PUBLIC,
    ("GET", "/tile.js"): PUBLIC,
    ("GET", "/embed/{stream}"): PUBLIC,
    ("GET", "/dashboard"): PUBLIC,
    ("GET", "/api/qr"): PUBLIC,
    ("GET", "/healthz"): PUBLIC,
    ("GET", "/readyz"): PUBLIC,
    ("GET", "/api/client-config"): PUBLIC,
    ("POST", "/offer"): Rule("publish", opens=True, calls=True),
    ("GET", "/sessions/{id}"): OWN_SESSION,
    ("PATCH", "/sessions/{id}"): OWN_SESSION,
    ("DELETE", "/sessions/{id}"): OWN_SESSION,
    ("POST", "/whip/{stream}"): Rule("publish", of="path", opens=True, calls=True),
    ("GET", "/whip/{stream}"): PUBLIC,
    ("PATCH", "/whip/{stream}/{id}"): OWN_SESSION,
    ("DELETE", "/whip/{stream}/{id}"): OWN_SESSION,
    ("POST", "/whep/{stream}"): Rule("view", of="path", opens=True, calls=True),
    ("GET", "/whep/{stream}"): PUBLIC,
    ("PATCH", "/whep/{stream}/{id}"): OWN_SESSION,
    ("DELETE", "/whep/{stream}/{id}"): OWN_SESSION,
    ("GET", "/api/streams"): Rule("view"),
    ("POST", "/api/streams"): Rule("control", opens=True),
    ("GET", "/api/streams/{stream}"): Rule("view", of="path"),
    ("PATCH", "/api/streams/{stream}"): Rule("control", of="path"),
    ("DELETE", "/api/streams/{stream}"): Rule("control", of="path"),
    ("GET", "/api/streams/{stream}/viewers"): Rule("control", of="path"),
    ("GET", "/api/streams/{stream}/snapshot.jpg"): Rule("view", of="path", ticket=True),
    ("GET", "/api/streams/{stream}/mjpeg"): Rule("view", of="path", opens=True, ticket=True),
    ("GET", "/api/streams/{stream}/detections"): Rule("view", of="path", opens=True, ticket=True),
    ("GET", "/api/events/live"): Rule("view", opens=True, ticket=True),
    ("GET", "/ws/detections"): Rule("view", opens=True, ticket=True),
    ("GET", "/api/streams/{stream}/zones"): Rule("view", of="path"),
    ("PUT", "/api/streams/{stream}/zones"): Rule("control", of="path"),
    ("GET", "/api/streams/{stream}/counts"): Rule("view", of="path"),
    ("GET", "/api/events"): Rule("view"),
    ("GET", "/api/events/{id}"): Rule("view"),
    ("GET", "/api/events/{id}/snapshot.jpg"): Rule("view"),
    ("POST", "/api/events/{id}/acknowledge"): Rule("control"),
    ("GET", "/api/streams/{stream}/clips"): Rule("view", of="path"),
    ("GET", "/api/clips/{id}.mp4"): Rule("view"),
    ("GET", "/api/clips/{id}.jpg"): Rule("view"),
    ("GET", "/api/models"): Rule(),
    ("PUT", "/api/model"): SERVER_CONTROL,
    ("GET", "/api/openapi.json"): PUBLIC,
    ("GET", "/api/stats"): SERVER_CONTROL,
    ("GET", "/metrics"): SERVER_CONTROL,
    ("POST", "/api/tokens"): Rule("control", opens=True),
    ("DELETE", "/api/tokens/{token}"): SERVER_CONTROL,
    ("POST", "/api/tickets"): Rule(opens=True),
    ("GET", "/ws/stream"): Rule("publish", opens=True, calls=True, ticket=True, late=True),
    ("POST", "/api/detect"): Rule("publish", streams_body=True),
    ("POST", "/v1/vision/detection"): Rule("publish", late=True, streams_body=True),
    ("POST", "/v1/vision/custom/list"): Rule(late=True),
    ("POST", "/v1/vision/custom/{model}"): Rule("publish", late=True, streams_body=True),
    ("GET", "/v1/status/ping"): PUBLIC,
}


class Gate:
    """One for an application; `install` puts it before the handlers. On the loop."""

    def __init__(
        self,
        settings: Settings,
        authority: Authority,
        limits: Limits,
        holdings: Holdings,
        rules: Mapping[tuple[str, str], Rule] = RULES,
        is_draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings = settings
        self.authority = authority
        self.limits = limits
        self.holdings = holdings
        self._callers = Callers(settings.auth)
        self._rules = rules
        self._is_draining = is_draining
        # Calls being answered, by address: they count before they are held.
        self._opening: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()

    def install(self, app: web.Application) -> None:
        """Before the handlers, behind the middleware that makes errors into answers."""
        app[GATE] = self
        app.middlewares.append(self.guard)
        app.on_response_prepare.append(self._add_headers)

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        caller = self._caller(request)
        request[CALLER], request[PRINCIPAL] = caller, NOBODY
        rule = self._rule(request)
        try:
            self._check_source(request, caller)
            if is_preflight(request):
                return web.Response(status=204)
            if not caller.is_local:
                await self.limits.request(caller.group)
            if rule is None:
                return await handler(request)
            principal = await self._admit(request, caller, rule)
        except (UnauthorizedError, ForbiddenError) as error:
            self._refused[str(error.status)] += 1
            raise
        request[PRINCIPAL] = principal
        if not rule.calls:
            if not rule.streams_body:
                await self._read_body(request)
            return await handler(request)
        self.limits.check_address(self._calls_of(caller))
        self.limits.admit()
        await self.limits.check_rate()
        self._opening[caller.group] += 1
        try:
            await self._read_body(request)
            return await handler(request)
        finally:
            self._opening[caller.group] -= 1
            if not self._opening[caller.group]:
                del self._opening[caller.group]

    def statistics(self) -> dict[str, Any]:
        """Added to the body of `/api/stats`."""
        limits = self.limits.statistics()
        self.holdings.prune()
        return {
            "access": {
                "required": self.authority.required,
                "keys": self.authority.key_count,
                "refused": dict(self._refused),
                "ended_by_token": self.holdings.ended_by_token,
            },
            "limits": {
                "settings": self.limits.settings_json(),
                "refused": limits.refused,
                "callers": limits.callers,
                "callers_forgotten": limits.callers_forgotten,
                "load": {
                    name: round(getattr(limits.load, name), 3) for name in limits.load.__slots__
                },
            },
        }

    # --- in the order of the guard ---

    def _caller(self, request: web.Request) -> Caller:
        return self._callers.caller(
            request.remote,
            request.secure,
            ",".join(request.headers.getall("X-Forwarded-For", ())),
            ",".join(request.headers.getall("X-Forwarded-Proto", ())),
        )

    def _rule(self, request: web.Request) -> Rule | None:
        """None where the router found nothing and will say so itself."""
        if request.match_info.http_exception is not None:
            return None
        resource = request.match_info.route.resource
        path = resource.canonical if resource is not None else ""
        method = "GET" if request.method == "HEAD" else request.method
        if method == "OPTIONS":
            return PUBLIC
        return self._rules.get((method, path), SERVER_CONTROL)

    def _check_source(self, request: web.Request, caller: Caller) -> None:
        if _upgrades(request) or request.method not in SAFE_METHODS:
            self._callers.check_origin(request.headers, request.host, caller)
        if not self.authority.required:
            self._callers.check_host(request.host)

    async def _admit(self, request: web.Request, caller: Caller, rule: Rule) -> Principal:
        try:
            principal = self._identify(request, rule)
        except UnauthorizedError:
            if not caller.is_local and not rule.public:
                await self.limits.failure(caller.group)
            raise
        if principal is NOBODY and rule.late:
            return principal
        return await self._let_in(request, caller, rule, principal)

    def needs_sign_in(self, request: web.Request) -> bool:
        """Whether `sign_in` is still to come."""
        return self.authority.required and request[PRINCIPAL] is NOBODY

    async def sign_in(self, request: web.Request, authorization: str | None) -> Principal:
        """Who has come in by a `late` rule, by an Authorization header's text that came later;
        whoever signed in with the headers stays who he is."""
        caller, rule = request[CALLER], self._rule(request)
        assert rule is not None
        assert rule.late, "only where the rule says so"
        if not self.needs_sign_in(request):
            return request[PRINCIPAL]
        try:
            try:
                principal = self.authority.identify(authorization)
            except UnauthorizedError:
                if not caller.is_local:
                    await self.limits.failure(caller.group)
                raise
            request[PRINCIPAL] = await self._let_in(request, caller, rule, principal)
        except (UnauthorizedError, ForbiddenError) as error:
            self._refused[str(error.status)] += 1
            raise
        return principal

    async def _let_in(
        self, request: web.Request, caller: Caller, rule: Rule, principal: Principal
    ) -> Principal:
        if principal not in (ANYONE, NOBODY):
            await self.limits.request(principal.identity)
        self._check_rule(request, rule, principal)
        if rule.opens and self._is_draining():
            self.limits.refused("draining")
            raise UnavailableError("the server is stopping", DRAINING_RETRY_AFTER_S)
        if rule.opens:
            if not caller.is_local:
                await self.limits.opening(caller.group)
            if principal is not ANYONE:
                await self.limits.opening(principal.identity)
        return principal

    def _identify(self, request: web.Request, rule: Rule) -> Principal:
        authority = self.authority
        authorization = request.headers.get(hdrs.AUTHORIZATION)
        if not authority.required:
            return ANYONE
        if any(name.lower() in SECRET_PARAMETERS for name in request.query):
            raise UnauthorizedError("a key or token in the URL is not taken; send it as Bearer")
        if rule.ticket and authorization is None and "ticket" in request.query:
            return authority.take_ticket(request.query["ticket"])
        if rule.late and authorization is None and (_upgrades(request) or request.can_read_body):
            return NOBODY
        if not rule.public:
            return authority.identify(authorization)
        try:
            return authority.identify(authorization)
        except UnauthorizedError:
            return NOBODY

    def _check_rule(self, request: web.Request, rule: Rule, principal: Principal) -> None:
        stream = request.match_info.get("stream")
        if stream is not None and not STREAM_NAME.fullmatch(stream):
            raise NotFoundError(f"stream: {STREAM_NAME_RULE}")
        if rule.public:
            return
        if rule.scope is not None:
            if rule.of == "any":
                allowed = principal.has(rule.scope)
            else:
                allowed = principal.allows(rule.scope, stream if rule.of == "path" else None)
            if not allowed:
                of = {"path": "this stream", "any": "some stream", "all": "* (the whole server)"}
                raise ForbiddenError(f"scope: {rule.scope} of {of[rule.of]} is wanted, not given")
        strict = rule.held and self.authority.required
        if strict and not self.holdings.may_touch(request.match_info["id"], principal):
            raise NotFoundError("session: no such call, or it has ended")

    def _calls_of(self, caller: Caller) -> int:
        if caller.is_local:
            return 0
        return self.holdings.count(caller.group) + self._opening[caller.group]

    async def _read_body(self, request: web.Request) -> None:
        """The whole body into the request, within its deadline; handlers find it there."""
        if not request.can_read_body:
            return
        deadline_s = self._settings.limits.body_timeout_s
        try:
            async with asyncio.timeout(deadline_s):
                await request.read()
        except TimeoutError:
            self.limits.refused("body_timeout_s")
            raise TimedOutError(
                f"body_timeout_s: the body did not come within {deadline_s:g} s"
            ) from None
        except web.HTTPRequestEntityTooLarge:
            raise TooLargeError(
                f"max_body_kib: the body is over {self._settings.server.max_body_kib} KiB"
            ) from None

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """On every answer, refusals and streams too."""
        headers = response.headers
        headers[hdrs.SERVER] = "sightline"
        headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
        if self._settings.tls.tls_certificate and request.secure:
            headers.setdefault("Strict-Transport-Security", HSTS)
        if not self._settings.auth.allowed_origins:
            return
        headers.add(hdrs.VARY, hdrs.ORIGIN)
        origin = request.headers.get(hdrs.ORIGIN, "")
        if self._callers.is_allowed(origin):
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED
            if request.method == "OPTIONS":
                headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = CORS_METHODS
                headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = CORS_HEADERS
                headers[hdrs.ACCESS_CONTROL_MAX_AGE] = "600"


def make_runner(app: web.Application, settings: Settings) -> web.AppRunner:
    """Serves the application; connections that do not come to the point are closed.

    The keep-alive timer runs from the start of a connection and between requests, so it also
    ends headers that trickle in.
    """
    return web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=settings.server.shutdown_timeout_s,
        keepalive_timeout=settings.limits.idle_timeout_s,
        lingering_time=LINGERING_S,
    )


def _upgrades(request: web.Request) -> bool:
    """Whether a WebSocket is asked for."""
    return "websocket" in request.headers.get(hdrs.UPGRADE, "").lower()


GATE = web.AppKey("gate", Gate)
CALLER = web.RequestKey("caller", Caller)
PRINCIPAL = web.RequestKey("principal", Principal)


def is_preflight(request: web.Request) -> bool:
    """A browser's question about a path that has no OPTIONS of its own."""
    missing = request.match_info.http_exception
    asked = hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
    return request.method == "OPTIONS" and asked and missing is not None and missing.status == 405


def principal_of(request: web.Request) -> Principal:
    """Who the gate let in."""
    return request[PRINCIPAL]


async def json_body(request: web.Request) -> Any:
    """The body as JSON; the gate has read it, within its size and its deadline."""
    if request.content_type != "application/json":
        raise UnsupportedTypeError(
            f"Content-Type: {request.content_type[:60]} is not application/json"
        )
    try:
        return json.loads(await request.text())
    except (ValueError, LookupError, RecursionError):
        raise MalformedError("body: not JSON") from None


async def options_body(request: web.Request) -> dict[str, Any]:
    """The one member of a body that changes the options of a call or a stream."""
    body = await json_body(request)
    options = body.get("options") if isinstance(body, dict) else None
    if not isinstance(options, dict):
        raise MalformedError("body: not a JSON object with options")
    if unknown := sorted(set(body) - {"options"}):
        raise MalformedError(f"{unknown[0][:40]}: unknown; known is options")
    return options


def authorize(request: web.Request, scope: str, stream: str) -> None:
    """For handlers that learn the stream's name from the body."""
    if not STREAM_NAME.fullmatch(stream):
        raise NotFoundError(f"stream: {STREAM_NAME_RULE}")
    if not principal_of(request).allows(scope, stream):
        raise ForbiddenError(f"scope: {scope} of this stream is not given")


async def read_body(request: web.Request, at_most: int, deadline_s: float) -> bytes:
    """The body of a request whose rule is `streams_body`, within a bound and a deadline."""
    too_large = TooLargeError(f"max_image_mib: the body is over {at_most / 2**20:g} MiB")
    if (request.content_length or 0) > at_most:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(deadline_s):
            async for part in request.content.iter_chunked(BODY_PART_BYTES):
                size += len(part)
                if size > at_most:
                    raise too_large
                parts.append(part)
    except ConnectionResetError:
        # Nobody hears the answer; raised further it would be logged as a fault of ours.
        raise MalformedError("body: the caller left before its end") from None
    except TimeoutError:
        request.app[GATE].limits.refused("body_timeout_s")
        raise TimedOutError(
            f"body_timeout_s: the body did not come within {deadline_s:g} s"
        ) from None
    return b"".join(parts)


def hold(
    request: web.Request,
    session_id: str,
    end: Callable[[str], None],
    stream: str | None = None,
    *,
    is_call: bool = True,
) -> None:
    """A call was opened: from now on it is the caller's own and ends with its token. What is no
    call does not count as one of its address."""
    caller = request[CALLER]
    request.app[GATE].holdings.add(
        session_id,
        principal_of(request),
        end,
        address=caller.address,
        group=caller.group if is_call and not caller.is_local else "",
        stream=stream,
    )
