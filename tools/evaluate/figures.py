"""The figures of the report: one axes each, precisions of one model on top of each other.

A colour is a model, a line style is a precision, so half precision over full precision shows as
dashes along a line. Each figure is drawn twice, for light and for dark pages.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tools.evaluate.run import Run
from tools.evaluate.tables import frontier

Corner = Literal["lower left", "lower right", "upper right"]

SIZE_INCHES = (7.2, 4.5)
LINES: dict[str, Any] = {"fp32": "-", "fp16": (0, (5, 4)), "bf16": (0, (1.2, 2.2)), "auto": "-."}
WIDTHS = {"fp32": 3.6, "fp16": 1.7, "bf16": 1.9, "auto": 1.9}
MARKS = {"fp32": "o", "fp16": "s", "bf16": "^", "auto": "D"}


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of one page background."""

    name: str
    paper: str
    ink: str
    quiet: str
    models: tuple[str, ...]


# Dark and bright steps of the same hues, told apart by people with the common colour blindnesses.
LIGHT = Theme(
    "light",
    "#ffffff",
    "#1c2430",
    "#d9dee6",
    ("#1f6feb", "#c2410c", "#0f766e", "#8b3fc7", "#a16207", "#475569"),
)
DARK = Theme(
    "dark",
    "#12161d",
    "#e6eaf0",
    "#2c3542",
    ("#6cb0ff", "#ff9d5c", "#4fd1b8", "#cf9bff", "#f2c14e", "#a8b5c7"),
)
THEMES = (LIGHT, DARK)


@dataclass(frozen=True, slots=True)
class FigureKind:
    """One figure: where it is saved, what it says, how it is drawn."""

    key: str
    title: str
    caption: str
    draw: Callable[[Axes, Sequence[Run], Theme], None]


def svg(kind: FigureKind, runs: Sequence[Run], theme: Theme) -> str:
    """The figure as an SVG document, text as outlines so that no font is needed."""
    stream = io.StringIO()
    with rc_context({"svg.hashsalt": f"{kind.key}-{theme.name}", "svg.fonttype": "path"}):
        _figure(kind, runs, theme).savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def png(kind: FigureKind, runs: Sequence[Run], theme: Theme = LIGHT) -> bytes:
    """The figure as PNG, 1440 pixels wide."""
    stream = io.BytesIO()
    _figure(kind, runs, theme).savefig(stream, format="png", dpi=200)
    return stream.getvalue()


def _figure(kind: FigureKind, runs: Sequence[Run], theme: Theme) -> Figure:
    with rc_context({"font.family": "sans-serif", "font.size": 10.5}):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained", facecolor=theme.paper)
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _dress(axes, theme)
        kind.draw(axes, runs, theme)
        axes.set_title(kind.title, loc="left", color=theme.ink, fontweight="bold", pad=12)
        legend = axes.get_legend()
        if legend is not None:
            legend.get_frame().set(facecolor=theme.paper, edgecolor=theme.quiet, alpha=0.92)
            for text in legend.get_texts():
                text.set_color(theme.ink)
        return figure


def _dress(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(theme.paper)
    axes.grid(True, color=theme.quiet, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.ink)
    axes.tick_params(colors=theme.ink, length=0)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)


def _labels(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run.label for run in runs))


def _colour(run: Run, runs: Sequence[Run], theme: Theme) -> str:
    return theme.models[_labels(runs).index(run.label) % len(theme.models)]


def _in_order(runs: Sequence[Run]) -> list[Run]:
    """Full precision first, so that the thin dashes of the others lie on top of it."""
    order = list(LINES)
    return sorted(runs, key=lambda run: order.index(run.precision))


def _lines(
    axes: Axes,
    runs: Sequence[Run],
    theme: Theme,
    of: Callable[[Run], tuple[np.ndarray, np.ndarray]],
    marks: bool = False,
) -> None:
    for run in _in_order(runs):
        x, y = of(run)
        full = run.precision == "fp32"
        axes.plot(
            x,
            y,
            color=_colour(run, runs, theme),
            alpha=0.45 if full else 1.0,
            linestyle=LINES[run.precision],
            linewidth=WIDTHS[run.precision],
            marker=MARKS[run.precision] if marks else None,
            markersize=6 if full else 3.5,
            solid_capstyle="round",
        )
    axes.margins(x=0.01)


def _legend(axes: Axes, runs: Sequence[Run], theme: Theme, where: Corner) -> None:
    handles = [
        Line2D([], [], color=_colour(run, runs, theme), linewidth=3, label=run.label)
        for run in {run.label: run for run in runs}.values()
    ]
    handles += [
        Line2D(
            [],
            [],
            color=theme.ink,
            alpha=0.45 if name == "fp32" else 1.0,
            linestyle=LINES[name],
            linewidth=WIDTHS[name],
            label=name.upper(),
        )
        for name in LINES
        if any(run.precision == name for run in runs)
    ]
    axes.legend(handles=handles, loc=where, fontsize=9, handlelength=3.2, borderpad=0.7)


def _map_by_iou(axes: Axes, runs: Sequence[Run], theme: Theme) -> None:
    _lines(axes, runs, theme, lambda r: (r.scores.ious, 100 * r.scores.map_by_iou), marks=True)
    axes.set(xlabel="IoU threshold", ylabel="mAP, %", ylim=(0, None))
    _legend(axes, runs, theme, "lower left")


def _precision(axes: Axes, runs: Sequence[Run], theme: Theme) -> None:
    _lines(axes, runs, theme, lambda r: (r.curves.confidence, 100 * r.curves.precision))
    axes.set(xlabel="Confidence threshold", ylabel="Precision, %", ylim=(0, 103))
    _legend(axes, runs, theme, "lower right")


def _recall(axes: Axes, runs: Sequence[Run], theme: Theme) -> None:
    _lines(axes, runs, theme, lambda r: (r.curves.confidence, 100 * r.curves.recall))
    axes.set(xlabel="Confidence threshold", ylabel="Recall, %", ylim=(0, 103))
    _legend(axes, runs, theme, "upper right")


def _f1(axes: Axes, runs: Sequence[Run], theme: Theme) -> None:
    _lines(axes, runs, theme, lambda r: (r.curves.confidence, 100 * r.curves.f1))
    axes.set(xlabel="Confidence threshold", ylabel="F1, %", ylim=(0, 103))
    _legend(axes, runs, theme, "upper right")


def _precision_recall(axes: Axes, runs: Sequence[Run], theme: Theme) -> None:
    _lines(axes, runs, theme, lambda r: (100 * r.curves.recall_grid, _at_recall(r)))
    axes.set(xlabel="Recall, %", ylabel="Precision, %", ylim=(0, 103))
    _legend(axes, runs, theme, "upper right")


def _at_recall(run: Run) -> np.ndarray:
    return np.asarray(100 * run.curves.precision_at_recall)


def _frontier(axes: Axes, runs: Sequence[Run], theme: Theme) -> None:
    best, every = frontier(runs), runs
    runs = [run for run in runs if run.timed]
    if not runs:
        return
    axes.plot(
        [run.latency("total", 50) for run in best],
        [100 * run.scores.map_50_95 for run in best],
        color=theme.ink,
        alpha=0.35,
        linewidth=6,
        solid_capstyle="round",
        solid_joinstyle="round",
    )
    slowest = max(run.latency("total", 50) for run in runs)
    for run in runs:
        colour = _colour(run, every, theme)
        middle, late = run.latency("total", 50), run.latency("total", 95)
        height = 100 * run.scores.map_50_95
        axes.plot([middle, late], [height, height], color=colour, alpha=0.5, linewidth=1.5)
        axes.plot(middle, height, MARKS[run.precision], color=colour, markersize=9, zorder=3)
        axes.annotate(
            f"{run.label} {run.precision.upper()}",
            (middle, height),
            xytext=(6, 7 if run.precision == "fp32" else -14),
            textcoords="offset points",
            fontsize=8.5,
            color=theme.ink,
        )
    accuracies = [100 * run.scores.map_50_95 for run in runs]
    spread = max(max(accuracies) - min(accuracies), 1.0)
    axes.set(
        xlabel="Prepare + infer + boxes per picture, ms (mark: p50, line: to p95)",
        ylabel="mAP50-95, %",
        # A few stragglers on a busy machine must not squeeze the marks into a corner.
        xlim=(0, 1.6 * slowest),
        ylim=(min(accuracies) - 0.3 * spread, max(accuracies) + 0.3 * spread),
    )


PAPER_FIGURES = (
    FigureKind(
        "map-by-iou",
        "mAP by IoU threshold",
        "Mean average precision when a box must overlap the truth by at least so much.",
        _map_by_iou,
    ),
    FigureKind(
        "precision-confidence",
        "Precision by confidence",
        "Share of boxes at or above the confidence that are right, mean over classes, IoU 0.5.",
        _precision,
    ),
    FigureKind(
        "recall-confidence",
        "Recall by confidence",
        "Share of objects found by boxes at or above the confidence, mean over classes, IoU 0.5.",
        _recall,
    ),
    FigureKind(
        "f1-confidence",
        "F1 by confidence",
        "Harmonic mean of the two, mean over classes, IoU 0.5. Its peak is a good threshold.",
        _f1,
    ),
    FigureKind(
        "precision-recall",
        "Precision by recall",
        "Precision at each recall, interpolated as COCO does, mean over classes, IoU 0.5.",
        _precision_recall,
    ),
)
FRONTIER = FigureKind(
    "accuracy-latency",
    "Accuracy and latency",
    "Runs on the grey line are beaten by no other in both. One picture at a time.",
    _frontier,
)
FIGURES = (*PAPER_FIGURES, FRONTIER)
