"""What a soak saw: samples, growth, what was left behind; as values and as text. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.slope import Slope, slope
from bench.statistics import Distribution

SLOPES: Final = ("rss_mib", "threads", "open_files", "tasks", "p50_ms", "p95_ms")


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the server's process holds at one instant."""

    rss_mib: float
    threads: int
    open_files: int
    tasks: int | None
    """Of its event loop; None where the server does not tell."""
    sessions: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One look, and the staying calls since the look before."""

    at_s: float
    held: Holdings
    rss_least_mib: float
    """Of several readings since the look before: what the server keeps is in each of them, the
    pictures on their way, which come to some MiB, are not."""
    joined: int
    pictures: int
    p50_ms: float | None
    p95_ms: float | None

    def value(self, name: str) -> float | None:
        if name in ("p50_ms", "p95_ms"):
            return self.p50_ms if name == "p50_ms" else self.p95_ms
        if name == "rss_mib":
            return self.rss_least_mib
        found = getattr(self.held, name)
        return None if found is None else float(found)


@dataclass(frozen=True, slots=True)
class SoakReport:
    """The run. `faults` is empty when the server stayed as it was."""

    samples: Sequence[Sample]
    slopes_per_hour: Mapping[str, Slope | None]
    """After settling."""
    before: Holdings
    """Before any call."""
    start: Holdings
    """After the first few calls had gone."""
    end: Holdings
    """After all calls had gone."""
    latency_ms: Distribution | None
    """Of the staying calls, over the whole run."""
    joined: int
    refused: int
    """Guests that the server did not take, or that saw no picture."""
    faults: Sequence[str]


def slope_of(samples: Sequence[Sample], name: str) -> Slope | None:
    known = [(sample.at_s, sample.value(name)) for sample in samples]
    told = [(at_s, value) for at_s, value in known if value is not None]
    return slope([at_s for at_s, _ in told], [value for _, value in told])


def faults(
    rss: Slope | None, rss_limit_mib_per_hour: float, start: Holdings, end: Holdings
) -> list[str]:
    """What did not stay as it was, one line each."""
    found = []
    if rss is None:
        found.append("too few samples to tell how memory grows")
    elif not rss.is_below(rss_limit_mib_per_hour):
        found.append(
            f"memory: {rss.per_hour:+.2f} MiB/h, between {rss.low:+.2f} and {rss.high:+.2f}: "
            f"not surely below {rss_limit_mib_per_hour:g}"
        )
    for name in ("threads", "open_files", "tasks", "sessions"):
        first, last = getattr(start, name), getattr(end, name)
        if first is not None and last is not None and last > first:
            found.append(f"{name.replace('_', ' ')}: {last} at the end, {first} at the start")
    return found


def describe_sample(sample: Sample) -> str:
    p50 = "-" if sample.p50_ms is None else f"{sample.p50_ms:.1f}"
    p95 = "-" if sample.p95_ms is None else f"{sample.p95_ms:.1f}"
    held = sample.held
    return (
        f"{sample.at_s / 60:.1f} min, {sample.joined} joined: {sample.rss_least_mib:.1f} MiB, "
        f"{held.threads} threads, {held.open_files} files, {held.tasks} tasks, "
        f"p50 {p50}, p95 {p95} ms"
    )


def summary_of(report: SoakReport) -> dict[str, Any]:
    """Everything but the samples."""
    return {
        "latency_ms": report.latency_ms,
        "slopes_per_hour": report.slopes_per_hour,
        "before": report.before,
        "start": report.start,
        "end": report.end,
        "joined": report.joined,
        "refused": report.refused,
        "samples": len(report.samples),
        "faults": list(report.faults),
    }


def describe(report: SoakReport, settings: Mapping[str, Any]) -> str:
    """The run for a person."""
    lines = [
        f"{settings['minutes']:g} min, {settings['clients']} staying, {report.joined} joined and "
        f"left, {report.refused} not taken",
        f"slopes after {settings['settle_minutes']:g} min, with 95 % confidence:",
    ]
    for name, found in report.slopes_per_hour.items():
        text = (
            "too few samples"
            if found is None
            else f"{found.per_hour:+9.2f} per hour, {found.low:+.2f} .. {found.high:+.2f}"
        )
        lines.append(f"  {name:12} {text}")
    for name, held in (("before", report.before), ("start", report.start), ("end", report.end)):
        lines.append(
            f"  {name:12} {held.rss_mib:.1f} MiB, {held.threads} threads, "
            f"{held.open_files} files, {held.tasks} tasks"
        )
    lines += [f"  fault: {fault}" for fault in report.faults] or ["  stayed as it was"]
    return "\n".join(lines)
