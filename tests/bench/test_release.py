"""`python -m bench release`: steps as processes, joined in a file whose other steps stay."""

import argparse
import importlib
import json
from pathlib import Path

import pytest

from bench.__main__ import COMMANDS, NOT_MEASURED, OK, WRONG_USAGE, main
from bench.reading import read_records
from bench.release import STEPS, Step

pytestmark = pytest.mark.loopback


def test_a_step_is_measured_into_the_joined_file_and_others_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    into = tmp_path / "measured.json"
    into.write_text(json.dumps({"records": {"accuracy": {"mAP50": 48.9}}}))
    arguments = ["release", "--only", "call-no-detector", "--seconds", "1", "--into", str(into)]
    assert main(arguments) == OK
    assert set(json.loads(into.read_text())["records"]) == {"accuracy", "call-no-detector"}
    [(name, record)] = read_records([into])
    assert (name, record.bench, record.settings["detector"]) == ("call-no-detector", "glass", False)
    assert "| 1 call, H264, no detector |" in capsys.readouterr().out.replace("one call", "1 call")


def test_steps_without_their_model_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    into = tmp_path / "measured.json"
    arguments = ["release", "--only", "call", "--models", str(tmp_path), "--into", str(into)]
    assert main(arguments) == NOT_MEASURED
    assert "not measured: call (no yolox_nano.onnx in" in capsys.readouterr().err
    assert not into.exists()


def test_a_file_of_something_else_is_not_written_over(tmp_path: Path) -> None:
    into = tmp_path / "notes.json"
    into.write_text("[]")
    assert main(["release", "--only", "call", "--into", str(into)]) == WRONG_USAGE
    assert into.read_text() == "[]"


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_every_step_is_a_command_that_there_is(step: Step) -> None:
    name, *arguments = step.command(Path("models"), Path("clip.mp4"), 1.0)
    parser = argparse.ArgumentParser()
    importlib.import_module(COMMANDS[name][0]).add_arguments(parser)
    options = parser.parse_args([*arguments, "--json"])
    assert options.json
