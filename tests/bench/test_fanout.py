"""`python -m bench fanout`: the line through its steps, and one small run with real parts."""

from pathlib import Path

import pytest

from bench.__main__ import OK, WRONG_USAGE, main
from bench.fanout import CostStep, FanoutSettings, Found, describe, per_viewer_percent, summary_of
from bench.record import Record
from bench.statistics import distribution

pytestmark = pytest.mark.loopback


def step(kind: str, viewers: int, cpu_percent: float) -> CostStep:
    return CostStep(kind, viewers, cpu_percent, 30.0, 100.0 * viewers)


def test_the_cost_of_one_viewer_is_the_slope_whatever_the_source_costs() -> None:
    steps = [step("shared", count, 20 + 0.3 * count) for count in (1, 8, 24)]
    assert per_viewer_percent(steps) == pytest.approx(0.3)
    assert per_viewer_percent(steps[:1]) is None
    assert per_viewer_percent([]) is None


def test_the_summary_tells_every_part_that_was_run_and_no_other() -> None:
    found = Found(cost=[step("shared", 1, 10), step("shared", 11, 13), step("naive", 1, 10),
                        step("naive", 11, 70)])  # fmt: skip
    summary = summary_of(found)
    assert summary["naive_to_shared"] == pytest.approx(20)
    assert set(summary) == {"per_viewer_percent", "naive_to_shared"}
    found.join_ms.extend([100.0, 300.0])
    found.publish_ms.append(700.0)
    found.glass_ms["data"] = distribution([7.0, 9.0])
    found.glass_ms["call"] = None
    found.signalling.update(
        posted_per_s=200.0, statuses={"503": 9}, admitted_ms=None, refused_ms={"p50": 2, "p99": 9,
        "count": 9}, call_alone_ms={"p95": 20.0}, call_beside_ms={"p95": 22.0},
    )  # fmt: skip
    summary = summary_of(found)
    assert summary["signalling"]["call_p95_change_percent"] == pytest.approx(10)
    text = describe(found, summary)
    assert "20.0 times" in text
    assert "publish to first picture: 700 ms" in text
    assert "glass to glass, call: nothing came back" in text
    assert "+10 %" in text


@pytest.mark.parametrize(
    "arguments", [["--viewers", "3"], ["--joins", "0"], ["--rate", "0"], ["--seconds", "0"]]
)
def test_settings_that_measure_nothing_are_wrong_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fanout", *arguments]) == WRONG_USAGE
    assert arguments[0] in capsys.readouterr().err


def test_a_small_run_measures_shared_and_naive(
    moving_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fanout", "--part", "cost", "--kind", "shared", "--kind", "naive", "--viewers",
                 "1", "3", "--seconds", "0.5", "--warmup", "0.3", "--clip", str(moving_clip),
                 "--out", str(tmp_path), "--json"]  # fmt: skip
    assert main(arguments) == OK
    record = Record.from_json(capsys.readouterr().out.splitlines()[-1])
    assert record.settings == FanoutSettings(
        parts=("cost",), kinds=("shared", "naive"), viewers=(1, 3), clip=moving_clip,
        seconds=0.5, warmup_s=0.3,
    ).to_record()  # fmt: skip
    (run,) = record.runs
    assert [(found["kind"], found["viewers"]) for found in run["cost"]] == [
        ("shared", 1), ("shared", 3), ("naive", 1), ("naive", 3)
    ]  # fmt: skip
    assert all(found["packets_per_s"] > 0 for found in run["cost"])
    assert set(record.summary["per_viewer_percent"]) == {"shared", "naive"}
