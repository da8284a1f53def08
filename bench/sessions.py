"""How many calls this machine serves: one more each time until the budget breaks, in each mode.

The figure is the largest number of calls of which the worst one is within the budget and the
slowest one has its pictures. A step that breaks is measured once more, so that one hiccup of the
machine is not taken for its limit.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from bench.command import OK, OVER_BUDGET, Progress, publish, record_begun, run_async, show_progress
from bench.errors import BenchError, PeerError, UsageError
from bench.glass import GlassSettings, measure
from bench.options import add_output, add_pictures, add_server, add_time, calls
from bench.record import plain
from bench.summary import RunReport, summarise

TRIES: Final = 2
# Below this a call is not live: in `exact` the detector sets the pace, in `smooth` the camera.
# Modes in which pictures are drawn and encoded for each call.
MODES: Final = ("exact", "smooth")
LEAST_FPS: Final[Mapping[str, float]] = {"exact": 8.0, "smooth": 27.0}


@dataclass(frozen=True, slots=True)
class SessionsSettings:
    """One search per mode. Checked when made; raises `UsageError`."""

    glass: GlassSettings = field(default_factory=GlassSettings)
    """Of each step; its number of clients is set by the search."""
    modes: tuple[str, ...] = MODES
    budget_ms: float = 75.0
    least_fps: Mapping[str, float] = field(default_factory=lambda: dict(LEAST_FPS))
    begin: int = 1
    up_to: int = 12

    def __post_init__(self) -> None:
        if not 1 <= self.begin <= self.up_to <= 64:
            raise UsageError(f"--up-to: {self.up_to} is outside {self.begin}..64")
        if not 0 < self.budget_ms <= 60_000:
            raise UsageError(f"--budget-ms: {self.budget_ms} is outside 0..60000")

    def to_record(self) -> dict[str, Any]:
        told = self.glass.to_record()
        del told["clients"], told["mode"]
        return {
            **told,
            "modes": list(self.modes),
            "budget_ms": self.budget_ms,
            "least_fps": dict(self.least_fps),
            "begin": self.begin,
            "up_to": self.up_to,
        }


@dataclass(frozen=True, slots=True)
class Step:
    """So many calls, measured once."""

    mode: str
    clients: int
    p50_ms: float | None
    """Of the worst call."""
    p95_ms: float | None
    fps_slowest: float
    lost: int
    growth_ms_per_minute: float | None
    server_cpu_percent: float | None
    client_cpu_percent: float | None
    broken_by: str
    """Empty when the step held."""


@dataclass(frozen=True, slots=True)
class ModeReport:
    """One search."""

    mode: str
    sessions: int
    """The figure. 0 when not even the first step held."""
    limit_found: bool
    """False when every step up to the last one asked for held: there may be room for more."""
    steps: Sequence[Step]


async def search(settings: SessionsSettings, progress: Progress) -> list[ModeReport]:
    """Each mode in turn. Raises `BenchError` when nothing can be measured at all."""
    return [await _search_mode(settings, mode, progress) for mode in settings.modes]


async def _search_mode(settings: SessionsSettings, mode: str, progress: Progress) -> ModeReport:
    steps: list[Step] = []
    held = settings.begin - 1
    for clients in range(settings.begin, settings.up_to + 1):
        for _ in range(TRIES):
            step = await _step(settings, mode, clients, progress)
            steps.append(step)
            progress(f"{mode}, {describe_step(step)}")
            if not step.broken_by:
                break
        if steps[-1].broken_by:
            return ModeReport(mode, held if held >= settings.begin else 0, True, steps)
        held = clients
    return ModeReport(mode, held, False, steps)


async def _step(settings: SessionsSettings, mode: str, clients: int, progress: Progress) -> Step:
    glass = replace(settings.glass, clients=clients, mode=mode, runs=1)

    def say(text: str) -> None:
        progress(f"{mode}, {clients} call(s), {text}")

    try:
        reports = await measure(glass, say)
    except PeerError as error:
        if clients == settings.begin == 1:
            raise
        return _unmeasured(mode, clients, error)
    return judged(reports, mode, clients, settings.budget_ms, settings.least_fps[mode])


def _unmeasured(mode: str, clients: int, error: BenchError) -> Step:
    reason = " ".join(str(error).split())[:300]
    return Step(mode, clients, None, None, 0.0, 0, None, None, None, reason)


def judged(
    reports: Sequence[RunReport], mode: str, clients: int, budget_ms: float, least_fps: float
) -> Step:
    """A step from its measurement, with what breaks it first."""
    summary = summarise(reports)
    p95_ms, fps = summary["worst_client_ms"]["p95"], summary["fps_slowest"]
    if p95_ms is None:
        broken_by = "a call without pictures"
    elif p95_ms > budget_ms:
        broken_by = f"p95 {p95_ms:.1f} ms is over {budget_ms:g} ms"
    elif fps < least_fps:
        broken_by = f"{fps:.1f} fps is under {least_fps:g} fps"
    else:
        broken_by = ""
    return Step(
        mode=mode,
        clients=clients,
        p50_ms=summary["worst_client_ms"]["p50"],
        p95_ms=p95_ms,
        fps_slowest=fps,
        lost=summary["lost"],
        growth_ms_per_minute=summary["growth_ms_per_minute"],
        server_cpu_percent=summary["server_cpu_percent"],
        client_cpu_percent=summary["client_cpu_percent"],
        broken_by=broken_by,
    )


def summary_of(reports: Sequence[ModeReport]) -> dict[str, Any]:
    """The figures, by mode."""
    return {
        report.mode: {"sessions": report.sessions, "limit_found": report.limit_found}
        for report in reports
    }


def describe(reports: Sequence[ModeReport], settings: SessionsSettings) -> str:
    """The searches for a person."""
    lines = [
        f"calls within {settings.budget_ms:g} ms (p95 of the worst), {settings.glass.codec}, "
        f"{settings.glass.seconds:g} s each"
    ]
    for report in reports:
        more = "" if report.limit_found else " or more"
        lines.append(f"{report.mode}: {report.sessions}{more}")
        lines += [f"  {describe_step(step)}" for step in report.steps]
    return "\n".join(lines)


def describe_step(step: Step) -> str:
    if step.p95_ms is None or step.p50_ms is None:
        return f"{step.clients:2d} call(s): {step.broken_by}"
    text = (
        f"{step.clients:2d} call(s): p50 {step.p50_ms:.1f}, p95 {step.p95_ms:.1f} ms, slowest "
        f"{step.fps_slowest:.1f} fps"
    )
    return text + (f": {step.broken_by}" if step.broken_by else "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measures one call more each time until the worst call is over the budget or the slowest "
        "one has too few pictures; a step that breaks is measured twice. The figure is the largest "
        "number of calls that held."
    )
    add = parser.add_argument
    add("--mode", choices=(*MODES, "both"), default="both", help="of the calls (both)")
    add("--budget-ms", type=float, default=75.0, metavar="MS", help="p95 of the worst call (75)")
    add("--exact-fps", type=float, default=8.0, help="least pictures per second in exact (8)")
    add("--smooth-fps", type=float, default=27.0, help="least pictures per second in smooth (27)")
    add("--begin", type=int, default=1, metavar="N", help="calls of the first step (1)")
    add("--up-to", type=int, default=12, metavar="N", help="calls of the last step (12)")
    add("--at-least", type=int, default=0, metavar="N", help="exit 1 when a mode holds fewer")
    add_pictures(parser)
    add_server(parser)
    add_time(parser)
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    glass = GlassSettings(
        **calls(options), seconds=options.seconds, warmup_s=options.warmup, listens=False
    )
    settings = SessionsSettings(
        glass=glass,
        modes=MODES if options.mode == "both" else (options.mode,),
        budget_ms=options.budget_ms,
        least_fps={"exact": options.exact_fps, "smooth": options.smooth_fps},
        begin=options.begin,
        up_to=options.up_to,
    )
    make_record = record_begun("sessions")
    reports = run_async(search(settings, show_progress))
    record = make_record(settings.to_record(), summary_of(reports), plain(reports))
    text = describe(reports, settings)
    publish(record, options.out, f"{options.mode}-{glass.codec}", text, as_json=options.json)
    fewest = min(report.sessions for report in reports)
    return OVER_BUDGET if fewest < options.at_least else OK
