"""Charts as inline SVG, drawn here: bars, lines and waterfalls. Pure text in, text out.

Drawn for a narrow column, so that letters keep their size on a phone; colours are classes, which
the page's style sheet gives a light and a dark value.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 440
# A letter of the page's font in SVG units, wide enough for most.
LETTER_WIDTH: Final = 7.2
BOLD: Final = 1.1
ROW: Final = 46
# Beyond this between the smallest and the largest, a linear axis would hide the small one.
LOG_FROM: Final = 12.0
PLOT_HEIGHT: Final = 210
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 30, 36
TICKS: Final = 5
POINTS_MARKED: Final = 12


@dataclass(frozen=True, slots=True)
class Bar:
    """One quantity, with how far it reaches in bad moments."""

    label: str
    value: float
    reach: float | None = None
    note: str = ""
    """Behind the figure, such as a ratio."""
    tone: str = "t1"


@dataclass(frozen=True, slots=True)
class Line:
    """Points from left to right."""

    label: str
    points: Sequence[tuple[float, float]]
    tone: str = "t1"


@dataclass(frozen=True, slots=True)
class Step:
    """One part of a sum."""

    label: str
    value: float
    tone: str = "t1"


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to places, linear or in powers of ten."""

    low: float
    high: float
    begin: float
    end: float
    log: bool

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = (math.log10(max(number, 1e-6)) for number in (value, low, high))
        share = (value - low) / (high - low) if high > low else 0.0
        return self.begin + min(1.05, max(0.0, share)) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            found = [10.0**power for power in range(first, last + 1)]
            if len(found) < 4:
                found = [factor * tick for tick in found for factor in (1, 2, 5)]
            return [tick for tick in found if self.low <= tick <= self.high]
        step = nice_step((self.high - self.low) / TICKS)
        first_tick = math.ceil(self.low / step)
        count = math.floor(self.high / step + 1e-9) - first_tick + 1
        return [(first_tick + number) * step for number in range(count)]


def bars(title: str, rows: Sequence[Bar], unit: str = "ms") -> str:
    """One bar a row, its label above it; the faint part reaches to the higher figure.

    Lengths are in proportion, however short the shortest becomes: its figure stands beside it.
    """
    top = max(max(row.value, row.reach or 0) for row in rows)
    texts = [_figure(row) for row in rows]
    room = max(
        len(text) * LETTER_WIDTH * BOLD + len(row.note) * LETTER_WIDTH
        for row, text in zip(rows, texts, strict=True)
    )
    axis = Axis(0.0, top, 0, max(WIDTH / 4, WIDTH - room - 22), False)
    parts = []
    for index, (row, text) in enumerate(zip(rows, texts, strict=True)):
        y = index * ROW
        reach = axis.place(row.reach) if row.reach is not None else 0.0
        value = max(2.0, axis.place(row.value))
        note = f'<tspan class="soft" dx="7">{escape(row.note)}</tspan>' if row.note else ""
        parts.append(
            f'<text x="0" y="{y + 11}" class="name">{escape(row.label)}</text>'
            f'<rect x="0" y="{y + 17}" width="{reach:.1f}" height="15" rx="2" '
            f'class="{row.tone} faint"/>'
            f'<rect x="0" y="{y + 17}" width="{value:.1f}" height="15" rx="2" class="{row.tone}"/>'
            f'<text x="{max(value, reach) + 8:.1f}" y="{y + 29}" class="figure">{text}{note}</text>'
        )
    height = len(rows) * ROW + 16
    scale = f"{unit}, p50 and p95" if any(row.reach for row in rows) else unit
    parts.append(f'<text x="0" y="{height - 4}" class="soft">{escape(scale)}</text>')
    return _svg(title, height, parts)


def _figure(row: Bar) -> str:
    return short(row.value) if row.reach is None else f"{short(row.value)} / {short(row.reach)}"


def lines(
    title: str,
    drawn: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    limit: float | None = None,
) -> str:
    """Series in one plot with their names above it. `limit` is a line across."""
    ys = [y for line in drawn for _, y in line.points if y > 0] or [1.0]
    top = max(max(ys), limit or 0)
    log = top / min(ys) > LOG_FROM
    low = _below(min(ys)) if log else 0.0
    return _plot(title, drawn, (x_label, y_label), (None, (low, top * 1.04)), (False, log), limit)


def distribution(title: str, drawn: Sequence[Line]) -> str:
    """Delay against the share of pictures that took at most so long."""
    xs = [x for line in drawn for x, _ in line.points if x > 0] or [1.0]
    log = max(xs) / min(xs) > LOG_FROM
    low = _below(min(xs)) if log else 0.0
    return _plot(
        title,
        drawn,
        ("ms", "% of the pictures"),
        ((low, max(xs)), (0.0, 100.0)),
        (log, False),
        None,
    )


def _plot(
    title: str,
    drawn: Sequence[Line],
    labels: tuple[str, str],
    ranges: tuple[tuple[float, float] | None, tuple[float, float]],
    logs: tuple[bool, bool],
    limit: float | None,
) -> str:
    """Empty when there is nothing to draw."""
    kept = [line for line in drawn if line.points]
    if not kept:
        return ""
    xs = [x for line in kept for x, _ in line.points]
    legend, legend_height = _legend(kept)
    upper = TOP + legend_height
    lower = upper + PLOT_HEIGHT
    x_low, x_high = ranges[0] or (min(xs), max(xs))
    x_axis = Axis(x_low, x_high, LEFT, WIDTH - RIGHT, logs[0])
    y_axis = Axis(*ranges[1], lower, upper, logs[1])
    parts = [legend]
    for tick in y_axis.ticks():
        y = y_axis.place(tick)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="rule"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="tick end">{short(tick)}</text>'
        )
    for tick in x_axis.ticks():
        x = x_axis.place(tick)
        parts.append(f'<text x="{x:.1f}" y="{lower + 16}" class="tick middle">{short(tick)}</text>')
    if limit is not None:
        y = y_axis.place(limit)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="limit"/>'
        )
    for line in kept:
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" class="{line.tone} line"/>')
        if len(places) <= POINTS_MARKED:
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="{line.tone}"/>' for x, y in places
            ]
    foot = lower + BOTTOM - 3
    parts.append(
        f'<text x="0" y="{upper - 12}" class="soft">{escape(labels[1])}</text>'
        f'<text x="{WIDTH - RIGHT}" y="{foot}" class="soft end">{escape(labels[0])}</text>'
    )
    return _svg(title, lower + BOTTOM + 4, parts)


def waterfall(title: str, steps: Sequence[Step], unit: str = "ms") -> str:
    """Each part begins where the one before ended; the last row is the sum."""
    total = sum(step.value for step in steps)
    axis = Axis(0.0, total or 1.0, 92, WIDTH - 56, False)
    row, begin = 24, 0.0
    parts = []
    for index, step in enumerate([*steps, Step("sum", total, "sum")]):
        if step.tone == "sum":
            begin = 0.0
        y = index * row
        left, right = axis.place(begin), axis.place(begin + step.value)
        parts.append(
            f'<text x="84" y="{y + 15}" class="name end">{escape(step.label)}</text>'
            f'<rect x="{left:.1f}" y="{y + 4}" width="{max(1.5, right - left):.1f}" height="15" '
            f'rx="2" class="{step.tone}"/>'
            f'<text x="{right + 6:.1f}" y="{y + 16}" class="figure">{short(step.value)}</text>'
        )
        begin += step.value
    height = (len(steps) + 1) * row + 16
    parts.append(f'<text x="92" y="{height - 2}" class="soft">{escape(unit)}, p50</text>')
    return _svg(title, height, parts)


def short(value: float | None) -> str:
    """For people: three digits say enough."""
    if value is None:
        return "-"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100 or value == round(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 1 else f"{value:.2f}"


def nice_step(rough: float) -> float:
    """The 1, 2 or 5 times a power of ten that is nearest above."""
    if rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def _below(value: float) -> float:
    """A round number under it, as the foot of an axis of powers."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= value * 1.001) / 2


def _legend(drawn: Sequence[Line]) -> tuple[str, int]:
    """Names with their colours, wrapped; and how high that is."""
    if len(drawn) == 1 and not drawn[0].label:
        return "", 0
    x, y, parts = 0.0, 12, []
    for line in drawn:
        width = 22 + len(line.label) * LETTER_WIDTH + 12
        if x and x + width > WIDTH:
            x, y = 0.0, y + 18
        parts.append(
            f'<rect x="{x:.1f}" y="{y - 9}" width="14" height="10" rx="2" class="{line.tone}"/>'
            f'<text x="{x + 20:.1f}" y="{y}" class="name">{escape(line.label)}</text>'
        )
        x += width
    return "".join(parts), y + 6


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
