"""What calls and viewers leave behind when they have gone: nothing, and nothing for the collector.

What waits for the garbage collector waits for long: most of what start-up made is frozen, and a
closed call kept its packets, its keys and its pictures until some fifty others had come and gone.
"""

import asyncio
import gc
import os
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from server.clock import now_ns, s_to_ns
from tests.fakes import FakeDetector
from tests.gateway.watching import sending, streaming, watching
from tests.serving import DEADLINE_S, Serving, calling, changed, serving, until

pytestmark = pytest.mark.service

ROUNDS = 4
LOOK_S = 0.2
Visit = Callable[[Serving], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Held:
    """Counts; none is higher than it was once everybody has left."""

    members: int
    tasks: int
    threads: int
    files: int
    objects: Counter[str]
    """Of the server's own types, by name. The collector sleeps, so that one which is only held by
    those that it holds itself counts, too."""

    def beyond(self, before: "Held") -> dict[str, object]:
        """What there is more of than before, by how much."""
        counts = ("members", "tasks", "threads", "files")
        grown = {name: getattr(self, name) - getattr(before, name) for name in counts}
        found = {name: by for name, by in grown.items() if by > 0}
        return {**found, **(self.objects - before.objects)}


async def held(server: Serving) -> Held:
    # Whoever asks lets the server forget who held what has ended.
    await server.stats()
    statistics = server.registry.statistics()
    kinds = Counter(type(thing) for thing in gc.get_objects())
    return Held(
        members=len(statistics.sessions) + len(statistics.viewers),
        tasks=len(asyncio.all_tasks()),
        # The caller of this test has an executor that grows.
        threads=sum(not thread.name.startswith("asyncio") for thread in threading.enumerate()),
        files=len(os.listdir("/proc/self/fd")),
        objects=Counter(
            {
                f"{kind.__module__}.{kind.__qualname__}": count
                for kind, count in kinds.items()
                if str(kind.__module__).startswith("server.")
            }
        ),
    )


@contextmanager
def collector_asleep() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def one_call(server: Serving, mode: str) -> None:
    async with calling(server, mode=mode) as caller:
        await caller.picture()
        await caller.message(lambda message: "boxes" in message)


async def one_refused(server: Serving) -> None:
    body = {"sdp": "v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\n", "type": "offer"}
    async with server.http.post(f"{server.url}/offer", json=body) as reply:
        assert reply.status == 422, await reply.text()


async def one_stream(server: Serving, view: str) -> None:
    async with sending(server, "door"):
        await until(lambda: any(one.frames_in > 2 for one in server.registry.statistics().sessions))
        async with watching(server, "door", f"?view={view}", channel=True) as watcher:
            await watcher.picture()


async def nothing_stays(server: Serving, visit: Visit) -> None:
    """Fails when several visits leave more behind than the first, which may have warmed caches."""
    await visit(server)
    with collector_asleep():
        before = await settled(server)
        for _ in range(ROUNDS):
            await visit(server)
        deadline_ns = now_ns() + s_to_ns(DEADLINE_S)
        while more := (await held(server)).beyond(before):
            assert now_ns() < deadline_ns, f"more than before: {more}"
            await asyncio.sleep(LOOK_S)


async def settled(server: Serving) -> Held:
    """What is held once everybody has left and it no longer changes."""
    async with asyncio.timeout(DEADLINE_S):
        now = await held(server)
        while True:
            await asyncio.sleep(LOOK_S)
            before, now = now, await held(server)
            if now == before and not now.members:
                return now


@pytest.mark.parametrize(
    "visit",
    [
        pytest.param(lambda server: one_call(server, "exact"), id="exact"),
        pytest.param(lambda server: one_call(server, "smooth"), id="smooth"),
        pytest.param(lambda server: one_call(server, "data"), id="data"),
        pytest.param(one_refused, id="refused"),
    ],
)
async def test_calls_that_come_and_go_leave_nothing(visit: Visit) -> None:
    settings = changed(limits={"admit_loop_lag_ms": 0, "admit_wait_ms": 0})
    async with serving(FakeDetector(), settings) as server:
        await nothing_stays(server, visit)


@pytest.mark.parametrize("view", ["annotated", "raw"])
async def test_streams_and_viewers_that_come_and_go_leave_nothing(view: str) -> None:
    async with streaming(FakeDetector(), no_signal_s=0) as server:
        await nothing_stays(server, lambda server: one_stream(server, view))
