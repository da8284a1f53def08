"""What happened is found over HTTP, by who may see it, from a picture to an acknowledged event."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import av
import pytest

from server.analysis.scene import Happening
from server.app import JOURNAL
from tests.analysis.happenings import begins
from tests.fakes import FakeDetector
from tests.gate.guarded import ADMIN, FRONT, PUBLISHER, Guarded, guarded, guarded_settings
from tests.gateway.watching import sending
from tests.serving import DEADLINE_S, Serving, changed, serving, until

pytestmark = pytest.mark.service

EVERYWHERE = [[0, 0], [1, 0], [1, 1], [0, 1]]
ZONES = {
    "zones": [{"id": "room", "label": "Room", "points": EVERYWHERE}],
    "appear": ["fake"],
}
LIMITS = {"admit_loop_lag_ms": 0, "admit_wait_ms": 0}


@asynccontextmanager
async def remembering(folder: Path, **store: object) -> AsyncIterator[Serving]:
    settings = changed(auth={"state_dir": str(folder)}, limits=LIMITS, store=store)
    async with serving(FakeDetector(), settings) as server:
        yield server


async def ask(server: Serving, method: str, path: str, **more: Any) -> tuple[int, Any]:
    async with server.http.request(method, server.url + path, **more) as reply:
        if reply.content_type.endswith("json"):
            return reply.status, await reply.json()
        return reply.status, await reply.read()


async def test_from_the_picture_to_the_acknowledged_event(tmp_path: Path) -> None:
    async with remembering(tmp_path) as server:
        listener = server.bulletin.subscribe(["events"])
        assert await ask(server, "GET", "/api/events") == (200, {"events": [], "next": None})
        assert not (tmp_path / "events.db").exists()
        await ask(server, "PUT", "/api/streams/yard/zones", json=ZONES)
        async with sending(server, "yard"), asyncio.timeout(DEADLINE_S):
            told = [(await listener.next()).message for _ in range(2)]
        async with asyncio.timeout(DEADLINE_S):
            told += [(await listener.next()).message for _ in range(2)]
        assert sorted(message["kind"] for message in told) == [
            "appear", "appear", "enter", "enter",
        ]  # fmt: skip
        begun = next(message for message in told if message["kind"] == "enter")
        assert begun["ended_unix_ms"] is None
        status, page = await ask(server, "GET", "/api/events?kind=enter&stream=yard&zone=room")
        assert status == 200
        [found] = page["events"]
        assert found["id"] == begun["id"]
        # The source has left, so everybody has.
        assert found["ended_unix_ms"] >= found["started_unix_ms"]
        assert found["track_id"] == 1
        path = f"/api/events/{found['id']}"
        assert (await ask(server, "GET", path))[1] == found
        status, jpeg = await ask(server, "GET", found["snapshot_url"])
        assert status == 200
        picture = av.CodecContext.create("mjpeg", "r").decode(av.Packet(jpeg))[0]
        assert (picture.width, picture.height) == (320, 240)
        status, seen = await ask(server, "POST", path + "/acknowledge")
        assert status == 200
        assert seen["acknowledged_by"] == "anyone"
        assert (await ask(server, "POST", path + "/acknowledge"))[1] == seen
        left = (await ask(server, "GET", "/api/events?acknowledged=false"))[1]["events"]
        assert [event["kind"] for event in left] == ["appear"]
        text = (await ask(server, "GET", "/metrics"))[1].decode()
        assert "sightline_events_written_total 4.0" in text
        assert "sightline_event_write_seconds_count 4.0" in text
        assert "sightline_store_away 0.0" in text
        assert "sightline_recording_stopped 0.0" in text
        journal = (await server.stats())["journal"]
        assert (journal["state"], journal["written"], journal["lost"]) == ("ready", 4, 0)
    async with remembering(tmp_path) as server:
        # Opened at start, because it is there.
        async with asyncio.timeout(DEADLINE_S):
            while (await server.stats())["journal"]["state"] != "ready":
                pass
        assert (await ask(server, "GET", path))[1] == seen


async def test_pages_follow_each_other(tmp_path: Path) -> None:
    async with remembering(tmp_path) as server:
        journal = server.journal
        for _ in range(25):
            journal.happened(begins(pictured=False))
        await until(lambda: journal.statistics().written == 25)
        pages, cursor = [], ""
        while True:
            page = (await ask(server, "GET", f"/api/events?limit=10{cursor}"))[1]
            pages.append([event["id"] for event in page["events"]])
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        assert [len(page) for page in pages] == [10, 10, 5]
        assert len({event_id for page in pages for event_id in page}) == 25
        event = (await ask(server, "GET", f"/api/events/{pages[0][0]}"))[1]
        assert event["snapshot_url"] is None
        assert (await ask(server, "GET", f"/api/events/{pages[0][0]}/snapshot.jpg"))[0] == 404


WRONG_SEARCHES = (
    ("limit=0", 400, "limit"),
    ("limit=501", 400, "limit"),
    ("limit=%D9%A1", 400, "limit"),
    ("since=-1", 400, "since"),
    ("since=1e3", 400, "since"),
    ("until=99999999999999999999", 400, "until"),
    ("kind=explode", 400, "kind"),
    ("acknowledged=yes", 400, "acknowledged"),
    ("cursor=AAAA", 400, "cursor"),
    ("cursor=%F0%9F%98%80", 400, "cursor"),
    ("colour=red", 400, "colour"),
    ("zone=room&zone=yard", 400, "zone"),
    ("zone=" + "x" * 300, 400, "zone"),
    ("class=%00", 400, "class"),
    ("stream=..%2Fetc", 404, "stream"),
)


async def test_a_wrong_search_is_refused_by_name(tmp_path: Path) -> None:
    async with remembering(tmp_path) as server:
        server.journal.happened(begins(pictured=False))
        await until(lambda: server.journal.statistics().written == 1)
        for query, status, word in WRONG_SEARCHES:
            answered, problem = await ask(server, "GET", f"/api/events?{query}")
            assert answered == status, query
            assert word in problem["detail"]


async def test_without_a_store_nothing_is_found_and_everything_is_told(tmp_path: Path) -> None:
    async with remembering(tmp_path, store="off") as server:
        listener = server.bulletin.subscribe(["events"])
        server.journal.happened(begins())
        async with asyncio.timeout(DEADLINE_S):
            assert (await listener.next()).message["snapshot_url"] is None
        assert (await ask(server, "GET", "/api/events"))[1] == {"events": [], "next": None}
        assert (await ask(server, "GET", f"/api/events/{'0' * 32}"))[0] == 404
    assert names_in(tmp_path) == []


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_a_database_that_is_away_is_said_so_and_calls_go_on(tmp_path: Path) -> None:
    url = "postgresql://sightline:secret@127.0.0.1:1/none"
    async with remembering(tmp_path, store=url) as server:
        async with asyncio.timeout(DEADLINE_S):
            while (await server.stats())["journal"]["state"] != "away":
                pass
        status, problem = await ask(server, "GET", "/api/events")
        assert status == 503
        assert "secret" not in json.dumps(problem) + json.dumps(await server.stats())
        assert (await ask(server, "GET", "/healthz"))[0] == 200
        assert (await ask(server, "GET", "/readyz"))[0] == 200
        async with sending(server, "yard"):
            pass


async def test_who_may_not_view_a_stream_sees_nothing_of_it(tmp_path: Path) -> None:
    settings = guarded_settings(auth={"state_dir": str(tmp_path)})
    async with guarded(settings) as server:
        events = {stream: begins(stream=stream).event for stream in ("front-1", "FRONT-1", "back")}
        await keep(server, list(events.values()))
        assert len((await server.ask("GET", "/api/events", ADMIN))[1]["events"]) == 3
        _, page = await server.ask("GET", "/api/events", FRONT)
        assert [event["stream"] for event in page["events"]] == ["front-1"]
        assert (await server.ask("GET", "/api/events"))[0] == 401
        assert (await server.ask("GET", "/api/events", PUBLISHER))[0] == 403
        assert (await server.ask("GET", "/api/events?stream=back", FRONT))[0] == 403
        hidden = f"/api/events/{events['back'].id}"
        for method, path in (
            ("GET", hidden),
            ("GET", hidden + "/snapshot.jpg"),
            ("POST", hidden + "/acknowledge"),
        ):
            status, problem = await server.ask(method, path, FRONT)
            assert status == 404
            unknown = path.replace(events["back"].id, "0" * 32)
            assert (await server.ask(method, unknown, FRONT))[1] == problem
        wish = {"scopes": ["view"], "streams": ["front-1"]}
        viewer = (await server.ask("POST", "/api/tokens", ADMIN, json=wish))[1]["token"]
        shown = f"/api/events/{events['front-1'].id}"
        assert (await server.ask("GET", shown, viewer))[0] == 200
        assert (await server.ask("POST", shown + "/acknowledge", viewer))[0] == 403
        status, seen = await server.ask("POST", shown + "/acknowledge", FRONT)
        assert status == 200
        assert seen["acknowledged_by"]
        assert FRONT not in seen["acknowledged_by"]


async def keep(server: Guarded, events: list[Any]) -> None:
    journal = server.app[JOURNAL]
    for event in events:
        journal.happened(Happening(event, True, None, 0))
    await until(lambda: journal.statistics().written == len(events))
