"""N1 to N16: what the network does to a call, one direction at a time, seeded.

Short runs are part of `make test`, the ten seconds of the matrix of `make test-long`.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from bench.impairment import BLACK_OUT, CLEAR, Impairment
from server.clock import NS_PER_S, now_ns
from tests.reliability.matrix import Matrix, Shown
from tests.reliability.scene import (
    Subject,
    scene,
    seconds_until_picture,
    seconds_until_young,
    watch,
)

pytestmark = pytest.mark.loopback

SECONDS = 10.0
FRAME_MS = 1000 / 30
NEWEST_WINS = (
    "pictures that waited behind a repair come at once, and the newest wins: the share counts "
    "those decoded"
)


@dataclass(frozen=True, slots=True)
class Seen:
    """One direction over a window."""

    shown: Shown
    decoded: float
    """Pictures decoded at the end of the bad direction, of those sent into it."""
    plis: int
    lost: int
    """Packets, as the receiver counts."""
    requested: int
    restarts: int
    before: Shown
    """What the subject saw on the clear path."""

    def told(self) -> str:
        return (
            f"{100 * self.decoded:.0f} % decoded, {self.shown.told()} (clear: p95 "
            f"{self.before.age_p95_ms:.0f} ms), {self.plis} PLI, {self.requested} NACK"
        )


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the matrix that is a path and a verdict on it."""

    name: str
    path: Impairment
    threshold: str
    holds: Callable[[Seen, float], bool]
    base: Impairment = CLEAR
    """Both directions, before and during."""
    note: str = ""


def no_effect(seen: Seen, seconds: float) -> bool:
    return seen.decoded >= 0.95 and seen.shown.longest_gap_ms <= 300 and seen.plis == 0


def jitter_holds(jitter_ms: float) -> Callable[[Seen, float], bool]:
    def holds(seen: Seen, seconds: float) -> bool:
        # The delay swings by twice the jitter; 40 ms are this machine's own.
        limit_ms = seen.before.age_p95_ms + 2 * jitter_ms + FRAME_MS + 40
        return seen.plis == 0 and seen.shown.age_p95_ms <= limit_ms

    return holds


CASES = (
    Case(
        "N1", Impairment(loss=0.01), "98 % decoded, frozen 0.5 s a minute at most",
        lambda seen, s: seen.decoded >= 0.97 and seen.shown.frozen_ms <= max(250, 500 * s / 60),
    ),
    Case(
        "N2", Impairment(loss=0.05, delay_ms=25), "90 % decoded, no gap over 500 ms",
        lambda seen, s: seen.decoded >= 0.9 and seen.shown.longest_gap_ms <= 500,
        base=Impairment(delay_ms=25), note=NEWEST_WINS,
    ),
    Case(
        "N2 in bursts", Impairment(loss=0.05, burst_packets=4, delay_ms=25),
        "90 % decoded, no gap over 500 ms",
        lambda seen, s: seen.decoded >= 0.9 and seen.shown.longest_gap_ms <= 500,
        base=Impairment(delay_ms=25), note=NEWEST_WINS,
    ),
    Case(
        "N3", Impairment(loss=0.10), "75 % decoded, no gap over 1 s, 1 PLI a second",
        lambda seen, s: seen.decoded >= 0.75 and seen.shown.longest_gap_ms <= 1000
        and seen.plis <= s + 1,
    ),
    Case(
        "N4", Impairment(loss=0.20), "a picture every 3 s at least",
        lambda seen, s: seen.shown.longest_gap_ms <= 3000,
    ),
    Case(
        "N6 30 ms", Impairment(delay_ms=30, jitter_ms=30), "no PLI, p95 + 2 x 30 ms + 1 frame",
        jitter_holds(30), note="the threshold holds 40 ms for this machine",
    ),
    Case(
        "N6 100 ms", Impairment(delay_ms=100, jitter_ms=100), "no PLI, p95 + 2 x 100 ms + 1 frame",
        jitter_holds(100), note="the threshold holds 40 ms for this machine",
    ),
    Case(
        "N7 depth 3", Impairment(reorder=0.05, reorder_depth=3), "no reset, no PLI",
        lambda seen, s: no_effect(seen, s) and seen.restarts == 0,
    ),
    Case(
        "N7 depth 120", Impairment(reorder=0.05, reorder_depth=120),
        "75 % decoded, no gap over 1 s, no reset",
        lambda seen, s: seen.decoded >= 0.75 and seen.shown.longest_gap_ms <= 1000
        and seen.restarts == 0,
    ),
    Case(
        "N8", Impairment(duplicate=0.10), "no visible effect, no request",
        lambda seen, s: no_effect(seen, s) and seen.requested <= 5,
    ),
)  # fmt: skip
SHORT = {"N2": 4.0}


def parameters() -> list[object]:
    rows: list[object] = []
    for case in CASES:
        for way in ("up", "down"):
            if case.name in SHORT:
                rows.append(pytest.param(case, way, SHORT[case.name], id=f"{case.name}-{way}"))
            rows.append(
                pytest.param(
                    case, way, SECONDS, id=f"{case.name}-{way}-10s", marks=pytest.mark.long
                )
            )
    return rows


async def impaired(
    subject: Subject, before: Shown, path: Impairment, way: str, seconds: float
) -> Seen:
    at_end = subject.at_server if way == "up" else subject.at_caller
    entered, begin = at_end(), now_ns()
    sent_back = subject.session.statistics().frames_out
    subject.relay.impair(**{way: path})
    seen = await watch(subject.peer, seconds)
    left = at_end()
    handed = [at_ns for at_ns in subject.peer.camera.handed_at_ns if at_ns >= begin]
    sent = len(handed) if way == "up" else subject.session.statistics().frames_out - sent_back
    return Seen(
        shown=seen,
        decoded=(left.frames_decoded - entered.frames_decoded) / max(1, sent),
        plis=left.plis_sent - entered.plis_sent,
        lost=left.packets_lost - entered.packets_lost,
        requested=left.packets_requested - entered.packets_requested,
        restarts=left.restarts - entered.restarts,
        before=before,
    )


@pytest.mark.parametrize(("case", "way", "seconds"), parameters())
async def test_a_bad_path_costs_what_it_must(
    case: Case, way: str, seconds: float, matrix: Matrix
) -> None:
    async with scene(seed=2) as stage:
        subject = await stage.call(case.base)
        await stage.settle()
        before = await watch(subject.peer, 1.0)
        begin_ns = now_ns()
        seen = await impaired(subject, before, case.path, way, seconds)
        witness = stage.witnessed(begin_ns, begin_ns + int(seconds * NS_PER_S))
        subject.peer.check_alive()
        matrix.record(
            f"{case.name} {way}",
            seed=stage.seed,
            figure=f"{seen.told()}; {witness}",
            threshold=case.threshold,
            holds=case.holds(seen, seconds),
            note=case.note,
        )


@pytest.mark.parametrize(
    ("way", "seconds"),
    [
        ("up", 0.5),
        pytest.param("up", 3.0, marks=pytest.mark.long),
        pytest.param("down", 0.5, marks=pytest.mark.long),
        pytest.param("down", 3.0, marks=pytest.mark.long),
    ],
)
async def test_after_a_black_out_the_picture_is_as_young_as_before(
    way: str, seconds: float, matrix: Matrix
) -> None:
    async with scene(seed=5) as stage:
        subject = await stage.call()
        await stage.settle()
        before = await watch(subject.peer, 1.0)
        begin_ns = now_ns()
        subject.relay.impair(**{way: BLACK_OUT})
        await asyncio.sleep(seconds)
        subject.relay.impair(**{way: CLEAR})
        over_ns = now_ns()
        resumed_s = await seconds_until_picture(subject.peer, over_ns)
        # 40 ms are what this machine's own load makes of a p95.
        limit_ms = before.age_p95_ms + 40
        young_s = await seconds_until_young(subject.peer, over_ns, limit_ms)
        await asyncio.sleep(0.5)
        matrix.record(
            f"N5 {way} {seconds:g} s",
            seed=stage.seed,
            figure=f"next picture after {resumed_s:.2f} s, as young as before (p95 "
            f"{before.age_p95_ms:.0f} ms) after {young_s:.2f} s; {stage.witnessed(begin_ns)}",
            threshold="next picture within 1 s, as young as before within 2 s",
            holds=resumed_s <= 1.0 and young_s <= 2.0,
        )
