"""Tiles on a wall: streams published with the time as a bar code, detected, and shown by as many
`<sightline-tile>`s in one real browser on the same machine; from glass to glass in each tile.

Views: `annotated` (boxes burned in), `data` (the source's own picture, boxes drawn by the tile on
the picture they belong to, which is checked), `dashboard` (the product's own page). The publishers
live in the bench's process; their clock and the page's are laid beside each other by questions.
"""

import argparse
import asyncio
import concurrent.futures
import json
import math
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from bench.browser import BLANK, FIREFOX_PREFERENCES
from bench.browser import SCRIPT as MEASURE
from bench.browsers.driver import Browser, BrowserError, Page, open_page, version_of, wanted_browser
from bench.browsers.settings import BROWSERS, BrowserName
from bench.browsers.wall import (
    PageClock,
    WallReport,
    describe,
    summarise,
    tile_report,
    worst_p95_ms,
)
from bench.call_settings import CallSettings
from bench.camera import Camera
from bench.clip import MAX_BYTES, Clip, load_clip
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
from bench.crowd import Publisher
from bench.errors import PeerError, UsageError, check_ranges
from bench.options import (
    add_budget,
    add_clip,
    add_mode,
    add_output,
    add_runs,
    add_server,
    add_time,
    calls,
    size,
)
from bench.record import plain
from bench.server_process import RunningServer, started
from bench.statistics import distribution
from bench.usage import UsageMeter
from server.clock import NS_PER_MS, NS_PER_S, now_ns

SCRIPT: Final = MEASURE.with_name("tiles.js")
VIEWS: Final = ("annotated", "data", "dashboard")
# What the tiles of a view are sent is encoded by the source, or by the server.
CODECS: Final = ("auto", "H264", "VP8")
WINDOW_WH: Final = (1296, 800)
QUESTIONS: Final = 40
# More are read on no machine without the reading being what is measured.
READ_A_SECOND: Final = 60.0
LIVE_TIMEOUT_S: Final = 120.0
LOOK_S: Final = 0.25
HTTP_TIMEOUT_S: Final = 15.0
TAIL_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class TilesSettings(CallSettings):
    """One measurement. Checked when made; raises `UsageError`."""

    FPS_AT_MOST = 60

    browsers: tuple[BrowserName, ...] = BROWSERS
    views: tuple[str, ...] = VIEWS[:2]
    tiles: int = 4
    fps: float = 15.0
    size_wh: tuple[int, int] = (640, 360)
    codec: str = "auto"
    """Of the publishers; auto: H264, and VP8 for a browser that does not play that."""
    seconds: float = 15.0
    warmup_s: float = 6.0

    def __post_init__(self) -> None:
        self.check()
        check_ranges(("tiles", self.tiles, 1, 36))
        if any(side % 2 for side in self.size_wh):
            raise UsageError("--size: even sides are wanted")

    @property
    def streams(self) -> list[str]:
        return [f"tile-{number + 1:02}" for number in range(self.tiles)]

    @property
    def every(self) -> int:
        """One picture of so many is read."""
        return max(1, math.ceil(self.tiles * self.fps / READ_A_SECOND))

    def module_args(self) -> list[str]:
        """What follows `python -m` to start the measured server."""
        room = ["--demo", "off", "--max-sessions", "200", "--max-streams", "64", "--store", "off"]
        return self.server_module_args("--mode", self.mode, *room)

    def to_record(self) -> dict[str, Any]:
        """For the record: names of files without their folders."""
        return {
            "browsers": list(self.browsers),
            "views": list(self.views),
            "tiles": self.tiles,
            **self.common_record(),
            "window": f"{WINDOW_WH[0]}x{WINDOW_WH[1]}",
            "read_one_of": self.every,
        }


async def measure(settings: TilesSettings, progress: Progress) -> list[WallReport]:
    """Every run of every browser and view, interleaved, each with a new server and browser."""
    browsers = [wanted_browser(name) for name in settings.browsers]
    room = MAX_BYTES // settings.tiles
    clip = load_clip(settings.clip, settings.size_wh, settings.fps, room)
    reports = []
    for run in range(settings.runs):
        for browser in browsers:
            for view in settings.views:
                label = f"run {run + 1}/{settings.runs}, {browser.name}, {view}"

                def say(text: str, label: str = label) -> None:
                    progress(f"{label}: {text}")

                try:
                    reports.append(await _run(settings, browser, view, clip, say))
                except BrowserError as error:
                    told = " ".join(str(error).split())[:400]
                    raise PeerError(f"{browser.name}: {told}") from error
    return reports


async def _run(
    settings: TilesSettings, browser: Browser, view: str, clip: Clip, progress: Progress
) -> WallReport:
    progress("starting the server")
    timeout = aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(started(settings.module_args()))
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        page = await stack.enter_async_context(
            open_page(browser, camera="none", preferences=FIREFOX_PREFERENCES)
        )
        await page.set_viewport(*WINDOW_WH)
        await page.goto(server.url + BLANK)
        version = await version_of(page, browser)
        codec = settings.codec if settings.codec != "auto" else await _played(page)
        progress(f"publishing {settings.tiles} streams, {codec}")
        cameras = await _published(settings, codec, clip, server, http, stack)
        progress("opening the tiles")
        await _open(page, server.url, view, settings)
        await pass_time(settings.warmup_s, "warming up", progress)
        planned = settings.tiles * settings.fps * (settings.seconds + 30)
        await page.evaluate(
            f"sightlineTiles.watchTiles({json.dumps(settings.streams)}, {round(planned)}, "
            f"{settings.every})"
        )
        return await _window(
            settings, browser.name, version, view, server, http, page, cameras, progress
        )


async def _window(
    settings: TilesSettings,
    browser: str,
    version: str,
    view: str,
    server: RunningServer,
    http: aiohttp.ClientSession,
    page: Page,
    cameras: Sequence[Camera],
    progress: Progress,
) -> WallReport:
    clocks = [await _clock(page)]
    browser_meter = UsageMeter(page.process_id, family=True)
    server_meter = UsageMeter(server.pid)
    stats_before, asked_at_ns = await _stats(http, server.url), now_ns()
    skipped = sum(camera.slots_skipped for camera in cameras)
    handed = [len(camera.handed_at_ns) for camera in cameras]
    before = await page.evaluate("sightlineTiles.tilesSnapshot()")
    await pass_time(settings.seconds, "measuring", progress)
    after = await page.evaluate("sightlineTiles.tilesSnapshot()")
    elapsed_s = (now_ns() - asked_at_ns) / NS_PER_S
    browser_usage, server_usage = browser_meter.read(), server_meter.read()
    stats_after = await _stats(http, server.url)
    skipped = sum(camera.slots_skipped for camera in cameras) - skipped
    await asyncio.sleep(TAIL_S)
    clocks.append(await _clock(page))
    log = await page.evaluate("sightlineTiles.tilesLog()")
    for stream, camera, before_count in zip(settings.streams, cameras, handed, strict=True):
        if len(camera.handed_at_ns) == before_count:
            raise PeerError(f"{stream}: its publisher stopped, the machine is too busy")
    # Two clocks of one machine: what they drifted apart is within what the questions leave open.
    clock = min(clocks, key=lambda each: each.uncertainty_ms)
    spread_ms = abs(clocks[0].offset_ms - clocks[1].offset_ms)
    inside = log["repaintsMs"][before["repaints"] : after["repaints"]]
    tasks = [
        took for began, took in log["longTasks"] if before["atMs"] <= began < after["atMs"]
    ]  # fmt: skip
    inferred = [_inferred(each) for each in (stats_before, stats_after)]
    return WallReport(
        browser=browser,
        version=version,
        view=view,
        tiles=[
            tile_report(
                stream, index, log, before, after, cameras[index].handed_at_ns, clock,
                _left(cameras[index]) if view == "data" else None,
            )
            for index, stream in enumerate(settings.streams)
        ],
        repaint_ms=distribution(inside),
        long_tasks={
            "count": len(tasks),
            "total_ms": sum(tasks),
            "longest_ms": max(tasks, default=0.0),
        }
        if log["tellsLongTasks"]
        else None,
        reading_ms=distribution([row[9] for row in log["rows"]]),
        clock_uncertainty_ms=max(clock.uncertainty_ms, spread_ms),
        slots_skipped=skipped,
        inferred_per_s=(inferred[1] - inferred[0]) / elapsed_s,
        browser_cpu_percent=None if browser_usage is None else browser_usage.cpu_percent,
        server_cpu_percent=None if server_usage is None else server_usage.cpu_percent,
    )  # fmt: skip


def _left(camera: Camera) -> list[tuple[int, int]]:
    """When pictures began to leave, encoded, and their numbers; in order."""
    numbers = {at_ns: number for number, at_ns in enumerate(camera.handed_at_ns)}
    return [(sent.encoded_at_ns, numbers[sent.handed_at_ns]) for sent in camera.send_times]


async def _played(page: Page) -> str:
    """What the browser is sent in view `data`: the source's own packets, which it must play."""
    types = await page.evaluate(
        "RTCRtpReceiver.getCapabilities('video').codecs.map((codec) => codec.mimeType)"
    )
    return "H264" if "video/H264" in types else "VP8"


async def _published(
    settings: TilesSettings,
    codec: str,
    clip: Clip,
    server: RunningServer,
    http: aiohttp.ClientSession,
    stack: AsyncExitStack,
) -> list[Camera]:
    """Cameras that are not in step, each a stream by WHIP until the stack ends."""
    executor = stack.enter_context(concurrent.futures.ThreadPoolExecutor(2, "bench-encode"))
    most = round(settings.fps * (settings.seconds + settings.warmup_s + 300))
    cameras = []
    for number, stream in enumerate(settings.streams):
        camera = Camera(clip.copy(), settings.fps, number * 0.618 % 1, most)
        publisher = Publisher(camera, codec, executor)
        stack.push_async_callback(publisher.close, http)
        stack.callback(camera.stop)
        await publisher.open(http, f"{server.url}/whip/{stream}")
        cameras.append(camera)
    return cameras


async def _open(page: Page, url: str, view: str, settings: TilesSettings) -> None:
    if view == "dashboard":
        await page.goto(f"{url}/dashboard")
    script = "\n".join(file.read_text(encoding="utf-8") for file in (MEASURE, SCRIPT))  # one scope
    await page.evaluate(f"(() => {{{script}\n}})()")
    if view != "dashboard":
        await page.evaluate(
            f"sightlineTiles.openTiles({json.dumps(settings.streams)}, {json.dumps(view)})"
        )
    until_ns = now_ns() + round(LIVE_TIMEOUT_S * NS_PER_S)
    # A server that is busy with the first ones asks the others to come again.
    while (live := await page.evaluate("sightlineTiles.tilesLive()")) != settings.tiles:
        if now_ns() > until_ns:
            raise PeerError(f"{live} of {settings.tiles} tiles live after {LIVE_TIMEOUT_S:g} s")
        await asyncio.sleep(LOOK_S)


async def _clock(page: Page) -> PageClock:
    """The quickest of many questions says it best."""
    best = PageClock(0.0, math.inf)
    for _ in range(QUESTIONS):
        asked_at_ns = now_ns()
        page_ms = float(await page.evaluate("performance.now()"))
        answered_at_ns = now_ns()
        half_ms = (answered_at_ns - asked_at_ns) / NS_PER_MS / 2
        if half_ms < best.uncertainty_ms:
            best = PageClock(asked_at_ns / NS_PER_MS + half_ms - page_ms, half_ms)
    return best


async def _stats(http: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with http.get(f"{url}/api/stats") as reply:
        told: dict[str, Any] = await reply.json()
    return told


def _inferred(stats: dict[str, Any]) -> int:
    return int(stats["inference"]["inferred"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    add = parser.add_argument
    add("--browser", choices=(*BROWSERS, "both"), default="both", help="which (both)")
    add("--view", action="append", choices=VIEWS, help="repeatable (annotated and data)")
    add("--tiles", type=int, default=4, help="streams, and tiles (4)")
    add("--fps", type=float, default=15.0, help="of each stream (15)")
    add("--size", type=size, default=(640, 360), metavar="WxH", help="picture size (640x360)")
    add("--codec", choices=CODECS, default="auto", help="of the publishers (auto)")
    add_clip(parser)
    add_mode(parser)
    add_time(parser, seconds=15.0, warmup=6.0)
    add_runs(parser, "runs, each with a new server and browser")
    add_server(parser)
    add_budget(parser, "the worst tile")
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    settings = TilesSettings(
        browsers=BROWSERS if options.browser == "both" else (options.browser,),
        views=tuple(dict.fromkeys(options.view or VIEWS[:2])),
        tiles=options.tiles,
        **calls(options),
        mode=options.mode,
        seconds=options.seconds,
        warmup_s=options.warmup,
        runs=options.runs,
        budget_ms=options.budget_ms,
    )
    make_record = record_begun("tiles")
    reports = run_async(measure(settings, show_progress))
    summary = summarise(reports)
    record = make_record(settings.to_record(), summary, plain(reports))
    over, verdict = over_budget(worst_p95_ms(summary), settings.budget_ms)
    text = f"{describe(summary, record.settings)}\n{verdict}"
    publish(record, options.out, f"{options.browser}-{options.tiles}", text, as_json=options.json)
    return OVER_BUDGET if over else OK
