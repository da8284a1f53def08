"""`python -m bench`: help, refusals, exit codes."""

import json
import sys

import pytest

from bench.__main__ import COMMANDS, NOT_MEASURED, WRONG_USAGE, main

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("arguments", [["--help"], ["glass", "--help"], ["echo", "--help"]])
def test_help_ends_well(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    assert "usage: python -m bench" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["glass", "--size", "640"],
        ["glass", "--size", "axb"],
        ["glass", "--codec", "AV1"],
        ["glass", "--mode", "blurry"],
    ],
)
def test_what_the_parser_does_not_know_is_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == WRONG_USAGE


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--clients", "0"], "--clients"),
        (["--fps", "0"], "--fps"),
        (["--size", "64x64"], "--width"),
        (["--size", "640x9999"], "--height"),
        (["--seconds", "0"], "--seconds"),
        (["--runs", "0"], "--runs"),
        (["--budget-ms", "0"], "--budget-ms"),
        (["--url", "http://127.0.0.1:1", "--against", "echo"], "--url"),
        (["--url", "http://127.0.0.1:1", "--model", "x"], "--url"),
        (["--clip", "no-such-file.mp4"], "no-such-file.mp4"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["glass", *arguments, "--json"]) == WRONG_USAGE
    captured = capsys.readouterr()
    assert named in captured.err
    assert captured.err.count("\n") == 1
    assert named in json.loads(captured.out.splitlines()[-1])["error"]


def test_a_bench_without_its_packages_says_what_brings_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "soak", ("no_such_package", "line"))
    assert main(["soak"]) == NOT_MEASURED
    assert "no_such_package is not installed: `make environment" in capsys.readouterr().err


def test_a_package_that_is_missed_only_while_measuring_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # `None` there makes the import fail as it does without the package.
    monkeypatch.setitem(sys.modules, "bench.environment", None)
    monkeypatch.delattr("bench.environment", raising=False)
    assert main(["stages", "--model", "nowhere.onnx"]) == NOT_MEASURED
    error = capsys.readouterr().err
    assert "is not installed: `make environment EXTRAS=dev` brings it" in error
    assert error.count("\n") == 1
