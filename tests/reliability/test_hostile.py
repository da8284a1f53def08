"""H1 to H12: what strangers and callers of bad will send, seeded."""

import asyncio
import contextlib
import random
import re
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiortc.rtp import RtpPacket, pack_rtcp_packet

from server.clock import NS_PER_S, now_ns
from server.memory import resident_mib
from server.rtc.receiver import MAX_SOURCES
from tests.reliability.matrix import Matrix
from tests.reliability.scene import StageApart, Subject, scene, scene_apart
from tests.reliability.stranger import KINDS
from tests.serving import DEADLINE_S

pytestmark = pytest.mark.loopback

ROOT = Path(__file__).parents[2]
SEED = 77
SETTLE_S = 0.7
# Each kind of refusal is told once: empty, unknown, oversize, foreign, malformed STUN.
LOG_LINES = 5
FLOODS = {"H1": "empty", "H2": "oversize", "H3": "dtls", "H4": "stun", "H5 without keys": "media"}


def media_address(stage: StageApart) -> tuple[str, int]:
    """Where the server listens for the witness."""
    sdp = stage.witness.connection.remoteDescription.sdp
    found = re.search(r"a=candidate:\S+ 1 udp \d+ (\d+\.\d+\.\d+\.\d+) (\d+) typ host", sdp)
    assert found is not None, sdp
    return found[1], int(found[2])


async def flood(address: tuple[str, int], kind: str, per_s: int, seconds: float) -> int:
    """From a process of its own; how many datagrams left."""
    host, port = address
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-m", "tests.reliability.stranger", kind, host, str(port),
        str(per_s), str(seconds), str(SEED), cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0
    return int(output)


async def settle_beside_a_flood(stage: StageApart, per_s: int, seconds: float) -> None:
    """What the witness sees while as much is sent to a socket of nobody's: the stranger's own
    share of this machine is then in both figures."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind((media_address(stage)[0], 0))
        elsewhere = asyncio.create_task(
            flood(nobody.getsockname(), "media", per_s, seconds + SETTLE_S)
        )
        await stage.settle(seconds, SETTLE_S)
        await elsewhere


@pytest.mark.parametrize(
    ("per_s", "seconds"), [(2000, 0.4), pytest.param(10_000, 4.0, marks=pytest.mark.long)]
)
async def test_a_stranger_s_flood_costs_the_witness_little(
    per_s: int, seconds: float, matrix: Matrix
) -> None:
    assert set(FLOODS.values()) == set(KINDS)
    async with scene_apart(matrix, seed=SEED) as stage:
        await settle_beside_a_flood(stage, per_s, max(1.0, seconds))
        for case, kind in FLOODS.items():
            before, lines, spent_s = await stage.refused_datagrams(), len(stage.log), stage.cpu_s()
            begin_ns = now_ns()
            sent = await flood(media_address(stage), kind, per_s, seconds)
            end_ns = now_ns()
            cpu = 100e9 * (stage.cpu_s() - spent_s) / (end_ns - begin_ns)
            stage.witness.check_alive()
            refused = await stage.refused_datagrams() - before
            assert refused > 0
            lines = len(stage.log) - lines
            assert lines <= LOG_LINES, stage.log[-lines:]
            told = await stage.witnessed(begin_ns, end_ns)
            matrix.record(
                f"{case} {per_s}/s",
                seed=SEED,
                figure=f"{sent} datagrams in {(end_ns - begin_ns) / NS_PER_S:.1f} s, {refused} "
                f"refused, {lines} log lines, server {cpu:.0f} % of a core; {told}",
                threshold=f"p95 +20 %, no gap over 500 ms, at most {LOG_LINES} log lines",
                note="the first p95 is beside such a flood to a socket of nobody's; what is not "
                "counted is STUN that is well made and that nobody asked for",
                holds=sent >= 0.9 * per_s * seconds,
            )


# With keys: a caller who misuses its own session.


class Misuser:
    """A caller whose pictures return, in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def send(self, kind: str, count: int) -> int:
        """Make it send so many packets with its own keys; how many left."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind} {count} {SEED}\n".encode())
        return int(await self._line(DEADLINE_S + count / 1000))

    async def live(self) -> None:
        """Returns when pictures return, the first time and after each `send`."""
        assert await self._line(DEADLINE_S) == b"live\n"

    async def _line(self, seconds: float) -> bytes:
        assert self._process.stdout is not None
        async with asyncio.timeout(seconds):
            return await self._process.stdout.readline()


@contextlib.asynccontextmanager
async def misuser(url: str) -> AsyncIterator[Misuser]:
    """Of a server; in its call when the block begins, gone when it ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.reliability.misuser", url,
        cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    caller = Misuser(process)
    try:
        await caller.live()
        yield caller
    finally:
        process.kill()
        await process.communicate()


@pytest.mark.long
@pytest.mark.parametrize("count", [400, 5000])
async def test_a_caller_that_sends_nonsense_harms_itself_only(count: int, matrix: Matrix) -> None:
    async with scene_apart(matrix, seed=SEED) as stage, misuser(stage.url) as caller:
        await stage.settle()
        for case, kind in (("H5", "rtp"), ("H6", "rtcp")):
            spent_s, begin_ns = stage.cpu_s(), now_ns()
            left = await caller.send(kind, count)
            seconds = (now_ns() - begin_ns) / NS_PER_S
            cpu = 100 * (stage.cpu_s() - spent_s) / seconds
            told = await stage.witnessed(begin_ns)
            await caller.live()
            matrix.record(
                f"{case} {count}",
                seed=SEED,
                figure=f"{left} packets inside SRTP in {seconds:.1f} s, server {cpu:.0f} % of a "
                f"core; the call is live and its pictures come; {told}",
                threshold="only those packets are dropped",
                # Not all that is no packet can be encrypted.
                holds=left >= 0.5 * count,
            )


async def test_floods_of_requests_are_answered_within_bounds(matrix: Matrix) -> None:
    async with scene(matrix, seed=SEED) as stage:
        subject = await stage.call()
        await stage.settle()
        outgoing = subject.session._peer.getSenders()[0]
        transport = subject.peer.connection.getSenders()[0].transport
        ours = struct.pack("!LL", 1, outgoing._ssrc)
        nack = pack_rtcp_packet(205, 1, ours + b"".join(
            struct.pack("!HH", number * 17 & 0xFFFF, 0xFFFF) for number in range(300)
        ))  # fmt: skip
        pli = pack_rtcp_packet(206, 1, ours)
        before, begin_ns = subject.session.statistics().peer.outgoing[0], now_ns()
        for _ in range(150):
            await transport._send_rtp(nack)
            for _ in range(5):
                await transport._send_rtp(pli)
            await asyncio.sleep(0.01)
        seconds = (now_ns() - begin_ns) / NS_PER_S
        after = subject.session.statistics().peer.outgoing[0]
        key_frames = after.keyframes_sent - before.keyframes_sent
        resent = after.resent_bytes - before.resent_bytes
        media = after.bytes_sent - before.bytes_sent
        matrix.record(
            "H7",
            seed=SEED,
            figure=f"{150 * 5100} packets and 750 key frames asked for in {seconds:.1f} s: "
            f"{resent // 1000} kB again beside {media // 1000} kB of media, {key_frames} key "
            f"frames; {await stage.witnessed(begin_ns)}",
            threshold="at most the media's bytes (and one burst of 128 kB) again, 2 key frames/s",
            holds=resent <= media + 150_000 and key_frames <= 2 * seconds + 2,
        )


@pytest.mark.long
async def test_hundreds_of_sources_in_one_call_are_bounded(matrix: Matrix) -> None:
    async with scene(matrix, seed=SEED) as stage:
        subject = await stage.call()
        await stage.settle()
        begin_ns = now_ns()
        transport = subject.peer.connection.getSenders()[0].transport
        receiver = subject.receiver()
        payload_type = next(iter(receiver._codecs))
        for ssrc in range(1, 301):
            packet = RtpPacket(payload_type=payload_type, ssrc=ssrc, payload=b"\x10\x00hello")
            await transport._send_rtp(packet.serialize())
        await asyncio.sleep(0.3)
        known = len(receiver._sources)
        told = await stage.witnessed(begin_ns)
        closing_ns = now_ns()
        await subject.session.close("test")
        closed_s = (now_ns() - closing_ns) / NS_PER_S
        matrix.record(
            "H8",
            seed=SEED,
            figure=f"300 sources, {known} remembered, closed in {closed_s:.2f} s; {told}",
            threshold=f"at most {MAX_SOURCES} remembered, closed within 2 s",
            holds=known <= MAX_SOURCES and closed_s <= 2,
        )


def damaged(chance: random.Random) -> Callable[[bytes], bytes]:
    """Flips bits, cuts, and repeats within the payload of media packets."""

    def damage(payload: bytes) -> bytes:
        data = bytearray(payload)
        match chance.randrange(3):
            case 0:
                for _ in range(chance.randint(1, 8)):
                    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            case 1:
                del data[chance.randrange(len(data)) :]
            case _:
                at = chance.randrange(len(data))
                data[at:at] = chance.randbytes(chance.randint(1, 30))
        return bytes(data[:1200])

    return damage


def damage_media(subject: Subject, share: float, chance: random.Random) -> None:
    """From now on this share of the caller's media packets is damaged before encryption."""
    [sender] = [one for one in subject.peer.connection.getSenders() if one.kind == "video"]
    transport, damage = sender.transport, damaged(chance)
    send = transport._send_rtp

    async def harming(data: bytes) -> None:
        if not 192 <= data[1] <= 223 and chance.random() < share:
            packet = RtpPacket.parse(data)
            if packet.payload:
                packet.payload = damage(packet.payload)
                data = packet.serialize()
        await send(data)

    transport._send_rtp = harming  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("codec", "seconds"),
    [
        ("VP8", 3.0),
        ("H264", 15.0),
        ("VP8", 15.0),
    ],
)
@pytest.mark.long
async def test_damaged_media_costs_its_own_call(codec: str, seconds: float, matrix: Matrix) -> None:
    async with scene(matrix, seed=SEED) as stage:
        subject = await stage.call(codec=codec)
        await stage.settle()
        before, begin_ns = subject.at_server(), now_ns()
        rss_mib = resident_mib()
        damage_media(subject, 0.2, random.Random(SEED))
        await asyncio.sleep(seconds)
        after = subject.at_server()
        grown_mib = resident_mib() - rss_mib
        plis = after.plis_sent - before.plis_sent
        pictures = after.frames_decoded - before.frames_decoded
        errors = after.decode_errors - before.decode_errors
        told = await stage.witnessed(begin_ns)
        subject.peer.check_alive()
        matrix.record(
            f"H12 {codec} {seconds:g} s",
            seed=SEED,
            figure=f"a fifth of the packets damaged: {pictures} pictures, {errors} decode errors, "
            f"{plis} PLI, {grown_mib:+.0f} MiB; {told}",
            threshold="the call lives, 2 PLI/s, less than 64 MiB more",
            holds=plis <= 2 * seconds + 2 and grown_mib < 64,
        )
        matrix.record(
            f"F5 {codec} {seconds:g} s",
            seed=SEED,
            figure=f"{plis} PLI in {seconds:g} s of decoder errors",
            threshold="2 PLI/s at most",
            holds=plis <= 2 * seconds + 2,
        )
