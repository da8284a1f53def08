"""What the rounds of a comparison say: medians of each server, and ratios within rounds. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from bench.floor import describe_ratio, ratio_to
from bench.seen_boxes import Seen
from bench.statistics import median
from bench.subjects import OURS, SUBJECTS
from bench.summary import RunReport
from bench.summary import summarise as summarise_runs

FIGURES: Final = ("p50", "p95", "p99", "max")
RATIOS: Final = ("p50", "p95")


def summarise(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The figures by number of clients and server; see bench/README.md."""
    runs: Sequence[Mapping[str, Any]] = measured["runs"]
    counts = list(dict.fromkeys(run["clients_at_once"] for run in runs))
    subjects = list(dict.fromkeys(run["subject"] for run in runs))
    subjects.sort(key=list(SUBJECTS).index)
    by_clients = {}
    ratios = {}
    for count in counts:
        here = [run for run in runs if run["clients_at_once"] == count]
        by_clients[str(count)] = {
            subject: _figures([run for run in here if run["subject"] == subject])
            for subject in subjects
        }
        ratios[str(count)] = {
            subject: {name: _ratio(here, subject, name) for name in RATIOS}
            for subject in subjects
            if subject != OURS
        }
    floor = measured["floor"]
    ours = by_clients.get("1", {}).get(OURS, {})
    return {
        "clients": by_clients,
        "ratios": ratios,
        "floor": floor,
        "times_floor": ratio_to(floor, (ours.get("worst_client_ms") or {}).get("p50")),
        "detections": measured["detections"],
        "environments": measured["environments"],
        "failures": measured["failures"],
    }


def detections_of(seen: Seen) -> dict[str, Any]:
    return {
        "pictures": seen.pictures,
        "expected": seen.expected,
        "found": seen.found,
        "control": seen.control,
        "real": seen.real,
    }


def too_close(summary: Mapping[str, Any], at_least: float | None) -> list[str]:
    """What a bound on the ratio finds wrong; nothing without a bound."""
    if at_least is None:
        return []
    faults = []
    for count, subjects in summary["ratios"].items():
        for subject, ratios in subjects.items():
            found = ratios["p50"]
            if found is None:
                faults.append(f"{subject}, {count} client(s): not measured")
            elif found["median"] < at_least:
                faults.append(
                    f"{subject}, {count} client(s): its p50 is {found['median']:.2f} times ours, "
                    f"under the bound of {at_least:g}"
                )
    faults += [
        f"{subject}: boxes that should be there are not ({seen['found']} of {seen['expected']})"
        for subject, seen in summary["detections"].items()
        if seen["real"] is False
    ]
    return faults


def describe(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """For a person: a table per number of clients."""
    lines = [
        f"{settings['size']} at {settings['fps']:g} fps, {settings['codec']}, "
        f"{settings['runs']} round(s) of {settings['seconds']:g} s"
    ]
    for count, subjects in summary["clients"].items():
        lines.append(
            f"{count + ' client(s)':30}{'p50':>9}{'p95':>9}{'fps':>7}{'ms/min':>11}{'CPU %':>7}"
            f"{'p50 x ours':>28}{'p95 x ours':>28}"
        )
        for subject, figures in subjects.items():
            worst = figures["worst_client_ms"]
            ratios = summary["ratios"][count].get(subject, {})
            lines.append(
                f"{SUBJECTS[subject].title:30}"
                f"{_text(worst['p50']):>9}{_text(worst['p95']):>9}"
                f"{_text(figures['fps_slowest']):>7}{_text(figures['growth_ms_per_minute']):>11}"
                f"{_text(figures['server_cpu_percent'], 0):>7}"
                + "".join(f"{_spread(ratios.get(name)):>28}" for name in RATIOS)
            )
    if summary["floor"] is not None:
        lines.append(describe_ratio(summary["floor"], summary["times_floor"]))
    for subject, seen in summary["detections"].items():
        verdict = {True: "real", False: "NOT SEEN", None: "nothing to see"}[seen["real"]]
        lines.append(
            f"boxes of {subject}: {verdict}, {seen['found']} of {seen['expected']} in "
            f"{seen['pictures']} pictures, control {seen['control']}"
        )
    lines += [f"{subject} not measured: {why}" for subject, why in summary["failures"].items()]
    return "\n".join(lines)


def _figures(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, in the words of `bench glass`; what failed is counted."""
    reports: list[RunReport] = [run["report"] for run in runs if "report" in run]
    errors = [run["error"] for run in runs if "error" in run]
    if not reports:
        empty: dict[str, Any] = dict.fromkeys(FIGURES)
        return {
            "worst_client_ms": empty,
            "fps_slowest": None,
            "growth_ms_per_minute": None,
            "server_cpu_percent": None,
            "errors": errors,
        }
    told = summarise_runs(reports)
    engine = reports[-1].server_stats.get("detector") or reports[-1].answer.get("model")
    return {
        name: told[name]
        for name in (
            "worst_client_ms",
            "fps_slowest",
            "slowest_to_fastest",
            "growth_ms_per_minute",
            "lost",
            "freezes",
            "server_own_ms",
            "server_stages_ms",
            "client_send_p50_ms",
            "client_receive_p50_ms",
            "server_cpu_percent",
            "client_cpu_percent",
            "server_rss_mib",
            "server_start_s",
        )
    } | {"errors": errors, "engine": engine}


def _ratio(runs: Iterable[Mapping[str, Any]], subject: str, figure: str) -> dict[str, float] | None:
    """A peer's delay over ours, of the worst client, paired by round.

    A peer of which no picture of the window came back took at least as long as the window: that
    is what counts then, and `bounded` says in how many pairs.
    """
    worst = {
        (run["round"], run["subject"]): _worst(run["report"], figure)
        for run in runs
        if "report" in run
    }
    pairs, bounded = [], 0
    for (turn, name), (peer_ms, is_bound) in worst.items():
        ours_ms, ours_is_bound = worst.get((turn, OURS), (0.0, True))
        if name == subject and not ours_is_bound:
            pairs.append(peer_ms / ours_ms)
            bounded += is_bound
    if not pairs:
        return None
    return {
        "median": median(pairs),
        "low": min(pairs),
        "high": max(pairs),
        "pairs": len(pairs),
        "bounded": bounded,
    }


def _worst(report: RunReport, figure: str) -> tuple[float, bool]:
    """Of the slowest client; and whether it is only known to be no less."""
    found = [
        (getattr(client.latency_ms, figure), False)
        if client.latency_ms is not None
        else (1000 * client.sent / client.fps_sent if client.fps_sent else 0.0, True)
        for client in report.clients
    ]
    return max(found)


def _text(value: float | None, places: int = 1) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def _spread(ratio: Mapping[str, float] | None) -> str:
    if ratio is None:
        return ""
    over = "over " if ratio["bounded"] else ""
    return f"{over}{ratio['median']:.2f} ({ratio['low']:.1f}-{ratio['high']:.1f})"
