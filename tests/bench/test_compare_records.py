"""`python -m bench compare-records`: regressions are found, noise is not, bounds hold."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.__main__ import OK, OVER_BUDGET, WRONG_USAGE, main
from bench.compare_records import Change, changes, different_settings
from bench.errors import UsageError
from bench.record import Record
from tests.bench.making_records import compare_record, glass_record

pytestmark = pytest.mark.unit


def change_of(name: str, before: Record, after: Record, bound: float = 0.1) -> Change:
    (found,) = [change for change in changes(before, after, bound) if change.name == name]
    return found


def test_a_slower_call_is_worse_with_an_interval_that_agrees() -> None:
    change = change_of("p50 ms", glass_record([10, 11, 12], 30), glass_record([15, 16, 17], 30))
    assert change.worse
    assert change.share == pytest.approx(5 / 11)
    assert change.low is not None
    assert change.high is not None
    assert 0.1 < change.low <= change.share <= change.high


def test_a_faster_call_and_a_small_change_are_not_worse() -> None:
    before = glass_record([10, 11, 12], 30)
    assert not change_of("p50 ms", before, glass_record([7, 8, 9], 30)).worse
    assert not change_of("p50 ms", before, glass_record([10.5, 11.5, 12.5], 30)).worse


def test_a_change_that_the_seconds_do_not_bear_out_is_noise() -> None:
    calm = [10.0] * 90
    # Blocks far apart from each other, whose middle lies a little above.
    wild = [4.0] * 90 + [11.5] * 90 + [40.0] * 90
    before, after = glass_record(calm, 27), glass_record(wild, 27)
    change = change_of("p50 ms", before, after)
    assert change.share > 0.1
    assert change.low is not None
    assert change.low < 0
    assert not change.worse


def test_a_short_record_has_no_interval_and_the_bound_decides() -> None:
    change = change_of("p50 ms", glass_record(10, 2), glass_record(12, 2))
    assert change.low is None
    assert change.worse
    assert not change_of("p50 ms", glass_record(10, 2), glass_record(12, 2), bound=0.3).worse


def test_a_ratio_that_falls_is_worse_and_one_that_rises_is_not() -> None:
    good, bad = compare_record(10, 40), compare_record(20, 40)
    name = "1 client(s), aiortc p50 over ours"
    assert change_of(name, good, bad).worse
    assert not change_of(name, bad, good).worse


def test_other_settings_and_another_machine_are_told() -> None:
    before = glass_record(10)
    after = replace(
        before, settings={**before.settings, "codec": "VP8"}, machine={"cpu": "B", "cores": 2}
    )
    told = different_settings(before, after)
    assert [line.partition(":")[0] for line in told] == ["codec", "cpu"]


def test_records_of_two_benches_are_not_compared() -> None:
    with pytest.raises(UsageError, match="glass"):
        changes(glass_record(10), compare_record(10, 40), 0.1)


def test_the_command_ends_with_one_when_something_is_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(glass_record(10).to_json())
    second.write_text(glass_record(20).to_json())
    assert main(["compare-records", str(first), str(second), "--json"]) == OVER_BUDGET
    out = capsys.readouterr().out
    assert "WORSE" in out
    assert json.loads(out.splitlines()[-1])["worse"] is True
    assert main(["compare-records", str(second), str(first)]) == OK
    assert "nothing is worse" in capsys.readouterr().out
    assert main(["compare-records", str(first), str(second), "--bound", "-1"]) == WRONG_USAGE
