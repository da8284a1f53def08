"""Other models while calls run: the server is told to change, again and again, and how long it
takes is kept. What the calls notice is in their own reports."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from typing import Final

import aiohttp

from bench.errors import ServerError
from server.clock import now_ns, ns_to_ms

EVERY_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class ModelChange:
    """One that the server took."""

    model: str
    took_ms: float
    """From asking until it answered that the next picture is the new one's."""


@asynccontextmanager
async def changing_models(
    http: aiohttp.ClientSession, url: str, models: Sequence[str], every_s: float = EVERY_S
) -> AsyncIterator[list[ModelChange]]:
    """Change to each of the models in turn while inside; none does nothing. One that is under way
    when it is over is waited for. Raises `ServerError` on leaving when the server refused one."""
    changes: list[ModelChange] = []
    over = asyncio.Event()
    task = asyncio.create_task(_change_all(http, url, models, every_s, over, changes))
    try:
        yield changes
    finally:
        over.set()
        await asyncio.wait([task])
    task.result()


async def _change_all(
    http: aiohttp.ClientSession,
    url: str,
    models: Sequence[str],
    every_s: float,
    over: asyncio.Event,
    changes: list[ModelChange],
) -> None:
    for model in cycle(models):
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), every_s)
            return
        asked_at_ns = now_ns()
        try:
            async with http.put(f"{url}/api/model", json={"model": model}) as reply:
                if reply.status != 200:
                    raise ServerError(f"--change-to: {model}: {await reply.text()}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ServerError(f"--change-to: {model}: {error!r}") from error
        changes.append(ModelChange(model, ns_to_ms(now_ns() - asked_at_ns)))
