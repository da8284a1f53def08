"""Who watches: named, with address, to whoever controls the stream, and to nobody else."""

import asyncio
import json
from typing import Any

import pytest

from tests.gate.guarded import ADMIN, FRONT, PUBLISHER, Guarded, guarded, guarded_settings, token
from tests.gateway.offers import FFMPEG, VIEWER

pytestmark = pytest.mark.service

FOYER = "foyer-screen-key-of-the-tests-0123"
KEYS = (
    ADMIN,
    f"publish:*:{PUBLISHER}",
    f"view+control:front-*:{FRONT}",
    f"view:*:{FOYER}:Foyer screen",
)
SDP = {"Content-Type": "application/sdp"}
MARKUP = "<img src=x onerror=alert(1)>\x1b[31m" + "x" * 100
PATH = "/api/streams/front-door/viewers"


def settings() -> Any:
    auth = {"api_keys": KEYS, "trusted_proxies": ("127.0.0.1",)}
    return guarded_settings(auth=auth, limits={"admit_loop_lag_ms": 0, "admit_wait_ms": 0})


async def opened(server: Guarded, path: str, offer: str, secret: str, address: str) -> str:
    """The address of a session opened from there."""
    headers = SDP | {"Authorization": f"Bearer {secret}", "X-Forwarded-For": address}
    async with server.http.post(server.url + path, data=offer, headers=headers) as reply:
        assert reply.status == 201, await reply.text()
        return reply.headers["Location"]


async def test_who_watches_is_told_by_name_and_address_and_never_by_a_secret() -> None:
    async with guarded(settings()) as server:
        whip, whep = "/whip/front-door", "/whep/front-door"
        status, _ = await server.ask("GET", PATH, FRONT)
        assert status == 404, "there is no such stream yet"
        await opened(server, whip, FFMPEG, PUBLISHER, "192.0.2.1")
        lent = token(scope="view", jti="lent-7", sub=MARKUP)
        sessions = [
            await opened(server, whep, VIEWER, FOYER, "192.0.2.7"),
            await opened(server, whep + "?rung=low", VIEWER, lent, "2001:db8::7"),
        ]
        status, body = await server.ask("GET", PATH, FRONT)
        assert status == 200, body
        first, second = body["viewers"]
        assert (first["name"], first["address"]) == ("Foyer screen", "192.0.2.7")
        assert first["by"].startswith("key ")
        assert (first["way"], first["view"], first["rung"]) == ("webrtc", "annotated", "full")
        # As another issuer wrote it, in one printable line; the page shows it as text.
        assert second["name"] == "".join(c for c in MARKUP if c.isprintable())[:60]
        assert (second["by"], second["address"]) == ("token lent-7", "2001:db8::7")
        assert second["rung"] == "low"
        told = json.dumps(body)
        for secret in (FOYER, lent, *(path.rpartition("/")[2] for path in sessions)):
            assert secret not in told

        assert (await server.ask("DELETE", sessions[0], FOYER))[0] == 200
        _, body = await server.ask("GET", PATH, FRONT)
        assert [viewer["by"] for viewer in body["viewers"]] == ["token lent-7"]


async def test_who_watches_is_for_who_controls_that_stream() -> None:
    async with guarded(settings()) as server:
        await opened(server, "/whip/front-door", FFMPEG, PUBLISHER, "192.0.2.1")
        await opened(server, "/whip/yard", FFMPEG, PUBLISHER, "192.0.2.1")
        elsewhere = token(scope="control view", streams=["yard"])
        for secret, status in (
            (None, 401), (FOYER, 403), (PUBLISHER, 403), (elsewhere, 403),
            (FRONT, 200), (ADMIN, 200),
        ):  # fmt: skip
            got, body = await server.ask("GET", PATH, secret)
            assert got == status, body
            assert status == 200 or "192.0.2" not in json.dumps(body)
        assert (await server.ask("GET", "/api/streams/yard/viewers", FRONT))[0] == 403
        assert (await server.ask("GET", "/api/streams/yard/viewers", elsewhere))[0] == 200


async def test_who_looks_at_motion_jpeg_is_told_of_as_well() -> None:
    async with guarded(settings()) as server:
        await opened(server, "/whip/front-door", FFMPEG, PUBLISHER, "192.0.2.1")
        headers = {"Authorization": f"Bearer {FOYER}", "X-Forwarded-For": "192.0.2.9"}
        url = f"{server.url}/api/streams/front-door/mjpeg"
        async with server.http.get(url, headers=headers) as reply:
            assert reply.status == 200
            _, body = await server.ask("GET", PATH, ADMIN)
            (viewer,) = body["viewers"]
            assert (viewer["way"], viewer["name"]) == ("mjpeg", "Foyer screen")
            assert viewer["address"] == "192.0.2.9"
        async with asyncio.timeout(20):
            while (await server.ask("GET", PATH, ADMIN))[1].get("viewers"):
                pass  # it is noticed with a picture that does not get through


async def test_a_token_carries_the_name_it_was_issued_with() -> None:
    async with guarded(settings()) as server:
        wish = {"scopes": ["view"], "name": "Night shift"}
        status, issued = await server.ask("POST", "/api/tokens", ADMIN, json=wish)
        assert status == 201
        await opened(server, "/whip/front-door", FFMPEG, PUBLISHER, "192.0.2.1")
        await opened(server, "/whep/front-door", VIEWER, issued["token"], "192.0.2.8")
        _, body = await server.ask("GET", PATH, ADMIN)
        assert body["viewers"][0]["name"] == "Night shift"
        for name in ("a\nb", "a:b", "x" * 61, 7, None, " x"):
            status, body = await server.ask(
                "POST", "/api/tokens", ADMIN, json=wish | {"name": name}
            )
            assert status == 400, name
            assert body["detail"].startswith("name:")
