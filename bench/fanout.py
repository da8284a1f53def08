"""What viewers of a stream cost and wait for, and what signalling does to those who are in.

Parts: `cost` (processor time of the server by number of viewers: shared encoding, the source's own
packets, and an encoder for each viewer), `join` (to the first picture, while others watch; and from
the publisher's offer to the first picture at a viewer), `glass` (WHIP in to WHEP out), `signalling`
(many offers a second beside a running call).
"""

import argparse
import asyncio
import concurrent.futures
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from bench.camera import Camera
from bench.clip import MAX_BYTES, Clip, load_clip
from bench.command import OK, Progress, pass_time, publish, record_begun, run_async, show_progress
from bench.crowd import LightViewer, Publisher, SeeingViewer, options_query
from bench.errors import ServerError, UsageError, check_ranges
from bench.options import CODECS, add_clip, add_output, add_size, add_time
from bench.peer import Peer
from bench.record import plain
from bench.server_process import (
    TAKES_EVERY_CALL,
    TAKES_EVERY_CALLER,
    RunningServer,
    started,
)
from bench.statistics import Distribution, distribution, median
from bench.storm import StormProcess
from bench.usage import UsageMeter
from server.clock import NS_PER_MS, NS_PER_S, now_ns

PARTS: Final = ("cost", "join", "glass", "signalling")
STREAM: Final = "bench"
FIRST_PICTURE_TIMEOUT_S: Final = 20.0
HTTP_TIMEOUT_S: Final = 15.0
TAIL_S: Final = 0.5
# By the name of a cost: the module that serves, and what its viewers ask for.
KINDS: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "shared": ("server", {}),
    "data": ("server", {"view": "data"}),
    "naive": ("bench.naive", {}),
}
SIGNALLING_CALLS: Final = 8


@dataclass(frozen=True, slots=True)
class FanoutSettings:
    """One measurement. Checked when made; raises `UsageError`."""

    parts: tuple[str, ...] = PARTS
    kinds: tuple[str, ...] = tuple(KINDS)
    viewers: tuple[int, ...] = (1, 8, 24)
    joins: int = 20
    """How often is joined, and how many watch meanwhile."""
    rate: float = 200.0
    fps: float = 30.0
    size_wh: tuple[int, int] = (640, 480)
    codec: str = "H264"
    clip: Any = None
    model: str | None = None
    seconds: float = 10.0
    warmup_s: float = 3.0

    def __post_init__(self) -> None:
        check_ranges(
            ("viewers", min(self.viewers, default=0), 0, 1000),
            ("joins", self.joins, 1, 200),
            ("rate", self.rate, 1, 2000),
            ("seconds", self.seconds, 0.5, 3600),
            ("warmup", self.warmup_s, 0, 600),
        )
        if len(set(self.viewers)) < 2 and "cost" in self.parts:
            raise UsageError("--viewers: two numbers at least, a cost is a difference")

    def to_record(self) -> dict[str, Any]:
        return {
            "parts": list(self.parts),
            "kinds": list(self.kinds),
            "viewers": list(self.viewers),
            "joins": self.joins,
            "rate": self.rate,
            "fps": self.fps,
            "size": f"{self.size_wh[0]}x{self.size_wh[1]}",
            "codec": self.codec,
            "clip": "photographs" if self.clip is None else self.clip.name,
            "model": None if self.model is None else Path(self.model).name,
            "seconds": self.seconds,
            "warmup_s": self.warmup_s,
        }


@dataclass(frozen=True, slots=True)
class CostStep:
    """One number of viewers of one kind."""

    kind: str
    viewers: int
    cpu_percent: float
    """Of the server's process; 100 is one core."""
    fps_slowest: float
    packets_per_s: float
    """That all viewers got."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the parts found; empty where they were not run."""

    cost: list[CostStep] = field(default_factory=list)
    join_ms: list[float] = field(default_factory=list)
    publish_ms: list[float] = field(default_factory=list)
    glass_ms: dict[str, Distribution | None] = field(default_factory=dict)
    signalling: dict[str, Any] = field(default_factory=dict)


class Bench:
    """The parts, one after another, each with servers of its own."""

    def __init__(self, settings: FanoutSettings, progress: Progress) -> None:
        self._settings = settings
        self._progress = progress
        self._clip = load_clip(settings.clip, settings.size_wh, settings.fps, MAX_BYTES)

    async def measure(self) -> Found:
        found = Found()
        if "cost" in self._settings.parts:
            for kind in self._settings.kinds:
                found.cost.extend(await self._cost(kind))
        if "join" in self._settings.parts:
            await self._join(found)
        if "glass" in self._settings.parts:
            await self._glass(found)
        if "signalling" in self._settings.parts:
            found.signalling.update(await self._signalling())
        return found

    # --- parts ---

    async def _cost(self, kind: str) -> list[CostStep]:
        """Viewers are added to one running server, so that the steps differ by them alone."""
        settings, steps = self._settings, []
        module, asked = KINDS[kind]
        async with self._stage(module, detector=False) as stage:
            await stage.publish()
            viewers: list[LightViewer] = []
            for count in sorted(set(settings.viewers)):
                while len(viewers) < count:
                    viewers.append(await stage.light_viewer(len(viewers), asked))
                await pass_time(
                    settings.warmup_s, f"{kind}, {count} viewers: warming up", self._progress
                )
                before = [(v.receiver.pictures, v.receiver.packets) for v in viewers]
                meter, begin_at_ns = UsageMeter(stage.server.pid), now_ns()
                await pass_time(
                    settings.seconds, f"{kind}, {count} viewers: measuring", self._progress
                )
                usage, elapsed_s = meter.read(), (now_ns() - begin_at_ns) / NS_PER_S
                if usage is None:
                    raise ServerError("the server is gone")
                gained = [
                    (v.receiver.pictures - pictures, v.receiver.packets - packets)
                    for v, (pictures, packets) in zip(viewers, before, strict=True)
                ]
                steps.append(
                    CostStep(
                        kind,
                        count,
                        usage.cpu_percent,
                        round(min((p for p, _ in gained), default=0) / elapsed_s, 1),
                        round(sum(n for _, n in gained) / elapsed_s, 1),
                    )
                )
        return steps

    async def _join(self, found: Found) -> None:
        settings = self._settings
        async with self._stage("server", detector=False) as stage:
            early = stage.seeing_viewer("early")
            opening = asyncio.create_task(
                early.open(stage.http, stage.watch_url({}), patiently=True)
            )
            publisher = await stage.publish()
            await opening
            found.publish_ms.append(
                await early.first_picture_ms(FIRST_PICTURE_TIMEOUT_S, publisher.asked_at_ns)
            )
            for number in range(settings.joins):
                await stage.light_viewer(number, {})
            await pass_time(
                settings.warmup_s, f"{settings.joins} viewers are there: warming up", self._progress
            )
            for number in range(settings.joins):
                self._progress(f"joining, {settings.joins - number} to go")
                viewer = stage.seeing_viewer(f"joiner {number}")
                await viewer.open(stage.http, stage.watch_url({}))
                found.join_ms.append(await viewer.first_picture_ms(FIRST_PICTURE_TIMEOUT_S))
                await viewer.close(stage.http)

    async def _glass(self, found: Found) -> None:
        settings = self._settings
        for view in ("annotated", "data"):
            async with self._stage("server", detector=True) as stage:
                publisher = await stage.publish()
                viewer = stage.seeing_viewer(view)
                asked = {} if view == "annotated" else {"view": view}
                await viewer.open(stage.http, stage.watch_url(asked), patiently=True)
                await viewer.first_picture_ms(FIRST_PICTURE_TIMEOUT_S)
                await pass_time(settings.warmup_s, f"WHIP to {view}: warming up", self._progress)
                begin_at_ns = now_ns()
                await pass_time(settings.seconds, f"WHIP to {view}: measuring", self._progress)
                end_at_ns = now_ns()
                await asyncio.sleep(TAIL_S)
                assert publisher.camera.handed_at_ns
                found.glass_ms[view] = distribution(
                    [
                        (picture.read_at_ns - picture.handed_at_ns) / NS_PER_MS
                        for picture in viewer.eye.returned
                        if begin_at_ns <= picture.handed_at_ns < end_at_ns
                    ]
                )
        async with self._stage("server", detector=True) as stage:
            found.glass_ms["call"] = await self._call_ms(stage, "call", settings.seconds)

    async def _signalling(self) -> dict[str, Any]:
        """Offers at a rate, of which few are admitted, beside a call that runs.

        They come from one address, so its own limits are lifted; those of the server stay.
        """
        settings = self._settings
        arguments = (*TAKES_EVERY_CALLER, f"--max-sessions={SIGNALLING_CALLS}")
        async with (
            self._stage("server", detector=True, arguments=arguments) as stage,
            AsyncExitStack() as stack,
        ):
            peer = await self._caller(stage, stack)
            await pass_time(settings.warmup_s, "a call alone: warming up", self._progress)
            alone = await self._latency(peer, settings.seconds, "a call alone: measuring")
            sdp = await self._lonely_offer(stage)
            async with StormProcess() as storms:
                storming = storms.begin(stage.server.url, sdp, settings.rate, settings.seconds)
                beside = await self._latency(
                    peer, settings.seconds, f"{settings.rate:g} offers/s: measuring"
                )
                storm = await storming
        return {
            "posted_per_s": round(storm.posted / storm.elapsed_s, 1),
            "statuses": dict(storm.statuses),
            "admitted_ms": plain(distribution(storm.admitted_ms)),
            "refused_ms": plain(distribution(storm.refused_ms)),
            "call_alone_ms": plain(alone),
            "call_beside_ms": plain(beside),
        }

    async def _lonely_offer(self, stage: "Stage") -> str:
        """An offer as any browser's: nobody will ever answer its checks."""
        viewer = LightViewer("storm", "H264", stage.executor)
        viewer.connection.getTransceivers()[0].direction = "sendrecv"
        await viewer.connection.setLocalDescription(await viewer.connection.createOffer())
        sdp: str = viewer.connection.localDescription.sdp
        await viewer.connection.close_within(1.0)
        return sdp

    # --- calls ---

    async def _call_ms(self, stage: "Stage", what: str, seconds: float) -> Distribution | None:
        async with AsyncExitStack() as stack:
            peer = await self._caller(stage, stack)
            await pass_time(self._settings.warmup_s, f"{what}: warming up", self._progress)
            return await self._latency(peer, seconds, f"{what}: measuring")

    async def _caller(self, stage: "Stage", stack: AsyncExitStack) -> Peer:
        peer = Peer("call", stage.camera(), self._settings.codec, stage.executor, listens=False)
        stack.push_async_callback(peer.close, stage.http)
        await peer.connect(stage.http, stage.server.url, {"mode": "exact"})
        await peer.wait_first_picture(FIRST_PICTURE_TIMEOUT_S)
        return peer

    async def _latency(self, peer: Peer, seconds: float, what: str) -> Distribution | None:
        begin_at_ns = now_ns()
        await pass_time(seconds, what, self._progress)
        end_at_ns = now_ns()
        await asyncio.sleep(TAIL_S)
        return distribution(
            [
                (picture.read_at_ns - picture.handed_at_ns) / NS_PER_MS
                for picture in peer.eye.returned
                if begin_at_ns <= picture.handed_at_ns < end_at_ns
            ]
        )

    # --- small parts ---

    @asynccontextmanager
    async def _stage(
        self,
        module: str,
        *,
        detector: bool,
        arguments: Sequence[str] = TAKES_EVERY_CALL,
    ) -> AsyncIterator["Stage"]:
        settings = self._settings
        model = ["--model", "none"] if not detector else []
        if detector and settings.model is not None:
            model = ["--model", settings.model]
        self._progress(f"starting {module}")
        command = [module, "--host", "127.0.0.1", *model, *arguments]
        timeout = aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            started(command) as server,
            aiohttp.ClientSession(timeout=timeout, connector=connector) as http,
        ):
            with concurrent.futures.ThreadPoolExecutor(2, "bench-encode") as executor:
                stage = Stage(settings, server, http, executor, self._clip)
                try:
                    yield stage
                finally:
                    await stage.close()


class Stage:
    """A server, and who was opened there; all of them end with `close`."""

    def __init__(
        self,
        settings: FanoutSettings,
        server: RunningServer,
        http: aiohttp.ClientSession,
        executor: concurrent.futures.Executor,
        clip: Clip,
    ) -> None:
        self.server = server
        self.http = http
        self.executor = executor
        self._settings = settings
        self._clip = clip
        self._members: list[Publisher | LightViewer | SeeingViewer] = []
        self._handed_at_ns: list[int] = []

    def camera(self) -> Camera:
        settings = self._settings
        # Every part is over before that.
        most = round(settings.fps * (30 * (settings.seconds + settings.warmup_s) + 600))
        return Camera(self._clip.copy(), settings.fps, 0.0, most)

    def watch_url(self, asked: Mapping[str, str]) -> str:
        return f"{self.server.url}/whep/{STREAM}{options_query(asked)}"

    async def publish(self) -> Publisher:
        publisher = Publisher(self.camera(), self._settings.codec, self.executor)
        # Viewers made before know the log too.
        publisher.camera.handed_at_ns = self._handed_at_ns
        self._members.append(publisher)
        await publisher.open(self.http, f"{self.server.url}/whip/{STREAM}")
        return publisher

    async def light_viewer(self, number: int, asked: Mapping[str, str]) -> LightViewer:
        viewer = LightViewer(f"viewer {number}", self._settings.codec, self.executor)
        self._members.append(viewer)
        await viewer.open(self.http, self.watch_url(asked), patiently=True)
        return viewer

    def seeing_viewer(self, name: str) -> SeeingViewer:
        viewer = SeeingViewer(name, self._settings.codec, self.executor, self._handed_at_ns)
        self._members.append(viewer)
        return viewer

    async def close(self) -> None:
        for member in reversed(self._members):
            if isinstance(member, Publisher):
                member.camera.stop()
            await member.close(self.http)


# --- what was found ---


def per_viewer_percent(steps: Sequence[CostStep]) -> float | None:
    """Processor time of one more viewer: the line through all steps; None for fewer than two."""
    if len({step.viewers for step in steps}) < 2:
        return None
    mean_x = sum(step.viewers for step in steps) / len(steps)
    mean_y = sum(step.cpu_percent for step in steps) / len(steps)
    over = sum((step.viewers - mean_x) * (step.cpu_percent - mean_y) for step in steps)
    return over / sum((step.viewers - mean_x) ** 2 for step in steps)


def summary_of(found: Found) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    by_kind = {kind: [step for step in found.cost if step.kind == kind] for kind in KINDS}
    costs = {kind: per_viewer_percent(steps) for kind, steps in by_kind.items() if steps}
    if costs:
        summary["per_viewer_percent"] = costs
        shared, naive = costs.get("shared"), costs.get("naive")
        if naive is not None and shared is not None and shared > 0:
            summary["naive_to_shared"] = naive / shared
    if found.join_ms:
        summary["join_ms"] = plain(distribution(found.join_ms))
        summary["publish_to_picture_ms"] = median(found.publish_ms)
    if found.glass_ms:
        summary["glass_ms"] = plain(found.glass_ms)
    if found.signalling:
        alone, beside = (found.signalling[name] for name in ("call_alone_ms", "call_beside_ms"))
        change = 100 * (beside["p95"] / alone["p95"] - 1) if alone and beside else None
        summary["signalling"] = {**found.signalling, "call_p95_change_percent": change}
    return plain(summary)  # type: ignore[no-any-return]


def describe(found: Found, summary: Mapping[str, Any]) -> str:
    """For a person."""
    lines = [
        f"{step.kind:7} {step.viewers:4d} viewers: server {step.cpu_percent:6.1f} % CPU, "
        f"slowest viewer {step.fps_slowest:.1f} fps, {step.packets_per_s:.0f} packets/s out"
        for step in found.cost
    ]
    for kind, percent in summary.get("per_viewer_percent", {}).items():
        lines.append(f"{kind}: {percent:.3f} % of a core for one viewer more")
    if "naive_to_shared" in summary:
        lines.append(
            f"an encoder for each viewer costs {summary['naive_to_shared']:.1f} times that"
        )
    if join := summary.get("join_ms"):
        lines.append(f"join to first picture: p50 {join['p50']:.0f}, p95 {join['p95']:.0f} ms")
        lines.append(f"publish to first picture: {summary['publish_to_picture_ms']:.0f} ms")
    for way, ms in summary.get("glass_ms", {}).items():
        told = f"p50 {ms['p50']:.1f}, p95 {ms['p95']:.1f} ms" if ms else "nothing came back"
        lines.append(f"glass to glass, {way}: {told}")
    if storm := summary.get("signalling"):
        lines += [
            f"{name[:-3]}: p50 {ms['p50']:.1f}, p99 {ms['p99']:.1f} ms, {ms['count']}"
            for name in ("admitted_ms", "refused_ms")
            if (ms := storm[name])
        ]
        change = storm["call_p95_change_percent"]
        told = "unknown" if change is None else f"{change:+.0f} %"
        lines.append(f"{storm['posted_per_s']:g} offers/s change the p95 of a call by {told}")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    add = parser.add_argument
    add("--part", choices=PARTS, action="append", help="only this; repeatable (all)")
    add("--kind", choices=tuple(KINDS), action="append", help="of cost; repeatable (all)")
    add("--viewers", type=int, nargs="+", default=[1, 8, 24], metavar="N", help="steps of cost")
    add("--joins", type=int, default=20, metavar="N", help="who watch, and who join then (20)")
    add("--rate", type=float, default=200.0, help="offers a second of signalling (200)")
    add("--codec", choices=CODECS, default=CODECS[0], help=f"of all ({CODECS[0]})")
    add("--fps", type=float, default=30.0, help="pictures per second of the source (30)")
    add("--model", metavar="NAME", help="of the server in glass and signalling; else its default")
    add_size(parser)
    add_clip(parser)
    add_time(parser)
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    settings = FanoutSettings(
        parts=tuple(options.part or PARTS),
        kinds=tuple(options.kind or KINDS),
        viewers=tuple(options.viewers),
        joins=options.joins,
        rate=options.rate,
        fps=options.fps,
        size_wh=options.size,
        codec=options.codec,
        clip=options.clip,
        model=options.model,
        seconds=options.seconds,
        warmup_s=options.warmup,
    )

    async def measure() -> Found:
        return await Bench(settings, show_progress).measure()

    make_record = record_begun("fanout")
    found = run_async(measure())
    summary = summary_of(found)
    record = make_record(settings.to_record(), summary, [plain(found)])
    name = "-".join(settings.parts) if options.part else "all"
    publish(record, options.out, name, describe(found, summary), as_json=options.json)
    return OK
