"""Many offers a second, from a process of its own.

Callers are elsewhere: what the sending costs must not be taken for what it does to a running call.
"""

import asyncio
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

import aiohttp

from server.clock import NS_PER_MS, NS_PER_S, now_ns

ANSWER_TIMEOUT_S = 15.0


@dataclass
class Storm:
    """What was sent and what came of it. An exception counts under its name."""

    posted: int = 0
    elapsed_s: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    admitted_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)


class StormProcess:
    """The process, started when made; ends with the block."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"))
        # It takes a second to start, which must not fall into what is measured.
        self._started = self._pool.submit(Storm)

    async def __aenter__(self) -> "StormProcess":
        await asyncio.wrap_future(self._started)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def begin(self, url: str, sdp: str, rate: float, seconds: float) -> asyncio.Future[Storm]:
        """Offers `sdp` to `url` from now on, for so long."""
        return asyncio.wrap_future(self._pool.submit(send, url, sdp, rate, seconds))


def send(url: str, sdp: str, rate: float, seconds: float) -> Storm:
    """The same offer again and again at a rate; whatever is admitted is ended at once."""
    return asyncio.run(_send(url, sdp, rate, seconds))


async def _send(url: str, sdp: str, rate: float, seconds: float) -> Storm:
    storm = Storm()
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
    async with (
        aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http,
        asyncio.TaskGroup() as posts,
    ):
        begun_ns = now_ns()
        # The pace does not wait for answers.
        while storm.elapsed_s < seconds:
            while storm.posted < storm.elapsed_s * rate:
                storm.posted += 1
                posts.create_task(_post(http, url, sdp, storm))
            await asyncio.sleep(0.5 / rate)
            storm.elapsed_s = (now_ns() - begun_ns) / NS_PER_S
    return storm


async def _post(http: aiohttp.ClientSession, url: str, sdp: str, storm: Storm) -> None:
    body = {"sdp": sdp, "type": "offer", "options": {}}
    begun_ns = now_ns()
    try:
        async with http.post(f"{url}/offer", json=body) as reply:
            answer = await reply.json(content_type=None)
            took_ms = (now_ns() - begun_ns) / NS_PER_MS
            storm.statuses[str(reply.status)] += 1
        if reply.status != 200:
            storm.refused_ms.append(took_ms)
            return
        storm.admitted_ms.append(took_ms)
        async with http.delete(f"{url}/sessions/{answer['session']}"):
            pass
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        storm.statuses[type(error).__name__] += 1
