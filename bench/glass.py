"""Glass to glass: from a picture handed to the encoder to the returned picture decoded and read.

Headless clients call the server like a browser would. Each run has a server of its own,
connects, warms up, measures, and keeps sending while the last pictures come back.
"""

import argparse
import asyncio
import concurrent.futures
import gc
import os
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from bench.call_settings import CallSettings
from bench.camera import Camera
from bench.clip import MAX_BYTES, Clip, copied, load_clip
from bench.command import (
    OK,
    OVER_BUDGET,
    Progress,
    over_budget,
    pass_time,
    publish,
    record_begun,
    run_async,
    show_progress,
)
from bench.errors import ServerError, UsageError, check_ranges
from bench.floor import describe_ratio, measure_apart, ratio_to
from bench.model_change import changing_models
from bench.options import (
    add_budget,
    add_mode,
    add_output,
    add_pictures,
    add_runs,
    add_server,
    add_time,
    add_url,
    calls,
)
from bench.peer import Peer
from bench.record import plain
from bench.server_process import RunningServer, running
from bench.summary import RunReport, describe, summarise
from bench.usage import UsageMeter, told_usage
from bench.window import Window, client_report
from server.clock import now_ns

if TYPE_CHECKING:
    from av import VideoFrame

FIRST_PICTURE_TIMEOUT_S: Final = 20.0
HTTP_TIMEOUT_S: Final = 10.0
# Arguments of the server that `bench floor` takes too.
ENGINE_ARGS: Final = ("--provider=", "--precision=", "--threads=")
# Pictures that left at the end of the window are given this long to come back.
TAIL_S: Final = 1.0
TAIL_POLL_S: Final = 0.25
# Clients start at irregular places of the interval, as cameras do: shares of the golden ratio
# never fall together, and are the same in each run.
PHASE_STEP: Final = 0.618034

# Returned pictures of each client that are looked at afterwards, spread over the window.
PICTURES_KEPT: Final = 8

Look = Callable[[Sequence[tuple["VideoFrame", "VideoFrame"]]], None]
"""Told once: pictures as they were sent and as they came back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GlassSettings(CallSettings):
    """One measurement. Checked when made; raises `UsageError`."""

    SECONDS_AT_MOST = 3600

    clients: int = 1
    url: str | None = None
    against: str = "server"
    """server | echo | stock-echo: the product, or the floor of the instrument."""
    listens: bool = True
    longest_tail_s: float = TAIL_S
    """How long pictures may take to come back when the window is over; a slow server's are waited
    for so that it isn't judged by its quick ones alone."""
    change_to: tuple[str, ...] = ()
    """Models that the server changes to in turn while it is measured."""

    def __post_init__(self) -> None:
        self.check()
        check_ranges(("clients", self.clients, 1, 64))
        if self.url is not None and self.against != "server":
            raise UsageError("--url: does not go with --against, which starts a server itself")
        if self.url is not None and (self.model is not None or self.server_args):
            raise UsageError("--url: a running server takes no --model and no --server-arg")

    def module_args(self) -> list[str]:
        """What follows `python -m` to start the measured server."""
        if self.against != "server":
            return ["bench", "echo", *(["--stock"] if self.against == "stock-echo" else [])]
        return self.server_module_args()

    def floor_args(self) -> list[str]:
        """The same work for `bench floor`; the engine's settings are those given to the server."""
        width, height = self.size_wh
        arguments = ["--size", f"{width}x{height}", "--codec", self.codec]
        arguments += ["--fps", f"{self.fps:g}"]
        arguments += [] if self.clip is None else ["--clip", str(self.clip)]
        if not self.detector or self.against != "server":
            return [*arguments, "--model", "none"]
        arguments += [] if self.model is None else ["--model", self.model]
        engine = [a for a in self.server_args if a.startswith(ENGINE_ARGS)]
        return [*arguments, *engine]

    def to_record(self) -> dict[str, Any]:
        """For the record: names of files without their folders."""
        return {
            "clients": self.clients,
            **self.common_record(),
            "against": "running server" if self.url else self.against,
            "data_channel": self.listens,
            "change_to": list(self.change_to),
        }


async def measure(settings: GlassSettings, progress: Progress) -> list[RunReport]:
    """All runs, one after another. Raises `BenchError` when one can't be made."""
    clip = load_clip(settings.clip, settings.size_wh, settings.fps, MAX_BYTES // settings.clients)
    clips = [clip, *(clip.copy() for _ in range(settings.clients - 1))]
    reports = []
    for run in range(settings.runs):
        label = f"run {run + 1}/{settings.runs}"
        progress(f"{label}: starting the server")
        async with running(settings.url, settings.module_args()) as server:
            reports.append(
                await measure_run(settings, server, clips, partial(_say, progress, label))
            )
    return reports


def _say(progress: Progress, label: str, text: str) -> None:
    progress(f"{label}: {text}")


async def measure_run(
    settings: GlassSettings,
    server: RunningServer,
    clips: Sequence[Clip],
    progress: Progress,
    look: Look | None = None,
) -> RunReport:
    """One run against a running server. `look` is given pictures that came back after it."""
    planned_s = (
        settings.warmup_s + settings.seconds + FIRST_PICTURE_TIMEOUT_S + settings.longest_tail_s
    )
    async with AsyncExitStack() as stack:
        executor = concurrent.futures.ThreadPoolExecutor(settings.clients, "client-encode")
        stack.callback(executor.shutdown, wait=False)
        timeout = aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S)
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        peers = []
        for index, clip in enumerate(clips):
            phase = index * PHASE_STEP % 1
            camera = Camera(clip, settings.fps, phase, round(planned_s * settings.fps))
            peer = Peer(f"client {index + 1}", camera, settings.codec, executor, settings.listens)
            stack.push_async_callback(peer.close, http)
            peers.append(peer)

        progress("connecting")
        for peer in peers:
            await peer.connect(http, server.url, {"mode": settings.mode})
            assert peer.answer is not None
            if peer.answer.codec != settings.codec:
                raise ServerError(
                    f"the server answered with {peer.answer.codec}, not {settings.codec}"
                )
        for peer in peers:
            await peer.wait_first_picture(FIRST_PICTURE_TIMEOUT_S)

        # What was built so far stays until the end: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)

        def all_alive() -> None:
            for peer in peers:
                peer.check_alive()

        await pass_time(settings.warmup_s, "warming up", progress, all_alive)
        client_meter, server_meter = UsageMeter(os.getpid()), UsageMeter(server.pid)
        stats_before = await server_statistics(http, server.url)
        eyes_before = [peer.eye.statistics() for peer in peers]
        if look is not None:
            every = max(1, round(settings.seconds * settings.fps / PICTURES_KEPT))
            for peer in peers:
                peer.eye.keep(PICTURES_KEPT, every)
        begin_at_ns = now_ns()
        async with changing_models(http, server.url, settings.change_to) as changes:
            await pass_time(settings.seconds, "measuring", progress, all_alive)
        window = Window(begin_at_ns, now_ns())
        client_usage, server_usage = client_meter.read(), server_meter.read()
        eyes_after = [peer.eye.statistics() for peer in peers]
        stats = await server_statistics(http, server.url)
        if server_usage is None:
            server_usage = told_usage(stats_before, stats, window.duration_s)
        await _await_returns(peers, window, settings.longest_tail_s)
        if look is not None:
            look([pair for peer in peers for pair in _sent_and_returned(peer)])

        answer = peers[0].answer
        return RunReport(
            clients=[
                client_report(
                    peer.name,
                    window,
                    peer.camera.handed_at_ns,
                    peer.camera.send_times,
                    peer.eye.returned,
                    peer.messages,
                    before,
                    after,
                    peer.camera.slots_skipped,
                    waits_for_boxes=settings.mode == "exact",
                )
                for peer, before, after in zip(peers, eyes_before, eyes_after, strict=True)
            ],
            server_start_s=server.start_s,
            first_picture_ms=[peer.first_picture_ms for peer in peers],
            answer={} if answer is None else plain(answer),
            client_process=client_usage,
            server_process=server_usage,
            server_stats=stats,
            model_changes=changes,
        )


async def _await_returns(peers: Sequence[Peer], window: Window, longest_s: float) -> None:
    """The tail: a second, and more only while pictures of the window are still to come."""
    await asyncio.sleep(TAIL_S)
    for _ in range(round((longest_s - TAIL_S) / TAIL_POLL_S)):
        if all(_all_returned(peer, window) for peer in peers):
            return
        await asyncio.sleep(TAIL_POLL_S)


def _all_returned(peer: Peer, window: Window) -> bool:
    """Pictures come back in order: a later one says that no more of the window will."""
    returned = peer.eye.returned
    return bool(returned) and returned[-1].handed_at_ns >= window.end_at_ns


def _sent_and_returned(peer: Peer) -> list[tuple["VideoFrame", "VideoFrame"]]:
    return [(copied(peer.camera.source(k.number)), k.video_frame) for k in peer.eye.kept]


async def server_statistics(http: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    try:
        async with http.get(f"{url}/api/stats") as response:
            stats = await response.json(content_type=None)
    except (aiohttp.ClientError, ValueError, TimeoutError) as error:
        raise ServerError(f"no statistics from {url}/api/stats: {error!r}") from error
    return stats if isinstance(stats, dict) else {}


async def _with_floor(
    settings: GlassSettings, wanted: bool, progress: Progress
) -> tuple[dict[str, Any] | None, list[RunReport]]:
    """The floor first, which is of this machine and the started server's own engine."""
    floor = None
    if wanted:
        progress("measuring the floor")
        floor = await measure_apart(settings.floor_args())
    return floor, await measure(settings, progress)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Starts the server, calls it like browsers would and measures from the picture handed to "
        "the encoder to the returned picture decoded and read. Progress goes to standard error."
    )
    add = parser.add_argument
    add("--clients", type=int, default=1, metavar="N", help="calls at the same time (1)")
    add_pictures(parser)
    add_mode(parser)
    add_time(parser)
    add_runs(parser, "runs, each with a new server; medians count")
    add_server(parser)
    add_url(parser)
    add(
        "--against",
        choices=("server", "echo", "stock-echo"),
        default="server",
        help="what to start: the server, our transport alone, or plain aiortc (server)",
    )
    add("--no-channel", action="store_true", help="without the data channel: no stage times")
    add(
        "--change-to",
        default="",
        metavar="NAME,...",
        help="models, by the names of /api/models, to change to in turn every two seconds",
    )
    add("--floor", action="store_true", help="measure what the work costs without a server too")
    add_budget(parser, "the worst client")
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    if options.floor and options.url is not None:
        raise UsageError("--url: the floor is that of a server which the bench starts here")
    settings = GlassSettings(
        **calls(options),
        clients=options.clients,
        mode=options.mode,
        seconds=options.seconds,
        warmup_s=options.warmup,
        runs=options.runs,
        url=options.url,
        against=options.against,
        listens=not options.no_channel,
        change_to=tuple(filter(None, options.change_to.split(","))),
        budget_ms=options.budget_ms,
    )
    make_record = record_begun("glass")
    floor, reports = run_async(_with_floor(settings, options.floor, show_progress))
    summary = summarise(reports)
    lines = [describe(summary, settings.to_record())]
    if floor is not None:
        times_floor = ratio_to(floor, summary["worst_client_ms"]["p50"])
        summary |= {"floor": floor, "times_floor": times_floor}
        lines.append(describe_ratio(floor, times_floor))
    record = make_record(settings.to_record(), summary, plain(reports))
    width, height = settings.size_wh
    name = f"{settings.against}-{settings.clients}x{width}x{height}-{settings.codec}"
    over, verdict = over_budget(summary["worst_client_ms"]["p95"], settings.budget_ms)
    text = "\n".join([*lines, verdict])
    publish(record, options.out, name, text, as_json=options.json)
    return OVER_BUDGET if over else OK
