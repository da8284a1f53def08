"""What all runs of a measurement say together, as numbers for the record and as text. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.model_change import ModelChange
from bench.statistics import median
from bench.usage import Usage
from bench.window import ClientReport

QUANTILES: Final = ("p50", "p95", "p99", "max")


@dataclass(frozen=True, slots=True)
class RunReport:
    """One run of all clients against one server."""

    clients: Sequence[ClientReport]
    server_start_s: float | None
    first_picture_ms: Sequence[float | None]
    answer: dict[str, Any]
    client_process: Usage | None
    server_process: Usage | None
    server_stats: dict[str, Any]
    """`/api/stats` at the end of the window, calls still up: stages, loop lag, sessions."""
    model_changes: Sequence[ModelChange] = ()


def summarise(reports: Sequence[RunReport]) -> dict[str, Any]:
    """Medians over the runs: of each client, and of the worst client of each run."""
    return {
        "worst_client_ms": {
            name: _median(
                _largest(_of(client.latency_ms, name) for client in report.clients)
                for report in reports
            )
            for name in QUANTILES
        },
        "clients": [
            _client(runs) for runs in zip(*(report.clients for report in reports), strict=True)
        ],
        "fps_slowest": _median(min(c.fps_received for c in r.clients) for r in reports),
        "slowest_to_fastest": _median(_slowest_to_fastest(r.clients) for r in reports),
        "lost": sum(client.lost for report in reports for client in report.clients),
        "freezes": sum(client.freezes.count for report in reports for client in report.clients),
        "growth_ms_per_minute": _median(
            _largest(client.growth_ms_per_minute for client in report.clients) for report in reports
        ),
        "server_own_ms": {
            name: _median(_own(report, name) for report in reports) for name in QUANTILES
        },
        "server_stages_ms": {
            stage: {
                name: _median(
                    _of(report.server_stats["stages_ms"][stage], name) for report in reports
                )
                for name in QUANTILES[:3]
            }
            for stage in _stages(reports)
        },
        "loop_lag_ms": {
            name: _median(_of(report.server_stats.get("loop_lag_ms"), name) for report in reports)
            for name in QUANTILES
        },
        "client_send_p50_ms": _median(
            _largest(_of(c.send_ms, "p50") for c in r.clients) for r in reports
        ),
        "client_receive_p50_ms": _median(
            _largest(_of(c.receive_ms, "p50") for c in r.clients) for r in reports
        ),
        "model_changes": sum(len(report.model_changes) for report in reports),
        "model_change_ms": _median(c.took_ms for r in reports for c in r.model_changes),
        "server_start_s": _median(report.server_start_s for report in reports),
        "first_picture_ms": _median(_largest(report.first_picture_ms) for report in reports),
        "server_cpu_percent": _median(_of(r.server_process, "cpu_percent") for r in reports),
        "client_cpu_percent": _median(_of(r.client_process, "cpu_percent") for r in reports),
        "server_rss_mib": _median(_of(r.server_process, "rss_mib") for r in reports),
        "client_rss_mib": _median(_of(r.client_process, "rss_mib") for r in reports),
    }


def describe(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The summary for a person, in a few lines."""
    lines = [
        f"{settings['clients']} x {settings['size']} at {settings['fps']:g} fps, "
        f"{settings['codec']}, {settings['mode']}, against {settings['against']}, "
        f"{settings['runs']} run(s) of {settings['seconds']:g} s",
        f"{'':12}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}{'fps':>8}{'lost':>7}{'freezes':>9}",
    ]
    lines += [
        f"{client['name']:12}"
        + "".join(f"{_text(client['latency_ms'][name]):>9}" for name in QUANTILES)
        + f"{_text(client['fps_received']):>8}{client['lost']:>7}{client['freezes']:>9}"
        for client in summary["clients"]
    ]
    own = summary["server_own_ms"]
    lines += [
        f"server without inference  p50 {_text(own['p50'])}  p95 {_text(own['p95'])}  "
        f"p99 {_text(own['p99'])} ms",
        "server stages, p50 / p95  "
        + (
            "  ".join(
                f"{stage} {_text(values['p50'])}/{_text(values['p95'])}"
                for stage, values in summary["server_stages_ms"].items()
            )
            or "not told"
        ),
        f"event loop lag p99 {_text(summary['loop_lag_ms']['p99'])} ms   "
        f"client's own: send {_text(summary['client_send_p50_ms'])}, "
        f"receive {_text(summary['client_receive_p50_ms'])} ms",
        f"server {_text(summary['server_cpu_percent'])} % CPU, "
        f"{_text(summary['server_rss_mib'])} MiB, started in "
        f"{_text(summary['server_start_s'])} s; client {_text(summary['client_cpu_percent'])} % "
        f"CPU; first picture after {_text(summary['first_picture_ms'])} ms; "
        f"growth {_text(summary['growth_ms_per_minute'])} ms/min",
    ]
    if summary["model_changes"]:
        gap_ms = max(client["longest_gap_ms"] for client in summary["clients"])
        lines.append(
            f"{summary['model_changes']} changes of model, {_text(summary['model_change_ms'])} ms "
            f"each; longest gap between two pictures {_text(gap_ms)} ms"
        )
    return "\n".join(lines)


def _client(runs: Sequence[ClientReport]) -> dict[str, Any]:
    return {
        "name": runs[0].name,
        "latency_ms": {name: _median(_of(r.latency_ms, name) for r in runs) for name in QUANTILES},
        "fps_sent": _median(run.fps_sent for run in runs),
        "fps_received": _median(run.fps_received for run in runs),
        "sent": sum(run.sent for run in runs),
        "lost": sum(run.lost for run in runs),
        "unreadable": sum(run.unreadable for run in runs),
        "freezes": sum(run.freezes.count for run in runs),
        "longest_gap_ms": max(run.freezes.longest_gap_ms for run in runs),
        "growth_ms_per_minute": _median(run.growth_ms_per_minute for run in runs),
        "server_own_ms": {
            name: _median(_of(r.server.own_ms, name) for r in runs) for name in QUANTILES
        },
    }


def _own(report: RunReport, name: str) -> float | None:
    """Of the worst client as its messages tell; without a detector there are none, and the
    server's own histogram of all clients has to do."""
    told = _largest(_of(client.server.own_ms, name) for client in report.clients)
    if told is not None:
        return told
    return _of((report.server_stats.get("stages_ms") or {}).get("own"), name)


def _stages(reports: Sequence[RunReport]) -> list[str]:
    """The stages every run tells of, in the order of the way of a frame."""
    told = [report.server_stats.get("stages_ms") or {} for report in reports]
    return [stage for stage in told[0] if all(stage in stages for stages in told)]


def _slowest_to_fastest(clients: Sequence[ClientReport]) -> float | None:
    fastest = max(client.fps_received for client in clients)
    return min(client.fps_received for client in clients) / fastest if fastest else None


def _of(values: object, name: str) -> float | None:
    """A number of a dataclass or a mapping that may be absent or lack it."""
    found = values.get(name) if isinstance(values, Mapping) else getattr(values, name, None)
    return float(found) if isinstance(found, int | float) else None


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _median(values: Iterable[float | None]) -> float | None:
    """Over the runs that have the number; None when none has."""
    found = [value for value in values if value is not None]
    return median(found) if found else None


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
