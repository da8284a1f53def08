"""Connections that do not come to the point: they are closed, and others are served meanwhile."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from server.settings import Settings
from tests.gate.guarded import ADMIN, Guarded, guarded, guarded_settings
from tests.serving import DEADLINE_S, changed

pytestmark = pytest.mark.loopback

HEAD = "POST /offer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
STALLS = (
    # nothing at all, half a line, half a head
    "",
    "GET /hea",
    "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: ",
)


@contextlib.asynccontextmanager
async def connected(
    server: Guarded,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the server closes the connection."""
    async with asyncio.timeout(DEADLINE_S):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


async def trickle(writer: asyncio.StreamWriter) -> None:
    """One header byte at a time, as long as the server listens; the pace is the attacker's."""
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.05)


def impatient(**auth: str) -> Settings:
    return changed(auth=auth, limits={"idle_timeout_s": 1.0, "body_timeout_s": 0.5})


@pytest.mark.parametrize("start", STALLS)
async def test_a_head_that_does_not_come_is_not_waited_for(start: str) -> None:
    async with guarded(impatient()) as server, connected(server) as (reader, writer):
        writer.write(start.encode())
        assert (await server.ask("GET", "/healthz"))[0] == 200
        assert await until_closed(reader) == b""


async def test_a_head_that_trickles_in_is_not_waited_for_either() -> None:
    async with guarded(impatient()) as server, connected(server) as (reader, writer):
        writer.write(STALLS[-1].encode())
        trickling = asyncio.create_task(trickle(writer))
        try:
            await until_closed(reader)
        finally:
            trickling.cancel()
            await asyncio.wait([trickling])


async def test_a_second_head_on_the_same_connection_has_the_same_deadline() -> None:
    async with guarded(impatient()) as server, connected(server) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTT")
        assert (await until_closed(reader)).count(b"200 OK") == 1


@pytest.mark.parametrize(
    "body", ["Content-Length: 100\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n5\r\n{"]
)
async def test_a_body_that_does_not_come_gets_408(body: str) -> None:
    async with guarded(impatient()) as server, connected(server) as (reader, writer):
        writer.write((HEAD + body).encode())
        answer = await until_closed(reader)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"body_timeout_s" in answer
        _, statistics = await server.ask("GET", "/api/stats")
        assert statistics["limits"]["refused"] == {"body_timeout_s": 1}


async def test_who_has_no_key_is_refused_before_the_body_is_read() -> None:
    async with guarded(guarded_settings()) as server, connected(server) as (reader, writer):
        writer.write((HEAD + "Content-Length: 100000\r\n\r\n").encode())
        async with asyncio.timeout(DEADLINE_S):
            assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")


async def test_two_hundred_stalled_connections_leave_room_for_a_caller() -> None:
    async with guarded(impatient()) as server, contextlib.AsyncExitStack() as stack:
        readers = []
        for number in range(200):
            reader, writer = await stack.enter_async_context(connected(server))
            writer.write(STALLS[number % len(STALLS)].encode())
            readers.append(reader)
        assert (await server.ask("GET", "/api/client-config"))[0] == 200
        assert (await server.ask("POST", "/offer", json={}))[0] == 400
        assert all([await until_closed(reader) == b"" for reader in readers])


async def test_doubtful_heads_are_refused() -> None:
    rows = (
        HEAD + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        HEAD + "Host: other\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + f"X-Long: {'x' * 20_000}\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nX-A: a\x00b\r\n\r\n",
        f"GET /{'x' * 20_000} HTTP/1.1\r\nHost: localhost\r\n\r\n",
    )
    async with guarded(guarded_settings(), ADMIN) as server:
        for row in rows:
            async with connected(server) as (reader, writer):
                writer.write(row.encode("latin-1"))
                status = (await until_closed(reader)).split(b" ")[1]
                assert status == b"400", row[:120]
