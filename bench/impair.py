"""What a bad path costs one call: clear, then bad, then clear again, glass to glass.

The call's media goes through a relay (`bench/relay.py`); the same seed damages the same packets
of the same run. The server is a process of its own.
"""

import argparse
import asyncio
import concurrent.futures
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import Any, Final

import aiohttp

from bench.camera import Camera
from bench.clip import MAX_BYTES, load_clip
from bench.command import OK, publish, record_begun, run_async, show_progress
from bench.errors import UsageError
from bench.glass import FIRST_PICTURE_TIMEOUT_S, HTTP_TIMEOUT_S, GlassSettings
from bench.impairment import CLEAR, Impairment, LinkCounters
from bench.options import add_output, add_pictures, add_server, add_time, calls
from bench.peer import Peer
from bench.record import plain
from bench.relay import Relay
from bench.server_process import started
from bench.statistics import distribution, freezes, rate_per_s
from server.clock import NS_PER_MS, NS_PER_S, now_ns

PHASES: Final = ("before", "during", "after")
# Pictures that left at the end of a phase are given this long to come back.
TAIL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class ImpairSettings:
    """One run. Checked when made; raises `UsageError`."""

    glass: GlassSettings
    path: Impairment
    directions: tuple[str, ...]
    seed: int

    def to_record(self) -> dict[str, Any]:
        return {
            **self.glass.to_record(),
            "path": asdict(self.path),
            "directions": list(self.directions),
            "seed": self.seed,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "One call to a server of its own through a path that is clear, then bad, then clear: "
        "what is lost, how long it freezes, how soon the picture is as young as before."
    )
    add_pictures(parser)
    add_time(parser, seconds=10.0, warmup=3.0)
    add_server(parser)
    add = parser.add_argument
    add("--direction", choices=("up", "down", "both"), default="both", help="which is bad (both)")
    add("--loss", type=float, default=0.0, help="share of the packets that is lost, 0 to 1")
    add("--burst", type=float, metavar="N", help="mean length of a run of losses; else each alone")
    add("--delay-ms", type=float, default=0.0, help="one way, also on the clear path")
    add("--jitter-ms", type=float, default=0.0, help="the delay varies by this, either way")
    add("--reorder", type=float, default=0.0, help="share that is overtaken")
    add("--reorder-depth", type=int, default=3, help="by how many packets (3)")
    add("--duplicate", type=float, default=0.0, help="share that comes twice")
    add("--rate-kbps", type=float, help="a bottleneck of this rate")
    add("--queue-ms", type=float, default=200.0, help="what its queue holds (200)")
    add("--seed", type=int, default=1, help="of the damage (1)")
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    path = Impairment(
        loss=options.loss,
        burst_packets=options.burst,
        delay_ms=options.delay_ms,
        jitter_ms=options.jitter_ms,
        reorder=options.reorder,
        reorder_depth=options.reorder_depth,
        duplicate=options.duplicate,
        rate_kbps=options.rate_kbps,
        queue_ms=options.queue_ms,
    )
    if path == CLEAR:
        raise UsageError("nothing is wrong with this path: name a --loss, --delay-ms, --rate-kbps")
    directions = ("up", "down") if options.direction == "both" else (options.direction,)
    glass = GlassSettings(
        **calls(options), seconds=options.seconds, warmup_s=options.warmup, listens=False
    )
    settings = ImpairSettings(glass, path, directions, options.seed)
    make_record = record_begun("impair")
    phases = run_async(measure(settings))
    record = make_record(settings.to_record(), {"phases": phases}, [])
    publish(record, options.out, glass.codec, describe(phases), as_json=options.json)
    return OK


async def measure(settings: ImpairSettings) -> dict[str, dict[str, Any]]:
    """What each phase was like. Raises `BenchError` when there is no call to measure."""
    glass = settings.glass
    clear = CLEAR.but(delay_ms=settings.path.delay_ms)
    clip = load_clip(glass.clip, glass.size_wh, glass.fps, MAX_BYTES)
    planned_s = glass.warmup_s + 3 * (glass.seconds + TAIL_S) + FIRST_PICTURE_TIMEOUT_S
    async with AsyncExitStack() as stack:
        show_progress("starting the server")
        server = await stack.enter_async_context(started(glass.module_args()))
        executor = concurrent.futures.ThreadPoolExecutor(1, "client-encode")
        stack.callback(executor.shutdown, wait=False)
        timeout = aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S)
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        relay = stack.enter_context(Relay(clear, clear, settings.seed))
        camera = Camera(clip, glass.fps, 0.0, round(planned_s * glass.fps))
        peer = Peer("client", camera, glass.codec, executor, listens=False, relay=relay)
        stack.push_async_callback(peer.close, http)
        await peer.connect(http, server.url, {"mode": glass.mode})
        await peer.wait_first_picture(FIRST_PICTURE_TIMEOUT_S)
        await asyncio.sleep(glass.warmup_s)
        phases = {}
        for phase in PHASES:
            show_progress(f"{phase}: {glass.seconds:g} s")
            path = settings.path if phase == "during" else clear
            relay.impair(**dict.fromkeys(settings.directions, path))
            counted = {way: asdict(getattr(relay, way).counters) for way in ("up", "down")}
            begin_ns = now_ns()
            await asyncio.sleep(glass.seconds)
            peer.check_alive()
            end_ns = now_ns()
            links = {
                way: _since(getattr(relay, way).counters, counted[way]) for way in ("up", "down")
            }
            await asyncio.sleep(TAIL_S)
            phases[phase] = {**seen(peer, begin_ns, end_ns), "links": links}
        return phases


def seen(peer: Peer, begin_ns: int, end_ns: int) -> dict[str, Any]:
    """What came back of the pictures that left in this window."""
    sent = [at_ns for at_ns in list(peer.camera.handed_at_ns) if begin_ns <= at_ns < end_ns]
    returned = list(peer.eye.returned)
    back = [one for one in returned if begin_ns <= one.handed_at_ns < end_ns]
    ages_ms = [(one.read_at_ns - one.handed_at_ns) / NS_PER_MS for one in back]
    gaps = freezes(
        [one.read_at_ns / NS_PER_MS for one in returned], begin_ns / NS_PER_MS, end_ns / NS_PER_MS
    )
    return {
        "sent": len(sent),
        "returned": len(back),
        "fps": rate_per_s(len(back), (end_ns - begin_ns) / NS_PER_S),
        "latency_ms": plain(distribution(ages_ms)),
        "freezes": plain(gaps),
    }


def describe(phases: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each phase."""
    lines = []
    for name, phase in phases.items():
        latency = phase["latency_ms"] or {"p50": float("nan"), "p95": float("nan")}
        lines.append(
            f"{name:7} {phase['fps']:5.1f} fps, p50 {latency['p50']:.0f} p95 {latency['p95']:.0f} "
            f"ms, longest gap {phase['freezes']['longest_gap_ms']:.0f} ms, "
            f"lost up {phase['links']['up']['lost']} down {phase['links']['down']['lost']}"
        )
    return "\n".join(lines)


def _since(now: LinkCounters, before: Mapping[str, int]) -> dict[str, int]:
    return {name: count - before[name] for name, count in asdict(now).items()}
