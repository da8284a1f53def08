"""H9: offers as browsers and encoders write them, damaged line by line, at all three doors."""

import asyncio
import random
from collections import Counter

import psutil
import pytest

from bench.statistics import percentile
from server.clock import NS_PER_MS, now_ns
from tests.fakes import FakeDetector
from tests.fuzz.seeds import OFFERS
from tests.gate.test_hostile import mutated
from tests.reliability.machine import observed_machine
from tests.reliability.matrix import Matrix
from tests.reliability.scene import OPEN_GATES
from tests.serving import Serving, changed, serving, until

pytestmark = pytest.mark.loopback

LONGEST_MS = 50.0


async def ask(server: Serving, door: str, sdp: str) -> tuple[int, float]:
    """Status and time of one offer; what it opened is closed again, outside the time."""
    http, url = server.http, server.url
    asked_ns = now_ns()
    if door == "offer":
        reply = await http.post(f"{url}/offer", json={"sdp": sdp, "type": "offer"})
    else:
        headers = {"Content-Type": "application/sdp"}
        reply = await http.post(f"{url}/{door}/fuzz", data=sdp.encode(), headers=headers)
    async with reply:
        took_ms = (now_ns() - asked_ns) / NS_PER_MS
        if reply.status == 200:
            opened = f"/sessions/{(await reply.json())['session']}"
        elif reply.status == 201:
            opened = reply.headers["Location"]
        else:
            detail = (await reply.json())["detail"]
            assert detail.isprintable(), detail
            assert len(detail) < 300, detail
            return reply.status, took_ms
    async with http.delete(url + opened) as ended:
        assert ended.status == 200
    return reply.status, took_ms


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.long)])
async def test_damaged_offers_get_an_answer_or_a_reason_and_leave_nothing(
    count: int, matrix: Matrix
) -> None:
    process = psutil.Process()
    names = [*OFFERS]
    async with (
        observed_machine() as machine,
        serving(FakeDetector(), changed(limits=OPEN_GATES, streams={"no_signal_s": 0.0})) as server,
    ):
        for name in names:  # once, so that what is made once is there
            await ask(server, "offer" if name in ("Chromium", "Firefox") else "whip", OFFERS[name])
        matrix.observe(machine)
        await until(lambda: not server.registry.statistics().sessions)
        files, tasks = process.num_fds(), len(asyncio.all_tasks())
        statuses: Counter[int] = Counter()
        took_ms: list[float] = []
        for seed in range(count):
            chance = random.Random(seed)
            sdp = mutated(OFFERS[names[seed % len(names)]], chance)
            status, took = await ask(server, chance.choice(("offer", "whip", "whep")), sdp)
            assert status < 500, (seed, status)
            statuses[status] += 1
            took_ms.append(took)
        await until(lambda: not server.registry.statistics().sessions)
        await until(lambda: process.num_fds() <= files + 2)
        await until(lambda: len(asyncio.all_tasks()) <= tasks + 2)
        ordered = sorted(took_ms)
        p99_ms = percentile(ordered, 99)
        matrix.record(
            f"H9 {count}",
            seed=count,
            figure=f"seeds 0 to {count - 1}: {dict(sorted(statuses.items()))}, p50 "
            f"{percentile(ordered, 50):.1f} p99 {p99_ms:.0f} max {ordered[-1]:.0f} ms; no call, "
            "task or file is left",
            threshold="2xx or 4xx only, within 50 ms (p99), nothing left",
            holds=p99_ms <= LONGEST_MS and len(statuses) > 2,
        )
