"""Glass to glass in real browsers: a canvas camera with a bar code, through the server, and back.

The bench's script runs in a page of the measured server itself, so that the call is same-origin
like the product's own page. The driver asks once a second how it goes, and for the log at the
end; everything in between is the browser's and the server's.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import cv2

from bench import barcode
from bench.browsers.driver import Browser, BrowserError, Page, open_page, version_of, wanted_browser
from bench.browsers.report import (
    BrowserReport,
    Seen,
    mean_between,
    picture_report,
    rate_between,
)
from bench.browsers.settings import BROWSERS, BrowserSettings, PageSettings
from bench.browsers.summary import describe, summarise, worst_p95_ms
from bench.clip import load_clip
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
from bench.errors import PeerError, ServerError
from bench.options import (
    CODECS,
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
from bench.planes import plane_view
from bench.record import plain
from bench.server_process import RunningServer, running
from bench.statistics import median
from bench.usage import Usage, UsageMeter
from server.clock import NS_PER_MS, now_ns

if TYPE_CHECKING:
    from av import VideoFrame

SCRIPT: Final = Path(__file__).parent / "browsers" / "page" / "measure.js"
# A page of the server that runs nothing by itself, in a document that can hold a video.
BLANK: Final = "/web/theme.js"
PICTURES: Final = 45
PICTURES_A_CALL: Final = 15
JPEG_QUALITY: Final = 90
TAIL_S: Final = 0.5
AGE_IS_SHOWN: Final = "parseFloat(document.querySelector('#age-p50').textContent) > 0"
AGE_TIMEOUT_S: Final = 10.0
HTTP_TIMEOUT_S: Final = 10.0
# Otherwise Firefox rounds every instant to whole milliseconds, and more.
FIREFOX_PREFERENCES: Final = {"privacy.reduceTimerPrecision": False}


async def measure(settings: BrowserSettings, progress: Progress) -> list[BrowserReport]:
    """Every run of every browser, interleaved, each with a new server and a new browser."""
    found = [wanted_browser(name) for name in settings.browsers]
    run_once = _run_page if settings.door == "page" else _run
    pictures = _numbered(settings) if settings.page.camera == "clip" else _pictures(settings)
    reports = []
    for run in range(settings.runs):
        for browser in found:
            label = f"run {run + 1}/{settings.runs}, {browser.name}"

            def say(text: str, label: str = label) -> None:
                progress(f"{label}: {text}")

            say("starting the server")
            async with running(settings.url, settings.module_args()) as server:
                try:
                    reports.append(await run_once(settings, server, browser, pictures, say))
                except BrowserError as error:
                    raise PeerError(f"{browser.name}: {_one_line(error)}") from error
    return reports


def _pictures(settings: BrowserSettings) -> list[bytes]:
    """The beginning of the clip as JPEG."""
    clip = load_clip(settings.clip, settings.size_wh, settings.fps, 128 << 20)
    return [_jpeg(video_frame) for video_frame in clip.video_frames[:PICTURES]]


def _numbered(settings: BrowserSettings) -> list[bytes]:
    """The clip there and back as JPEG, each picture with its number as a bar code."""
    clip = load_clip(settings.clip, settings.size_wh, settings.fps, 128 << 20)
    count = len(clip.video_frames)
    pictures = []
    for number in range(2 * count - 2):
        video_frame = clip.picture(number)
        barcode.stamp(plane_view(video_frame, 0), barcode.Mark(0, number))
        pictures.append(_jpeg(video_frame))
    return pictures


def _jpeg(video_frame: "VideoFrame") -> bytes:
    bgr = video_frame.to_ndarray(format="bgr24")
    _, coded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return coded.tobytes()


async def _run(
    settings: BrowserSettings,
    server: RunningServer,
    browser: Browser,
    pictures: Sequence[bytes],
    progress: Progress,
) -> BrowserReport:
    timeout = aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S)
    async with (
        _opened(settings, browser, pictures) as page,
        aiohttp.ClientSession(timeout=timeout) as http,
    ):
        progress("preparing the page")
        await page.goto(server.url + BLANK)
        await _prepare(page, settings, pictures)
        version = await version_of(page, browser)
        progress("connecting")
        called_at_ns = now_ns()
        answer = await page.evaluate(f"sightlineBench.call({json.dumps(settings.plan())})")
        first_picture_ms = (now_ns() - called_at_ns) / NS_PER_MS
        if settings.codec not in ("auto", answer["codec"]):
            raise ServerError(f"the server answered with {answer['codec']}, not {settings.codec}")

        await pass_time(settings.warmup_s, "warming up", progress)
        browser_meter, server_meter = (
            UsageMeter(page.process_id, family=True),
            UsageMeter(server.pid),
        )
        before = await page.evaluate("sightlineBench.snapshot()")
        await pass_time(settings.seconds, "measuring", progress)
        after = await page.evaluate("sightlineBench.snapshot()")
        browser_usage, server_usage = browser_meter.read(), server_meter.read()
        stats = await _json(http, f"{server.url}/api/stats")
        session = await _session(http, server.url, answer.get("session"), stats)
        await asyncio.sleep(TAIL_S)
        log = await page.evaluate("sightlineBench.finish()")
    return _report(
        browser.name, version, answer, log, before, after, session, stats, first_picture_ms,
        browser_usage, server_usage,
    )  # fmt: skip


async def _run_page(
    settings: BrowserSettings,
    server: RunningServer,
    browser: Browser,
    pictures: Sequence[bytes],
    progress: Progress,
) -> BrowserReport:
    """Through the product's own page: what it shows beside what the bar codes say."""
    timeout = aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S)
    async with (
        _opened(settings, browser, pictures) as page,
        aiohttp.ClientSession(timeout=timeout) as http,
    ):
        progress("connecting")
        await page.goto(server.url + "/")
        version = await version_of(page, browser)
        await _prepare(page, settings, pictures)
        if settings.page.camera == "canvas":
            await page.evaluate(f"sightlineBench.replaceCamera({json.dumps(settings.plan())})")
        called_at_ns = now_ns()
        await page.click("#start")
        await page.wait_for("document.querySelector('#remote').videoWidth > 0")
        first_picture_ms = (now_ns() - called_at_ns) / NS_PER_MS
        told = await page.evaluate(
            f"sightlineBench.watchPage({settings.plan()['atMost']}, "
            f"{json.dumps(settings.page.camera)})"
        )
        if not told:
            raise PeerError(f"{browser.name}: does not tell when its camera captured a picture")
        await pass_time(settings.warmup_s, "warming up", progress)
        with contextlib.suppress(BrowserError):
            # It says so once it knows the server's clock, which on a busy machine takes a while.
            await page.wait_for(AGE_IS_SHOWN, AGE_TIMEOUT_S)
        browser_meter = UsageMeter(page.process_id, family=True)
        server_meter = UsageMeter(server.pid)
        before = await page.evaluate("sightlineBench.snapshot()")
        shown = await _pass_time_reading(settings.seconds, page, progress)
        after = await page.evaluate("sightlineBench.snapshot()")
        browser_usage, server_usage = browser_meter.read(), server_meter.read()
        stats = await _json(http, f"{server.url}/api/stats")
        await asyncio.sleep(TAIL_S)
        log = await page.evaluate("sightlineBench.finish()")
    session = (stats.get("sessions") or [{}])[-1]
    outgoing = ((session.get("peer") or {}).get("outgoing") or [{}])[0]
    answer = {"codec": outgoing.get("codec"), "encoder": outgoing.get("encoder")}
    return _report(
        browser.name, version, answer, log, before, after, session, stats, first_picture_ms,
        browser_usage, server_usage, shown,
    )  # fmt: skip


async def _pass_time_reading(
    duration_s: float, page: Page, progress: Progress
) -> dict[str, float | None]:
    """The age which the page shows, once a second; the medians of it."""
    shown: dict[str, list[float]] = {"p50": [], "p95": []}
    left_s = duration_s
    while left_s > 0:
        progress(f"measuring, {left_s:.0f} s to go")
        await asyncio.sleep(min(1.0, left_s))
        left_s -= 1.0
        for name, values in shown.items():
            text = (await page.text(f"#age-{name}")).removesuffix("ms").strip()
            if text.isdecimal():
                values.append(float(text))
    return {name: median(values) if values else None for name, values in shown.items()}


@asynccontextmanager
async def _opened(
    settings: BrowserSettings, browser: Browser, pictures: Sequence[bytes]
) -> AsyncIterator[Page]:
    """A page whose browser's own camera plays the pictures, where they are for that."""
    async with AsyncExitStack() as stack:
        clip = None
        if settings.page.camera == "clip":
            clip = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "camera.mjpeg"
            clip.write_bytes(b"".join(pictures))
        yield await stack.enter_async_context(
            open_page(browser, clip=clip, preferences=FIREFOX_PREFERENCES)
        )


async def _session(
    http: aiohttp.ClientSession, url: str, session: str | None, stats: dict[str, Any]
) -> dict[str, Any]:
    """What the server tells of the call, or of the publisher."""
    if session is not None:
        return await _json(http, f"{url}/sessions/{session}")
    return dict((stats.get("sessions") or [{}])[-1])


async def _prepare(page: Page, settings: BrowserSettings, pictures: Sequence[bytes]) -> None:
    """The bench's script, and what it draws."""
    script = SCRIPT.read_text(encoding="utf-8")
    await page.evaluate(f"(() => {{{script}\n}})()")
    if settings.page.camera == "clip":
        return
    for begin in range(0, len(pictures), PICTURES_A_CALL):
        addresses = [
            "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
            for jpeg in pictures[begin : begin + PICTURES_A_CALL]
        ]
        await page.evaluate(f"sightlineBench.addPictures({json.dumps(addresses)})")


async def _json(http: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """What the server tells of itself; a server that does not is measured all the same."""
    try:
        async with http.get(url) as response:
            told = await response.json(content_type=None)
    except (aiohttp.ClientError, ValueError, TimeoutError):
        return {}
    return told if isinstance(told, dict) else {}


def _report(
    browser: str,
    version: str,
    answer: dict[str, Any],
    log: dict[str, Any],
    before: dict[str, Any],
    after: dict[str, Any],
    session: dict[str, Any],
    stats: dict[str, Any],
    first_picture_ms: float,
    browser_usage: Usage | None,
    server_usage: Usage | None,
    shown: Mapping[str, float | None] | None = None,
) -> BrowserReport:
    seen = [Seen.from_row(row) for row in log["rows"]]
    incoming = [snapshot["stats"].get("inbound-rtp", {}) for snapshot in (before, after)]
    outgoing = [snapshot["stats"].get("outbound-rtp", {}) for snapshot in (before, after)]
    counted = {
        name: after["counts"][name] - before["counts"][name] for name in ("unreadable", "skipped")
    }
    return BrowserReport(
        browser=browser,
        version=version,
        unreadable=counted["unreadable"],
        slots_skipped=counted["skipped"],
        encode_ms=mean_between(outgoing, "totalEncodeTime", "framesEncoded"),
        jitter_buffer_ms=mean_between(incoming, "jitterBufferDelay", "jitterBufferEmittedCount"),
        codec={
            "name": answer.get("codec"),
            "server_encoder": answer.get("encoder") or _shared_encoder(stats),
            "encoder": outgoing[1].get("encoderImplementation"),
            "decoder": incoming[1].get("decoderImplementation"),
            "width": incoming[1].get("frameWidth"),
            "height": incoming[1].get("frameHeight"),
            "sent_kbps": rate_between(outgoing, "bytesSent", "timestamp"),
            "received_kbps": rate_between(incoming, "bytesReceived", "timestamp"),
            "limited_by": outgoing[1].get("qualityLimitationReason"),
            "frames_encoded": outgoing[1].get("framesEncoded"),
            "frames_dropped": incoming[1].get("framesDropped"),
            "freezes": incoming[1].get("freezeCount"),
        },
        server_ms=session.get("server_ms"),
        server_stages_ms=stats.get("stages_ms") or {},
        browser_cpu_percent=None if browser_usage is None else browser_usage.cpu_percent,
        server_cpu_percent=None if server_usage is None else server_usage.cpu_percent,
        first_picture_ms=first_picture_ms,
        shown_age_ms=shown,
        **picture_report(seen, log["drawnAtMs"], before["atMs"], after["atMs"]),
    )


def _shared_encoder(stats: dict[str, Any]) -> str | None:
    """What encodes for viewers by WHEP."""
    for stream in stats.get("streams") or []:
        for encoding in stream.get("encodings") or []:
            return str(encoding["fanout"]["encoder"])
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Calls the server from real browsers, headless: a canvas camera with the time as a bar "
        "code, measured until the page is told that the returned picture is presented."
    )
    add = parser.add_argument
    add("--browser", choices=(*BROWSERS, "both"), default="both", help="which (both)")
    # auto: what browser and server agree on
    add_pictures(parser, codecs=("auto", *CODECS))
    add_mode(parser)
    add_time(parser, warmup=4.0)
    add_runs(parser, "runs, each with a new server and browser")
    add_server(parser)
    add_url(parser)
    add(
        "--page",
        dest="door",
        action="store_const",
        const="page",
        default="call",
        help="through the product's own page",
    )
    add(
        "--whep",
        dest="door",
        action="store_const",
        const="whep",
        help="published by WHIP and watched by WHEP, both in the browser",
    )
    add(
        "--camera",
        choices=("canvas", "track", "clip"),
        help="captured with the next repaint; handed over at once; or the browser's fake camera, "
        "which plays the clip; the last two Chromium only (canvas, and clip with --page)",
    )
    add(
        "--jitter-target-ms",
        type=float,
        default=0.0,
        metavar="MS",
        help="jitterBufferTarget of the page; below 0 leaves the browser's own (0)",
    )
    add_budget(parser, "the slowest browser")
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    settings = BrowserSettings(
        **calls(options),
        browsers=BROWSERS if options.browser == "both" else (options.browser,),
        mode=options.mode,
        seconds=options.seconds,
        warmup_s=options.warmup,
        runs=options.runs,
        url=options.url,
        door=options.door,
        budget_ms=options.budget_ms,
        page=PageSettings(
            camera=options.camera or ("clip" if options.door == "page" else "canvas"),
            jitter_target_ms=options.jitter_target_ms,
        ),
    )
    make_record = record_begun("browser")
    reports = run_async(measure(settings, show_progress))
    summary = summarise(reports)
    record = make_record(settings.to_record(), summary, plain(reports))
    width, height = settings.size_wh
    way = settings.codec if settings.door == "call" else settings.door
    name = f"{options.browser}-{width}x{height}-{way}"
    over, verdict = over_budget(worst_p95_ms(summary), settings.budget_ms)
    text = f"{describe(summary, record.settings)}\n{verdict}"
    publish(record, options.out, name, text, as_json=options.json)
    return OVER_BUDGET if over else OK
