"""Streams post what is found in them and how they stand, whoever the source and watched or not."""

import asyncio

import pytest

from server.outlets.bulletin import DETECTIONS, STATUS, Subscription
from tests.fakes import FakeDetector
from tests.gateway.watching import sending, streaming
from tests.serving import DEADLINE_S, calling, until

pytestmark = pytest.mark.service


async def states(listener: Subscription, last: str) -> list[tuple[str, str]]:
    """State and source until `last` is told."""
    told: list[tuple[str, str]] = []
    async with asyncio.timeout(DEADLINE_S):
        while not told or told[-1][0] != last:
            message = (await listener.next()).message
            told.append((message["state"], message["source"]))
    return told


@pytest.mark.parametrize("mode", ["exact", "smooth"])
async def test_detections_of_a_stream_that_nobody_watches_are_told(mode: str) -> None:
    async with streaming(FakeDetector()) as server:
        listener = server.bulletin.subscribe([DETECTIONS], "desk")
        async with calling(server, stream="desk", mode=mode):
            async with asyncio.timeout(DEADLINE_S):
                first, second = await listener.next(), await listener.next()
        assert first.message["stream"] == "desk"
        assert first.message["size"] == [320, 240]
        # An object has a number from its second picture on.
        [[*row, track]] = first.message["boxes"]
        assert row == [80.0, 60.0, 160.0, 120.0, 0, 1.0]
        assert track in (None, 1)
        # Of the picture that was looked at, though in `smooth` others left meanwhile.
        assert "infer" in first.message["stages_ms"]
        assert list(first.names) == ["fake"]
        assert second.message["seq"] > first.message["seq"]


async def test_boxes_that_are_shown_on_several_pictures_are_told_once() -> None:
    detector = FakeDetector()
    async with streaming(detector) as server:
        listener = server.bulletin.subscribe([DETECTIONS], "desk")
        async with calling(server, stream="desk", mode="smooth"):
            async with asyncio.timeout(DEADLINE_S):
                await listener.next()
            detector.go_on.clear()
            [before] = server.registry.statistics().streams
            await until(lambda: server.registry.statistics().streams[0].frames > before.frames + 5)
            told, looked_at = server.bulletin.statistics().posted, len(detector.batches)
            detector.go_on.set()
        assert told[DETECTIONS] <= looked_at


async def test_nothing_is_made_while_nobody_listens() -> None:
    async with streaming(FakeDetector()) as server, sending(server, "yard"):
        await until(
            lambda: any(s.frames > 3 for s in server.registry.statistics().streams),
        )
        assert server.bulletin.statistics().posted[DETECTIONS] == 0


async def test_coming_and_going_of_a_source_is_told() -> None:
    async with streaming() as server:
        listener = server.bulletin.subscribe([STATUS], "yard")
        async with sending(server, "yard"):
            assert await states(listener, "live") == [("waiting", "whip"), ("live", "whip")]
        assert await states(listener, "ended") == [("ended", "")]


async def test_a_source_that_falls_silent_is_told() -> None:
    async with streaming() as server:
        listener = server.bulletin.subscribe([STATUS], "desk")
        async with calling(server, stream="desk") as caller:
            await states(listener, "live")
            for sender in caller.pc.getSenders():
                sender.replaceTrack(None)
            assert await states(listener, "no_signal") == [("no_signal", "call")]
