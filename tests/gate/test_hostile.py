"""Offers that want to break something: mutated, huge, with lines of a log inside.

One server for all of them; at the end nothing is left of any and it serves on.
"""

import asyncio
import random
import zlib

import aiohttp
import pytest

from tests.gate.guarded import Guarded, guarded
from tests.serving import Caller, changed, until

pytestmark = pytest.mark.loopback

SEEDS = 300
JUNK = (
    "", "\x00", "\r\n", "99999999999999999999", "-1", "a=", "m=video 9 X 1", "\u2028", "é" * 40,
    "%s%n", "::1", "0.0.0.0", "VP8/90000", "a=candidate:1 1 udp 1 127.0.0.1 1 typ host",
)  # fmt: skip


def mutated(sdp: str, chance: random.Random) -> str:
    """A few lines dropped, doubled, swapped, cut, or with something foreign in them."""
    lines = sdp.split("\r\n")
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(lines))
        line = lines[at]
        match chance.randrange(6):
            case 0:
                lines[at] = ""
            case 1:
                lines.insert(at, line)
            case 2:
                other = chance.randrange(len(lines))
                lines[at], lines[other] = lines[other], line
            case 3:
                lines[at] = line[: chance.randint(0, len(line))]
            case 4:
                place = chance.randint(0, len(line))
                lines[at] = line[:place] + chance.choice(JUNK) + line[place:]
            case _:
                lines[at] = chance.choice(JUNK)
    return "\r\n".join(lines)


async def good_offer() -> str:
    caller = Caller()
    try:
        sdp: str = (await caller.offer())["sdp"]
        return sdp
    finally:
        await caller.close()


async def answer_to(server: Guarded, sdp: str) -> tuple[int, str]:
    """Status and detail; what was opened is closed again."""
    body = {"sdp": sdp, "type": "offer"}
    status, answer = await server.ask("POST", "/offer", json=body)
    if status == 200:
        assert (await server.ask("DELETE", f"/sessions/{answer['session']}"))[0] == 200
    return status, str(answer.get("detail", ""))


async def test_mutated_offers_get_an_answer_or_a_reason_and_leave_nothing() -> None:
    sdp = await good_offer()
    settings = changed(limits={"admit_loop_lag_ms": 0.0, "calls_per_s": 0.0})
    async with guarded(settings) as server:
        statuses = set()
        for seed in range(SEEDS):
            status, detail = await answer_to(server, mutated(sdp, random.Random(seed)))
            assert status in (200, 400, 422), (seed, status, detail)
            assert detail.isprintable(), (seed, detail)
            assert len(detail) < 300, (seed, detail)
            statuses.add(status)
        assert {200, 422} <= statuses, "the mutations are neither all harmless nor all fatal"
        await until(lambda: not server.registry.statistics().sessions)
        assert (await answer_to(server, sdp))[0] == 200


async def test_huge_offers_are_refused_before_anything_is_built() -> None:
    sdp = await good_offer()
    candidates = "".join(f"a=candidate:{n} 1 udp 1 192.0.2.1 {n} typ host\r\n" for n in range(1500))
    sections = "m=video 9 UDP/TLS/RTP/SAVPF 96\r\n" * 1000
    async with guarded(changed()) as server:
        for text, told in (
            (sdp + candidates, "candidate"),
            (sdp + sections, "media sections"),
            (sdp + "a=x\r\n" * 5000, "lines"),
            (sdp + "a=" + "x" * 10_000 + "\r\n", "characters"),
        ):
            status, detail = await answer_to(server, text)
            assert status == 422
            assert told in detail
        assert server.registry.statistics().refused_offer == 0, "no connection was made for them"
        for size in (128 * 1024 + 1, 1_000_000):
            data = b" " * size
            headers = {"Content-Type": "application/json"}
            status, problem = await server.ask("POST", "/offer", data=data, headers=headers)
            assert status == 413
            assert "max_body_kib" in problem["detail"]
        assert server.registry.statistics().sessions == ()


async def test_a_compressed_body_is_measured_as_it_unfolds() -> None:
    async with guarded(changed()) as server:
        headers = {"Content-Type": "application/json", "Content-Encoding": "deflate"}
        data = zlib.compress(b"[" * 8_000_000)
        status, _ = await server.ask("POST", "/offer", data=data, headers=headers)
        assert status == 413


async def test_a_crowd_of_offers_at_once_is_answered_or_told_when_to_return() -> None:
    sdp = await good_offer()
    settings = changed(session={"max_sessions": 2}, limits={"admit_loop_lag_ms": 0.0})
    async with guarded(settings) as server:
        body = {"sdp": sdp, "type": "offer"}

        async def one() -> tuple[int, str | None]:
            async with server.http.post(f"{server.url}/offer", json=body) as reply:
                return reply.status, reply.headers.get("Retry-After")

        answers = await asyncio.gather(*(one() for _ in range(40)))
        assert sorted({status for status, _ in answers}) == [200, 503]
        assert sum(status == 200 for status, _ in answers) == 2
        assert all(after for status, after in answers if status == 503)
        async with aiohttp.ClientSession() as http, http.get(f"{server.url}/healthz") as reply:
            assert reply.status == 200
