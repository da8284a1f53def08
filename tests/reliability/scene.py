"""A real server, a witness that calls it over a clear path, and a subject over a bad one.

Everything runs in one process, on one loop: the figures hold the clients' own share too; in
`scene_apart` the server is a process of its own. Each picture carries its number and instant as a
bar code, so ages, losses and freezes are read from what came back.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import psutil
from aiohttp import ClientSession, TCPConnector

from bench.camera import Camera
from bench.clip import Clip, load_clip
from bench.impairment import CLEAR, Impairment
from bench.peer import Peer
from bench.relay import Relay
from bench.statistics import freezes, percentile
from server.clock import NS_PER_MS, NS_PER_S, now_ns
from server.inference import Detector
from server.rtc.receiver import VideoReceiver
from server.rtc.statistics import ReceiverStatistics
from server.session import Session
from server.settings import DetectorSettings, Settings
from server.workers import load_for_cameras
from tests.fakes import FakeDetector
from tests.processes import server_process
from tests.reliability.machine import QUIET_P99_MS, Machine, observed_machine
from tests.reliability.matrix import Matrix, Shown
from tests.serving import DEADLINE_S, Serving, changed, serving

SIZE_WH = (320, 240)
FPS = 30.0
PICTURES_AT_MOST = 30 * 900
# Pictures that leave at the end of a window get so long to come back.
TAIL_S = 0.5
WITNESS_GAP_MS = 500.0
# What the matrix allows the witness, and a frame interval's worth of chance on top.
WITNESS_P95 = 1.2
WITNESS_CHANCE_MS = 8.0
# A picture passes so many threads and sockets; on a machine that is late, each may be.
HOPS = 10
WITNESS_SHARE = 0.85

# Tests are not held up by the gates that a busy machine would close.
OPEN_GATES = {
    "admit_loop_lag_ms": 0.0,
    "admit_wait_ms": 0.0,
    "opens_per_s": 0.0,
    "calls_per_s": 0.0,
    "requests_per_s": 0.0,
    "max_calls_per_address": 0,
}


@dataclass
class Subject:
    """A caller over a bad path, and the server's side of its call."""

    peer: Peer
    relay: Relay
    session: Session

    def at_server(self) -> ReceiverStatistics:
        """What the server receives of it."""
        return self.session.statistics().peer.incoming[0]

    def receiver(self) -> VideoReceiver:
        """The server's, of its camera."""
        [receiver] = self.session._peer.getReceivers()
        assert isinstance(receiver, VideoReceiver)
        return receiver

    def at_caller(self) -> ReceiverStatistics:
        """What comes back to it."""
        return self.peer.connection.statistics().incoming[0]


class ForgingRelay(Relay):
    """Somebody in the middle who has another certificate."""

    def offer(self, sdp: str) -> str:
        return re.sub(r"(a=fingerprint:\S+ )\S\S:\S\S", r"\1AB:CD", super().offer(sdp))


class HidingRelay(Relay):
    """A browser that shows no address of its own, and a server that cannot resolve the name."""

    def offer(self, sdp: str) -> str:
        hidden = r"\1 5f1d3a0c-hidden.local"
        return re.sub(r"(a=candidate:\S+ 1 udp \d+) \S+", hidden, super().offer(sdp))


@dataclass(kw_only=True)
class Watched:
    """A witness, and what it saw before."""

    witness: Peer
    machine: Machine
    matrix: Matrix
    seed: int
    baseline: Shown | None = None
    """What the witness saw before."""

    async def settle(
        self, seconds: float = 1.0, warmup_s: float = 0.7, *, beside: Peer | None = None
    ) -> Shown:
        """Note what the witness sees from now on, with everything in place that shall be; gives
        what `beside`, or the witness, saw of it."""
        # The first instants are start-up: key frames, rates, caches.
        await asyncio.sleep(warmup_s)
        begin_ns = now_ns()
        self.baseline = await watch(self.witness, seconds)
        if beside is None:
            return self.baseline
        return shown(beside, begin_ns, begin_ns + int(seconds * NS_PER_S))

    async def witnessed(self, begin_ns: int, end_ns: int | None = None) -> str:
        """Whether the witness felt it goes into the next line; gives the sentence for it. A window
        that is still open lasts a second at least."""
        if end_ns is None:
            await asyncio.sleep(max(0.0, 1.0 - (now_ns() - begin_ns) / NS_PER_S))
            end_ns = now_ns()
        await asyncio.sleep(TAIL_S - min(TAIL_S, (now_ns() - end_ns) / NS_PER_S))
        before, during = self.baseline, shown(self.witness, begin_ns, end_ns)
        assert before is not None, "settle() first"
        p99_ms, longest_ms = self.machine.lateness_ms(begin_ns, end_ns)
        told = f"witness p95 {before.age_p95_ms:.0f} -> {during.age_p95_ms:.0f} ms"
        limit_ms = WITNESS_P95 * before.age_p95_ms + WITNESS_CHANCE_MS
        if p99_ms > QUIET_P99_MS:
            told += f" (machine late by {longest_ms:.0f} ms)"
            limit_ms += HOPS * max(p99_ms, longest_ms)
        gap_ms = WITNESS_GAP_MS + HOPS * longest_ms
        complain = self.matrix.complain
        complain(during.longest_gap_ms <= gap_ms, f"the witness froze: {during.told()}")
        few = WITNESS_SHARE * before.share
        complain(during.share >= few, f"the witness lost some: {during.told()}")
        if self.matrix.measures:
            # Between other tests a percentile says more about the machine than about the server.
            complain(during.age_p95_ms <= limit_ms, f"the witness's p95 is over {limit_ms:.0f} ms")
        return told


@dataclass(kw_only=True)
class Stage(Watched):
    """The parts of a scene in one process."""

    server: Serving
    clip: Clip
    stack: AsyncExitStack
    executor: ThreadPoolExecutor

    async def call(
        self,
        path: Impairment = CLEAR,
        *,
        codec: str = "VP8",
        clip: Clip | None = None,
        drops_up: Callable[[bytes], bool] | None = None,
        kind: type[Relay] = Relay,
        stream: str = "",
    ) -> Subject:
        """One more caller whose packets go through a relay; closed with the scene."""
        relay = self.stack.enter_context(kind(path, path, self.seed))
        relay.up.drops = drops_up
        camera = Camera(clip or self.clip.copy(), FPS, 0.4, PICTURES_AT_MOST)
        peer = Peer("subject", camera, codec, self.executor, relay=relay)
        await calling(self.stack, self.server.http, self.server.url, peer, stream)
        assert peer.answer is not None
        return Subject(peer, relay, self.server.registry.get(peer.answer.session))


@dataclass(kw_only=True)
class StageApart(Watched):
    """The parts of a scene whose server is a process of its own, as it runs."""

    process: psutil.Process
    url: str
    http: ClientSession
    stack: AsyncExitStack
    executor: ThreadPoolExecutor
    log: list[str]
    """Its lines since the start."""

    async def call(self, stream: str, clip: Clip) -> Peer:
        """One more caller, the source of a stream; closed with the scene."""
        camera = Camera(clip, FPS, 0.4, PICTURES_AT_MOST)
        peer = Peer("subject", camera, "VP8", self.executor)
        return await calling(self.stack, self.http, self.url, peer, stream)

    def resident_mib(self) -> float:
        """Memory of the server."""
        resident: int = self.process.memory_info().rss
        return resident / 2**20

    def cpu_s(self) -> float:
        """Processor time that the server has used."""
        return sum(self.process.cpu_times()[:2])

    async def refused_datagrams(self) -> int:
        """Of the witness's call."""
        async with self.http.get(f"{self.url}/api/stats") as reply:
            [session] = (await reply.json())["sessions"]
        return sum(session["peer"]["rejected_datagrams"].values())


async def calling(
    stack: AsyncExitStack, http: ClientSession, url: str, peer: Peer, stream: str = ""
) -> Peer:
    stack.push_async_callback(peer.close, http)
    await peer.connect(http, url, {"stream": stream} if stream else {})
    await peer.wait_first_picture(DEADLINE_S)
    return peer


@asynccontextmanager
async def scene(
    matrix: Matrix,
    *,
    detector: Detector | None = None,
    settings: Settings | None = None,
    seed: int = 1,
    codec: str = "VP8",
    load: Callable[[DetectorSettings], Detector] = load_for_cameras,
) -> AsyncIterator[Stage]:
    """A server with a witness. `matrix` takes the verdicts."""
    settings = settings or changed(limits=OPEN_GATES)
    clip = load_clip(None, SIZE_WH, FPS, 8 << 20)
    async with (
        observed_machine() as machine,
        serving(detector or FakeDetector(), settings, load) as server,
        AsyncExitStack() as stack,
    ):
        matrix.observe(machine)
        executor = ThreadPoolExecutor(2, "client-encode")
        stack.callback(executor.shutdown, wait=False)
        witness = Peer("witness", Camera(clip, FPS, 0.0, PICTURES_AT_MOST), codec, executor)
        yield Stage(
            witness=await calling(stack, server.http, server.url, witness),
            machine=machine,
            matrix=matrix,
            seed=seed,
            server=server,
            clip=clip,
            stack=stack,
            executor=executor,
        )


@asynccontextmanager
async def scene_apart(
    matrix: Matrix, *arguments: str, seed: int = 1, headers: Mapping[str, str] | None = None
) -> AsyncIterator[StageApart]:
    """A server in a process of its own, which the caller's share of work does not slow down;
    `headers` go with each request."""
    clip = load_clip(None, SIZE_WH, FPS, 8 << 20)
    gates = [f"--{name.replace('_', '-')}={value}" for name, value in OPEN_GATES.items()]
    async with (
        observed_machine() as machine,
        server_process("--model=none", "--demo=off", *gates, *arguments) as (process, url),
        ClientSession(headers=headers, connector=TCPConnector(limit=0)) as http,
        AsyncExitStack() as stack,
    ):
        matrix.observe(machine)
        log: list[str] = []
        assert process.stderr is not None
        reading = asyncio.create_task(gather_lines(process.stderr, log))
        stack.callback(reading.cancel)
        executor = ThreadPoolExecutor(1, "client-encode")
        stack.callback(executor.shutdown, wait=False)
        witness = Peer("witness", Camera(clip, FPS, 0.0, PICTURES_AT_MOST), "VP8", executor)
        yield StageApart(
            witness=await calling(stack, http, url, witness),
            machine=machine,
            matrix=matrix,
            seed=seed,
            process=psutil.Process(process.pid),
            url=url,
            http=http,
            stack=stack,
            executor=executor,
            log=log,
        )


async def gather_lines(stream: asyncio.StreamReader, lines: list[str]) -> None:
    """Until it ends."""
    while line := await stream.readline():
        lines.append(line.decode(errors="replace"))


def shown(peer: Peer, begin_ns: int, end_ns: int) -> Shown:
    """What came back of the pictures that left in this window."""
    sent = [at_ns for at_ns in list(peer.camera.handed_at_ns) if begin_ns <= at_ns < end_ns]
    back = [one for one in list(peer.eye.returned) if begin_ns <= one.handed_at_ns < end_ns]
    ages_ms = sorted((one.read_at_ns - one.handed_at_ns) / NS_PER_MS for one in back)
    arrived_ms = [one.read_at_ns / NS_PER_MS for one in list(peer.eye.returned)]
    gaps = freezes(arrived_ms, begin_ns / NS_PER_MS, end_ns / NS_PER_MS)
    return Shown(
        sent=len(sent),
        returned=len(back),
        age_p50_ms=percentile(ages_ms, 50) if ages_ms else float("inf"),
        age_p95_ms=percentile(ages_ms, 95) if ages_ms else float("inf"),
        longest_gap_ms=gaps.longest_gap_ms,
        frozen_ms=gaps.total_ms,
    )


async def watch(peer: Peer, seconds: float) -> Shown:
    """Let everything run for so long, then say what `peer` saw of it."""
    begin_ns = now_ns()
    # The measured time itself, not a wait for something to happen.
    await asyncio.sleep(seconds)
    end_ns = now_ns()
    await asyncio.sleep(TAIL_S)
    return shown(peer, begin_ns, end_ns)


async def seconds_until_young(peer: Peer, since_ns: int, limit_ms: float) -> float:
    """From `since_ns` until ten pictures in a row are at most so old."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            young = 0
            for one in [one for one in list(peer.eye.returned) if one.read_at_ns >= since_ns]:
                age_ms = (one.read_at_ns - one.handed_at_ns) / NS_PER_MS
                young = young + 1 if age_ms <= limit_ms else 0
                if young == 10:
                    return (one.read_at_ns - since_ns) / NS_PER_S
            await asyncio.sleep(0.05)


async def seconds_until_picture(peer: Peer, since_ns: int) -> float:
    """From `since_ns` until the first picture that left after it is here."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found = [one for one in list(peer.eye.returned) if one.handed_at_ns >= since_ns]
            if found:
                return (found[0].read_at_ns - since_ns) / NS_PER_S
            await asyncio.sleep(0.02)
