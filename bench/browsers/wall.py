"""What one run of `bench tiles` came to, from what its page logged; and what all runs say. Pure."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench import barcode
from bench.statistics import Distribution, distribution, median, rate_per_s, worst
from server.clock import NS_PER_MS

NS_PER_US: Final = 1_000
QUANTILES: Final = ("p50", "p95", "p99", "max")


@dataclass(frozen=True, slots=True)
class PageClock:
    """Where the page's clock stands in the bench's own: both are the machine's monotonic one, each
    with a zero of its own."""

    offset_ms: float
    """To be added to an instant of the page."""
    uncertainty_ms: float
    """Half of the quickest question's round trip."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """In view `data`: how boxes and pictures came together."""

    own: int
    """Pictures shown with their own boxes."""
    late: int
    """Pictures that were gone when their boxes came."""
    without: int
    """Pictures that the detector left out."""
    checked: int
    """Of those with boxes, how many were read from the picture itself."""
    right: int
    """Of these, on how many the boxes were those of this very picture."""
    delay_ms: float
    """How long the tile lets pictures wait for their boxes."""

    @property
    def paired_share(self) -> float | None:
        """Of the pictures that were looked at, those shown with their own boxes."""
        return _share(self.own, self.own + self.late)

    @property
    def right_share(self) -> float | None:
        return _share(self.right, self.checked)


@dataclass(frozen=True, slots=True)
class TileReport:
    """One tile over the window. Times are milliseconds."""

    stream: str
    size: tuple[int, int]
    """Of the picture as it came: half the sides where the tile asked for them."""
    connections: int
    sent: int
    shown: int
    fps: float
    read: int
    unreadable: int
    misread: int
    latency_ms: Distribution | None
    """From the picture handed to the publisher's encoder until the page is told that the tile
    shows it."""
    presented_ms: Distribution | None
    display_ms: Distribution | None
    """The browser's own part: last packet received until the page is told."""
    boxes: Boxes | None


@dataclass(frozen=True, slots=True)
class WallReport:
    """One run in one browser."""

    browser: str
    version: str
    view: str
    tiles: list[TileReport]
    repaint_ms: Distribution | None
    """Between two repaints of the page."""
    long_tasks: Mapping[str, float] | None
    """Of the page, over 50 ms; None where the browser does not tell."""
    reading_ms: Distribution | None
    """What reading a bar code cost."""
    clock_uncertainty_ms: float
    slots_skipped: int
    """Pictures that the publishers were too late for."""
    inferred_per_s: float | None
    browser_cpu_percent: float | None
    server_cpu_percent: float | None


def tile_report(
    stream: str,
    index: int,
    log: Mapping[str, Any],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    handed_at_ns: Sequence[int],
    clock: PageClock,
    left: Sequence[tuple[int, int]] | None = None,
) -> TileReport:
    """`handed_at_ns` is the camera's log by number; `before` and `after` are the page's counts.
    `left`, in view `data`: when pictures began to leave the publisher, and their numbers."""
    begin_ms, end_ms = before["atMs"] + clock.offset_ms, after["atMs"] + clock.offset_ms
    latencies, presented, display = [], [], []
    misread, newest = 0, 0
    for row in log["rows"]:
        if row[0] != index:
            continue
        number = barcode.unwrap(int(row[1]), newest, barcode.NUMBER_BITS)
        if not 0 <= number < len(handed_at_ns) or (
            handed_at_ns[number] // NS_PER_US % (1 << barcode.TIME_BITS) != int(row[2])
        ):
            misread += 1
            continue
        newest = max(newest, number)
        handed_ms = handed_at_ns[number] / NS_PER_MS
        if not begin_ms <= handed_ms < end_ms:
            continue
        latencies.append(row[3] + clock.offset_ms - handed_ms)
        presented.append(row[5] + clock.offset_ms - handed_ms)
        if row[7] >= 0:
            display.append(row[3] - row[7])
    then, now = before["tiles"][index], after["tiles"][index]
    shown = now["seen"] - then["seen"]
    sent = sum(begin_ms <= at_ns / NS_PER_MS < end_ms for at_ns in handed_at_ns)
    return TileReport(
        stream=stream,
        size=(now["size"][0], now["size"][1]),
        connections=now["connections"],
        sent=sent,
        shown=shown,
        fps=rate_per_s(shown, (end_ms - begin_ms) / 1_000),
        read=len(latencies),
        unreadable=now["unreadable"] - then["unreadable"],
        misread=misread,
        latency_ms=distribution(latencies),
        presented_ms=distribution(presented),
        display_ms=distribution(display),
        boxes=None if left is None else _boxes(stream, index, log, before, after, left),
    )


def _boxes(
    stream: str,
    index: int,
    log: Mapping[str, Any],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    left: Sequence[tuple[int, int]],
) -> Boxes:
    """The boxes' message says when the first packet of their picture came to the server; that is
    the picture that had last begun to leave the publisher by then. On one machine both clocks are
    the same one, so that nobody's media time is believed. Where the server read its packets so
    late that a newer picture had left, its count of pictures tells: number and count are as far
    apart as in the next that was right, before or behind."""
    received_ms = {(name, seq): at_ms for name, seq, at_ms in log["messages"]}
    instants = [at_ns for at_ns, _ in left]
    # The server's count, how far the picture's number is from it, and whether it is the one.
    told: list[tuple[int, int, bool]] = []
    for row in log["boxes"]:
        seq = int(row[3])
        arrived_ms = received_ms.get((stream, seq))
        if row[0] != index or not before["atMs"] <= row[1] < after["atMs"] or arrived_ms is None:
            continue
        found = bisect_right(instants, arrived_ms * NS_PER_MS)
        if found:
            due = left[found - 1][1]
            number = barcode.unwrap(int(row[2]), due, barcode.NUMBER_BITS)
            told.append((seq, number - seq, number == due))
    right = sum(is_due or apart in _sure_neighbours(told, seq) for seq, apart, is_due in told)
    then, now = (each["tiles"][index]["pairing"] for each in (before, after))
    return Boxes(
        own=now["hits"] - then["hits"],
        late=now["late"] - then["late"],
        without=now["alone"] - then["alone"],
        checked=len(told),
        right=right,
        delay_ms=now["delayMs"],
    )


def _sure_neighbours(told: Sequence[tuple[int, int, bool]], seq: int) -> list[int]:
    """How far number and count are apart in the nearest right pictures before and behind."""
    before = [(count, apart) for count, apart, is_due in told if is_due and count < seq]
    behind = [(count, apart) for count, apart, is_due in told if is_due and count > seq]
    nearest = [max(before)] if before else []
    nearest += [min(behind)] if behind else []
    return [apart for _, apart in nearest]


def summarise(reports: Sequence[WallReport]) -> dict[str, Any]:
    """By browser and view: medians over the runs of the worst tile, and of every tile."""
    keys = list(dict.fromkeys((report.browser, report.view) for report in reports))
    return {
        f"{browser} {view}": _one([r for r in reports if (r.browser, r.view) == (browser, view)])
        for browser, view in keys
    }


def worst_p95_ms(summary: Mapping[str, Any]) -> float | None:
    """What a budget is compared with. None when a tile has no number."""
    return worst(each["worst_tile_ms"]["p95"] for each in summary.values())


def describe(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The summary for a person."""
    lines = [
        f"{settings['tiles']} streams {settings['size']} at {settings['fps']:g} fps, "
        f"{settings['runs']} run(s) of {settings['seconds']:g} s; glass to glass in the tile, ms",
        f"{'':34}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}{'fps':>8}",
    ]
    for name, each in summary.items():
        lines.append(f"{name}, {each['version']}")
        rows = {"worst tile": each["worst_tile_ms"], **each["tiles_ms"]}
        for what, values in rows.items():
            fps = each["fps_slowest"] if what == "worst tile" else each["fps"][what]
            lines.append(
                f"  {what:32}"
                + "".join(f"{_text(values[q]):>9}" for q in QUANTILES)
                + f"{_text(fps):>8}"
            )
        boxes = each["boxes"]
        if boxes is not None:
            lines.append(
                f"  boxes: on their own picture {_percent(boxes['right_share'])} "
                f"({boxes['checked']} read from the pictures), in time "
                f"{_percent(boxes['paired_share'])}; {boxes['without']} pictures not looked at; "
                f"tiles wait up to {_text(boxes['delay_ms'])} ms for them"
            )
        tasks = each["long_tasks"]
        told = "not told" if tasks is None else f"{tasks['count']:g}, {tasks['total_ms']:.0f} ms"
        lines.append(
            f"  page: repaints {_text(each['repaint_ms']['p50'])}/"
            f"{_text(each['repaint_ms']['p95'])}/{_text(each['repaint_ms']['p99'])} ms apart "
            f"(p50/p95/p99), tasks over 50 ms: {told}; browser's own part "
            f"{_text(each['display_ms']['p50'])}/{_text(each['display_ms']['p95'])} ms"
        )
        lines.append(
            f"  browser {_text(each['browser_cpu_percent'])} % CPU, server "
            f"{_text(each['server_cpu_percent'])} %, {_text(each['inferred_per_s'])} pictures "
            f"looked at a second, {each['slots_skipped']} sent too late; clocks agree within "
            f"{each['clock_uncertainty_ms']:.2f} ms"
        )
    return "\n".join(lines)


def _one(runs: Sequence[WallReport]) -> dict[str, Any]:
    names = [tile.stream for tile in runs[0].tiles]
    tiles = {name: [run.tiles[index] for run in runs] for index, name in enumerate(names)}
    boxes = [tile.boxes for run in runs for tile in run.tiles if tile.boxes is not None]
    tasks = [run.long_tasks for run in runs if run.long_tasks is not None]
    return {
        "version": runs[0].version,
        "worst_tile_ms": {
            q: _median([worst([_of(tile.latency_ms, q) for tile in run.tiles]) for run in runs])
            for q in QUANTILES
        },
        "tiles_ms": {
            name: {q: _median([_of(tile.latency_ms, q) for tile in seen]) for q in QUANTILES}
            for name, seen in tiles.items()
        },
        "fps": {name: _median([tile.fps for tile in seen]) for name, seen in tiles.items()},
        "fps_slowest": _median([min(tile.fps for tile in run.tiles) for run in runs]),
        "display_ms": {
            q: _median([worst([_of(tile.display_ms, q) for tile in run.tiles]) for run in runs])
            for q in QUANTILES
        },
        "boxes": None if not boxes else _together(boxes),
        "repaint_ms": {q: _median([_of(run.repaint_ms, q) for run in runs]) for q in QUANTILES},
        "long_tasks": {key: sum(each[key] for each in tasks) for key in tasks[0]}
        if tasks
        else None,
        "unreadable": sum(tile.unreadable for run in runs for tile in run.tiles),
        "misread": sum(tile.misread for run in runs for tile in run.tiles),
        "slots_skipped": sum(run.slots_skipped for run in runs),
        "clock_uncertainty_ms": max(run.clock_uncertainty_ms for run in runs),
        "inferred_per_s": _median([run.inferred_per_s for run in runs]),
        "browser_cpu_percent": _median([run.browser_cpu_percent for run in runs]),
        "server_cpu_percent": _median([run.server_cpu_percent for run in runs]),
    }


def _together(boxes: Sequence[Boxes]) -> dict[str, Any]:
    """Counts of all tiles and runs; the least of the shares is its own figure."""
    own, late = sum(each.own for each in boxes), sum(each.late for each in boxes)
    checked, right = sum(each.checked for each in boxes), sum(each.right for each in boxes)
    shares = [each.right_share for each in boxes]
    return {
        "own": own,
        "late": late,
        "without": sum(each.without for each in boxes),
        "checked": checked,
        "right": right,
        "paired_share": _share(own, own + late),
        "right_share": _share(right, checked),
        "right_share_worst_tile": None if None in shares else min(s for s in shares if s),
        "delay_ms": max(each.delay_ms for each in boxes),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _of(values: Distribution | None, name: str) -> float | None:
    return None if values is None else float(getattr(values, name))


def _median(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return median(found) if found and len(found) == len(values) else None


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
