"""`/api/tokens` and `/api/tickets`: handing on a part of what one may do oneself."""

import asyncio

from aiohttp import web

from server.access.auth import (
    TICKET_LIFE_S,
    parse_name,
    parse_patterns,
    parse_scopes,
    parse_span_s,
)
from server.clock import unix_ms
from server.edge.gate import GATE, json_body, principal_of
from server.errors import ForbiddenError, MalformedError, SettingsError, UnavailableError

KNOWN = ("scopes", "streams", "ttl", "name")
DEFAULT_TTL = "1h"
RETRY_S = 5


def access_routes() -> list[web.AbstractRouteDef]:
    return [
        web.post("/api/tokens", issue_token),
        web.delete("/api/tokens/{token}", revoke_token),
        web.post("/api/tickets", issue_ticket),
    ]


async def issue_token(request: web.Request) -> web.Response:
    """`POST /api/tokens`: never more streams than the issuer controls, never longer."""
    body = await json_body(request)
    if not isinstance(body, dict) or not isinstance(body.get("scopes"), list):
        raise MalformedError("body: not a JSON object with scopes, a list")
    if unknown := sorted(set(body) - set(KNOWN)):
        raise MalformedError(f"{unknown[0]!r:.40}: unknown; known are {', '.join(KNOWN)}")
    scopes = parse_scopes(body["scopes"])
    streams = body.get("streams", ["*"])
    if not isinstance(streams, list):
        raise MalformedError("streams: not a list")
    patterns = parse_patterns(streams)
    ttl = body.get("ttl", DEFAULT_TTL)
    if not isinstance(ttl, str):
        raise MalformedError("ttl: not text such as 1h")
    life_s: float = parse_span_s(ttl)
    issuer = principal_of(request)
    if not issuer.covers(patterns):
        raise ForbiddenError("streams: more than the issuer's own")
    if issuer.expires_at_unix_s is not None:
        life_s = max(1.0, min(life_s, issuer.expires_at_unix_s - unix_ms() / 1000))
    name = parse_name(body.get("name", ""))
    tokens = request.app[GATE].authority.tokens
    token, principal = tokens.issue(scopes, patterns, life_s, name)
    assert principal.expires_at_unix_s is not None
    return web.json_response(
        {
            "token": token,
            "id": principal.token_id,
            "scopes": sorted(scopes),
            "streams": list(patterns),
            "expires_unix_ms": round(principal.expires_at_unix_s * 1000),
        },
        status=201,
    )


async def revoke_token(request: web.Request) -> web.Response:
    """`DELETE /api/tokens/{id}`: no longer taken, and what was opened with it ends now."""
    gate, token_id = request.app[GATE], request.match_info["token"]
    if len(token_id) > 64:
        raise MalformedError("token: the id is wanted, not the token")
    tokens = gate.authority.tokens
    tokens.revoke(token_id)
    ended = gate.holdings.end_token(token_id)
    try:
        await asyncio.to_thread(tokens.write_revoked)
    except SettingsError as error:
        # It holds as long as this process; whoever asks again is told when it holds for good.
        raise UnavailableError(str(error), RETRY_S) from None
    return web.json_response({"revoked": True, "ended": ended})


async def issue_ticket(request: web.Request) -> web.Response:
    """`POST /api/tickets`: for a WebSocket or an event stream, as `?ticket=`, once and soon."""
    ticket = request.app[GATE].authority.issue_ticket(principal_of(request))
    return web.json_response({"ticket": ticket, "expires_in_s": TICKET_LIFE_S}, status=201)
