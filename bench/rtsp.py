"""RTSP cameras: how old their picture is at a WHEP viewer, and what many of them cost.

Parts: `glass` (one camera with a bar code in its picture, through RTSP, the detector and WHEP, to
the viewer's eye) and `many` (so many streams at once with the detector: rate, processor time, and
whether memory or threads grow). The camera is GStreamer's RTSP server of Debian, in a process of
its own; `many` is one camera that is fetched so often.
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import json
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from bench import barcode
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
from bench.crowd import SeeingViewer
from bench.errors import PeerError, ServerError, UsageError, check_ranges
from bench.options import CODECS, add_budget, add_clip, add_output, add_server, add_time, size
from bench.planes import plane_view
from bench.record import plain
from bench.server_process import TAKES_EVERY_CALL, RunningServer, started
from bench.slope import Slope, slope
from bench.statistics import Distribution, distribution
from bench.usage import UsageMeter
from server.clock import NS_PER_MS, NS_PER_S, now_ns

PARTS: Final = ("glass", "many")
TRANSPORTS: Final = {"tcp": "rtsp", "udp": "rtsp+udp"}
SYSTEM_PYTHON: Final = "/usr/bin/python3"
CAMERA: Final = Path(__file__).with_name("rtsp_camera.py")
CAMERA_TIMEOUT_S: Final = 10.0
FIRST_PICTURE_TIMEOUT_S: Final = 30.0
HTTP_TIMEOUT_S: Final = 15.0
TAIL_S: Final = 0.5
NS_PER_US: Final = 1000


@dataclass(frozen=True, slots=True)
class RtspSettings:
    """One measurement. Checked when made; raises `UsageError`."""

    parts: tuple[str, ...] = PARTS
    transport: str = "tcp"
    fps: float = 30.0
    """Of the camera in `glass`."""
    streams: int = 8
    many_fps: float = 10.0
    size_wh: tuple[int, int] = (640, 360)
    codec: str = "H264"
    clip: Path | None = None
    model: str | None = None
    detector: bool = True
    server_args: tuple[str, ...] = ()
    seconds: float = 20.0
    warmup_s: float = 5.0
    budget_ms: float | None = None

    def __post_init__(self) -> None:
        check_ranges(
            ("fps", self.fps, 1, 120),
            ("many-fps", self.many_fps, 1, 120),
            ("streams", self.streams, 1, 256),
            ("width", self.size_wh[0], 128, 4096),
            ("height", self.size_wh[1], 96, 2304),
            ("seconds", self.seconds, 0.5, 24 * 3600),
            ("warmup", self.warmup_s, 0, 600),
        )
        if any(side % 2 for side in self.size_wh):
            raise UsageError("--size: even sides are wanted")

    def to_record(self) -> dict[str, Any]:
        return {
            "parts": list(self.parts),
            "transport": self.transport,
            "fps": self.fps,
            "streams": self.streams,
            "many_fps": self.many_fps,
            "size": f"{self.size_wh[0]}x{self.size_wh[1]}",
            "codec": self.codec,
            "clip": "photographs" if self.clip is None else self.clip.name,
            "model": None if self.model is None else Path(self.model).name,
            "detector": self.detector,
            "server_args": list(self.server_args),
            "seconds": self.seconds,
            "warmup_s": self.warmup_s,
        }


@dataclass(frozen=True, slots=True)
class Many:
    """What many streams came to."""

    streams: int
    fps_slowest: float
    fps_fastest: float
    inferred_per_s: float
    cpu_percent: float
    """Of the server's process; 100 is one core."""
    rss_mib_begin: float
    rss_mib_end: float
    rss_mib_per_hour: Slope | None
    threads_begin: int
    threads_end: int
    dropped: dict[str, int]
    reconnects: int


@dataclass(slots=True)
class Found:
    """What the parts found; None where they were not run."""

    glass_ms: Distribution | None = None
    glass_pictures: int = 0
    unreadable: int = 0
    many: Many | None = None
    samples: list[dict[str, float]] = field(default_factory=list)


class Photographer(threading.Thread):
    """Writes pictures with a bar code into the camera's fifo, at their rate, until stopped."""

    def __init__(self, clip: Clip, fps: float, fifo: Path, handed_at_ns: list[int]) -> None:
        super().__init__(name="photographer", daemon=True)
        self._clip = clip
        self._fps = fps
        self._fifo = fifo
        self._handed_at_ns = handed_at_ns
        self._stop_wanted = threading.Event()

    def stop(self) -> None:
        """The camera is to be gone by then: it may be waiting for the fifo."""
        self._stop_wanted.set()
        self.join(5.0)

    def run(self) -> None:
        with contextlib.suppress(BrokenPipeError), self._fifo.open("wb", buffering=0) as fifo:
            began_at_ns, number = now_ns(), 0
            while not self._stop_wanted.is_set():
                due_ns = began_at_ns + round(number * NS_PER_S / self._fps)
                self._stop_wanted.wait(max(0, due_ns - now_ns()) / NS_PER_S)
                picture = self._clip.picture(number)
                at_ns = now_ns()
                self._handed_at_ns.append(at_ns)
                barcode.stamp(plane_view(picture, 0), barcode.Mark(at_ns // NS_PER_US, number))
                data = b"".join(plane_view(picture, index).tobytes() for index in range(3))
                view = memoryview(data)
                while view:
                    view = view[fifo.write(view) :]
                number += 1


@asynccontextmanager
async def rtsp_camera(**options: object) -> AsyncIterator[str]:
    """An RTSP camera, by its host, port and path; raises `PeerError` where it cannot be."""
    arguments = [f"{name}={value}" for name, value in options.items()]
    process = await asyncio.create_subprocess_exec(
        SYSTEM_PYTHON,
        str(CAMERA),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(CAMERA_TIMEOUT_S):
            line = await process.stdout.readline()
        if not line:
            why = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
            raise PeerError(
                "no RTSP camera (apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 "
                "gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly): "
                + (why[-1] if why else "it ended")
            )
        yield f"127.0.0.1:{json.loads(line)['port']}/camera"
    except TimeoutError:
        raise PeerError("the RTSP camera does not start") from None
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Bench:
    """The parts, one after another, each with a camera and a server of its own."""

    def __init__(self, settings: RtspSettings, progress: Progress) -> None:
        self._settings = settings
        self._progress = progress

    async def measure(self) -> Found:
        found = Found()
        if "glass" in self._settings.parts:
            await self._glass(found)
        if "many" in self._settings.parts:
            await self._many(found)
        return found

    # --- parts ---

    async def _glass(self, found: Found) -> None:
        settings = self._settings
        clip = load_clip(settings.clip, settings.size_wh, settings.fps, MAX_BYTES)
        handed_at_ns: list[int] = []
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            fifo = folder / "pictures"
            os.mkfifo(fifo)
            photographer = Photographer(clip, settings.fps, fifo, handed_at_ns)
            stack.callback(photographer.stop)
            path = await stack.enter_async_context(
                rtsp_camera(fps=round(settings.fps), size=self._size(), fifo=fifo, gop=60)
            )
            photographer.start()
            executor = concurrent.futures.ThreadPoolExecutor(2, "bench-encode")
            stack.callback(executor.shutdown, wait=False)
            server, http = await self._server(stack)
            await self._add(http, server, "camera", path)
            viewer = SeeingViewer("viewer", settings.codec, executor, handed_at_ns)
            stack.push_async_callback(viewer.close, http)
            await viewer.open(http, f"{server.url}/whep/camera", patiently=True)
            await viewer.first_picture_ms(FIRST_PICTURE_TIMEOUT_S)
            await pass_time(settings.warmup_s, "RTSP to WHEP: warming up", self._progress)
            begin_at_ns = now_ns()
            await pass_time(settings.seconds, "RTSP to WHEP: measuring", self._progress)
            end_at_ns = now_ns()
            await asyncio.sleep(TAIL_S)
            ages = [
                (picture.read_at_ns - picture.handed_at_ns) / NS_PER_MS
                for picture in viewer.eye.returned
                if begin_at_ns <= picture.handed_at_ns < end_at_ns
            ]
            found.glass_ms, found.glass_pictures = distribution(ages), len(ages)
            found.unreadable = viewer.eye.statistics().unreadable

    async def _many(self, found: Found) -> None:
        settings = self._settings
        async with AsyncExitStack() as stack:
            path = await stack.enter_async_context(
                rtsp_camera(fps=round(settings.many_fps), size=self._size(), gop=20)
            )
            server, http = await self._server(stack)
            names = [f"camera-{number}" for number in range(settings.streams)]
            for name in names:
                await self._add(http, server, name, path)
            await self._all_live(http, server, names)
            await pass_time(
                settings.warmup_s, f"{settings.streams} streams: warming up", self._progress
            )
            meter, begin_at_ns = UsageMeter(server.pid), now_ns()
            first = await self._look(http, server)
            samples = [_sample(first, 0.0)]
            end_at_ns = begin_at_ns + round(settings.seconds * NS_PER_S)
            while (left_s := (end_at_ns - now_ns()) / NS_PER_S) > 0:
                step_s = min(max(1.0, settings.seconds / 200), left_s)
                await pass_time(
                    step_s, f"{settings.streams} streams: {left_s:.0f} s to go", self._progress
                )
                look = await self._look(http, server)
                samples.append(_sample(look, (now_ns() - begin_at_ns) / NS_PER_S))
            usage, elapsed_s = meter.read(), (now_ns() - begin_at_ns) / NS_PER_S
            if usage is None:
                raise ServerError("the server is gone")
            found.samples = samples
            found.many = many_of(first, look, samples, usage.cpu_percent, elapsed_s)

    # --- small parts ---

    def _size(self) -> str:
        return f"{self._settings.size_wh[0]}x{self._settings.size_wh[1]}"

    async def _server(self, stack: AsyncExitStack) -> tuple[RunningServer, aiohttp.ClientSession]:
        settings = self._settings
        model = ["--model", settings.model] if settings.model else []
        if not settings.detector:
            model = ["--model", "none"]
        self._progress("starting the server")
        command = ["server", "--host", "127.0.0.1", "--source-hosts", "127.0.0.1", "--demo", "off"]
        server = await stack.enter_async_context(
            started(
                [
                    *command,
                    *TAKES_EVERY_CALL,
                    f"--max-streams={max(32, settings.streams)}",
                    *model,
                    *settings.server_args,
                ]
            )
        )
        timeout = aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S)
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        return server, http

    async def _add(
        self, http: aiohttp.ClientSession, server: RunningServer, name: str, path: str
    ) -> None:
        source = f"{TRANSPORTS[self._settings.transport]}://{path}"
        body = {"name": name, "source": source}
        async with http.post(f"{server.url}/api/streams", json=body) as reply:
            if reply.status != 201:
                raise ServerError(f"the server took no source: {await reply.text()}")

    async def _all_live(
        self, http: aiohttp.ClientSession, server: RunningServer, names: Sequence[str]
    ) -> None:
        try:
            async with asyncio.timeout(FIRST_PICTURE_TIMEOUT_S):
                while True:
                    streams = (await self._look(http, server))["streams"]
                    if sum(stream["live"] for stream in streams) == len(names):
                        return
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise PeerError("not every stream has a picture") from None

    async def _look(self, http: aiohttp.ClientSession, server: RunningServer) -> dict[str, Any]:
        async with http.get(f"{server.url}/api/stats") as reply:
            stats: dict[str, Any] = await reply.json()
        async with http.get(f"{server.url}/api/streams") as reply:
            return {**stats, "streams": (await reply.json())["streams"]}


# --- what was found ---


def _sample(look: dict[str, Any], at_s: float) -> dict[str, float]:
    process = look["process"]
    return {
        "at_s": round(at_s, 2),
        "rss_mib": round(process["resident_mib"], 2),
        "threads": process["threads"],
        "open_files": process["open_files"],
        "inferred": look["inference"]["inferred"],
    }


def many_of(
    first: dict[str, Any],
    last: dict[str, Any],
    samples: Sequence[dict[str, float]],
    cpu_percent: float,
    elapsed_s: float,
) -> Many:
    """From the first and the last look at the server, and the samples in between."""
    before = {stream["name"]: stream for stream in first["streams"]}
    rates = [
        (stream["frames"] - before[stream["name"]]["frames"]) / elapsed_s
        for stream in last["streams"]
    ]
    dropped: dict[str, int] = {}
    for stream in last["streams"]:
        for reason, count in stream["pull"]["dropped"].items():
            earlier = before[stream["name"]]["pull"]["dropped"].get(reason, 0)
            dropped[reason] = dropped.get(reason, 0) + count - earlier
    inferred = last["inference"]["inferred"] - first["inference"]["inferred"]
    return Many(
        streams=len(rates),
        fps_slowest=round(min(rates), 2),
        fps_fastest=round(max(rates), 2),
        inferred_per_s=round(inferred / elapsed_s, 1),
        cpu_percent=cpu_percent,
        rss_mib_begin=samples[0]["rss_mib"],
        rss_mib_end=samples[-1]["rss_mib"],
        rss_mib_per_hour=slope(
            [sample["at_s"] for sample in samples], [sample["rss_mib"] for sample in samples]
        ),
        threads_begin=int(samples[0]["threads"]),
        threads_end=int(samples[-1]["threads"]),
        dropped=dropped,
        reconnects=sum(stream["pull"]["connects"] - 1 for stream in last["streams"]),
    )


def summary_of(found: Found) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    if found.glass_pictures or found.glass_ms is not None:
        summary["glass_ms"] = found.glass_ms
        summary["unreadable"] = found.unreadable
    if found.many is not None:
        summary["many"] = found.many
    return plain(summary)  # type: ignore[no-any-return]


def describe(found: Found) -> str:
    """For a person."""
    lines = []
    if found.glass_ms is not None:
        ms = found.glass_ms
        lines.append(
            f"RTSP to WHEP, glass to glass: p50 {ms.p50:.1f}, p95 {ms.p95:.1f}, "
            f"p99 {ms.p99:.1f} ms, {ms.count} pictures"
        )
    if (many := found.many) is not None:
        growth = many.rss_mib_per_hour
        told = "too short to tell" if growth is None else f"{growth.per_hour:+.0f} MiB/h"
        lines += [
            f"{many.streams} streams: {many.fps_slowest:g} to {many.fps_fastest:g} fps shown, "
            f"{many.inferred_per_s:g} pictures/s looked at, server {many.cpu_percent:g} % CPU",
            f"memory {many.rss_mib_begin:g} to {many.rss_mib_end:g} MiB ({told}), threads "
            f"{many.threads_begin} to {many.threads_end}, dropped {many.dropped}, "
            f"{many.reconnects} reconnects",
        ]
    return "\n".join(lines) or "nothing came back"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    add = parser.add_argument
    add("--part", choices=PARTS, action="append", help="only this; repeatable (all)")
    add("--transport", choices=tuple(TRANSPORTS), default="tcp", help="of RTSP (tcp)")
    add("--fps", type=float, default=30.0, help="pictures per second of the camera in glass (30)")
    add("--streams", type=int, default=8, metavar="N", help="how many at once in many (8)")
    add("--many-fps", type=float, default=10.0, help="pictures per second of each in many (10)")
    add("--size", type=size, default=(640, 360), metavar="WxH", help="picture size (640x360)")
    add("--codec", choices=CODECS, default=CODECS[0], help=f"to the viewer ({CODECS[0]})")
    add_clip(parser)
    add_server(parser)
    add_time(parser, seconds=20.0, warmup=5.0)
    add_budget(parser, "glass to glass")
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    settings = RtspSettings(
        parts=tuple(options.part or PARTS),
        transport=options.transport,
        fps=options.fps,
        streams=options.streams,
        many_fps=options.many_fps,
        size_wh=options.size,
        codec=options.codec,
        clip=options.clip,
        model=options.model,
        detector=not options.no_detector,
        server_args=tuple(options.server_arg),
        seconds=options.seconds,
        warmup_s=options.warmup,
        budget_ms=options.budget_ms,
    )

    async def measure() -> Found:
        return await Bench(settings, show_progress).measure()

    make_record = record_begun("rtsp")
    found = run_async(measure())
    record = make_record(settings.to_record(), summary_of(found), [plain(found)])
    p95 = found.glass_ms.p95 if found.glass_ms is not None else None
    over, sentence = over_budget(p95, settings.budget_ms)
    text = "\n".join(part for part in (describe(found), sentence) if part)
    name = "-".join((*settings.parts, settings.transport))
    publish(record, options.out, name, text, as_json=options.json)
    return OVER_BUDGET if over else OK
