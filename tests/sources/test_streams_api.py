"""The REST of streams: the same for a call and for a WHIP source, and each caller's own."""

import asyncio
from typing import Any

import pytest

from tests.fakes import FakeDetector
from tests.gate.guarded import ADMIN, FRONT, guarded, token
from tests.gateway.watching import sending, streaming, watching
from tests.serving import Serving, calling, until

pytestmark = pytest.mark.service


async def ask(server: Serving, method: str, path: str, **more: Any) -> tuple[int, dict[str, Any]]:
    async with server.http.request(method, server.url + path, **more) as reply:
        return reply.status, await reply.json()


async def test_a_stream_tells_what_it_is_and_where_it_is_seen() -> None:
    async with (
        streaming(FakeDetector()) as server,
        sending(server, "yard"),
        watching(server, "yard") as watcher,
    ):
        await watcher.picture()
        status, body = await ask(server, "GET", "/api/streams/yard")
        _, listed = await ask(server, "GET", "/api/streams")
    assert status == 200
    told = {name: body[name] for name in ("name", "live", "source", "size", "viewers")}
    assert told == {
        "name": "yard", "live": True, "source": "whip", "size": [320, 240], "viewers": 1,
    }  # fmt: skip
    assert body["options"] == {"mode": "exact", "confidence": 0.35, "classes": None}
    assert body["urls"] == {
        "whep": "/whep/yard",
        "whip": "/whip/yard",
        "snapshot": "/api/streams/yard/snapshot.jpg",
        "mjpeg": "/api/streams/yard/mjpeg",
        "detections": "/api/streams/yard/detections",
    }
    assert [stream["name"] for stream in listed["streams"]] == ["yard"]


@pytest.mark.parametrize("name", ["-yard", "_", "9"])
async def test_every_name_that_a_stream_may_have_is_reached_by_it(name: str) -> None:
    async with streaming() as server, sending(server, name):
        assert (await ask(server, "GET", f"/api/streams/{name}"))[0] == 200
        assert (await ask(server, "GET", f"/api/events?stream={name}"))[0] == 200


async def test_options_of_a_call_and_of_a_whip_source_change_live() -> None:
    changes = {"options": {"mode": "smooth", "confidence": 0.8}}
    async with (
        streaming(FakeDetector()) as server,
        sending(server, "yard"),
        calling(server, stream="desk"),
    ):
        for name in ("yard", "desk"):
            status, body = await ask(server, "PATCH", f"/api/streams/{name}", json=changes)
            assert (status, body["options"]["mode"]) == (200, "smooth")
            assert body["options"]["confidence"] == 0.8
        for session in server.registry.statistics().sessions:
            assert session.options.mode == "smooth"


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"options": {"mode": "fast"}}, 422, "options.mode"),
        ({"options": {"colour": 1}}, 422, "options.colour"),
        ({"options": []}, 400, "options"),
        ({"options": {}, "name": "other"}, 400, "name"),
        ([], 400, "body"),
    ],
)
async def test_a_change_that_is_none_is_refused_whole(body: Any, status: int, word: str) -> None:
    async with streaming() as server, sending(server, "yard"):
        before = (await ask(server, "GET", "/api/streams/yard"))[1]["options"]
        found, problem = await ask(server, "PATCH", "/api/streams/yard", json=body)
        assert (found, word in problem["detail"]) == (status, True), problem
        assert (await ask(server, "GET", "/api/streams/yard"))[1]["options"] == before


async def test_ending_a_stream_ends_its_source_and_its_viewers() -> None:
    async with streaming() as server, sending(server, "yard"):
        async with watching(server, "yard") as watcher:
            await watcher.picture()
            assert await ask(server, "DELETE", "/api/streams/yard") == (200, {"ended": True})
            await until(lambda: not server.registry.statistics().viewers)
            await until(lambda: not server.registry.statistics().sessions)
        assert server.registry.statistics().ended == {"stream ended by the API": 1}
        assert (await ask(server, "GET", "/api/streams/yard"))[0] == 404
        assert (await ask(server, "DELETE", "/api/streams/yard"))[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "detail"),
    [
        (
            "POST",
            "/api/streams",
            {"name": "a b", "source": "demo"},
            422,
            "name: a name has 1 to 64",
        ),
        ("GET", "/api/nowhere", None, 404, "/api/openapi.json lists the routes"),
        ("GET", "/api/events/no-id", None, 404, "no such id"),
        ("PATCH", "/api/streams", {}, 405, "PATCH is not taken here; GET,HEAD,POST is"),
        ("PUT", "/api/model", {"model": "yolox-s"}, 404, "`python -m tools.fetch_model yolox-s`"),
        ("GET", "/ws/detections", None, 400, "Upgrade: a WebSocket is wanted here"),
        ("GET", "/ws/stream", None, 400, "Upgrade: a WebSocket is wanted here"),
    ],
)
async def test_a_refusal_says_what_to_do(
    method: str, path: str, body: object, status: int, detail: str
) -> None:
    async with streaming() as server:
        found, problem = await ask(server, method, path, json=body)
        assert found == status, problem
        assert detail in problem["detail"]


async def test_without_a_source_there_are_no_options_to_change() -> None:
    async with streaming() as server:
        async with sending(server, "yard"):
            watched = watching(server, "yard")
            watcher = await watched.__aenter__()
            await watcher.picture()
        try:
            async with asyncio.timeout(20):
                while (await ask(server, "GET", "/api/streams/yard"))[1]["source"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            status, problem = await ask(
                server, "PATCH", "/api/streams/yard", json={"options": {"mode": "smooth"}}
            )
            assert (status, problem["title"]) == (409, "Not live")
            assert (await ask(server, "GET", "/api/streams/yard"))[1]["options"] is None
        finally:
            await watched.__aexit__(None, None, None)


async def test_a_caller_sees_and_changes_the_streams_of_its_key_alone() -> None:
    viewer = token(scope="view", streams=["front-*"], jti="front-viewer")
    async with (
        guarded(secret=ADMIN) as server,
        sending(server, "front-door"),  # type: ignore[arg-type]
        sending(server, "yard"),  # type: ignore[arg-type]
    ):
        for secret in (viewer, FRONT):
            _, body = await server.ask("GET", "/api/streams", secret)
            assert [stream["name"] for stream in body["streams"]] == ["front-door"]
            assert (await server.ask("GET", "/api/streams/yard", secret))[0] == 403
        change = {"options": {"confidence": 0.5}}
        for name, secret, status in (
            ("front-door", viewer, 403),
            ("front-door", FRONT, 200),
            ("yard", FRONT, 403),
        ):
            path = f"/api/streams/{name}"
            assert (await server.ask("PATCH", path, secret, json=change))[0] == status
        assert (await server.ask("DELETE", "/api/streams/front-door", viewer))[0] == 403
        assert (await server.ask("DELETE", "/api/streams/front-door", FRONT))[0] == 200
