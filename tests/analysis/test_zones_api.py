"""Zones are read and written over HTTP, work at once, and outlive the server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import av
import pytest

from server.pixels import plane_views
from tests.fakes import FakeDetector
from tests.gate.guarded import ADMIN, FRONT, guarded, guarded_settings
from tests.gateway.watching import sending, watching
from tests.serving import DEADLINE_S, Serving, changed, serving, until

pytestmark = pytest.mark.service

EVERYWHERE = [[0, 0], [1, 0], [1, 1], [0, 1]]
ROOM = {"id": "room", "label": "<b>Room</b>", "points": EVERYWHERE}
LIMITS = {"admit_loop_lag_ms": 0, "admit_wait_ms": 0}


@asynccontextmanager
async def zoned(folder: Path, **analysis: object) -> AsyncIterator[Serving]:
    settings = changed(auth={"state_dir": str(folder)}, limits=LIMITS, analysis=analysis)
    async with serving(FakeDetector(), settings) as server:
        yield server


async def put(server: Serving, stream: str, body: object) -> tuple[int, dict[str, Any]]:
    async with server.http.put(f"{server.url}/api/streams/{stream}/zones", json=body) as reply:
        return reply.status, await reply.json()


async def get(server: Serving, path: str) -> tuple[int, dict[str, Any]]:
    async with server.http.get(f"{server.url}/api/streams/{path}") as reply:
        return reply.status, await reply.json()


async def test_zones_are_there_before_the_stream_and_after_a_restart(tmp_path: Path) -> None:
    async with zoned(tmp_path) as server:
        assert await get(server, "yard/zones") == (
            200,
            {"zones": [], "lines": [], "masks": [], "appear": []},
        )
        status, written = await put(server, "yard", {"zones": [ROOM], "appear": ["fake"]})
        assert status == 200
        assert written["zones"][0]["label"] == "<b>Room</b>"
        assert (await get(server, "yard/zones"))[1] == written
        assert (await get(server, "other/zones"))[1]["zones"] == []
    async with zoned(tmp_path) as server:
        assert (await get(server, "yard/zones"))[1] == written


async def test_wrong_zones_are_refused_and_change_nothing(tmp_path: Path) -> None:
    async with zoned(tmp_path) as server:
        await put(server, "yard", {"zones": [ROOM]})
        bow_tie = {"zones": [{"id": "a", "points": [[0, 0], [1, 1], [1, 0], [0, 1]]}]}
        status, problem = await put(server, "yard", bow_tie)
        assert status == 422
        assert "crosses itself" in problem["detail"]
        huge = {"zones": [{"id": "a", "points": [[0.5, 0.5]] * 9000}]}
        assert (await put(server, "yard", huge))[0] == 422
        assert (await put(server, "yard", {"zones": "x" * 200_000}))[0] == 413
        assert (await put(server, "ya%20rd", {"zones": []}))[0] == 404
        assert [zone["id"] for zone in (await get(server, "yard/zones"))[1]["zones"]] == ["room"]


async def test_zones_count_a_live_stream_at_once(tmp_path: Path) -> None:
    async with zoned(tmp_path) as server, sending(server, "yard"):
        await put(server, "yard", {"zones": [{**ROOM, "classes": ["fake"]}]})
        async with asyncio.timeout(DEADLINE_S):
            # Each question takes the time of a round trip; nothing tells of counts by itself.
            while (await get(server, "yard/counts"))[1]["zones"]["room"]["inside"] != 1:
                pass


async def test_a_mask_is_over_the_picture_of_a_live_stream_at_once(tmp_path: Path) -> None:
    async with (
        zoned(tmp_path) as server,
        sending(server, "yard"),
        watching(server, "yard") as watcher,
    ):
        assert corner(await watcher.picture()) > 40
        await put(server, "yard", {"masks": [{"id": "m", "points": EVERYWHERE}]})
        async with asyncio.timeout(DEADLINE_S):
            while corner(await watcher.picture()) > 30:
                pass


async def test_a_picture_from_before_the_mask_is_kept_nowhere(tmp_path: Path) -> None:
    async with zoned(tmp_path) as server, sending(server, "yard"):
        hub = server.registry._streams.get("yard").hub
        await until(lambda: hub.newest is not None)
        before = hub.newest
        await put(server, "yard", {"masks": [{"id": "m", "points": EVERYWHERE}]})
        assert hub.newest is not before
        # One that was on its way to the detector is the last of them.
        await until(lambda: hub.newest is not None and corner(hub.newest.frame.video_frame) < 30)


def corner(picture: av.VideoFrame) -> float:
    """Brightness where no box is drawn."""
    return float(plane_views(picture)[0][200:230, 260:310].mean())


async def test_without_tracking_masks_work_and_zones_are_refused(tmp_path: Path) -> None:
    async with zoned(tmp_path, tracking=False) as server:
        status, problem = await put(server, "yard", {"zones": [ROOM]})
        assert status == 409
        assert "tracking" in problem["detail"]
        assert (await put(server, "yard", {"masks": [{"id": "m", "points": EVERYWHERE}]}))[0] == 200


async def test_a_stream_whose_masks_cannot_be_read_does_not_start(tmp_path: Path) -> None:
    async with zoned(tmp_path) as server:
        await put(server, "yard", {"masks": [{"id": "m", "points": EVERYWHERE}]})
    (tmp_path / "zones" / "yard.json").write_text("{")
    async with zoned(tmp_path) as server:
        with pytest.raises(AssertionError, match=r"yard\.json cannot be used"):
            async with sending(server, "yard"):
                pass
        # Nothing is half open, and whoever writes new ones is helped.
        assert (await put(server, "yard", {"masks": []}))[0] == 200
        async with sending(server, "yard"):
            pass


async def test_who_may_view_may_read_and_not_write(tmp_path: Path) -> None:
    settings = guarded_settings(auth={"state_dir": str(tmp_path)})
    async with guarded(settings) as server:
        wish = {"scopes": ["view"], "streams": ["front-1"]}
        _, issued = await server.ask("POST", "/api/tokens", ADMIN, json=wish)
        viewer = issued["token"]
        own, other = "/api/streams/front-1/zones", "/api/streams/back/zones"
        assert (await server.ask("GET", own))[0] == 401
        assert (await server.ask("GET", own, viewer))[0] == 200
        assert (await server.ask("PUT", own, viewer, json={"zones": []}))[0] == 403
        assert (await server.ask("PUT", own, FRONT, json={"zones": []}))[0] == 200
        assert (await server.ask("GET", other, FRONT))[0] == 403
        assert (await server.ask("PUT", other, FRONT, json={"zones": []}))[0] == 403
