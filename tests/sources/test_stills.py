"""Snapshots and MJPEG of a live stream: bounded, newest only, made once."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import av
import cv2
import numpy as np
import pytest

from tests.fakes import FakeDetector
from tests.gate.guarded import ADMIN, guarded, token
from tests.gateway.watching import sending, streaming, watching
from tests.serving import DEADLINE_S, NumberedTrack, Serving, changed, serving, until
from tests.sources.cameras import write_clip

pytestmark = pytest.mark.service


async def live(server: Serving, name: str = "yard") -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            body = await server.stream(name)
            if body.get("live"):
                return body
            await asyncio.sleep(0.02)


def decoded(jpeg: bytes) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return np.asarray(picture)


def is_coloured(picture: np.ndarray) -> bool:
    """Boxes are, the grey pictures of the tests are not."""
    channels = picture.astype(np.int32)
    return bool((channels.max(axis=2) - channels.min(axis=2)).max() > 40)


def noise(index: int) -> av.VideoFrame:
    """What makes large files, so that buffers fill up soon."""
    values = np.random.default_rng(index).integers(16, 235, (360, 320), dtype=np.uint8)
    return av.VideoFrame.from_ndarray(values, format="yuv420p")


class Frames:
    """The parts of a multipart answer, one after another."""

    def __init__(self, reply: aiohttp.ClientResponse) -> None:
        self._content = reply.content

    async def next(self) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            assert await self._content.readline() == b"--frame\r\n"
            assert await self._content.readline() == b"Content-Type: image/jpeg\r\n"
            length = int((await self._content.readline()).split(b":")[1])
            assert await self._content.readline() == b"\r\n"
            jpeg = await self._content.readexactly(length)
            assert await self._content.readline() == b"\r\n"
            return jpeg


@contextlib.asynccontextmanager
async def motion(server: Serving, query: str = "", name: str = "yard") -> AsyncIterator[Frames]:
    url = f"{server.url}/api/streams/{name}/mjpeg{query}"
    async with server.http.get(url) as reply:
        assert reply.status == 200, await reply.text()
        assert reply.content_type == "multipart/x-mixed-replace"
        yield Frames(reply)


async def test_a_snapshot_is_the_newest_picture_with_boxes_or_without() -> None:
    async with streaming(FakeDetector()) as server, sending(server, "yard"):
        await live(server)
        pictures = {}
        for query in ("", "?annotated=1", "?annotated=0", "?width=100", "?width=4000"):
            async with server.http.get(
                f"{server.url}/api/streams/yard/snapshot.jpg{query}"
            ) as reply:
                assert (reply.status, reply.content_type) == (200, "image/jpeg")
                assert reply.headers["Cache-Control"] == "no-store"
                pictures[query] = decoded(await reply.read())
        assert pictures[""].shape == (240, 320, 3)
        assert is_coloured(pictures[""])
        assert is_coloured(pictures["?annotated=1"])
        assert not is_coloured(pictures["?annotated=0"])
        assert pictures["?width=100"].shape == (75, 100, 3)
        assert pictures["?width=4000"].shape == (240, 320, 3)
        assert (await server.stream("yard"))["viewers"] == 0


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("yard/snapshot.jpg?annotated=yes", 400),
        ("yard/snapshot.jpg?width=0", 400),
        ("yard/snapshot.jpg?width=-5", 400),
        ("yard/snapshot.jpg?width=9999999999", 400),
        ("yard/snapshot.jpg?width=1e3", 400),
        ("yard/mjpeg?fps=0", 400),
        ("yard/mjpeg?fps=nan", 400),
        ("yard/mjpeg?fps=1000", 400),
        ("none/snapshot.jpg", 404),
        ("none/mjpeg", 404),
    ],
)
async def test_what_cannot_be_shown_is_refused_and_leaves_nothing(path: str, status: int) -> None:
    async with streaming() as server, sending(server, "yard"):
        await live(server)
        async with server.http.get(f"{server.url}/api/streams/{path}") as reply:
            assert reply.status == status
            assert (await reply.json())["status"] == status
        body = await server.stream("yard")
        assert (body["viewers"], body["mjpeg"]["readers"]) == (0, 0)


async def test_pictures_of_many_readers_are_made_once() -> None:
    async with streaming(FakeDetector()) as server, sending(server, "yard"):
        await live(server)
        async with contextlib.AsyncExitStack() as stack:
            readers = [await stack.enter_async_context(motion(server, "?fps=30")) for _ in range(4)]
            for _ in range(12):
                pictures = await asyncio.gather(*(reader.next() for reader in readers))
                assert all(is_coloured(decoded(jpeg)) for jpeg in pictures)
            body = await server.stream("yard")
            assert (body["viewers"], body["mjpeg"]["readers"]) == (4, 4)
            mjpeg = body["mjpeg"]
            assert mjpeg["sent"] >= 4 * 12
            # Far from one for each reader.
            assert mjpeg["encoded"] <= mjpeg["sent"] / 2
        async with asyncio.timeout(DEADLINE_S):
            while (await server.stream("yard"))["viewers"]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        before = (await server.stream("yard"))["mjpeg"]["encoded"]
        frames = (await server.stream("yard"))["frames"]
        await until(lambda: server.registry.statistics().streams[0].frames >= frames + 10)
        # Nobody looks, and nothing is made.
        assert (await server.stream("yard"))["mjpeg"]["encoded"] <= before + 1


async def test_a_reader_gets_no_more_a_second_than_it_asked_for() -> None:
    async with streaming() as server, sending(server, "yard"):
        await live(server)
        async with motion(server, "?fps=5") as slow:
            await slow.next()
            frames = (await server.stream("yard"))["frames"]
            for _ in range(4):
                await slow.next()
            body = await server.stream("yard")
            passed = body["frames"] - frames
            assert body["mjpeg"]["encoded"] <= body["mjpeg"]["sent"] + 2
        # Four pictures at five a second take 0.8 s, in which some 24 came in.
        assert passed >= 12


async def test_a_slow_reader_misses_pictures_and_holds_up_nobody() -> None:
    async with streaming() as server, sending(server, "yard", NumberedTrack(noise)):
        await live(server)
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lazy.sendall(b"GET /api/streams/yard/mjpeg?fps=30 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with motion(server, "?fps=30") as quick:
                async with asyncio.timeout(60):
                    while not (await server.stream("yard"))["mjpeg"]["dropped_slow"]:
                        await quick.next()
                first = await quick.next()
                assert decoded(first).shape == (240, 320, 3)


@pytest.mark.long
async def test_who_takes_nothing_is_let_go() -> None:
    settings = changed(
        outlets={"listener_timeout_s": 0.5},
        limits={"admit_loop_lag_ms": 0, "admit_wait_ms": 0},
    )
    async with serving(None, settings) as server, sending(server, "yard", NumberedTrack(noise)):
        await live(server)
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lazy.sendall(b"GET /api/streams/yard/mjpeg?fps=30 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with asyncio.timeout(DEADLINE_S):
                while not (await server.stream("yard"))["viewers"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            async with asyncio.timeout(90):
                while (await server.stream("yard"))["viewers"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)


async def test_readers_end_with_the_stream() -> None:
    async with streaming() as server, sending(server, "yard"):
        await live(server)
        async with server.http.get(f"{server.url}/api/streams/yard/mjpeg") as reply:
            await Frames(reply).next()
            async with server.http.delete(f"{server.url}/api/streams/yard") as ended:
                assert ended.status == 200
            async with asyncio.timeout(DEADLINE_S):
                await reply.content.read()


@pytest.mark.long
async def test_a_stream_that_fell_silent_is_marked_and_readers_stay() -> None:
    async with streaming() as server:
        async with sending(server, "yard"):
            await live(server)
            opened = motion(server, "?fps=30")
            frames = await opened.__aenter__()
            await frames.next()
        try:
            async with asyncio.timeout(DEADLINE_S):
                # The pictures are plain; the words are not.
                while decoded(await frames.next()).std() < 3:
                    pass
            assert (await server.stream("yard"))["live"] is False
        finally:
            await opened.__aexit__(None, None, None)


async def test_places_are_limited_and_given_back() -> None:
    async with streaming(max_mjpeg_viewers=1) as server, sending(server, "yard"):
        await live(server)
        async with motion(server) as frames:
            await frames.next()
            async with server.http.get(f"{server.url}/api/streams/yard/mjpeg") as reply:
                assert reply.status == 503
                assert "max_mjpeg_viewers: 1" in (await reply.json())["detail"]
            # Watching is another thing.
            async with watching(server, "yard") as watcher:
                await watcher.picture()
        async with asyncio.timeout(DEADLINE_S):
            while (await server.stream("yard"))["viewers"]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        async with motion(server) as frames:
            await frames.next()


async def test_the_server_stops_though_somebody_reads() -> None:
    # An answer that is still open would hold the stop up for a minute.
    async with asyncio.timeout(40), streaming() as server, sending(server, "yard"):
        await live(server)
        reply = await server.http.get(f"{server.url}/api/streams/yard/mjpeg")
        await Frames(reply).next()
    reply.close()


async def test_pictures_are_for_viewers_and_end_with_their_token() -> None:
    viewer = token(scope="view", streams=["front-*"], jti="sees-pictures")
    other = token(scope="view", streams=["back-*"], jti="sees-others")
    async with guarded(secret=ADMIN) as server, sending(server, "front-door"):  # type: ignore[arg-type]
        await live(server, "front-door")  # type: ignore[arg-type]
        for secret, status in ((viewer, 200), (other, 403), ("not-a-key", 401)):
            path = "/api/streams/front-door/snapshot.jpg"
            assert (await server.ask("GET", path, secret))[0] == status
        # An <img> cannot send a header: it opens with a ticket, once.
        _, ticket = await server.ask("POST", "/api/tickets", viewer)
        url = f"{server.url}/api/streams/front-door/mjpeg?ticket={ticket['ticket']}"
        async with aiohttp.ClientSession() as bare, bare.get(url) as reply:
            assert reply.status == 200
            await Frames(reply).next()
            await server.ask("DELETE", "/api/tokens/sees-pictures")
            async with asyncio.timeout(DEADLINE_S):
                await reply.content.read()


async def test_a_file_that_is_fetched_has_its_snapshot(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4")
    rows = ("door=file:clip.mp4",)
    settings = changed(sources={"sources": rows, "source_folder": str(tmp_path)})
    async with (
        serving(None, settings) as server,
        # At once: it waits for the first picture.
        server.http.get(f"{server.url}/api/streams/door/snapshot.jpg") as reply,
    ):
        assert reply.status == 200
        assert decoded(await reply.read()).shape == (120, 160, 3)
