"""The gate before a real server: who gets in, to what, and what ends it again."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiortc import RTCSessionDescription

from server.access.auth import SCOPES, Authority
from server.access.holdings import Holdings
from server.access.limits import Limits, Load
from server.access.turn import turn_credentials
from server.edge.gate import GATE, RULES, Gate, Rule, principal_of
from server.edge.signaling import refuse_honestly
from server.settings import LimitSettings
from tests.gate.guarded import (
    ADMIN,
    FRONT,
    PUBLISHER,
    SECRET,
    Guarded,
    guarded,
    guarded_settings,
    token,
)
from tests.serving import Caller, changed, until

pytestmark = pytest.mark.service

VIEWER = token(scope="view", jti="a-viewer")


def routes_of(app: web.Application) -> set[tuple[str, str]]:
    """Method and path of all that is served; HEAD and OPTIONS follow the others."""
    found = set()
    for route in app.router.routes():
        assert route.resource is not None
        if route.method not in ("HEAD", "OPTIONS"):
            found.add((route.method, route.resource.canonical))
    return found


def path_of(canonical: str) -> str:
    # Ids of events and clips have a form of their own, which any id may have.
    filled = canonical.replace("{stream}", "front-door").replace("{id}", "0" * 32)
    return filled.replace("{", "").replace("}", "")


async def test_every_route_has_a_rule_and_every_rule_a_route() -> None:
    async with guarded() as server:
        assert routes_of(server.app) == set(RULES)


async def test_without_a_secret_every_route_is_public_by_its_rule_or_refused() -> None:
    async with guarded() as server:
        for (method, path), rule in RULES.items():
            status, _ = await server.ask(method, path_of(path))
            if rule.public:
                assert status != 401, (method, path)
            else:
                assert status == 401, (method, path)


async def test_a_viewers_token_gets_403_or_404_on_all_that_is_not_for_viewers() -> None:
    open_to_viewers = {(None, "any"), ("view", "any"), ("view", "path"), ("view", "all")}
    async with guarded() as server:
        for (method, path), rule in RULES.items():
            if rule.public or (not rule.held and (rule.scope, rule.of) in open_to_viewers):
                continue
            status, _ = await server.ask(method, path_of(path), VIEWER)
            assert status == (404 if rule.held else 403), (method, path)


async def test_a_route_without_a_rule_takes_control_of_everything() -> None:
    app = own_app({})
    async with running(app) as url, aiohttp.ClientSession() as http:
        for secret, status in ((FRONT, 403), (PUBLISHER, 403), (ADMIN, 200)):
            headers = {"Authorization": f"Bearer {secret}"}
            async with http.get(f"{url}/streams/front-door", headers=headers) as reply:
                assert reply.status == status


@pytest.mark.parametrize(
    ("secret", "status"),
    [
        (None, 401),
        ("wrong-key-0123456789-0123456789", 401),
        (token(exp=1_000_000), 401),
        (token(algorithm="none"), 401),
        (token(secret=SECRET[::-1]), 401),
        (token(aud="another"), 401),
        (token(typ="JWT"), 401),
        (token()[:-3] + "abc", 401),
        (token(scope="view"), 403),
        (token(streams=["front-*"]), 403),
        (PUBLISHER, 403),
        (FRONT, 403),
        (token(), 200),
        (token(scope="control"), 200),
        (ADMIN, 200),
    ],
)  # fmt: skip
async def test_statistics_are_for_who_controls_everything(secret: str | None, status: int) -> None:
    async with guarded() as server:
        got, body = await server.ask("GET", "/api/stats", secret)
        assert got == status, body
        if status != 200:
            assert body["status"] == status
            assert secret is None or secret not in json.dumps(body)


async def test_a_refusal_says_how_to_sign_in() -> None:
    async with guarded() as server, server.http.get(f"{server.url}/api/stats") as reply:
        assert reply.status == 401
        assert reply.headers["WWW-Authenticate"].startswith("Bearer")
        assert reply.content_type == "application/problem+json"
        assert reply.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("name", ["token", "access_token", "api_key", "key", "Authorization"])
async def test_a_secret_in_the_url_is_refused_even_beside_a_good_one(name: str) -> None:
    async with guarded() as server:
        status, body = await server.ask("GET", f"/api/stats?{name}={ADMIN}")
        assert status == 401
        assert ADMIN not in json.dumps(body)
        status, _ = await server.ask("GET", f"/api/stats?{name}={ADMIN}", ADMIN)
        assert status == 401


async def test_the_page_and_health_need_no_key_and_the_page_learns_that_calls_do() -> None:
    async with guarded() as server:
        for path in ("/", "/healthz", "/readyz", "/web/main.js"):
            async with server.http.get(server.url + path, headers={"Accept": "text/html"}) as reply:
                assert reply.status == 200, path
        status, config = await server.ask("GET", "/api/client-config")
        assert (status, config["auth_required"]) == (200, True)
    async with guarded(changed()) as server:
        _, config = await server.ask("GET", "/api/client-config")
        assert config["auth_required"] is False


async def test_relay_credentials_are_for_who_may_call_and_do_not_last() -> None:
    settings = guarded_settings(
        rtc={"ice_servers": ("stun:stun.example", "turn:turn.example")},
        auth={"turn_secret": "shared with coturn", "turn_ttl_s": 600},
    )
    async with guarded(settings) as server:
        _, config = await server.ask("GET", "/api/client-config")
        assert config["ice_servers"] == [{"urls": "stun:stun.example"}]
        _, config = await server.ask("GET", "/api/client-config", PUBLISHER)
        relay = config["ice_servers"][1]
        until_unix_s, _, who = relay["username"].partition(":")
        assert who.startswith("key-")
        name, credential = turn_credentials("shared with coturn", who, 600, int(until_unix_s) - 600)
        assert (relay["username"], relay["credential"]) == (name, credential)


def test_relay_credentials_are_what_coturn_computes() -> None:
    # openssl: printf 1000600:alice | openssl dgst -sha1 -hmac secret -binary | base64
    assert turn_credentials("secret", "alice", 600, 1_000_000) == (
        "1000600:alice",
        "EUVmHpFeStn26cw8L0a33nZgRxM=",
    )


# --- calls and their tokens ---


async def test_a_call_ends_with_the_token_it_was_opened_with() -> None:
    async with guarded() as server:
        status, issued = await server.ask(
            "POST", "/api/tokens", ADMIN, json={"scopes": ["publish"], "ttl": "3s"}
        )
        assert status == 201
        async with calling_with(server, issued["token"]):
            await until(lambda: "token ended" in server.registry.statistics().ended)
        status, body = await server.ask("GET", "/api/stats", ADMIN)
        assert body["access"]["ended_by_token"] == 1


async def test_a_revoked_token_ends_its_calls_at_once_and_no_others() -> None:
    async with guarded() as server:
        _, issued = await server.ask(
            "POST", "/api/tokens", ADMIN, json={"scopes": ["publish"], "ttl": "1h"}
        )
        async with calling_with(server, PUBLISHER), calling_with(server, issued["token"]):
            status, body = await server.ask("DELETE", f"/api/tokens/{issued['id']}", ADMIN)
            assert (status, body["ended"]) == (200, 1)
            await until(lambda: server.registry.statistics().ended == {"token ended": 1})
            assert len(server.registry.statistics().sessions) == 1
            status, _ = await server.ask("GET", "/api/models", issued["token"])
            assert status == 401


async def test_a_revoked_token_ends_its_calls_though_the_disk_takes_nothing(
    tmp_path: Path,
) -> None:
    async with guarded(guarded_settings(auth={"state_dir": str(tmp_path)})) as server:
        (tmp_path / "revoked.json").mkdir()
        _, issued = await server.ask(
            "POST", "/api/tokens", ADMIN, json={"scopes": ["publish"], "ttl": "1h"}
        )
        async with calling_with(server, issued["token"]):
            status, body = await server.ask("DELETE", f"/api/tokens/{issued['id']}", ADMIN)
            assert (status, "state_dir" in body["detail"]) == (503, True)
            await until(lambda: server.registry.statistics().ended == {"token ended": 1})
            status, _ = await server.ask("GET", "/api/models", issued["token"])
            assert status == 401


async def test_a_call_is_its_openers_and_unknown_to_others() -> None:
    async with guarded() as server, calling_with(server, PUBLISHER) as caller:
        path = f"/sessions/{caller.session}"
        other = token(scope="publish view", jti="other")
        for secret, status in ((other, 404), (FRONT, 404), (PUBLISHER, 200), (ADMIN, 200)):
            assert (await server.ask("GET", path, secret))[0] == status
        change = {"options": {"confidence": 0.5}}
        assert (await server.ask("PATCH", path, other, json=change))[0] == 404
        assert (await server.ask("PATCH", path, PUBLISHER, json=change))[0] == 200
        assert (await server.ask("DELETE", path, other))[0] == 404
        assert (await server.ask("DELETE", path, PUBLISHER))[0] == 200


class calling_with:
    """A call that is up, opened with this secret."""

    def __init__(self, server: Guarded, secret: str) -> None:
        self._server, self._secret = server, secret
        self._caller = Caller()

    async def __aenter__(self) -> Caller:
        body = await self._caller.offer()
        status, answer = await self._server.ask("POST", "/offer", self._secret, json=body)
        assert status == 200, answer
        self._caller.session = answer["session"]
        await self._caller.pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
        return self._caller

    async def __aexit__(self, *_: object) -> None:
        await self._caller.close()


# --- issuing ---


@pytest.mark.parametrize(
    ("secret", "body", "status"),
    [
        (ADMIN, {"scopes": ["view"]}, 201),
        (ADMIN, {"scopes": ["view", "publish"], "streams": ["a", "b-*"], "ttl": "7d"}, 201),
        (FRONT, {"scopes": ["view"], "streams": ["front-*"]}, 201),
        (FRONT, {"scopes": ["publish"], "streams": ["front-door"]}, 201),
        # more than one's own
        (FRONT, {"scopes": ["view"]}, 403),
        (FRONT, {"scopes": ["view"], "streams": ["fr*"]}, 403),
        (FRONT, {"scopes": ["view"], "streams": ["front-*", "back"]}, 403),
        (PUBLISHER, {"scopes": ["publish"]}, 403),
        (None, {"scopes": ["view"]}, 401),
        # not what the route takes
        (ADMIN, {}, 400),
        (ADMIN, {"scopes": "view"}, 400),
        (ADMIN, {"scopes": []}, 400),
        (ADMIN, {"scopes": ["root"]}, 400),
        (ADMIN, {"scopes": [["view"]]}, 400),
        (ADMIN, {"scopes": ["view"], "streams": "*"}, 400),
        (ADMIN, {"scopes": ["view"], "streams": ["a/b"]}, 400),
        (ADMIN, {"scopes": ["view"], "streams": ["x"] * 33}, 400),
        (ADMIN, {"scopes": ["view"], "ttl": 60}, 400),
        (ADMIN, {"scopes": ["view"], "ttl": "9999d"}, 400),
        (ADMIN, {"scopes": ["view"], "aud": "x"}, 400),
        (ADMIN, [], 400),
    ],
)
async def test_tokens_are_issued_within_ones_own_rights(
    secret: str | None, body: Any, status: int
) -> None:
    async with guarded() as server:
        got, answer = await server.ask("POST", "/api/tokens", secret, json=body)
        assert got == status, answer
        if status == 201:
            principal = server.gate.authority.tokens.read(answer["token"])
            assert sorted(principal.scopes) == answer["scopes"] == sorted(body["scopes"])
            assert list(principal.streams) == answer["streams"]


async def test_a_token_does_not_outlive_the_one_it_was_issued_with() -> None:
    issuer = token(scope="control", jti="short")
    async with guarded() as server:
        end = server.gate.authority.tokens.read(issuer).expires_at_unix_s
        body = {"scopes": ["view"], "ttl": "1h"}
        _, issued = await server.ask("POST", "/api/tokens", issuer, json=body)
        assert end is not None
        assert issued["expires_unix_ms"] <= end * 1000


async def test_where_no_key_is_needed_none_is_issued() -> None:
    async with guarded(changed()) as server:
        for path in ("/api/tokens", "/api/tickets"):
            status, body = await server.ask("POST", path, json={"scopes": list(SCOPES)})
            assert status == 400
            assert "auth: off" in body["detail"]


# --- tickets, on routes as event streams and WebSockets have them ---


def own_app(rules: dict[tuple[str, str], Rule] | None = None) -> web.Application:
    """The gate before two handlers of the test: a WebSocket and a plain answer."""

    async def socket(request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse()
        await response.prepare(request)
        await response.send_str(principal_of(request).identity)
        await response.close()
        return response

    async def plain(request: web.Request) -> web.Response:
        return web.json_response({"who": principal_of(request).identity})

    settings = guarded_settings(auth={"allowed_origins": ("https://board.example",)})
    app = web.Application(middlewares=[refuse_honestly])
    gate = Gate(
        settings,
        Authority(settings.auth, "127.0.0.1"),
        Limits(LimitSettings(), Load),
        Holdings(lambda _: True),
        {("GET", "/ws/{stream}"): Rule("view", of="path", ticket=True)} if rules is None else rules,
    )
    gate.install(app)
    app.add_routes([web.get("/ws/{stream}", socket), web.get("/streams/{stream}", plain)])
    return app


class running:
    """Any application on a free loopback port."""

    def __init__(self, app: web.Application) -> None:
        self._runner = web.AppRunner(app, access_log=None)

    async def __aenter__(self) -> str:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return "http://{}:{}".format(*self._runner.addresses[0][:2])

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


async def handshake(http: aiohttp.ClientSession, url: str, **headers: str) -> int:
    """The status of a WebSocket's beginning."""
    try:
        async with http.ws_connect(url, headers=headers) as socket:
            await socket.receive_str()
            return 101
    except aiohttp.WSServerHandshakeError as error:
        return error.status


async def test_a_ticket_opens_one_socket_once() -> None:
    app = own_app()
    authority = app[GATE].authority
    front = authority.identify(f"Bearer {FRONT}")
    async with running(app) as url, aiohttp.ClientSession() as http:
        ticket = authority.issue_ticket(front)
        assert await handshake(http, f"{url}/ws/front-door?ticket={ticket}") == 101
        assert await handshake(http, f"{url}/ws/front-door?ticket={ticket}") == 401
        ticket = authority.issue_ticket(front)
        assert await handshake(http, f"{url}/ws/back?ticket={ticket}") == 403
        assert await handshake(http, f"{url}/ws/front-door?ticket={FRONT}") == 401
        assert await handshake(http, f"{url}/ws/front-door?token={FRONT}") == 401
        assert await handshake(http, f"{url}/ws/front-door") == 401
        bearer = {"Authorization": f"Bearer {FRONT}"}
        assert await handshake(http, f"{url}/ws/front-door", **bearer) == 101
        # a ticket is for the routes that say so
        ticket = authority.issue_ticket(authority.identify(f"Bearer {ADMIN}"))
        async with http.get(f"{url}/streams/front-door?ticket={ticket}") as reply:
            assert reply.status == 401


async def test_a_socket_of_a_foreign_page_is_refused_before_the_upgrade() -> None:
    async with running(own_app()) as url, aiohttp.ClientSession() as http:
        headers = {"Authorization": f"Bearer {FRONT}"}
        for origin, status in (
            ("https://evil.example", 403),
            ("null", 403),
            ("https://board.example", 101),
            (url, 101),
        ):
            assert await handshake(http, f"{url}/ws/front-door", Origin=origin, **headers) == status


async def test_a_ticket_comes_from_the_api_and_is_short_lived() -> None:
    async with guarded() as server:
        status, body = await server.ask("POST", "/api/tickets", VIEWER)
        assert status == 201
        assert body["expires_in_s"] <= 30
        assert server.gate.authority.take_ticket(body["ticket"]).token_id == "a-viewer"


# --- origins, names, paths ---


@pytest.mark.parametrize("auth", ["on", "off"])
async def test_a_foreign_page_changes_nothing_whatever_it_sends(auth: str) -> None:
    settings = guarded_settings(auth={"auth": auth})
    async with guarded(settings, ADMIN) as server:
        for origin in ("https://evil.example", "null", server.url.replace("http", "ftp")):
            for method, path in (
                ("POST", "/offer"), ("DELETE", "/sessions/x"), ("PATCH", "/sessions/x"),
                ("PUT", "/api/model"), ("POST", "/api/tokens"), ("POST", "/nowhere"),
            ):  # fmt: skip
                status, body = await server.ask(method, path, headers={"Origin": origin})
                assert status == 403, (method, path)
                assert "Origin" in body["detail"]
        status, _ = await server.ask("POST", "/offer", json={}, headers={"Origin": server.url})
        assert status == 400, "our own page gets as far as the offer"


async def test_a_form_of_another_site_is_stopped_by_its_type_where_no_origin_is_sent() -> None:
    async with guarded(changed()) as server:
        for content_type in ("text/plain", "application/x-www-form-urlencoded"):
            status, _ = await server.ask(
                "POST", "/offer", data=b"{}", headers={"Content-Type": content_type}
            )
            assert status == 415
        headers = {"Sec-Fetch-Site": "cross-site"}
        status, _ = await server.ask("POST", "/offer", json={}, headers=headers)
        assert status == 403


async def test_a_name_that_a_stranger_pointed_here_is_refused() -> None:
    async with guarded(changed()) as server:
        for host, status in (("evil.example", 403), ("localhost", 200), ("sightline:80", 200)):
            got, _ = await server.ask("GET", "/api/stats", headers={"Host": host})
            assert got == status, host


async def test_other_sites_may_use_the_api_only_when_they_are_named() -> None:
    settings = guarded_settings(auth={"allowed_origins": ("https://board.example",)})
    asked = {"Access-Control-Request-Method": "POST"}
    async with guarded(settings) as server:
        for origin, named in (("https://board.example", True), ("https://evil.example", False)):
            headers = {"Origin": origin, **asked}
            async with server.http.options(f"{server.url}/offer", headers=headers) as reply:
                assert reply.status == 204
                assert (reply.headers.get("Access-Control-Allow-Origin") == origin) is named
                assert ("Access-Control-Allow-Headers" in reply.headers) is named
                assert "Access-Control-Allow-Credentials" not in reply.headers
                assert "Origin" in reply.headers["Vary"]
            # a refusal is readable for the named site, so that its page can say why
            async with server.http.get(
                f"{server.url}/api/stats", headers={"Origin": origin}
            ) as reply:
                assert reply.status == 401
                assert ("Access-Control-Allow-Origin" in reply.headers) is named
    async with guarded() as server:
        headers = {"Origin": "https://board.example", **asked}
        async with server.http.options(f"{server.url}/offer", headers=headers) as reply:
            assert "Access-Control-Allow-Origin" not in reply.headers


async def test_every_answer_carries_the_security_headers_and_no_version() -> None:
    async with guarded() as server:
        for path in ("/", "/api/stats", "/nowhere", "/web/main.js", "/healthz"):
            async with server.http.get(server.url + path) as reply:
                headers = reply.headers
                assert headers["Server"] == "sightline", path
                assert headers["X-Content-Type-Options"] == "nosniff", path
                assert headers["Cross-Origin-Resource-Policy"] == "same-origin", path
                assert headers["Cross-Origin-Opener-Policy"] == "same-origin", path
                assert headers["Referrer-Policy"] == "no-referrer", path
                assert "camera=(self)" in headers["Permissions-Policy"], path
                assert "frame-ancestors 'none'" in headers["Content-Security-Policy"], path
                assert "Strict-Transport-Security" not in headers, "not over plain HTTP"


@pytest.mark.parametrize(
    "name",
    ["..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "a%2fb", "a%5cb", "a%00b", "a%0d%0ab", ".hidden",
     "x" * 65, "%ff", "a%20b", "*"],
)  # fmt: skip
async def test_names_that_are_no_names_do_not_exist(name: str) -> None:
    # By hand, because clients tidy paths up before they send them.
    head = (
        f"GET /api/streams/{name} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ADMIN}\r\n"
    )
    async with guarded() as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        try:
            writer.write(f"{head}Connection: close\r\n\r\n".encode())
            async with asyncio.timeout(20):
                answer = await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 404 "), answer[:200]
    assert b"application/problem+json" in answer


# --- rates ---


def from_outside(address: str) -> dict[str, str]:
    return {"X-Forwarded-For": address}


async def test_an_address_that_asks_too_much_gets_429_and_another_is_served() -> None:
    settings = guarded_settings(
        auth={"trusted_proxies": ("127.0.0.1",)},
        limits={"requests_per_s": 0.001, "request_burst": 5},
    )
    async with guarded(settings) as server:
        headers = from_outside("192.0.2.1")
        statuses = [(await server.ask("GET", "/healthz", headers=headers))[0] for _ in range(6)]
        assert statuses == [200] * 5 + [429]
        async with server.http.get(f"{server.url}/healthz", headers=headers) as reply:
            assert int(reply.headers["Retry-After"]) > 0
            assert "requests_per_s" in (await reply.json())["detail"]
        status, _ = await server.ask("GET", "/healthz", headers=from_outside("192.0.2.2"))
        assert status == 200
        status, body = await server.ask("GET", "/api/stats", ADMIN)
        assert body["limits"]["refused"] == {"requests_per_s": 2}


async def test_guessing_keys_is_slow() -> None:
    settings = guarded_settings(
        auth={"trusted_proxies": ("127.0.0.1",)},
        limits={"requests_per_s": 0.001, "request_burst": 40},
    )
    async with guarded(settings) as server:
        headers = from_outside("192.0.2.1")
        statuses = [
            (await server.ask("GET", "/api/stats", f"guess-{n:030}", headers=headers))[0]
            for n in range(40)
        ]
        assert statuses[:3] == [401] * 3
        assert statuses[4:] == [429] * 36
        assert (await server.ask("GET", "/api/stats", ADMIN, headers=headers))[0] == 429


async def test_a_key_has_its_own_rate_wherever_it_is_used_from() -> None:
    settings = guarded_settings(limits={"requests_per_s": 0.001, "request_burst": 3})
    async with guarded(settings) as server:
        statuses = [(await server.ask("GET", "/api/models", VIEWER))[0] for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        assert (await server.ask("GET", "/api/models", PUBLISHER))[0] == 200


async def test_one_address_does_not_take_all_the_calls() -> None:
    settings = changed(
        auth={"trusted_proxies": ("127.0.0.1",)}, limits={"max_calls_per_address": 1}
    )
    async with guarded(settings) as server:
        caller, second = Caller(), Caller()
        try:
            body = await caller.offer()
            headers = from_outside("192.0.2.1")
            status, answer = await server.ask("POST", "/offer", json=body, headers=headers)
            assert status == 200
            body = await second.offer()
            status, problem = await server.ask("POST", "/offer", json=body, headers=headers)
            assert status == 429
            assert "max_calls_per_address" in problem["detail"]
            path = f"/sessions/{answer['session']}"
            assert (await server.ask("DELETE", path, headers=headers))[0] == 200
            status, _ = await server.ask("POST", "/offer", json=body, headers=headers)
            assert status == 200
        finally:
            await caller.close()
            await second.close()


async def test_a_loaded_server_refuses_calls_early_and_goes_on_with_all_else() -> None:
    settings = changed(limits={"admit_cpu_percent": 1e-6})
    async with guarded(settings) as server:
        # The meter wants a second of its own before it tells anything.
        await until(lambda: server.gate.limits.load().cpu_percent > 0)
        async with server.http.post(f"{server.url}/offer", json={}) as reply:
            assert reply.status == 503
            assert int(reply.headers["Retry-After"]) > 0
            assert "admit_cpu_percent" in (await reply.json())["detail"]
        assert (await server.ask("GET", "/healthz"))[0] == 200
        _, body = await server.ask("GET", "/api/stats")
        assert body["limits"]["refused"] == {"admit_cpu_percent": 1}
        assert body["limits"]["settings"]["admit_cpu_percent"] == 1e-6
        assert body["limits"]["load"]["cpu_percent"] > 0


async def test_beyond_the_rate_of_all_callers_nothing_is_built_or_read() -> None:
    async with guarded(changed(limits={"calls_per_s": 0.001, "call_burst": 2})) as server:
        paths = ("/offer", "/whip/cam", "/whep/cam", "/whip/cam")
        answers = [await server.ask("POST", path, data="x") for path in paths]
        assert [status for status, _ in answers] == [415, 415, 503, 503]
        assert all("calls_per_s" in problem["detail"] for _, problem in answers[2:])
        async with server.http.post(f"{server.url}/whip/cam", data="x") as reply:
            assert 1 <= int(reply.headers["Retry-After"]) <= 5
        _, body = await server.ask("GET", "/api/stats")
        assert body["limits"]["refused"] == {"calls_per_s": 3}
        assert body["limits"]["settings"]["calls_per_s"] == 0.001


async def test_calls_at_the_same_time_count_before_they_are_answered() -> None:
    settings = changed(
        auth={"trusted_proxies": ("127.0.0.1",)}, limits={"max_calls_per_address": 1}
    )
    async with guarded(settings) as server:
        callers = [Caller() for _ in range(4)]
        try:
            bodies = [await caller.offer() for caller in callers]
            headers = from_outside("192.0.2.1")
            answers = await asyncio.gather(
                *(server.ask("POST", "/offer", json=body, headers=headers) for body in bodies)
            )
            assert sorted(status for status, _ in answers) == [200, 429, 429, 429]
        finally:
            for caller in callers:
                await caller.close()
