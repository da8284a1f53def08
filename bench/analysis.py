"""What is made of the boxes: tracking, zones and masks a picture, events written and searched.

Tracking and zones are measured with objects that wander about, on one thread; events go through
the server's own journal into a real database, which `--store` names.
"""

import argparse
import asyncio
import math
import random
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import av
import numpy as np

from bench.command import OK, publish, record_begun, run_async, show_progress
from bench.errors import ServerError, UsageError
from bench.options import add_output
from bench.record import plain
from bench.statistics import Distribution, distribution
from server.analysis.events import KINDS, Entry, Event, Search, new_event_id
from server.analysis.masks import Cover
from server.analysis.scene import Happening, Scene
from server.analysis.tracking import Tracker
from server.analysis.zones import Layout, parse_layout
from server.clock import NS_PER_S, now_ns, ns_to_ms, unix_ms
from server.detections import Detections
from server.errors import SightlineError
from server.frame import Frame, Stamps
from server.history.journal import Journal
from server.settings import StoreSettings

SIZE_WH: Final = (640, 480)
INTERVAL_NS: Final = NS_PER_S // 15
CONFIDENCE: Final = 0.35
NAMES: Final = ("person", "car", "dog", "truck")
PLACES: Final = ("room", "gate", "door", "")
STREAMS: Final = 16
BATCH: Final = 250
REPEATS: Final = 9
BEGAN_UNIX_MS: Final = 1_800_000_000_000
DEADLINE_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class AnalysisReport:
    """Milliseconds: of one picture, of one search, and from the picture to the commit."""

    track_ms: Distribution | None
    look_ms: Distribution | None
    mask_ms: dict[str, Distribution | None]
    write_ms: dict[str, float]
    search_ms: dict[str, Distribution | None]
    fill_events_per_s: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    add = parser.add_argument
    add("--objects", type=int, default=20, help="in each picture (20)")
    add("--pictures", type=int, default=300, help="measured pictures (300)")
    add("--events", type=int, default=100_000, help="in the database when searching (100000)")
    add("--written", type=int, default=200, help="events whose way to the disk is timed (200)")
    add("--store", default="", metavar="URL", help="of an empty database (a new SQLite file)")
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    for name, low, high in (
        ("objects", 1, 500),
        ("pictures", 10, 100_000),
        ("events", 0, 10_000_000),
        ("written", 1, 100_000),
    ):
        if not low <= getattr(options, name) <= high:
            raise UsageError(f"--{name}: {getattr(options, name)} is outside {low}..{high}")
    make_record = record_begun("analysis")
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
        url = options.store or f"sqlite:///{folder}/events.db"
        try:
            report = run_async(measure(options, url))
        except SightlineError as error:
            raise ServerError(str(error)) from None
    settings = {
        "objects": options.objects,
        "pictures": options.pictures,
        "events": options.events,
        "written": options.written,
        "database": url.partition(":")[0],
    }
    record = make_record(settings, plain(report), [])
    publish(record, options.out, settings["database"], describe(report), as_json=options.json)
    return OK


async def measure(options: argparse.Namespace, url: str) -> AnalysisReport:
    """Raises `SightlineError` for a database that cannot be used."""
    from server.history.store.database import parse_url
    from server.history.store.store import Store

    store = Store(parse_url(url), "bench:0")
    await store.open()
    try:
        begun_ns = now_ns()
        await _fill(store, options.events)
        filled_s = (now_ns() - begun_ns) / NS_PER_S
        search_ms = {name: await _search(store, wish) for name, wish in _wishes().items()}
    finally:
        await store.close()
    return AnalysisReport(
        track_ms=_track(options.objects, options.pictures),
        look_ms=_look(options.objects, options.pictures),
        mask_ms={kind: _mask(kind, options.pictures) for kind in ("fill", "blur")},
        write_ms=await _write(lambda: Store(parse_url(url), "bench:1"), options.written),
        search_ms=search_ms,
        fill_events_per_s=options.events / filled_s,
    )


# --- pictures ---


def _wanderers(count: int, pictures: int) -> list[Detections]:
    rng = np.random.default_rng(1)
    places = rng.uniform(0.1, 0.9, (count, 2)) * SIZE_WH
    steps = rng.uniform(-3, 3, (count, 2))
    half = rng.uniform(10, 40, (count, 2))
    found = []
    for _ in range(pictures):
        places = (places + steps) % SIZE_WH
        noise = rng.normal(0, 1, (count, 4))
        xyxy = np.concatenate((places - half, places + half), axis=1) + noise
        confidence = np.sort(rng.uniform(0.2, 0.9, count))[::-1]
        found.append(
            Detections(
                xyxy.astype(np.float32),
                confidence.astype(np.float32),
                np.zeros(count, np.int32),
                SIZE_WH,
            )
        )
    return found


def _timed(step: Callable[[int], object], count: int, warmup: int = 5) -> Distribution | None:
    durations = []
    for number in range(count + warmup):
        begun_ns = now_ns()
        step(number)
        if number >= warmup:
            durations.append(ns_to_ms(now_ns() - begun_ns))
    return distribution(durations)


def _track(objects: int, pictures: int) -> Distribution | None:
    tracker, seen = Tracker(), _wanderers(objects, pictures + 5)
    return _timed(
        lambda n: tracker.update(seen[n], NS_PER_S + n * INTERVAL_NS, CONFIDENCE), pictures
    )


def _circle(x: float, y: float, radius: float, corners: int) -> list[list[float]]:
    turns = [2 * math.pi * number / corners for number in range(corners)]
    return [[x + radius * math.cos(turn), y + radius * math.sin(turn)] for turn in turns]


def _layout() -> Layout:
    """Four zones that overlap, three lines, and a class."""
    return parse_layout(
        {
            "zones": [
                {"id": f"zone{n}", "points": _circle(0.3 + 0.1 * n, 0.5, 0.2, 16), "dwell_s": 5}
                for n in range(4)
            ],
            "lines": [
                {"id": f"line{n}", "points": [[0.2 + 0.2 * n, 0], [0.25 + 0.2 * n, 1]]}
                for n in range(3)
            ],
            "appear": ["person"],
        }
    )


def _look(objects: int, pictures: int) -> Distribution | None:
    tracker, scene = Tracker(), Scene("bench", _layout(), None)
    picture = av.VideoFrame(*SIZE_WH, "yuv420p")
    seen = [
        tracker.update(found, NS_PER_S + n * INTERVAL_NS, CONFIDENCE).select(CONFIDENCE)
        for n, found in enumerate(_wanderers(objects, pictures + 5))
    ]

    def step(number: int) -> None:
        stamps = Stamps(received_at_ns=NS_PER_S + number * INTERVAL_NS)
        scene.look(Frame(picture, number, 0, stamps), seen[number], NAMES)

    return _timed(step, pictures)


def _mask(kind: str, pictures: int) -> Distribution | None:
    shape = {"id": "mask", "points": _circle(0.3, 0.3, 0.2, 8), "kind": kind}
    cover = Cover(parse_layout({"masks": [shape]}).masks)
    picture = av.VideoFrame(*SIZE_WH, "yuv420p")
    return _timed(lambda _: cover.apply(picture), pictures)


# --- events ---


def _event(rng: random.Random, at_unix_ms: int) -> Event:
    return Event(
        id=new_event_id(at_unix_ms),
        stream=f"camera{rng.randrange(STREAMS)}",
        kind=rng.choice(KINDS),
        class_name=rng.choice(NAMES),
        track_id=rng.randrange(1000),
        zone=rng.choice(PLACES),
        started_unix_ms=at_unix_ms,
        ended_unix_ms=at_unix_ms + 500,
        score=0.5,
        box=(0.1, 0.2, 0.3, 0.4),
    )


async def _fill(store: Any, count: int) -> None:
    rng = random.Random(1)
    for begin in range(0, count, BATCH):
        numbers = range(begin, min(begin + BATCH, count))
        await store.write([Entry(_event(rng, BEGAN_UNIX_MS + 1000 * n)) for n in numbers])
        if begin % (40 * BATCH) == 0:
            show_progress(f"{count - begin} events to go")


def _wishes() -> Mapping[str, Search]:
    return {
        "newest": Search(),
        "stream": Search(stream="camera3"),
        "stream, class, zone": Search(stream="camera3", class_name="dog", zone="door"),
        "class that never was": Search(class_name="cat"),
        "an hour of a zone": Search(
            zone="gate",
            since_unix_ms=BEGAN_UNIX_MS + 10_000_000,
            until_unix_ms=BEGAN_UNIX_MS + 13_600_000,
        ),
        "own streams, last page": Search(
            patterns=("camera1*",), after=(BEGAN_UNIX_MS + 1_000_000, "f" * 32)
        ),
    }


async def _search(store: Any, wish: Search) -> Distribution | None:
    durations = []
    for _ in range(REPEATS):
        begun_ns = now_ns()
        await store.search(wish)
        durations.append(ns_to_ms(now_ns() - begun_ns))
    # The first has to read the file.
    return distribution(durations[1:])


async def _write(make_store: Callable[[], Any], count: int) -> dict[str, float]:
    """From the picture to the commit, pictures of events made on the way; 20 events a second."""
    told, all_told = 0, asyncio.Event()

    def post(stream: str, message: Mapping[str, Any]) -> None:
        nonlocal told
        told += 1
        if told == count:
            all_told.set()

    journal = Journal(StoreSettings(), make_store, post, eager=True)
    journal.start()
    rng = random.Random(2)
    picture = Frame(av.VideoFrame(*SIZE_WH, "yuv420p"), 0, 0, Stamps())
    try:
        async with asyncio.timeout(DEADLINE_S):
            while journal.store is None:  # noqa: ASYNC110 - opened by itself, with no event
                await asyncio.sleep(0.01)
            for _ in range(count):
                event = _event(rng, round(unix_ms()))
                journal.happened(Happening(event, True, picture, now_ns()))
                await asyncio.sleep(0.05)
            await all_told.wait()
    except TimeoutError:
        raise ServerError(f"only {told} of {count} events were written") from None
    finally:
        await journal.close(5.0)
    return journal.statistics().write_ms.to_json()


def describe(report: AnalysisReport) -> str:
    """The report for a person."""
    rows: dict[str, Distribution | None] = {
        "tracking, a picture": report.track_ms,
        "zones and lines, a picture": report.look_ms,
        **{f"mask ({kind}), a picture": ms for kind, ms in report.mask_ms.items()},
        **{f"search: {name}": ms for name, ms in report.search_ms.items()},
    }
    lines = [f"{'ms':32}{'p50':>9}{'p95':>9}{'max':>9}"]
    lines += [
        f"{name:32}{ms.p50:>9.2f}{ms.p95:>9.2f}{ms.max:>9.2f}"
        for name, ms in rows.items()
        if ms is not None
    ]
    p50, p95, most = (report.write_ms[name] for name in ("p50", "p95", "max"))
    lines.append(f"{'event on the disk':32}{p50:>9.2f}{p95:>9.2f}{most:>9.2f}")
    lines.append(f"written in bulk: {report.fill_events_per_s:.0f} events/s")
    return "\n".join(lines)
