"""The whole server is killed while events and clips go on: what it had told or listed is there when
it is back, and nothing else is listed."""

import asyncio
import contextlib
import io
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import av
import pytest

from tests.page.making import ServerProcess, write_detector
from tests.tile.watching_page import numbered_camera

pytestmark = pytest.mark.loopback

STREAMS = ("porch", "yard")
EVERYWHERE = [[0, 0], [1, 0], [1, 1], [0, 1]]
# Above what the detector is ever sure of: everybody leaves.
BLIND, SEEING = 0.99, 0.3
# Who is unseen for two seconds has left.
BLIND_S, SEEING_S = 2.3, 0.6
DEADLINE_S = 120.0


class Client:
    """What a client was told, was answered and saw listed."""

    def __init__(self, http: aiohttp.ClientSession, url: str, folder: Path) -> None:
        self._http = http
        self._url = url
        self._folder = folder
        self.told: dict[str, dict[str, Any]] = {}
        self.acknowledged: set[str] = set()
        self.clips: dict[str, dict[str, Any]] = {}
        self.listens = asyncio.Event()

    async def listen(self) -> None:
        """Every event as it is told, until the server is gone."""
        with contextlib.suppress(aiohttp.ClientError):
            async with self._http.get(f"{self._url}api/events/live") as reply:
                assert reply.status == 200
                self.listens.set()
                kind = ""
                async for raw in reply.content:
                    line = raw.decode().rstrip("\n")
                    if line.startswith("event: "):
                        kind = line[7:]
                    elif line.startswith("data: ") and kind == "event":
                        event = json.loads(line[6:])
                        self.told[event["id"]] = event

    async def wait_live(self) -> None:
        while True:
            streams = (await self.json("api/streams"))["streams"]
            if {stream["name"] for stream in streams if stream["live"]} == {*STREAMS}:
                return
            await asyncio.sleep(0.05)

    async def draw_zones(self) -> None:
        layout = {"zones": [{"id": "room", "points": EVERYWHERE}]}
        for stream in STREAMS:
            url = f"{self._url}api/streams/{stream}/zones"
            async with self._http.put(url, json=layout) as reply:
                assert reply.status == 200, await reply.text()

    async def stir(self) -> None:
        """Objects are seen, and are not, and are seen."""
        while True:
            for confidence, lasts_s in ((SEEING, SEEING_S), (BLIND, BLIND_S)):
                for stream in STREAMS:
                    url = f"{self._url}api/streams/{stream}"
                    body = {"options": {"confidence": confidence}}
                    async with self._http.patch(url, json=body) as reply:
                        assert reply.status == 200, await reply.text()
                await asyncio.sleep(lasts_s)

    async def acknowledge(self, event_id: str) -> None:
        url = f"{self._url}api/events/{event_id}/acknowledge"
        async with self._http.post(url) as reply:
            if reply.status == 200:
                self.acknowledged.add(event_id)

    async def look(self) -> None:
        """What clips there are."""
        for stream in STREAMS:
            for clip in (await self.json(f"api/streams/{stream}/clips"))["clips"]:
                self.clips[clip["id"]] = clip

    async def json(self, path: str) -> dict[str, Any]:
        """An answer; while the database is being opened there is none yet."""
        while True:
            async with self._http.get(self._url + path) as reply:
                body: dict[str, Any] = await reply.json()
                if reply.status == 503:
                    assert reply.headers["Retry-After"]
                    await asyncio.sleep(0.05)
                    continue
                assert reply.status == 200, body
                return body

    async def read(self, path: str) -> bytes:
        async with self._http.get(self._url + path) as reply:
            assert reply.status == 200
            return await reply.read()

    @property
    def half_written(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return any(name.endswith(".part") for name in os.listdir(self._folder))
        return False

    @property
    def has_enough(self) -> bool:
        return len(self.told) >= 12 and len(self.acknowledged) >= 4 and len(self.clips) >= 2

    @property
    def goes_on(self) -> bool:
        """Something was told to have begun, and not yet to have ended."""
        return any(event["ended_unix_ms"] is None for event in self.told.values())


@contextlib.asynccontextmanager
async def client_of(server: ServerProcess, folder: Path) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DEADLINE_S)) as http:
        yield Client(http, server.url, folder)


def pictures_of(film: bytes) -> int:
    """How many pictures can be decoded; a damaged film raises."""
    with av.open(io.BytesIO(film), "r") as container:
        return len(list(container.decode(video=0)))


async def test_what_was_told_and_listed_outlives_kill_9(tmp_path: Path) -> None:
    state = tmp_path / "state"
    server = ServerProcess(
        tmp_path / "server.log",
        "--model", str(write_detector(tmp_path / "always.onnx")), "--provider", "cpu",
        "--state-dir", str(state), "--auth", "off",
        "--clips", "true", "--clip-before-s", "0.5", "--clip-after-s", "0.5",
        "--clip-at-most-s", "2", "--clips-reserve-mib", "0",
    )  # fmt: skip
    async with server, client_of(server, state / "clips") as client, asyncio.timeout(DEADLINE_S):
        async with contextlib.AsyncExitStack() as cameras:
            for stream in STREAMS:
                await cameras.enter_async_context(numbered_camera(server.url, stream))
            await client.wait_live()
            await client.draw_zones()
            listening = asyncio.create_task(client.listen())
            await client.listens.wait()
            stirring = asyncio.create_task(client.stir())
            while not client.has_enough:
                assert not stirring.done(), stirring.exception()
                for event_id in list(client.told)[: len(client.acknowledged) + 1]:
                    if event_id not in client.acknowledged:
                        await client.acknowledge(event_id)
                await client.look()
                await asyncio.sleep(0.05)
            # In the middle of an event, and of a file where one is caught in the making.
            waited_until = asyncio.get_running_loop().time() + 5
            while not (client.goes_on and client.half_written):
                if asyncio.get_running_loop().time() > waited_until and client.goes_on:
                    break
                await asyncio.sleep(0)
            stirring.cancel()
            await server.kill()
            await asyncio.gather(stirring, return_exceptions=True)
            # What had left the server before is told all the same.
            await listening
            assert client.goes_on
        left_behind = set(os.listdir(state / "clips"))
        for name in left_behind:
            # As if it were later: what another server may just be writing is left alone.
            os.utime(state / "clips" / name, (1, 1))

        await server.start()

        for event_id, told in client.told.items():
            kept = await client.json(f"api/events/{event_id}")
            assert (kept["stream"], kept["kind"]) == (told["stream"], told["kind"])
            # Nobody will ever end what went on.
            assert kept["ended_unix_ms"] is not None
            if told["ended_unix_ms"] is None:
                assert kept["interrupted"] or kept["ended_unix_ms"] >= kept["started_unix_ms"]
            else:
                assert not kept["interrupted"]
            if event_id in client.acknowledged:
                assert kept["acknowledged_unix_ms"] is not None

        before = dict(client.clips)
        client.clips = {}
        await client.look()
        assert before.keys() <= client.clips.keys()
        for clip in client.clips.values():
            film = await client.read(clip["url"].removeprefix("/"))
            assert len(film) == clip["bytes"]
            assert pictures_of(film) > 0
        # What was half written, or whole and not yet listed, goes.
        listed = {f"{clip_id}.mp4" for clip_id in client.clips}
        while set(os.listdir(state / "clips")) != listed:
            assert listed <= set(os.listdir(state / "clips"))
            await asyncio.sleep(0.05)
