"""H9: offers as browsers and encoders write them, damaged line by line, at all three doors."""

import asyncio
import random
from collections import Counter

import pytest

from bench.statistics import percentile
from server.clock import NS_PER_MS, now_ns
from tests.fuzz.seeds import OFFERS
from tests.gate.test_hostile import mutated
from tests.reliability.matrix import Matrix
from tests.reliability.scene import StageApart, scene_apart
from tests.serving import DEADLINE_S

pytestmark = pytest.mark.loopback

LONGEST_MS = 50.0


async def ask(server: StageApart, door: str, sdp: str) -> tuple[int, float]:
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
        # Some can tell at once that nobody will ever answer them.
        assert ended.status in (200, 404)
    return reply.status, took_ms


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.long)])
async def test_damaged_offers_get_an_answer_or_a_reason_and_leave_nothing(
    count: int, matrix: Matrix
) -> None:
    names = [*OFFERS]
    async with scene_apart(matrix, "--no-signal-s=0", "--max-sessions=100") as stage:
        for name in names:  # once, so that what is made once is there
            await ask(stage, "offer" if name in ("Chromium", "Firefox") else "whip", OFFERS[name])
        await gone(stage)
        await stage.settle(2.0)
        before = await process_of(stage)
        statuses: Counter[int] = Counter()
        took_ms: list[float] = []
        begin_ns = now_ns()
        for seed in range(count):
            chance = random.Random(seed)
            sdp = mutated(OFFERS[names[seed % len(names)]], chance)
            status, took = await ask(stage, chance.choice(("offer", "whip", "whep")), sdp)
            assert status < 500, (seed, status)
            statuses[status] += 1
            took_ms.append(took)
        told = await stage.witnessed(begin_ns)
        await gone(stage)
        after = await until_as_before(stage, before)
        ordered = sorted(took_ms)
        p99_ms = percentile(ordered, 99)
        late_ms = 5 * stage.machine.lateness_ms(begin_ns, now_ns())[0]
        matrix.record(
            f"H9 {count}",
            seed=0,
            figure=f"seeds 0 to {count - 1} of {len(names)} offers: "
            f"{dict(sorted(statuses.items()))}, p50 {percentile(ordered, 50):.1f} p99 "
            f"{p99_ms:.0f} max {ordered[-1]:.0f} ms; no call is left, tasks {before['tasks']} -> "
            f"{after['tasks']}, files {before['open_files']} -> {after['open_files']}; {told}",
            threshold="2xx or 4xx only, within 50 ms (p99), nothing left",
            holds=p99_ms <= LONGEST_MS + late_ms and len(statuses) > 2,
        )


async def process_of(stage: StageApart) -> dict[str, int]:
    """What the server's process holds."""
    async with stage.http.get(f"{stage.url}/api/stats") as reply:
        held: dict[str, int] = (await reply.json())["process"]
        return held


async def gone(stage: StageApart) -> None:
    """Until the witness is the only one."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            async with stage.http.get(f"{stage.url}/api/stats") as reply:
                stats = await reply.json()
            if len(stats["sessions"]) == 1 and not stats["streams"]:
                return
            await asyncio.sleep(0.05)


async def until_as_before(stage: StageApart, before: dict[str, int]) -> dict[str, int]:
    """Two more may be there: the connection that asks, and the task that answers."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            after = await process_of(stage)
            if all(after[name] <= before[name] + 2 for name in ("tasks", "open_files")):
                return after
            await asyncio.sleep(0.05)
