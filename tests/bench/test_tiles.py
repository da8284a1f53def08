"""`python -m bench tiles`: from the page's log to its report, refusals, and real tiles."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import OK, WRONG_USAGE, main
from bench.browsers.wall import (
    PageClock,
    WallReport,
    describe,
    summarise,
    tile_report,
    worst_p95_ms,
)
from bench.record import Record
from bench.tiles import TilesSettings
from tests.page.making import write_detector

OFFSET_MS = 5_000.0
INTERVAL_MS = 66.0
CLOCK = PageClock(OFFSET_MS, 0.2)
# By number, on the bench's own clock.
HANDED_AT_NS = [round((7_000 + INTERVAL_MS * number) * 1e6) for number in range(40)]


def row(number: int, latency_ms: float = 80.0, tile: int = 0) -> list[float]:
    """As the page writes it, on the page's clock."""
    handed_at_ns = HANDED_AT_NS[number]
    at_ms = handed_at_ns / 1e6 + latency_ms - OFFSET_MS
    time_us = handed_at_ns // 1_000 % 2**32
    return [tile, number, time_us, at_ms, at_ms - 1, at_ms - 4, at_ms + 9, at_ms - 20, 2.0, 0.3]


def snapshot(number: int, **pairing: int) -> dict[str, Any]:
    """The page's counts when the picture of that number was handed over."""
    at_ms = HANDED_AT_NS[number] / 1e6 - OFFSET_MS
    counts = {"hits": 0, "late": 0, "alone": 0, "delayMs": 40, **pairing}
    tile = {"seen": number, "unreadable": 0, "size": [640, 360], "connections": 1}
    return {"atMs": at_ms, "tiles": [{**tile, "pairing": counts}]}


def box_row(number: int, seq: int) -> list[float]:
    return [0, HANDED_AT_NS[number] / 1e6 - OFFSET_MS + 80, number, seq, 2]


@pytest.mark.unit
def test_a_tiles_delay_is_counted_across_the_two_clocks() -> None:
    log = {"rows": [row(number) for number in range(40)], "boxes": []}
    told = tile_report("porch", 0, log, snapshot(10), snapshot(30), HANDED_AT_NS, CLOCK)
    assert (told.sent, told.read, told.shown) == (20, 20, 20)
    assert told.latency_ms is not None
    assert told.latency_ms.p50 == pytest.approx(80, abs=0.01)
    assert told.display_ms is not None
    assert told.display_ms.p95 == pytest.approx(20)
    assert told.fps == pytest.approx(1_000 / INTERVAL_MS)
    assert told.boxes is None


@pytest.mark.unit
def test_what_the_camera_never_sent_is_misread_and_other_tiles_are_not_this_one() -> None:
    foreign = row(12)
    foreign[2] += 1
    log = {"rows": [row(11), foreign, row(13, tile=1), row(14)], "boxes": []}
    told = tile_report("porch", 0, log, snapshot(10), snapshot(30), HANDED_AT_NS, CLOCK)
    assert (told.read, told.misread) == (2, 1)


@pytest.mark.unit
def test_boxes_are_right_where_their_message_is_of_the_picture_that_is_shown() -> None:
    left = [(at_ns + 4_000_000, number) for number, at_ns in enumerate(HANDED_AT_NS)]
    # Number 20 was lost on its way: the server's count falls behind by one more.
    count = {number: number - (3 if number < 20 else 4) for number in range(5, 30) if number != 20}
    heard_ms = {seq: HANDED_AT_NS[number] / 1e6 + 9.0 for number, seq in count.items()}
    messages = [("porch", seq, at_ms) for seq, at_ms in heard_ms.items()]
    boxes = [box_row(number, count[number]) for number in range(11, 29) if number != 20]
    boxes.append(box_row(22, count[21]))  # the boxes of the picture before
    boxes.append(box_row(35, count[21]))  # after the window
    boxes.append(box_row(22, 999))  # nobody heard its message
    before, after = snapshot(10, hits=5), snapshot(30, hits=22, late=1, alone=2)
    log = {"rows": [], "boxes": boxes, "messages": messages}
    told = tile_report("porch", 0, log, before, after, HANDED_AT_NS, CLOCK, left).boxes
    assert told is not None
    assert (told.own, told.late, told.without) == (17, 1, 2)
    assert (told.checked, told.right) == (18, 17)
    assert told.right_share == pytest.approx(17 / 18)
    assert told.paired_share == pytest.approx(17 / 18)
    # A server that read its packets when the next picture had left counts as before.
    tardy = [("porch", seq, at + INTERVAL_MS * (seq == 9)) for seq, at in heard_ms.items()]
    log_of_tardy = {**log, "messages": tardy}
    told = tile_report("porch", 0, log_of_tardy, before, after, HANDED_AT_NS, CLOCK, left).boxes
    assert told is not None
    assert (told.checked, told.right) == (18, 17)
    # Boxes that are always those of the picture before are always wrong.
    shifted = {**log, "boxes": [box_row(n + 1, count[n]) for n in range(11, 19)]}
    told = tile_report("porch", 0, shifted, before, after, HANDED_AT_NS, CLOCK, left).boxes
    assert told is not None
    assert (told.checked, told.right) == (8, 0)


def a_run(latency_ms: float) -> WallReport:
    log = {"rows": [row(number, latency_ms) for number in range(40)], "boxes": []}
    tile = tile_report("porch", 0, log, snapshot(10), snapshot(30), HANDED_AT_NS, CLOCK)
    late = replace(tile, stream="yard", latency_ms=tile.latency_ms)
    return WallReport(
        browser="chromium",
        version="1",
        view="annotated",
        tiles=[tile, late],
        repaint_ms=None,
        long_tasks={"count": 1, "total_ms": 60.0, "longest_ms": 60.0},
        reading_ms=None,
        clock_uncertainty_ms=0.2,
        slots_skipped=0,
        inferred_per_s=30.0,
        browser_cpu_percent=None,
        server_cpu_percent=40.0,
    )


@pytest.mark.unit
def test_the_worst_tile_is_what_a_budget_is_for() -> None:
    slow = a_run(100.0)
    blind = replace(slow, tiles=[slow.tiles[0], replace(slow.tiles[1], latency_ms=None)])
    summary = summarise([a_run(80.0), slow, a_run(90.0)])
    assert worst_p95_ms(summary) == pytest.approx(90, abs=0.01)
    assert summary["chromium annotated"]["long_tasks"]["count"] == 3
    text = describe(summary, TilesSettings(runs=3).to_record())
    assert "yard" in text
    # A tile that showed nothing readable is no tile that was quick.
    assert worst_p95_ms(summarise([blind])) is None


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--tiles", "0"], "--tiles"),
        (["--fps", "0"], "--fps"),
        (["--size", "641x360"], "--size"),
        (["--seconds", "0"], "--seconds"),
    ],
)
def test_a_wrong_option_is_named(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tiles", *arguments, "--json"]) == WRONG_USAGE
    assert named in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]


@pytest.mark.browser
@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("chromium", "data"),
        pytest.param("firefox", "data", marks=pytest.mark.long),
        pytest.param("chromium", "annotated", marks=pytest.mark.long),
        pytest.param("firefox", "annotated", marks=pytest.mark.long),
        pytest.param("chromium", "dashboard", marks=pytest.mark.long),
    ],
)
def test_tiles_are_read_and_their_boxes_checked(
    name: str, view: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = write_detector(tmp_path / "always.onnx")
    arguments = ["tiles", "--browser", name, "--view", view, "--tiles", "2", "--size", "320x240"]
    arguments += ["--seconds", "2", "--warmup", "1", "--model", str(detector), "--json"]
    arguments += ["--server-arg=--provider=cpu", "--out", str(tmp_path)]

    assert main(arguments) == OK

    record = Record.from_json(capsys.readouterr().out.splitlines()[-1])
    (run,) = record.runs
    assert [tile["stream"] for tile in run["tiles"]] == ["tile-01", "tile-02"]
    for tile in run["tiles"]:
        assert tile["read"] > 3
        assert tile["misread"] == 0
        assert tile["latency_ms"]["p50"] > tile["display_ms"]["p50"] > 0 or name == "firefox"
        if view == "data":
            # That boxes are on their own picture is what tests/tile/test_data_view.py holds; here
            # the instrument is looked at. In its first seconds a busy tile does not know yet how
            # long pictures have to wait, and Firefox may show the next one before its callback
            # about this one runs. Boxes that were always wrong would be none in all.
            assert tile["boxes"]["right"] / tile["boxes"]["checked"] >= 0.5
    assert run["clock_uncertainty_ms"] < 50
    assert (run["long_tasks"] is None) == (name == "firefox")
    assert str(tmp_path) not in record.to_json()
