"""Does the server stay as it was: calls that stay and calls that join and leave, for hours.

Some calls stay for the whole run and are measured like in `glass`. Beside them a call joins every
few seconds and the one before it leaves. Before each join a sample is taken: memory, threads,
open files and tasks of the server, and the delay of the staying calls since the sample before.
Memory is the least of several readings since then, which leaves out the pictures on their way.
What the samples say is a slope with its confidence; what is left when everybody has gone is
compared with what there was after the first few calls had come and gone.
"""

import argparse
import asyncio
import concurrent.futures
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import aiohttp
import psutil

from bench.camera import Camera
from bench.clip import MAX_BYTES, Clip, load_clip
from bench.command import OK, OVER_BUDGET, Progress, publish, record_begun, run_async, show_progress
from bench.errors import PeerError, ServerError, UsageError, check_ranges
from bench.glass import FIRST_PICTURE_TIMEOUT_S, HTTP_TIMEOUT_S, PHASE_STEP, GlassSettings
from bench.options import add_mode, add_output, add_pictures, add_server, calls
from bench.peer import Peer
from bench.record import plain
from bench.server_process import RunningServer, started
from bench.soak_report import (
    SLOPES,
    Holdings,
    Sample,
    SoakReport,
    describe,
    describe_sample,
    faults,
    slope_of,
    summary_of,
)
from bench.statistics import distribution
from server.clock import NS_PER_S, now_ns

# Before the first look at what calls leave behind, as many as the run will have at once come
# and go this often: pools fill and caches warm up.
ROUNDS_BEFORE_START: Final = 2
ROUND_S: Final = 1.0
# The server ends a call at once; its threads and sockets may take a moment.
QUIET_TIMEOUT_S: Final = 15.0
QUIET_POLL_S: Final = 0.25
# A look a second apart that finds the same numbers is believed.
QUIET_LOOKS: Final = 4
RSS_EVERY_S: Final = 0.5
MIB: Final = 2**20

Look = Callable[[], Awaitable[Holdings]]


@dataclass(frozen=True, slots=True)
class SoakSettings:
    """One run. Checked when made; raises `UsageError`."""

    glass: GlassSettings = field(default_factory=lambda: GlassSettings(warmup_s=0))
    """Of the staying calls, `glass.clients` of them; `glass.seconds` is not used."""
    minutes: float = 30.0
    settle_minutes: float = 5.0
    """Left out of the slopes: caches fill, the allocator finds its size."""
    every_s: float = 5.0
    rss_limit_mib_per_hour: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(
            ("minutes", self.minutes, 0.05, 60 * 24 * 7),
            ("every", self.every_s, 0.5, 600),
            ("settle", self.settle_minutes, 0, self.minutes * 0.9),
            ("rss-limit", self.rss_limit_mib_per_hour, 0, 1e6),
        )
        if self.glass.url is not None:
            raise UsageError("--url: a soak reads the process of the server, so it starts it")

    def to_record(self) -> dict[str, Any]:
        told = self.glass.to_record()
        del told["seconds"], told["warmup_s"], told["runs"]
        return {
            **told,
            "minutes": self.minutes,
            "settle_minutes": self.settle_minutes,
            "every_s": self.every_s,
            "rss_limit_mib_per_hour": self.rss_limit_mib_per_hour,
        }


async def soak(settings: SoakSettings, progress: Progress) -> SoakReport:
    """Start the server, run, and compare. Raises `BenchError` when the run cannot go on."""
    glass = settings.glass
    copies = glass.clients + 2
    clip = load_clip(glass.clip, glass.size_wh, glass.fps, MAX_BYTES // copies)
    clips = [clip, *(clip.copy() for _ in range(copies - 1))]
    progress("starting the server")
    async with started(glass.module_args()) as server:
        return await _soak(settings, server, clips, progress)


async def _soak(
    settings: SoakSettings, server: RunningServer, clips: Sequence[Clip], progress: Progress
) -> SoakReport:
    async with AsyncExitStack() as stack:
        executor = concurrent.futures.ThreadPoolExecutor(len(clips), "client-encode")
        stack.callback(executor.shutdown, wait=False)
        timeout = aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S)
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        callers = _Callers(settings, server.url, http, executor, clips, progress)
        look = partial(_look, http, server)
        before = await look()
        for number in range(ROUNDS_BEFORE_START):
            progress(f"{len(clips)} calls come and go, {number + 1} of {ROUNDS_BEFORE_START}")
            async with AsyncExitStack() as calls:
                for index in range(len(clips)):
                    peer = await callers.stay(index)
                    calls.push_async_callback(peer.close, http)
                await asyncio.sleep(ROUND_S)
        start = await _quiet(look)

        stayers = []
        for index in range(settings.glass.clients):
            stayers.append(await callers.stay(index))
            stack.push_async_callback(stayers[-1].close, http)
        samples = await _sample(settings, server, callers, stayers, look, http, progress)
        for peer in stayers:
            await peer.close(http)
        end = await _quiet(look)
        latencies = [
            (seen.read_at_ns - seen.handed_at_ns) / 1e6
            for peer in stayers
            for seen in peer.eye.returned
        ]
        settled = [sample for sample in samples if sample.at_s >= settings.settle_minutes * 60]
        slopes = {name: slope_of(settled, name) for name in SLOPES}
        return SoakReport(
            samples=samples,
            slopes_per_hour=slopes,
            before=before,
            start=start,
            end=end,
            latency_ms=distribution(latencies),
            joined=callers.joined,
            refused=callers.refused,
            faults=faults(slopes["rss_mib"], settings.rss_limit_mib_per_hour, start, end),
        )


class _Callers:
    """Makes peers, one after another, so that no two guests share their pictures' memory."""

    def __init__(
        self,
        settings: SoakSettings,
        url: str,
        http: aiohttp.ClientSession,
        executor: concurrent.futures.Executor,
        clips: Sequence[Clip],
        progress: Progress,
    ) -> None:
        self._progress = progress
        self._settings = settings
        self._url = url
        self._http = http
        self._executor = executor
        self._clips = clips
        self.joined = 0
        self.refused = 0

    async def stay(self, index: int) -> Peer:
        pictures = round((self._settings.minutes * 60 + 120) * self._settings.glass.fps)
        return await self._call(f"client {index + 1}", index, pictures)

    async def join(self) -> Peer | None:
        """A guest, with the pictures of the one before the last, who has left.

        None when it was not taken: a server may refuse, and hours of samples must not end there.
        """
        self.joined += 1
        place = len(self._clips) - 2 + self.joined % 2
        pictures = round((self._settings.every_s * 3 + 60) * self._settings.glass.fps)
        try:
            return await self._call(f"guest {self.joined}", place, pictures)
        except PeerError as error:
            self.refused += 1
            self._progress(str(error))
            return None

    async def _call(self, name: str, place: int, pictures: int) -> Peer:
        glass = self._settings.glass
        camera = Camera(self._clips[place], glass.fps, place * PHASE_STEP % 1, pictures)
        peer = Peer(name, camera, glass.codec, self._executor, glass.listens)
        try:
            await peer.connect(self._http, self._url, {"mode": glass.mode})
            await peer.wait_first_picture(FIRST_PICTURE_TIMEOUT_S)
        except BaseException:
            # Cancelled as well: nobody else knows of this peer yet.
            await peer.close(self._http)
            raise
        return peer


async def _sample(
    settings: SoakSettings,
    server: RunningServer,
    callers: _Callers,
    stayers: Sequence[Peer],
    look: Look,
    http: aiohttp.ClientSession,
    progress: Progress,
) -> list[Sample]:
    begin_at_ns = now_ns()
    end_at_ns = begin_at_ns + round(settings.minutes * 60 * NS_PER_S)
    read = [len(peer.eye.returned) for peer in stayers]
    samples: list[Sample] = []
    guest: Peer | None = None
    turn = 0
    try:
        while now_ns() < end_at_ns:
            turn += 1
            due_at_ns = begin_at_ns + round(turn * settings.every_s * NS_PER_S)
            rss_mib = await _least_rss_mib(server, due_at_ns)
            for peer in stayers:
                peer.check_alive()
            held = await look()
            latencies = []
            for index, peer in enumerate(stayers):
                fresh = peer.eye.returned[read[index] :]
                read[index] += len(fresh)
                latencies += [(seen.read_at_ns - seen.handed_at_ns) / 1e6 for seen in fresh]
            if not latencies:
                raise PeerError(
                    f"no picture of the staying calls came back in {settings.every_s} s"
                )
            found = distribution(latencies)
            sample = Sample(
                at_s=(now_ns() - begin_at_ns) / NS_PER_S,
                held=held,
                rss_least_mib=min(rss_mib, held.rss_mib),
                joined=callers.joined,
                pictures=len(latencies),
                p50_ms=None if found is None else found.p50,
                p95_ms=None if found is None else found.p95,
            )
            samples.append(sample)
            left_min = max(0.0, (end_at_ns - now_ns()) / NS_PER_S / 60)
            progress(f"{describe_sample(sample)}, {left_min:.1f} min to go")
            leaving, guest = guest, None
            guest = await callers.join()
            if leaving is not None:
                await leaving.close(http)
    finally:
        if guest is not None:
            await guest.close(http)
    return samples


async def _least_rss_mib(server: RunningServer, until_ns: int) -> float:
    """The least memory the server has until then; infinite when that is now."""
    least_mib = math.inf
    while (left_s := (until_ns - now_ns()) / NS_PER_S) > 0:
        try:
            least_mib = min(least_mib, _process(server).memory_info().rss / MIB)
        except psutil.Error as error:
            raise ServerError(f"the server does not tell how it is: {error!r}") from error
        await asyncio.sleep(min(RSS_EVERY_S, left_s))
    return least_mib


async def _quiet(look: Look) -> Holdings:
    """What is held once nothing changes any more and nobody calls."""
    deadline_at_ns = now_ns() + round(QUIET_TIMEOUT_S * NS_PER_S)
    held = await look()
    same = 0
    while now_ns() < deadline_at_ns and (same < QUIET_LOOKS or held.sessions):
        await asyncio.sleep(QUIET_POLL_S)
        now = await look()
        counts = replace(now, rss_mib=held.rss_mib)
        same = same + 1 if counts == held else 0
        held = now
    return held


def _process(server: RunningServer) -> psutil.Process:
    assert server.pid is not None, "a soak starts its server"
    return psutil.Process(server.pid)


async def _look(http: aiohttp.ClientSession, server: RunningServer) -> Holdings:
    try:
        async with http.get(f"{server.url}/api/stats") as response:
            stats = await response.json(content_type=None)
        process = _process(server)
        with process.oneshot():
            tasks = stats["process"].get("tasks")
            return Holdings(
                rss_mib=process.memory_info().rss / MIB,
                threads=process.num_threads(),
                open_files=process.num_fds(),
                tasks=None if tasks is None else int(tasks),
                sessions=len(stats["sessions"]),
            )
    except (aiohttp.ClientError, psutil.Error, ValueError, KeyError, TimeoutError) as error:
        raise ServerError(f"the server does not tell how it is: {error!r}") from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Calls stay while others join and leave; tells how memory, threads, open files, tasks and "
        "delay grow, with confidence, and what is left in the end. Exits with 1 when the server "
        "did not stay as it was."
    )
    add = parser.add_argument
    add("--minutes", type=float, default=30.0, help="of the run (30)")
    add("--settle", type=float, metavar="MINUTES", help="left out of the slopes (5, or a sixth)")
    add("--every", type=float, default=5.0, metavar="SECONDS", help="between two joins (5)")
    add("--clients", type=int, default=1, metavar="N", help="calls that stay and are measured (1)")
    add("--rss-limit", type=float, default=1.0, metavar="MIB", help="growth allowed per hour (1)")
    add_mode(parser)
    add_pictures(parser)
    add_server(parser)
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    settle = min(5.0, options.minutes / 6) if options.settle is None else options.settle
    settings = SoakSettings(
        glass=GlassSettings(**calls(options), clients=options.clients, mode=options.mode),
        minutes=options.minutes,
        settle_minutes=settle,
        every_s=options.every,
        rss_limit_mib_per_hour=options.rss_limit,
    )
    make_record = record_begun("soak")
    report = run_async(soak(settings, show_progress))
    record = make_record(settings.to_record(), plain(summary_of(report)), [plain(report)])
    name = f"{settings.minutes:g}min-{settings.glass.mode}"
    text = describe(report, record.settings)
    publish(record, options.out, name, text, as_json=options.json)
    return OVER_BUDGET if report.faults else OK
