"""What all runs in all browsers say together, as numbers for the record and as text. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from bench.browsers.report import BrowserReport
from bench.statistics import Distribution, median, worst

QUANTILES: Final = ("p50", "p95", "p99", "max")
PARTS: Final = (
    "latency_ms",
    "presented_ms",
    "expected_ms",
    "display_ms",
    "hold_ms",
    "decode_ms",
    "reading_ms",
)


def summarise(reports: Sequence[BrowserReport]) -> dict[str, Any]:
    """Per browser, medians over its runs; losses and freezes are added up."""
    names = list(dict.fromkeys(report.browser for report in reports))
    return {name: _browser([r for r in reports if r.browser == name]) for name in names}


def worst_p95_ms(summary: Mapping[str, Any]) -> float | None:
    """What a budget is compared with: the slowest browser. None when one has no number."""
    return worst(browser["latency_ms"]["p95"] for browser in summary.values())


def describe(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The summary for a person, in a few lines."""
    lines = [
        f"{settings['size']} at {settings['fps']:g} fps, {settings['codec']}, {settings['mode']}, "
        f"{settings['runs']} run(s) of {settings['seconds']:g} s",
        f"{'':12}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}{'fps':>8}{'lost':>7}{'freezes':>9}",
    ]
    for name, browser in summary.items():
        lines.append(
            f"{name:12}"
            + "".join(f"{_text(browser['latency_ms'][q]):>9}" for q in QUANTILES)
            + f"{_text(browser['fps_received']):>8}{browser['lost']:>7}{browser['freezes']:>9}"
        )
        display, hold, server = browser["display_ms"], browser["hold_ms"], browser["server_ms"]
        lines.append(
            f"  browser: last packet to page told {_pair(display)}, of which to its compositor "
            f"{_pair(hold)}; expects to display after {_pair(browser['expected_ms'])} in all; "
            f"encoder {_text(browser['encode_ms'])}; server {_pair(server)} ms (p50/p95)"
        )
        lines.append(
            f"  browser {_text(browser['browser_cpu_percent'])} % CPU, server "
            f"{_text(browser['server_cpu_percent'])} %; {browser['codec']}; "
            f"{browser['slots_skipped']} pictures the page was too late to draw"
        )
        if browser["shown_age_ms"]["p50"] is not None:
            lines.append(f"  the page itself shows {_pair(browser['shown_age_ms'])} ms (p50/p95)")
    return "\n".join(lines)


def _browser(runs: Sequence[BrowserReport]) -> dict[str, Any]:
    return {
        "version": runs[0].version,
        "codec": f"{runs[0].codec.get('name')} {runs[0].codec.get('width')} wide",
        **{
            part: {
                name: _median(_of(getattr(run, part), name) for run in runs) for name in QUANTILES
            }
            for part in PARTS
        },
        "server_ms": {
            name: _median((run.server_ms or {}).get(name) for run in runs) for name in QUANTILES
        },
        "shown_age_ms": {
            name: _median((run.shown_age_ms or {}).get(name) for run in runs)
            for name in QUANTILES[:2]
        },
        "encode_ms": _median(run.encode_ms for run in runs),
        "jitter_buffer_ms": _median(run.jitter_buffer_ms for run in runs),
        "fps_sent": _median(run.fps_sent for run in runs),
        "fps_received": _median(run.fps_received for run in runs),
        "lost": sum(run.lost for run in runs),
        "unreadable": sum(run.unreadable for run in runs),
        "slots_skipped": sum(run.slots_skipped for run in runs),
        "freezes": sum(run.freezes.count for run in runs),
        "growth_ms_per_minute": _median(run.growth_ms_per_minute for run in runs),
        "first_picture_ms": _median(run.first_picture_ms for run in runs),
        "browser_cpu_percent": _median(run.browser_cpu_percent for run in runs),
        "server_cpu_percent": _median(run.server_cpu_percent for run in runs),
    }


def _pair(values: Mapping[str, float | None]) -> str:
    return f"{_text(values['p50'])}/{_text(values['p95'])}"


def _of(values: Distribution | None, name: str) -> float | None:
    return None if values is None else float(getattr(values, name))


def _median(values: Iterable[float | None]) -> float | None:
    """Over the runs that have the number; None when none has."""
    found = [value for value in values if value is not None]
    return median(found) if found else None


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
