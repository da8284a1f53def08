"""Memory stays flat, whatever the doors are given: for `make test-long`."""

import asyncio
import contextlib
import io
from typing import Any

import aiohttp
import pytest

from bench.server_process import TAKES_EVERY_CALL, started
from tests.doors.files import (
    bomb_png,
    cmyk_jpeg,
    jpeg,
    many_scans,
    png,
    truncated_jpeg,
    wide_jpeg,
)

pytestmark = [pytest.mark.loopback, pytest.mark.long]

PICTURES = (
    b"",
    b"no picture" * 1000,
    truncated_jpeg(),
    wide_jpeg(10_000, 10_000),
    bomb_png(60_000, 60_000),
    many_scans(300),
    many_scans(30, 3000, 2000),
    cmyk_jpeg(1500, 1500),
    png(2000, 1500, channels=4, bits=16),
    jpeg(4000, 3000),
)
ROUNDS = 15
GROWTH_MIB = 32.0


async def test_memory_stays_as_it_was_over_rounds_of_hostile_pictures() -> None:
    """After rounds that let the pools of memory grow to what they need."""
    async with (
        started(["server", "--max-detect-requests=8", *TAKES_EVERY_CALL]) as server,
        aiohttp.ClientSession() as http,
    ):
        url = server.url
        for _ in range(ROUNDS):
            await one_round(url, http)
        before = await stats(url, http)
        for _ in range(ROUNDS):
            await one_round(url, http)
        after = await stats(url, http)
        pictures = after["pictures"]
        assert (pictures["waiting"], pictures["waiting_megapixels"]) == (0, 0)
        assert {"malformed", "too_large"} <= set(pictures["doors"]["detect"]["refused"])
        grown_mib = after["process"]["resident_mib"] - before["process"]["resident_mib"]
        assert grown_mib < GROWTH_MIB, f"from {before['process']['resident_mib']:.0f} MiB"
        assert after["process"]["threads"] <= before["process"]["threads"]
        assert after["process"]["open_files"] <= before["process"]["open_files"] + 2


async def test_a_client_that_never_reads_is_let_go_and_costs_no_memory() -> None:
    """It sends wrong pictures until the answers fill every buffer on the way."""
    async with (
        started(["server", "--model", "none", *TAKES_EVERY_CALL]) as server,
        aiohttp.ClientSession() as http,
    ):
        before = await stats(server.url, http)
        port = int(server.url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(
            b"GET /ws/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        # One byte, masked with zeros, ten thousand times at once.
        many = (b"\x82\x81\0\0\0\0x") * 10_000
        async with asyncio.timeout(180):
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(many)
                    await writer.drain()
        after = await stats(server.url, http)
        assert after["pictures"]["waiting"] == 0
        grown_mib = after["process"]["resident_mib"] - before["process"]["resident_mib"]
        # 64 KiB of messages that wait to be looked at are 65,536 of these.
        assert grown_mib < 2 * GROWTH_MIB
        assert after["process"]["open_files"] <= before["process"]["open_files"] + 1


async def stats(url: str, http: aiohttp.ClientSession) -> dict[str, Any]:
    async with http.get(f"{url}/api/stats") as reply:
        told: dict[str, Any] = await reply.json()
        return told


async def one_round(url: str, http: aiohttp.ClientSession) -> None:
    """Every picture through every door at once, a message of 17 MiB, and who leaves half-way."""

    async def by_socket() -> None:
        async with http.ws_connect(
            url.replace("http", "ws") + "/ws/stream", max_msg_size=0
        ) as socket:
            for data in PICTURES:
                await socket.send_bytes(data)
                await socket.receive_str()
            with contextlib.suppress(ConnectionError, aiohttp.ClientError):
                await socket.send_bytes(bytes(17 << 20))

    async def by_post(path: str, data: bytes) -> None:
        form = aiohttp.FormData()
        form.add_field("image", data, filename="image.jpg")
        async with http.post(url + path, data=form) as reply:
            await reply.read()

    async def half_way() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        head = "POST /api/detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
        writer.write((head + "Content-Length: 16000000\r\n\r\n").encode() + bytes(1 << 20))
        await writer.drain()
        writer.close()

    async def too_much() -> None:
        data = io.BytesIO(bytes(17 << 20))
        headers = {"Content-Type": "image/jpeg"}
        with contextlib.suppress(aiohttp.ClientError):
            async with http.post(url + "/api/detect", data=data, headers=headers) as reply:
                assert reply.status in (413, 503)

    posts = [
        by_post(path, data) for path in ("/api/detect", "/v1/vision/detection") for data in PICTURES
    ]
    await asyncio.gather(*posts, by_socket(), by_socket(), half_way(), too_much())
