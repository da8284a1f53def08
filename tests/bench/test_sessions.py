"""`python -m bench sessions`: what breaks a step, and a short real search."""

from pathlib import Path

import pytest

from bench.__main__ import NOT_MEASURED, OK, OVER_BUDGET, WRONG_USAGE, main
from bench.record import Record

pytestmark = pytest.mark.loopback

# A scene of a clip in small pictures, no detector: two calls are nothing.
EASY = ["sessions", "--no-detector", "--size", "320x240", "--seconds", "1", "--warmup", "0.2"]
EASY += ["--exact-fps", "1", "--smooth-fps", "1"]


def test_each_mode_is_searched_up_to_the_last_step(
    moving_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*EASY, "--up-to", "2", "--budget-ms", "50000", "--clip", str(moving_clip)]
    assert main([*arguments, "--out", str(tmp_path), "--at-least", "2", "--json"]) == OK
    record = Record.from_json(capsys.readouterr().out.splitlines()[-1])
    assert record.summary == {
        mode: {"sessions": 2, "limit_found": False} for mode in ("exact", "smooth")
    }
    assert [step["clients"] for run in record.runs for step in run["steps"]] == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--budget-ms", "0.01"], "is over 0.01 ms"), (["--exact-fps", "500"], "is under 500 fps")],
)
def test_a_step_that_breaks_is_measured_twice_and_ends_the_search(
    arguments: list[str],
    word: str,
    moving_clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [*EASY, "--mode", "exact", "--clip", str(moving_clip), "--out", str(tmp_path)]
    command += ["--budget-ms", "50000", "--at-least", "1", "--json"]
    assert main([*command, *arguments]) == OVER_BUDGET
    record = Record.from_json(capsys.readouterr().out.splitlines()[-1])
    assert record.summary == {"exact": {"sessions": 0, "limit_found": True}}
    (run,) = record.runs
    assert [step["clients"] for step in run["steps"]] == [1, 1]
    assert all(word in step["broken_by"] for step in run["steps"])


def test_a_full_server_ends_the_search_with_its_own_words(
    moving_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*EASY, "--mode", "exact", "--up-to", "3", "--budget-ms", "50000"]
    arguments += ["--clip", str(moving_clip), "--out", str(tmp_path), "--json"]
    assert main([*arguments, "--server-arg=--max-sessions=1"]) == OK
    record = Record.from_json(capsys.readouterr().out.splitlines()[-1])
    assert record.summary == {"exact": {"sessions": 1, "limit_found": True}}
    assert "refused with 503" in record.runs[0]["steps"][-1]["broken_by"]


def test_a_server_that_does_not_start_is_not_measured(
    moving_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*EASY, "--clip", str(moving_clip), "--server-arg=--no-such-option"]
    assert main(arguments) == NOT_MEASURED
    assert "no-such-option" in capsys.readouterr().err


def test_a_wrong_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sessions", "--begin", "5", "--up-to", "4"]) == WRONG_USAGE
    assert "--up-to" in capsys.readouterr().err
