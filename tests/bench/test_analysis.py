"""The bench of what is made of boxes runs, and its record says what it measured."""

import json
from pathlib import Path

import pytest

from bench.__main__ import NOT_MEASURED, OK, WRONG_USAGE, main

pytestmark = pytest.mark.loopback

SMALL = ["--objects", "5", "--pictures", "10", "--events", "300", "--written", "3"]


def test_it_measures_and_writes_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analysis", *SMALL, "--json", "--out", str(tmp_path)]) == OK
    output = capsys.readouterr().out
    record = json.loads(output.splitlines()[-1])
    assert record["settings"]["database"] == "sqlite"
    summary = record["summary"]
    assert summary["track_ms"]["count"] == summary["look_ms"]["count"] == 10
    assert summary["write_ms"]["count"] == 3
    assert "search: newest" in output
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--objects", "0"], WRONG_USAGE, "--objects"),
        (["--store", "mysql://x/y"], NOT_MEASURED, "not sqlite or postgresql"),
    ],
)
def test_what_cannot_be_measured_is_said(
    arguments: list[str], code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analysis", *arguments]) == code
    assert word in capsys.readouterr().err
