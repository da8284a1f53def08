"""The demo: drawn only while somebody watches, the same for everybody, always moving."""

import asyncio
import threading

import numpy as np
import pytest

from server.app import with_demo_decided
from server.pull.demo import FPS, SHOWN_S, SIZE_WH, load_pictures, scene
from server.settings import Settings
from tests.fakes import FakeDetector
from tests.gateway.watching import sending, watching
from tests.serving import DEADLINE_S, changed, serving, until

pytestmark = pytest.mark.loopback


def demo_threads() -> int:
    return sum(thread.name == "pull demo" for thread in threading.enumerate())


def on() -> Settings:
    limits = {"admit_loop_lag_ms": 0, "admit_wait_ms": 0}
    return changed(sources={"demo": "on"}, limits=limits)


async def test_it_is_there_and_costs_nothing_until_somebody_watches() -> None:
    async with serving(FakeDetector(), on()) as server:
        body = await server.stream("demo")
        assert (body["source"], body["live"], body["pull"]["state"]) == ("demo", False, "idle")
        assert demo_threads() == 0
        async with watching(server, "demo", channel=True) as watcher:
            frame = await watcher.picture()
            assert (frame.width, frame.height) == SIZE_WH
            assert (await watcher.message("boxes"))["boxes"]
            assert demo_threads() == 1
        await until(lambda: demo_threads() == 0)
        body = await server.stream("demo")
        assert (body["viewers"], body["pull"]["state"]) == (0, "idle")


@pytest.mark.long
async def test_it_begins_again_without_showing_what_was_last() -> None:
    async with serving(None, on()) as server:
        for _ in range(2):
            async with watching(server, "demo") as watcher:
                await watcher.picture()
            await until(lambda: demo_threads() == 0)
            assert (await server.stream("demo"))["live"] is False


async def test_a_snapshot_wakes_it_for_a_moment() -> None:
    async with serving(None, on()) as server:
        async with server.http.get(f"{server.url}/api/streams/demo/snapshot.jpg") as reply:
            assert reply.status == 200
            assert (await reply.read())[:2] == b"\xff\xd8"
        await until(lambda: demo_threads() == 0)


async def test_it_can_be_ended_and_begun_over_the_api() -> None:
    async with serving(None, on()) as server, watching(server, "demo") as watcher:
        await watcher.picture()
        async with server.http.delete(f"{server.url}/api/streams/demo") as reply:
            assert reply.status == 200
        await until(lambda: demo_threads() == 0)
        body = {"name": "show", "source": "demo"}
        async with server.http.post(f"{server.url}/api/streams", json=body) as reply:
            assert reply.status == 201
        async with asyncio.timeout(DEADLINE_S), watching(server, "show") as other:
            await other.picture()


async def test_it_is_shown_to_those_who_watched_the_stream_before_it() -> None:
    async with serving(None, on()) as server:
        async with sending(server, "show"):
            opened = watching(server, "show")
            watcher = await opened.__aenter__()
            await watcher.picture()
        try:
            body = {"name": "show", "source": "demo"}
            async with server.http.post(f"{server.url}/api/streams", json=body) as reply:
                assert reply.status == 201
            async with asyncio.timeout(DEADLINE_S):
                while ((await watcher.picture()).width) != SIZE_WH[0]:
                    pass
        finally:
            await opened.__aexit__(None, None, None)


def test_auto_means_when_there_are_no_sources() -> None:
    assert with_demo_decided(Settings()).sources.demo == "on"
    some = changed(sources={"sources": ("a=rtsp://camera/1",)})
    assert with_demo_decided(some).sources.demo == "off"
    for word in ("on", "off"):
        assert with_demo_decided(changed(sources={"demo": word})).sources.demo == word


def test_every_picture_differs_from_the_one_before_and_covers_the_frame() -> None:
    pictures = load_pictures()
    assert len(pictures) == 3
    last = None
    for number in range(0, round(3 * SHOWN_S * FPS), 12):
        shown = scene(pictures, number)
        assert shown.shape == (SIZE_WH[1], SIZE_WH[0], 3)
        # No side of the frame looks past the picture's own edge into one repeated line.
        for edge in (shown[:, :3], shown[:, -3:], shown[:3].transpose(1, 0, 2)):
            assert np.ptp(edge.astype(np.int32), axis=1).max() > 0
        if last is not None:
            assert np.abs(shown.astype(np.int32) - last).mean() > 0.3
        last = shown.astype(np.int32)
