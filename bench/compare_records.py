"""Is B worse than A: figure by figure, with confidence where the records hold enough.

The delay of a call is known second by second. Seconds are drawn again and again from each record
(a bootstrap), which gives an interval for the change. Neighbouring seconds of one call are alike,
so blocks of them are drawn. A figure is a regression when it is worse by more than the bound and
the interval agrees that it is worse; without an interval the bound alone decides.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.command import OK, OVER_BUDGET
from bench.errors import UsageError
from bench.options import add_json
from bench.reading import read_record
from bench.record import Record, plain
from bench.statistics import median
from bench.subjects import OURS

BLOCK_S: Final = 3
DRAWS: Final = 2000
CONFIDENCE: Final = 95.0
LEAST_BLOCKS: Final = 4
# Of the settings, what only makes a record longer.
FREE_SETTINGS: Final = ("runs", "seconds", "warmup_s", "minutes", "settle_minutes", "left_out")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a record that is judged."""

    value: float
    higher_is_better: bool = False
    blocks: Sequence[float] = ()
    """The same figure over parts of the measurement; empty when the record has none."""


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in both records. Shares: 0.1 is 10 percent more."""

    name: str
    before: float
    after: float
    share: float
    low: float | None
    high: float | None
    worse: bool
    """By more than the bound, and surely where that can be known."""


def changes(before: Record, after: Record, bound: float) -> list[Change]:
    """Every figure that both have. Raises `UsageError` when they have none in common."""
    if before.bench != after.bench:
        raise UsageError(f"a record of {before.bench} cannot be compared with one of {after.bench}")
    first, second = figures(before), figures(after)
    names = [name for name in first if name in second]
    if not names:
        raise UsageError("the two records have no figures in common")
    return [_change(name, first[name], second[name], bound) for name in names]


def figures(record: Record) -> dict[str, Figure]:
    """What is judged in a record, by a name for people."""
    summary = record.summary
    found: dict[str, Figure] = {}
    if record.bench == "glass":
        found |= _of_calls("", summary, record.runs)
    elif record.bench == "compare":
        for count, subjects in summary["clients"].items():
            for subject, figures_of in subjects.items():
                if subject == OURS:
                    runs = [
                        run
                        for run in record.runs
                        if run["subject"] == subject and str(run["clients_at_once"]) == count
                    ]
                    found |= _of_calls(f"{count} client(s), ", figures_of, runs)
                ratios = summary["ratios"][count].get(subject) or {}
                for name, ratio in ratios.items():
                    if ratio is not None:
                        label = f"{count} client(s), {subject} {name} over ours"
                        found[label] = Figure(ratio["median"], higher_is_better=True)
    elif record.bench == "browser":
        for name, told in summary.items():
            runs = [{"clients": [run]} for run in record.runs if run.get("browser") == name]
            for quantile in ("p50", "p95"):
                value = told["latency_ms"][quantile]
                found |= _figure(f"{name} {quantile} ms", value, _blocks(runs, quantile))
            found |= _figure(f"{name} fps", told["fps_received"], higher_is_better=True)
    elif record.bench == "sessions":
        for mode, told in summary.items():
            found |= _figure(f"sessions in {mode}", told["sessions"], higher_is_better=True)
    elif record.bench == "soak":
        for quantile in ("p50", "p95"):
            found |= _figure(f"{quantile} ms", (summary["latency_ms"] or {}).get(quantile))
    elif record.bench in ("stages", "floor"):
        for stage, told in summary["stages_ms"].items():
            found |= _figure(f"{stage} p50 ms", told["p50"])
    times_floor = summary.get("times_floor")
    return found | _figure("times the floor", times_floor)


def _of_calls(
    prefix: str, summary: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]
) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    for quantile in ("p50", "p95"):
        value = summary["worst_client_ms"][quantile]
        found |= _figure(f"{prefix}{quantile} ms", value, _blocks(runs, quantile))
    own = (summary.get("server_own_ms") or {}).get("p95")
    found |= _figure(f"{prefix}server's own p95 ms", own)
    return found | _figure(f"{prefix}fps", summary["fps_slowest"], higher_is_better=True)


def _figure(
    name: str,
    value: float | None,
    blocks: Sequence[float] = (),
    *,
    higher_is_better: bool = False,
) -> dict[str, Figure]:
    """Left out when the record hasn't got it, or when it is nothing to divide by."""
    return {name: Figure(float(value), higher_is_better, blocks)} if value else {}


def _blocks(runs: Sequence[Mapping[str, Any]], quantile: str) -> list[float]:
    """The worst client's figure over every few seconds of every run."""
    found = []
    for run in runs:
        worst: dict[int, list[float]] = {}
        for client in run.get("clients") or ():
            if isinstance(client, Mapping):
                for second in client.get("seconds_ms") or ():
                    worst.setdefault(second["at_s"] // BLOCK_S, []).append(second[quantile])
        # Of several clients the seconds of the slower one stand at the upper end.
        found += [max(values) if quantile == "p95" else median(values) for values in worst.values()]
    return found


def _change(name: str, before: Figure, after: Figure, bound: float) -> Change:
    share = after.value / before.value - 1
    low = high = None
    if min(len(before.blocks), len(after.blocks)) >= LEAST_BLOCKS:
        low, high = _interval(before.blocks, after.blocks)
    loss, loss_at_least = share, low
    if before.higher_is_better:
        # Twice as slow is a loss of 1, whichever way the figure is written.
        loss = before.value / after.value - 1
        loss_at_least = None if high is None else -high
    worse = loss > bound and (loss_at_least is None or loss_at_least > 0)
    return Change(name, before.value, after.value, share, low, high, worse)


def _interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Of the relative change of the median block, by drawing blocks again."""
    random = np.random.default_rng(1)
    medians = [
        np.median(random.choice(np.asarray(blocks), (DRAWS, len(blocks))), axis=1)
        for blocks in (before, after)
    ]
    shares = medians[1] / medians[0] - 1
    edge = (100 - CONFIDENCE) / 2
    low, high = np.percentile(shares, (edge, 100 - edge))
    return float(low), float(high)


def different_settings(before: Record, after: Record) -> list[str]:
    """What was not the same, so that nobody takes it for a change of the code."""
    names = [name for name in before.settings if name not in FREE_SETTINGS]
    told = [
        f"{name}: {before.settings[name]} and {after.settings.get(name)}"
        for name in names
        if before.settings[name] != after.settings.get(name)
    ]
    told += [
        f"{name}: {before.machine.get(name)} and {after.machine.get(name)}"
        for name in ("cpu", "cores")
        if before.machine.get(name) != after.machine.get(name)
    ]
    return told


def describe(found: Sequence[Change], bound: float) -> str:
    width = max(len(change.name) for change in found) + 2
    lines = [f"{'':{width}}{'A':>10}{'B':>10}{'change':>10}   {CONFIDENCE:.0f} % interval"]
    for change in found:
        interval = (
            f"{change.low:+.1%} to {change.high:+.1%}"
            if change.low is not None and change.high is not None
            else "too few samples"
        )
        mark = "  WORSE" if change.worse else ""
        lines.append(
            f"{change.name:{width}}{change.before:>10.2f}{change.after:>10.2f}"
            f"{change.share:>+10.1%}   {interval}{mark}"
        )
    worse = sum(change.worse for change in found)
    lines.append(
        f"{worse} of {len(found)} figures are worse by more than {bound:.0%}"
        if worse
        else f"nothing is worse by more than {bound:.0%}"
    )
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compares two records of one bench, figure by figure; exits with 1 when B is worse than A "
        "by more than the bound. Absolute times of two machines, or of one machine under another "
        "load, say nothing; the ratios of `compare` do."
    )
    add = parser.add_argument
    add("before", type=Path, metavar="A", help="the record to hold on to")
    add("after", type=Path, metavar="B", help="the record to judge")
    add("--bound", type=float, default=10.0, metavar="PERCENT", help="worse by more fails (10)")
    add_json(parser, "the changes as the last line of standard output")


def run(options: argparse.Namespace) -> int:
    if not 0 <= options.bound <= 1000:
        raise UsageError(f"--bound: {options.bound:g} is outside 0..1000")
    before, after = read_record(options.before), read_record(options.after)
    bound = options.bound / 100
    found = changes(before, after, bound)
    for difference in different_settings(before, after):
        print(f"not the same in both: {difference}")
    print(describe(found, bound))
    worse = any(change.worse for change in found)
    if options.json:
        told = {"bench": "compare-records", "worse": worse, "changes": plain(found)}
        print(json.dumps(told))
    return OVER_BUDGET if worse else OK
