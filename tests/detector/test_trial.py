"""Files that end the process that loads them. Which ones do depends on the runtime's version, so a
hook in the interpreter of the process apart stands in for the runtime's fault."""

from pathlib import Path

import numpy as np
import pytest

from server.detector.trial import FOLDER, try_apart
from server.errors import ModelError
from tests.detector.graphs import settings_for, write_model

pytestmark = pytest.mark.service

HOOK = """
import os, signal, sys

def fault(event, arguments):
    if event == "open" and str(arguments[0]).endswith("stranger.onnx"):
        {action}

sys.addaudithook(fault)
"""


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    return write_model(tmp_path / "stranger.onnx", {"boxes": np.zeros((1, 10, 6), np.float32)})


def with_fault(monkeypatch: pytest.MonkeyPatch, folder: Path, action: str) -> None:
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HOOK.format(action=action))
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_a_file_that_crashes_the_runtime_is_refused_and_not_remembered(
    stranger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_fault(monkeypatch, tmp_path / "hook", "os.kill(os.getpid(), signal.SIGSEGV)")
    settings = settings_for(stranger, tmp_path / "cache")
    for _ in range(2):
        with pytest.raises(
            ModelError, match=r"stranger\.onnx makes the runtime crash \(signal 11\)"
        ):
            try_apart(settings)


def test_a_file_that_never_loads_is_refused_in_time(
    stranger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_fault(monkeypatch, tmp_path / "hook", "signal.pause()")
    with pytest.raises(ModelError, match="not loaded after 3 s"):
        try_apart(settings_for(stranger, tmp_path / "cache"), timeout_s=3)


def test_what_survived_once_is_not_tried_again(
    stranger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(stranger, tmp_path / "cache")
    try_apart(settings)
    assert len(list((tmp_path / "cache" / FOLDER).iterdir())) == 1
    with_fault(monkeypatch, tmp_path / "hook", "os.kill(os.getpid(), signal.SIGSEGV)")
    try_apart(settings)
    stranger.write_bytes(stranger.read_bytes() + b"\n")
    with pytest.raises(ModelError, match="crash"):
        try_apart(settings)


def test_an_ordinary_error_is_left_to_whoever_loads(tmp_path: Path) -> None:
    nonsense = tmp_path / "stranger.onnx"
    nonsense.write_bytes(b"no graph at all")
    try_apart(settings_for(nonsense, tmp_path / "cache"))
    assert not (tmp_path / "cache" / FOLDER).exists()
