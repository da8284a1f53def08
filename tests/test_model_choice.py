"""Which model runs when none, ours or another one is named."""

from pathlib import Path

import pytest

from server.model_registry import DEFAULT_MODEL, chosen_model

pytestmark = pytest.mark.unit


def test_a_named_model_is_taken_as_it_is(tmp_path: Path) -> None:
    assert chosen_model("yolox-nano") == "yolox-nano"
    assert chosen_model(str(tmp_path / "own.onnx")) == str(tmp_path / "own.onnx")


def test_none_means_no_detector() -> None:
    assert chosen_model("none") == ""


def test_nothing_means_the_one_that_comes_with_us() -> None:
    assert chosen_model("") == (str(DEFAULT_MODEL) if DEFAULT_MODEL.is_file() else "")
