"""The client that others use, with a real server: every answer it reads is one that is given."""

import ast
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

import sightline.client
from server.outlets.bulletin import EVENTS
from sightline.client import Notice, ServerError, Sightline
from tests.doors.files import jpeg
from tests.fakes import FakeDetector
from tests.gate.guarded import ADMIN, FRONT, guarded
from tests.outlets.cutting import cutting
from tests.serving import DEADLINE_S, Serving, calling, changed, serving, until

pytestmark = pytest.mark.service

PATIENT = changed(limits={"admit_loop_lag_ms": 0, "admit_wait_ms": 0})


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Serving, Sightline]]:
    async with serving(FakeDetector(), PATIENT) as server, Sightline(server.url) as client:
        yield server, client


async def notices(follow: AsyncIterator[Notice], count: int) -> list[Notice]:
    async with asyncio.timeout(DEADLINE_S):
        return [await anext(follow) for _ in range(count)]


async def test_a_picture_gets_its_boxes() -> None:
    async with served() as (_, client):
        picture = await client.detect(jpeg(320, 240))
        assert picture.size_wh == (320, 240)
        assert picture.server_ms > 0
        [box] = picture.boxes
        assert (box.xyxy, box.confidence) == ((80.0, 60.0, 160.0, 120.0), 1.0)
        assert (box.class_id, box.class_name) == (0, "fake")
        assert (await client.detect(jpeg(320, 240), classes=["dog"])).boxes == ()
        annotated = await client.annotate(jpeg(320, 240), confidence=0.5)
        assert annotated.startswith(b"\xff\xd8")


async def test_several_pictures_are_told_apart_by_name() -> None:
    async with served() as (_, client):
        found = await client.detect_all({"porch": jpeg(320, 240), "wrong": b"no picture"})
        assert len(found["porch"].boxes) == 1
        assert found["wrong"].error
        assert found["wrong"].boxes == ()


async def test_what_cannot_be_read_is_refused_with_the_reason() -> None:
    async with served() as (_, client):
        with pytest.raises(ServerError) as caught:
            await client.detect(b"no picture")
        assert caught.value.status == 400
        assert caught.value.detail


async def test_pictures_go_over_one_connection_and_others_can_watch() -> None:
    async with served() as (_, client), client.pictures(stream="desk") as pictures:
        first = await pictures.detect(jpeg(320, 240))
        assert first.boxes[0].xyxy == (80.0, 60.0, 160.0, 120.0)
        assert first.size_wh == (320, 240)
        assert (await pictures.detect(b"no picture")).error
        assert (await pictures.detect(jpeg(64, 48))).size_wh == (64, 48)
        [stream] = await client.streams()
        assert (stream.name, stream.source) == ("desk", "websocket")


async def test_streams_are_listed_changed_and_ended() -> None:
    async with served() as (server, client):
        assert await client.streams() == []
        async with calling(server, stream="desk"):
            [stream] = await client.streams()
            assert (stream.name, stream.source, stream.viewers) == ("desk", "call", 0)
            changed_to = await client.change_stream("desk", confidence=0.75)
            assert changed_to.body["options"]["confidence"] == 0.75
            assert (await client.stream("desk")).name == "desk"
            assert (await client.snapshot("desk", annotated=False)).startswith(b"\xff\xd8")
            await client.end_stream("desk")
            await until(lambda: not server.registry.statistics().streams)
        with pytest.raises(ServerError, match="404"):
            await client.stream("desk")


async def test_the_server_is_told_to_fetch_a_stream() -> None:
    async with served() as (_, client):
        added = await client.add_stream("show", "demo", {"confidence": 0.6})
        assert (added.name, added.source) == ("show", "demo")
        assert added.body["options"]["confidence"] == 0.6
        with pytest.raises(ServerError) as caught:
            await client.add_stream("show", "gopher://nowhere")
        assert caught.value.status in (403, 409, 422)
        await client.end_stream("show")


async def test_detections_of_a_stream_that_comes_later_have_the_names_of_their_classes() -> None:
    async with served() as (server, client), aclosing(client.detections("desk", fps=10)) as follow:
        waiting = asyncio.create_task(notices(follow, 2))
        await until(lambda: server.bulletin.statistics().subscriptions == 1)
        async with calling(server, stream="desk"):
            first, second = await waiting
        assert (first.topic, first.stream) == ("detections", "desk")
        assert first.boxes[0].class_name == "fake"
        assert second.message["seq"] > first.message["seq"]


async def test_a_line_that_breaks_costs_no_event() -> None:
    async with served() as (server, _), cutting(server.url) as cut:
        async with Sightline(cut.url) as client, aclosing(client.follow("events")) as follow:
            waiting = asyncio.create_task(notices(follow, 1))
            await until(lambda: server.bulletin.statistics().subscriptions == 1)
            server.bulletin.post(EVENTS, "porch", {"id": "1"})
            seen = await waiting
            waiting = asyncio.create_task(notices(follow, 2))
            cut.target = ""
            cut.cut()
            server.bulletin.post(EVENTS, "porch", {"id": "2"})
            tries = cut.ways
            await until(lambda: cut.ways > tries)
            server.bulletin.post(EVENTS, "porch", {"id": "3"})
            cut.target = server.url
            seen += await waiting
        assert [notice.message["id"] for notice in seen] == ["1", "2", "3"]


async def test_a_server_that_starts_anew_is_found_again() -> None:
    async with (
        cutting("") as cut,
        Sightline(cut.url) as client,
        aclosing(client.follow("events")) as follow,
    ):
        waiting = asyncio.create_task(notices(follow, 1))
        async with serving(None, PATIENT) as first:
            cut.target = first.url
            await until(lambda: first.bulletin.statistics().subscriptions == 1)
            first.bulletin.post(EVENTS, "porch", {"id": "1"})
            seen = await waiting
            cut.target = ""
        waiting = asyncio.create_task(notices(follow, 1))
        async with serving(None, PATIENT) as second:
            # Before the client is there: it asks for what it missed.
            second.bulletin.post(EVENTS, "porch", {"id": "2"})
            cut.target = second.url
            seen += await waiting
    assert [notice.message["id"] for notice in seen] == ["1", "2"]


async def test_a_connection_that_falls_silent_is_made_again() -> None:
    async with (
        served() as (server, _),
        cutting(server.url) as cut,
        Sightline(cut.url, silent_after_s=0.3) as client,
        aclosing(client.follow("events")) as follow,
    ):
        waiting = asyncio.create_task(notices(follow, 1))
        await until(lambda: cut.ways >= 2)
        server.bulletin.post(EVENTS, "porch", {"id": "1"})
        assert (await waiting)[0].message["id"] == "1"


async def test_a_token_is_issued_used_and_revoked() -> None:
    async with guarded() as server, Sightline(server.url, ADMIN) as admin:
        issued = await admin.issue_token(["view"], ["front-*"], "5m")
        assert issued["streams"] == ["front-*"]
        async with Sightline(server.url, issued["token"]) as guest:
            assert await guest.streams() == []
            with pytest.raises(ServerError, match="403"):
                await guest.stats()
            await admin.revoke_token(issued["id"])
            with pytest.raises(ServerError, match="401"):
                await guest.streams()
        assert (await admin.stats())["access"]["keys"] == 3
        assert len(await admin.issue_ticket()) > 10


async def test_following_ends_where_another_try_would_be_refused_too() -> None:
    async with guarded() as server, Sightline(server.url, FRONT) as client:
        with pytest.raises(ServerError, match="403"):
            await notices(client.follow("events", streams=["back-yard"]), 1)
    async with guarded() as server, Sightline(server.url) as stranger:
        with pytest.raises(ServerError, match="401"):
            await notices(stranger.follow("events"), 1)


async def test_a_picture_socket_that_is_refused_says_why() -> None:
    async with guarded() as server, Sightline(server.url, FRONT) as client:
        with pytest.raises(ServerError):
            async with client.pictures(stream="front-door") as pictures:
                await pictures.detect(jpeg(64, 48))


def test_the_file_stands_alone() -> None:
    tree = ast.parse(Path(sightline.client.__file__).read_text())
    names = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert names - sys.stdlib_module_names == {"aiohttp"}
