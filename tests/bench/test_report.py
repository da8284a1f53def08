"""`python -m bench report`: one page that holds everything and fetches nothing."""

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from bench.__main__ import OK, WRONG_USAGE, main
from bench.record import Record
from bench.report import page
from bench.reports.charts import (
    Axis,
    Bar,
    Line,
    Step,
    bars,
    distribution,
    lines,
    nice_step,
    short,
    waterfall,
)
from bench.subjects import SUBJECTS
from tests.bench.making_records import compare_record, glass_record

pytestmark = pytest.mark.unit


def svgs(html: str) -> list[ElementTree.Element]:
    """Every chart of a page, parsed: a broken one fails here."""
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


def text_of(html: str) -> str:
    return re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL)


def whole_page() -> str:
    return page([("c.json", compare_record(12, 48, 6)), ("g.json", glass_record([9, 11], 6))])


def test_the_page_fetches_nothing() -> None:
    html = whole_page()
    assert re.findall(r"https?://|src=|@import|url\(|<script|<link", html) == []
    assert "prefers-color-scheme" in html or "light-dark(" in html


def test_the_page_shows_what_the_records_say() -> None:
    html = whole_page()
    text = text_of(html)
    for wanted in (
        "12 / 12",
        "4.0 times ours",
        "aiortc, detection in recv()",
        "8 of 8",
        "The floor: the same work, no server",
        "one call, H264, our own detector",
        "Not compared, and why",
        "aiortc",
        "0000000000",
    ):
        assert wanted in text
    # Delay by clients and over time, distributions of both, stages and the floor.
    assert len(svgs(html)) >= 8


def test_a_server_that_returned_nothing_is_named_under_the_chart_it_is_not_in() -> None:
    record = compare_record(12, 48, 6)
    assert "no picture came back" not in page([("c.json", record)])
    record.summary["clients"]["1"]["aiortc"]["worst_client_ms"] = dict.fromkeys(("p50", "p95"))
    html = page([("c.json", record)])
    assert f"{SUBJECTS['aiortc'].title} has none: no picture came back." in text_of(html)


def test_what_records_say_cannot_become_markup() -> None:
    html = whole_page()
    assert "A &lt;fast&gt; one" in html
    assert "<fast>" not in html
    assert "it &lt;cannot&gt; be driven" in html


def test_a_busy_machine_is_told() -> None:
    calm = glass_record(10)
    busy = replace(calm, machine={**calm.machine, "load_before": [7.5, 5.0, 4.0]})
    assert "busy with other work" not in page([("a.json", calm)])
    assert "up to 7.5" in page([("a.json", busy)])


def test_a_bench_without_charts_is_shown_as_numbers() -> None:
    other = replace(glass_record(10), bench="impair", summary={"loss": {"5 %": {"p95": 41.5}}})
    text = text_of(page([("i.json", other)]))
    assert "loss 5 % p95" in text
    assert "41.5" in text


def test_joined_records_and_single_ones_make_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record: Record = glass_record(10)
    joined, out = tmp_path / "release.json", tmp_path / "page.html"
    joined.write_text(json.dumps({"records": {"a.json": json.loads(record.to_json())}}))
    assert main(["report", str(out), str(joined), "--title", "Here & now"]) == OK
    assert "<title>Here &amp; now</title>" in out.read_text()
    assert "1 record(s)" in capsys.readouterr().out
    joined.write_text('{"records": {}}')
    assert main(["report", str(out), str(joined)]) == WRONG_USAGE


def test_bars_are_in_proportion_and_inside_the_drawing() -> None:
    rows = [Bar("a", 10, 20, "1.0 times ours"), Bar("b", 1000, 4000, "400.0 times ours")]
    (drawing,) = svgs(bars("t", rows))
    widths = [float(rect.get("width", "0")) for rect in drawing.iter("rect")]
    assert widths[3] / widths[2] == pytest.approx(1000 / 4000, rel=0.01)
    wide = float(drawing.get("viewBox", "").split()[2])
    last = [text for text in drawing.iter("text") if text.get("class") == "figure"][-1]
    assert float(last.get("x", "0")) + 6 * len("".join(last.itertext())) < wide + 10


def test_lines_stay_inside_their_plot_on_both_kinds_of_axis() -> None:
    for points in ([(0.0, 10.0), (5.0, 12.0)], [(0.0, 10.0), (5.0, 9000.0)]):
        (drawing,) = svgs(lines("t", [Line("a", points)], "s", "ms"))
        _, _, wide, high = map(float, drawing.get("viewBox", "").split())
        (line,) = drawing.iter("polyline")
        places = [tuple(map(float, pair.split(","))) for pair in line.get("points", "").split()]
        assert all(0 <= x <= wide and 0 <= y <= high for x, y in places)
        assert places[0][1] > places[1][1]


def test_nothing_to_draw_is_nothing() -> None:
    assert lines("t", [], "s", "ms") == ""
    assert lines("t", [Line("a", [])], "s", "ms") == ""
    assert distribution("t", []) == ""


def test_a_waterfall_ends_with_the_sum_of_its_steps() -> None:
    (drawing,) = svgs(waterfall("t", [Step("one", 1.5), Step("two", 3.0)]))
    figures = [t.text for t in drawing.iter("text") if t.get("class") == "figure"]
    assert figures == ["1.5", "3", "4.5"]
    first, second, total = drawing.iter("rect")
    end = float(first.get("x", "0")) + float(first.get("width", "0"))
    assert float(second.get("x", "0")) == pytest.approx(end, abs=0.2)
    assert float(total.get("x", "0")) == float(first.get("x", "0"))


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (Axis(0, 50, 0, 100, False), [0, 10, 20, 30, 40, 50]),
        (Axis(0, 0.9, 0, 100, False), [0, 0.2, 0.4, 0.6, 0.8]),
        (Axis(10, 20_000, 0, 100, True), [10, 100, 1000, 10_000]),
        (Axis(10, 60, 0, 100, True), [10, 20, 50]),
    ],
)
def test_ticks_are_round_and_inside(axis: Axis, expected: list[float]) -> None:
    assert axis.ticks() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.123, "0.12"), (3.14, "3.1"), (30.0, "30"), (234.5, "234"), (3416.2, "3,416")],
)
def test_figures_are_short(value: float | None, text: str) -> None:
    assert short(value) == text


def test_steps_are_one_two_or_five() -> None:
    assert [nice_step(rough) for rough in (0.03, 1.4, 4.2, 7.0, 0.0)] == [0.05, 2, 5, 10, 1]
