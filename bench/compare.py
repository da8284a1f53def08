"""Side by side with what a user would take instead: same client, clip, model, threads, machine.

Rounds: in each, every server is started, called by the same number of clients, measured and ended,
one after another, each round beginning with another one. A ratio is taken within a round, so that
what the machine does otherwise weighs on both sides; the figure is the median of the rounds.
"""

import argparse
import asyncio
import concurrent.futures
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import cv2
import numpy as np

from bench.clip import MAX_BYTES, Clip, load_clip
from bench.command import (
    NOT_MEASURED,
    OK,
    OVER_BUDGET,
    Progress,
    pass_time,
    publish,
    record_begun,
    run_async,
    show_progress,
)
from bench.compare_report import describe, detections_of, summarise, too_close
from bench.errors import BenchError, ServerError, UsageError
from bench.floor import measure_apart
from bench.glass import (
    FIRST_PICTURE_TIMEOUT_S,
    HTTP_TIMEOUT_S,
    PHASE_STEP,
    PICTURES_KEPT,
    TAIL_S,
    GlassSettings,
    measure_run,
    server_statistics,
)
from bench.jpeg_peer import Answered, JpegPeer
from bench.options import add_engine, add_output, add_pictures, add_time
from bench.peer_environments import PeerEnvironment
from bench.record import plain
from bench.seen_boxes import Seen, clear_boxes, halved, look_at, overlap
from bench.server_process import RunningServer, started
from bench.subjects import BY_DEFAULT, LEFT_OUT, OURS, SUBJECTS, Engine, Subject
from bench.summary import RunReport
from bench.usage import UsageMeter
from bench.window import Window
from server.clock import NS_PER_S, now_ns

if TYPE_CHECKING:
    from av import VideoFrame

    from bench.peer_servers.finder import Finder

# What one measurement takes beside its window and its warm-up: start, connecting, tail, end.
OVERHEAD_S: Final = 6.0
# A server whose queue grew in the window may need this long to give its pictures back.
LONGEST_TAIL_S: Final = 12.0
# Pictures of each server that are looked at, over all rounds: enough to be sure, few to hold.
LOOKED_AT: Final = 24
SAME_BOX: Final = 0.5

Pair = tuple["VideoFrame", "VideoFrame"]


@dataclass(frozen=True, slots=True)
class CompareSettings:
    """One comparison. Checked when made; raises `UsageError`."""

    clients: tuple[int, ...] = (1, 3, 6)
    against: tuple[str, ...] = BY_DEFAULT
    glass: GlassSettings = field(default_factory=GlassSettings)
    """Of each measurement; its clients and runs are set by the comparison."""
    runs: int = 3
    engine: Engine = field(default_factory=Engine)
    peer_engine: Engine = field(default_factory=Engine)
    floor: bool = True
    within_s: float | None = None
    """No round begins when it would probably end later: for a build that has so long."""
    pictures: Path | None = None
    """Where a returned picture of each server goes, for people to look at."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.against) - SUBJECTS.keys())
        if unknown or OURS in self.against:
            known = ", ".join(name for name in SUBJECTS if name != OURS)
            raise UsageError(f"--against: {', '.join(unknown) or OURS} is none of {known}")
        if not self.clients or not all(1 <= count <= 64 for count in self.clients):
            raise UsageError("--clients: each is 1 to 64, as in 1,3,6")
        if not 1 <= self.runs <= 100:
            raise UsageError(f"--runs: {self.runs} is outside 1..100")

    def subjects(self) -> list[Subject]:
        return [SUBJECTS[name] for name in (OURS, *dict.fromkeys(self.against))]

    def engine_of(self, subject: Subject) -> Engine:
        return self.engine if subject.module == "server" else self.peer_engine

    def to_record(self) -> dict[str, Any]:
        told = self.glass.to_record()
        for name in ("clients", "runs", "against", "server_args", "model", "detector"):
            del told[name]
        engines = {}
        for name, engine in (("engine", self.engine), ("peer_engine", self.peer_engine)):
            model = None if engine.model is None else Path(engine.model).name
            engines[name] = {**asdict(engine), "model": model}
        return {
            **told,
            "clients": list(self.clients),
            "against": list(self.against),
            "runs": self.runs,
            **engines,
            "subjects": {s.name: {"title": s.title, "how": s.how} for s in self.subjects()},
            "left_out": dict(LEFT_OUT),
        }


class Looked:
    """What came back from each server, kept until nothing is measured any more."""

    def __init__(self) -> None:
        self.pairs: dict[str, list[Pair]] = {}
        self.answered: dict[str, list[Answered]] = {}

    def take(self, subject: str, pairs: Sequence[Pair]) -> None:
        kept = self.pairs.setdefault(subject, [])
        kept += pairs[: LOOKED_AT - len(kept)]

    def take_answers(self, subject: str, answered: Sequence[Answered]) -> None:
        kept = self.answered.setdefault(subject, [])
        kept += answered[: LOOKED_AT - len(kept)]


async def compare(settings: CompareSettings, progress: Progress) -> dict[str, Any]:
    """All rounds; returns `runs`, `floor`, `environments` and `detections` for the record.

    A server that cannot be made or measured is told in the record and left out of the ratios.
    Raises `BenchError` when ours never could be.
    """
    environments, failures = await _environments(settings, progress)
    subjects = [subject for subject in settings.subjects() if subject.name in environments]
    if len(subjects) < 2:
        raise ServerError(f"nothing to compare with: {failures}")
    floor = await _floor(settings, progress) if settings.floor else None
    most = max(settings.clients)
    clip = load_clip(
        settings.glass.clip, settings.glass.size_wh, settings.glass.fps, MAX_BYTES // most
    )
    clips = [clip, *(clip.copy() for _ in range(most - 1))]
    looked = Looked()
    runs: list[dict[str, Any]] = []
    total = len(settings.clients) * settings.runs * len(subjects)
    each_s = settings.glass.seconds + settings.glass.warmup_s + OVERHEAD_S
    begun_at_ns, longest_s = now_ns(), 0.0
    for count, turn in product(settings.clients, range(settings.runs)):
        elapsed_s = (now_ns() - begun_at_ns) / NS_PER_S
        if runs and settings.within_s is not None and elapsed_s + longest_s > settings.within_s:
            progress(f"no time for another round within {settings.within_s:g} s")
            break
        for subject in [*subjects[turn % len(subjects) :], *subjects[: turn % len(subjects)]]:
            left_min = (total - len(runs)) * each_s / 60
            label = (
                f"{len(runs) + 1}/{total} {subject.name}, {count} client(s), round {turn + 1}, "
                f"about {left_min:.0f} min left"
            )
            told = {"clients_at_once": count, "round": turn + 1, "subject": subject.name}
            say = partial(_say, progress, label)
            environment = environments[subject.name]
            try:
                report = await _measure(settings, subject, environment, clips[:count], looked, say)
                runs.append({**told, "report": report})
            except BenchError as error:
                say(str(error))
                runs.append({**told, "error": " ".join(str(error).split())[:400]})
        longest_s = max(longest_s, (now_ns() - begun_at_ns) / NS_PER_S - elapsed_s)
    ours = [run for run in runs if run["subject"] == OURS]
    if all("error" in run for run in ours):
        raise ServerError(f"Sightline itself could not be measured: {ours[0]['error']}")
    progress("looking at the pictures that came back")
    detections = await asyncio.to_thread(_look, settings, looked)
    return {
        "runs": runs,
        "floor": floor,
        "environments": {name: dict(e.versions) for name, e in environments.items()},
        "failures": failures,
        "detections": detections,
    }


def _say(progress: Progress, label: str, text: str) -> None:
    progress(f"{label}: {text}")


async def _environments(
    settings: CompareSettings, progress: Progress
) -> tuple[dict[str, PeerEnvironment], dict[str, str]]:
    """Before anything is measured: making one keeps the machine busy for minutes."""
    found: dict[str, PeerEnvironment] = {}
    failures: dict[str, str] = {}
    for subject in settings.subjects():
        progress(f"environment of {subject.name} (made once, which takes minutes)")
        try:
            found[subject.name] = await asyncio.to_thread(subject.environment)
        except ServerError as error:
            progress(str(error))
            failures[subject.name] = " ".join(str(error).split())[:400]
    return found, failures


async def _floor(settings: CompareSettings, progress: Progress) -> dict[str, Any]:
    progress("measuring the floor")
    width, height = settings.glass.size_wh
    arguments = [
        *("--size", f"{width}x{height}", "--codec", settings.glass.codec),
        *("--fps", f"{settings.glass.fps:g}"),
        *settings.engine.arguments(),
    ]
    if settings.glass.clip is not None:
        arguments += ["--clip", str(settings.glass.clip)]
    return await measure_apart(arguments)


async def _measure(
    settings: CompareSettings,
    subject: Subject,
    environment: PeerEnvironment,
    clips: Sequence[Clip],
    looked: Looked,
    progress: Progress,
) -> RunReport:
    glass = settings.glass
    arguments = subject.module_args(settings.engine_of(subject), glass.size_wh)
    if subject.module == "server":
        arguments += glass.server_args
    progress("starting")
    own = subject.module == "server"
    variables = {} if own else environment.variables()
    async with started(arguments, environment.python, variables) as server:
        if subject.speaks == "jpeg":
            try:
                return await _measure_jpeg(settings, subject, server, clips, looked, progress)
            except ExceptionGroup as group:
                # Of its clients: what is not a bench's own word goes on as it is.
                ours, others = group.split(BenchError)
                if ours is None or others is not None:
                    raise
                raise _first(ours) from None
        look = partial(looked.take, subject.name)
        return await measure_run(glass, server, clips, progress, look)


def _first(group: ExceptionGroup[BenchError]) -> BenchError:
    """Of the calls that ended each other, the one that began."""
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, ExceptionGroup) else inner


async def _measure_jpeg(
    settings: CompareSettings,
    subject: Subject,
    server: RunningServer,
    clips: Sequence[Clip],
    looked: Looked,
    progress: Progress,
) -> RunReport:
    glass = settings.glass
    pictures = [
        frame.to_ndarray(format="bgr24").astype(np.uint8) for frame in clips[0].video_frames
    ]
    async with AsyncExitStack() as stack:
        executor = concurrent.futures.ThreadPoolExecutor(len(clips), "client-encode")
        stack.callback(executor.shutdown, wait=False)
        timeout = aiohttp.ClientTimeout(total=None, connect=HTTP_TIMEOUT_S)
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        peers = [
            JpegPeer(f"client {i + 1}", pictures, glass.fps, i * PHASE_STEP % 1, executor)
            for i in range(len(clips))
        ]
        async with asyncio.TaskGroup() as calls:
            tasks = [calls.create_task(peer.run(http, server.url)) for peer in peers]
            for peer in peers:
                await peer.wait_first_answer(FIRST_PICTURE_TIMEOUT_S)
            await pass_time(glass.warmup_s, "warming up", progress)
            client_meter, server_meter = UsageMeter(os.getpid()), UsageMeter(server.pid)
            for peer in peers:
                peer.keeps_every = max(1, round(glass.seconds * glass.fps / PICTURES_KEPT))
            begin_at_ns = now_ns()
            await pass_time(glass.seconds, "measuring", progress)
            window = Window(begin_at_ns, now_ns())
            client_usage, server_usage = client_meter.read(), server_meter.read()
            statistics = await server_statistics(http, server.url)
            await asyncio.sleep(TAIL_S)
            for peer in peers:
                peer.stop.set()
            await asyncio.wait(tasks, timeout=HTTP_TIMEOUT_S)
        for peer in peers:
            looked.take_answers(subject.name, peer.kept)
    return RunReport(
        clients=[peer.report(window) for peer in peers],
        server_start_s=server.start_s,
        first_picture_ms=[None for _ in peers],
        answer={},
        client_process=client_usage,
        server_process=server_usage,
        server_stats=statistics,
    )


def _look(settings: CompareSettings, looked: Looked) -> dict[str, Any]:
    """With the detector as the reference: what should be there, and what is."""
    from bench.peer_servers.finder import Finder
    from server.model_registry import chosen_model
    from server.settings import DetectorSettings

    engine = settings.engine
    finder = Finder(
        DetectorSettings(
            model=chosen_model(engine.model or ""),
            provider=engine.provider,
            precision=engine.precision,
            threads=engine.threads,
        ),
        settings.glass.size_wh,
    )
    try:
        seen: dict[str, Seen] = {}
        for name, pairs in looked.pairs.items():
            seen[name] = look_at(pairs, finder, SUBJECTS[name].colour_of)
            if settings.pictures is not None and pairs:
                _save(settings.pictures / f"{name}.png", pairs[-1][1].to_ndarray(format="bgr24"))
        for name, answered in looked.answered.items():
            seen[name] = _look_at_answers(answered, finder)
    finally:
        finder.close()
    return {name: detections_of(found) for name, found in seen.items()}


def _look_at_answers(answered: Sequence[Answered], finder: "Finder") -> Seen:
    """Answers name their boxes; the control asks for a box where none belongs."""
    expected = found = control = 0
    for answer in answered:
        for box in clear_boxes(finder.find(answer.bgr)):
            elsewhere = halved(box.xyxy)
            expected += 1
            found += any(overlap(box.xyxy, told) >= SAME_BOX for told in answer.boxes)
            control += any(overlap(elsewhere, told) >= SAME_BOX for told in answer.boxes)
    return Seen(len(answered), expected, found, control)


def _save(path: Path, bgr: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), bgr)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The same headless clients, clip, model and thread count against Sightline and what a user "
        "would take instead, in rounds; medians and ratios. Servers that need other packages get "
        "an environment of their own under bench/peers/, made once."
    )
    add = parser.add_argument
    add("--clients", type=_counts, default=(1, 3, 6), metavar="N,..", help="at once (1,3,6)")
    add(
        "--against",
        type=_names,
        default=BY_DEFAULT,
        metavar="NAME,..",
        help=f"of {', '.join(n for n in SUBJECTS if n != OURS)} ({','.join(BY_DEFAULT)})",
    )
    add_pictures(parser)
    add_time(parser)
    add("--runs", type=int, default=3, help="rounds; medians count (3)")
    add("--model", metavar="NAME", help="of all servers; else the one that comes with Sightline")
    add_engine(parser)
    add("--peer-provider", metavar="P", help="another provider for the peers, such as cpu")
    add("--peer-precision", metavar="P", help="another precision for the peers, such as fp32")
    add(
        "--server-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="one more argument of Sightline; repeatable",
    )
    add("--within", type=float, metavar="S", help="begin no round that would end after so long")
    add("--prepare", action="store_true", help="only make the environments, and measure nothing")
    add("--no-floor", action="store_true", help="without the floor")
    add("--pictures", type=Path, metavar="DIR", help="a returned picture of each server goes here")
    add(
        "--at-least",
        type=float,
        metavar="RATIO",
        help="exit 1 when a peer's p50 is fewer times ours, or a server's boxes are not real",
    )
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    engine = Engine(options.model, options.provider, options.precision, options.threads)
    peer_engine = Engine(
        options.model,
        options.peer_provider or options.provider,
        options.peer_precision or options.precision,
        options.threads,
    )
    settings = CompareSettings(
        clients=options.clients,
        against=options.against,
        glass=GlassSettings(
            fps=options.fps,
            size_wh=options.size,
            codec=options.codec,
            clip=options.clip,
            seconds=options.seconds,
            warmup_s=options.warmup,
            longest_tail_s=LONGEST_TAIL_S,
            server_args=tuple(options.server_arg),
        ),
        runs=options.runs,
        engine=engine,
        peer_engine=peer_engine,
        floor=not options.no_floor,
        within_s=options.within,
        pictures=options.pictures,
    )
    if options.prepare:
        made, failures = run_async(_environments(settings, show_progress))
        print(f"environments: {', '.join(made)}" + "".join(f"; no {name}" for name in failures))
        return NOT_MEASURED if failures else OK
    make_record = record_begun("compare")
    measured = run_async(compare(settings, show_progress))
    summary = summarise(measured)
    runs = [_run_to_record(run) for run in measured["runs"]]
    record = make_record(settings.to_record(), plain(summary), runs)
    counts = "-".join(map(str, settings.clients))
    name = f"{counts}x{settings.glass.size_wh[0]}x{settings.glass.size_wh[1]}-{options.codec}"
    faults = too_close(summary, options.at_least)
    text = "\n".join([describe(summary, record.settings), *faults])
    publish(record, options.out, name, text, as_json=options.json)
    return OVER_BUDGET if faults else OK


def _run_to_record(run: Mapping[str, Any]) -> dict[str, Any]:
    report = plain(run["report"]) if "report" in run else {}
    return {**{key: value for key, value in run.items() if key != "report"}, **report}


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas, as 1,3") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)
