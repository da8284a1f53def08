"""`python -m bench soak`: what counts as a fault, and a short real run."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.__main__ import OK, WRONG_USAGE, main
from bench.record import Record
from bench.slope import Slope
from bench.soak_report import Holdings, Sample, faults, slope_of

pytestmark = pytest.mark.loopback

HELD = Holdings(rss_mib=100, threads=9, open_files=20, tasks=5, sessions=0)
FLAT = Slope(per_hour=0.1, low=-0.3, high=0.5, samples=100, worth=80)


def test_a_server_that_holds_what_it_held_has_no_fault() -> None:
    assert faults(FLAT, 1.0, HELD, replace(HELD, rss_mib=101, threads=8)) == []


def test_growth_that_cannot_be_ruled_out_is_a_fault() -> None:
    unsure = replace(FLAT, high=1.5)
    (fault,) = faults(unsure, 1.0, HELD, HELD)
    assert "not surely below 1" in fault
    assert "too few samples" in faults(None, 1.0, HELD, HELD)[0]


@pytest.mark.parametrize("name", ["threads", "open_files", "tasks", "sessions"])
def test_what_is_left_behind_is_named(name: str) -> None:
    (fault,) = faults(FLAT, 1.0, HELD, replace(HELD, **{name: 99}))
    assert fault.startswith(f"{name.replace('_', ' ')}: 99 at the end")


def test_a_task_count_that_is_not_told_is_no_fault() -> None:
    assert faults(FLAT, 1.0, replace(HELD, tasks=None), HELD) == []


def test_memory_of_pictures_on_their_way_is_no_growth() -> None:
    samples = [
        Sample(
            at_s=5 * number,
            held=replace(HELD, rss_mib=100 + number),
            rss_least_mib=100,
            joined=number,
            pictures=1,
            p50_ms=20,
            p95_ms=30,
        )
        for number in range(10)
    ]
    grown = slope_of(samples, "rss_mib")
    assert grown is not None
    assert (grown.per_hour, grown.is_below(1.0)) == (0, True)


def test_calls_join_and_leave_and_leave_nothing_behind(
    moving_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["soak", "--minutes", "0.12", "--settle", "0", "--every", "1", "--no-detector"]
    arguments += ["--clip", str(moving_clip), "--size", "320x240", "--rss-limit", "1000000"]

    assert main([*arguments, "--out", str(tmp_path), "--json"]) == OK

    captured = capsys.readouterr()
    record = Record.from_json(captured.out.splitlines()[-1])
    (run,) = record.runs
    assert run["joined"] == len(run["samples"]) >= 2
    assert run["refused"] == 0
    assert all(sample["pictures"] > 0 for sample in run["samples"])
    assert all(
        0 < sample["rss_least_mib"] <= sample["held"]["rss_mib"] for sample in run["samples"]
    )
    assert record.summary["faults"] == []
    assert record.summary["end"]["sessions"] == 0
    assert record.summary["latency_ms"]["p50"] > 0
    assert "to go" in captured.err or "calls come and go" in captured.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--minutes", "0"], "--minutes"),
        (["--every", "0"], "--every"),
        (["--minutes", "1", "--settle", "1"], "--settle"),
        (["--clients", "0"], "--clients"),
    ],
)
def test_a_wrong_option_is_named(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["soak", *arguments]) == WRONG_USAGE
    assert named in capsys.readouterr().err
