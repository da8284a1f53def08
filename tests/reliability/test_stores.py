"""F13, F15, F18: a disk that is full, memory that is used up, a database that goes away."""

import asyncio
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from server.clock import NS_PER_S, now_ns
from server.history.journal import ENTRIES_AT_MOST
from server.memory import resident_mib
from server.outlets.bulletin import Subscription
from tests.analysis.databases import Postgres
from tests.analysis.happenings import begins, ends
from tests.gateway.watching import Watcher, sending, watching
from tests.reliability.disk import enlarge, small_disk
from tests.reliability.matrix import Matrix
from tests.reliability.scene import OPEN_GATES, Stage, scene, watch
from tests.serving import DEADLINE_S, Caller, Serving, changed, until

pytestmark = pytest.mark.loopback


async def status_of(server: Serving, path: str) -> int:
    async with server.http.get(server.url + path) as reply:
        return reply.status


# --- a full disk ---

CLIPS = {"clips": True, "clip_before_s": 1.0, "clip_after_s": 0.5, "clips_reserve_mib": 0}


async def film(server: Serving) -> None:
    """Something happens in the yard, is filmed, and is over."""
    happening = begins(stream="yard")
    server.journal.happened(happening)
    recorder = server.recorder
    await until(lambda: recorder.statistics().open == 1 and recorder.statistics().memory_bytes > 0)
    server.journal.happened(ends(happening))


async def next_alarm(listener: Subscription) -> Mapping[str, Any]:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            message = (await listener.next()).message
            if message["kind"] == "signal":
                return message


async def pictures(watcher: Watcher, count: int) -> None:
    for _ in range(count):
        await watcher.picture()


async def test_a_full_disk_stops_recording_with_an_alarm_and_not_the_video(
    tmp_path: Path, matrix: Matrix
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        settings = changed(limits=OPEN_GATES, clips={**CLIPS, "clips_dir": str(disk)})
        async with scene(matrix, settings=settings, seed=13) as stage:
            server = stage.server
            listener = server.bulletin.subscribe(["events"])
            async with sending(server, "yard"), watching(server, "yard") as watcher:
                await pictures(watcher, 5)
                await stage.settle()
                begin_ns = now_ns()
                await film(server)
                alarm = await next_alarm(listener)
                alarm_s = (now_ns() - begin_ns) / NS_PER_S
                assert alarm["class"] == "recording_stopped"
                assert alarm["ended_unix_ms"] is None
                await pictures(watcher, 10)
                clips = (await server.stats())["clips"]
                assert (clips["state"], clips["recording"], clips["lost"]) == ("stopped", 0, 1)
                assert "space" in clips["last_error"].lower() or "MiB" in clips["last_error"]
                assert clips["memory_bytes"] == 0
                assert await status_of(server, "/healthz") == 200
                assert list(disk.iterdir()) == []
                # When there is room again, the next file ends the alarm.
                enlarge(disk)
                server.recorder._try_again()
                room_ns = now_ns()
                await film(server)
                over = await next_alarm(listener)
                over_s = (now_ns() - room_ns) / NS_PER_S
                assert over["id"] == alarm["id"]
                assert over["ended_unix_ms"] is not None
                clips = (await server.stats())["clips"]
                assert (clips["state"], clips["written"]) == ("ready", 1)
                await pictures(watcher, 5)
                matrix.record(
                    "F13",
                    seed=stage.seed,
                    figure=f"told {alarm_s:.1f} s after the event on a full disk, its clip counted "
                    f"as lost, nothing half written; with room again a clip is written and the "
                    f"alarm ends after {over_s:.1f} s; the stream's viewer and "
                    f"{await stage.witnessed(begin_ns)}",
                    threshold="recording stops with an alarm and goes on, each within 5 s, live "
                    "video untouched",
                    holds=alarm_s <= 5 and over_s <= 5,
                )


# --- memory ---

SHARE = 85.0
BALLAST_MIB = 96


async def offered(server: Serving) -> tuple[int, str]:
    """Status of one more call's offer, which is given up at once, and the reason of a refusal."""
    caller = Caller()
    try:
        async with server.http.post(f"{server.url}/offer", json=await caller.offer()) as reply:
            answer = await reply.json()
            if reply.status == 200:
                async with server.http.delete(f"{server.url}/sessions/{answer['session']}"):
                    pass
            return reply.status, answer.get("detail", "")
    finally:
        await caller.close()


@pytest.mark.long
async def test_calls_are_refused_before_memory_runs_out_and_those_there_are_go_on(
    matrix: Matrix,
) -> None:
    # Half of the ballast is missing to 85 % of the limit.
    limit_mib = round((resident_mib() + BALLAST_MIB / 2 + 64) / (SHARE / 100))
    limits = {**OPEN_GATES, "memory_limit_mib": limit_mib}
    async with scene(matrix, settings=changed(limits=limits), seed=15) as stage:
        # Callers share the loop here: what their offers cost by themselves is in both, and rare.
        await asyncio.gather(stage.settle(4.0), offered_in_turn(stage.server, 3))
        begin_ns = now_ns()
        before, at_first = 100 * resident_mib() / limit_mib, await offered(stage.server)
        missing_mib = max(0.0, limit_mib * SHARE / 100 - resident_mib()) + BALLAST_MIB / 2
        with mmap.mmap(-1, int(missing_mib) << 20) as ballast:
            await asyncio.to_thread(touch, ballast)
            await until_measured()
            full, refused = 100 * resident_mib() / limit_mib, await offered(stage.server)
            assert await status_of(stage.server, "/healthz") == 200
        await until_measured()
        after = await offered(stage.server)
        await watch(stage.witness, 3.0)
        assert (at_first[0], refused[0], after[0]) == (200, 503, 200)
        assert "admit_memory_percent" in refused[1]
        assert (await stage.server.stats())["limits"]["refused"] == {"admit_memory_percent": 1}
        matrix.record(
            "F15",
            seed=stage.seed,
            figure=f"of {limit_mib} MiB {before:.0f} % used: {at_first[0]}; {full:.0f} %: "
            f"{refused[0]}; given back: {after[0]}; {await stage.witnessed(begin_ns)}",
            threshold="new calls refused at 85 %, those there are untouched",
            note="the limit is a cgroup's, a setting's or the machine's; here the setting's",
            holds=before < SHARE < full,
        )


async def offered_in_turn(server: Serving, count: int) -> None:
    for _ in range(count):
        await until_measured()
        await offered(server)


def touch(ballast: mmap.mmap) -> None:
    for page in range(0, len(ballast), mmap.PAGESIZE):
        ballast[page] = 1


async def until_measured() -> None:
    """Admission looks at the load four times a second."""
    await asyncio.sleep(0.3)


# --- the database ---

TOO_MANY = 104
BATCH = 50


async def happens(stage: Stage, count: int) -> None:
    """Events at some 2,000 a second: no camera makes so many, and the loop is not held up."""
    for number in range(count):
        stage.server.journal.happened(begins(stream="yard", pictured=False))
        if number % BATCH == 0:
            await asyncio.sleep(0.02)


async def test_calls_live_on_while_the_database_is_away_and_what_was_lost_is_counted(
    postgres: Postgres, matrix: Matrix
) -> None:
    settings = changed(limits=OPEN_GATES, store={"store": await postgres.database()})
    async with scene(matrix, settings=settings, seed=18) as stage:
        journal = stage.server.journal
        await happens(stage, 1)
        await until(lambda: journal.statistics().written == 1)
        await stage.settle()
        begin_ns = now_ns()
        await asyncio.to_thread(postgres.stop)
        try:
            await happens(stage, ENTRIES_AT_MOST + TOO_MANY)
            await until(lambda: journal.statistics().state == "away")
            await until(lambda: journal.statistics().lost == TOO_MANY)
            alive = [await status_of(stage.server, path) for path in ("/healthz", "/readyz")]
            call, _ = await offered(stage.server)
            waited = journal.statistics().waiting
            away_s = (now_ns() - begin_ns) / NS_PER_S
        finally:
            await asyncio.to_thread(postgres.start)
        back_ns = now_ns()
        everything = 1 + ENTRIES_AT_MOST
        await until(lambda: journal.statistics().written == everything)
        written_s = (now_ns() - back_ns) / NS_PER_S
        statistics = journal.statistics()
        assert (statistics.state, statistics.lost) == ("ready", TOO_MANY)
        assert (waited, alive, call) == (ENTRIES_AT_MOST, [200, 200], 200)
        matrix.record(
            "F18",
            seed=stage.seed,
            figure=f"PostgreSQL away for {away_s:.1f} s: {waited} events wait, {statistics.lost} "
            f"are counted as lost; /healthz and /readyz {alive}, one more call {call}; all that "
            f"waited written {written_s:.1f} s after it is back; "
            f"{await stage.witnessed(begin_ns)}",
            threshold="sessions live on, alive and ready, at most 4096 events wait, none is lost "
            "uncounted, written within 10 s",
            note="events are in the database only; streams and calls need none",
            holds=written_s <= 10,
        )
