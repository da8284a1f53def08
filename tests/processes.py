"""The server as a process of its own, for tests of what it says and does from start to end."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import ClientSession
from aiortc import RTCSessionDescription

from tests.serving import Caller

ROOT = Path(__file__).parents[1]
DEADLINE_S = 30.0


@asynccontextmanager
async def server_process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A server on a free port and its address; killed if the test leaves it running."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", "--port", "0", *arguments,
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            first = (await process.stdout.readline()).decode()
        found = re.search(r"http://\S+", first)
        assert found, first
        yield process, found[0].rstrip("/")
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def run_server(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S,
        env={**os.environ, **environment}, check=False,
    )  # fmt: skip


@asynccontextmanager
async def a_call(url: str, http: ClientSession) -> AsyncIterator[Caller]:
    """A call of a server in another process, that has had a picture."""
    caller = Caller()
    try:
        body = await caller.offer()
        async with http.post(f"{url}/offer", json=body) as reply:
            answer = await reply.json()
            assert reply.status == 200, answer
        await caller.pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
        await caller.picture()
        yield caller
    finally:
        await caller.close()
