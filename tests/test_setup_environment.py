"""Set-up chooses the runtime by machine and never leaves two of them in one environment."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools import setup_environment
from tools.setup_environment import (
    SetupError,
    choose_runtime,
    installed_runtimes,
    read_stamp,
    requirements_of,
)

pytestmark = pytest.mark.unit

PYPROJECT = {
    "project": {
        "name": "sightline",
        "dependencies": ["numpy", "av"],
        "optional-dependencies": {
            "cpu": ["onnxruntime"],
            "evaluate": ["matplotlib"],
            "dev": ["sightline[evaluate, cpu]", "pytest"],
            "ring": ["sightline[ring]", "ruff"],
        },
    }
}


@pytest.mark.parametrize(
    ("system", "machine", "nvidia_driver", "runtime"),
    [
        ("Linux", "x86_64", True, "gpu"),
        ("Linux", "x86_64", False, "openvino"),
        ("Windows", "AMD64", True, "gpu"),
        ("Windows", "AMD64", False, "cpu"),
        # no GPU wheel for this processor
        ("Linux", "aarch64", True, "cpu"),
        ("Linux", "aarch64", False, "cpu"),
        ("Darwin", "arm64", False, "cpu"),
    ],
)
def test_runtime_follows_the_machine(
    system: str, machine: str, nvidia_driver: bool, runtime: str
) -> None:
    assert choose_runtime(system, machine, nvidia_driver) == runtime


@pytest.mark.parametrize(
    ("extras", "expected"),
    [
        ([], ["av", "numpy"]),
        (["cpu"], ["av", "numpy", "onnxruntime"]),
        (["dev"], ["av", "matplotlib", "numpy", "onnxruntime", "pytest"]),
        (["dev", "evaluate"], ["av", "matplotlib", "numpy", "onnxruntime", "pytest"]),
        # an extra that names itself ends
        (["ring"], ["av", "numpy", "ruff"]),
    ],
)
def test_extras_of_extras_are_followed(extras: list[str], expected: list[str]) -> None:
    assert requirements_of(PYPROJECT, extras) == expected


def test_unknown_extra_is_refused_by_name() -> None:
    with pytest.raises(SetupError, match="'gpux'; there are cpu, dev"):
        requirements_of(PYPROJECT, ["gpux"])


def test_runtimes_are_told_apart_from_other_packages(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for folder in (
        "onnxruntime_openvino-1.24.1.dist-info",
        "onnxruntime-1.31.1.dist-info",
        "onnx-1.23.2.dist-info",
    ):
        (packages / folder).mkdir(parents=True)
    assert installed_runtimes(tmp_path) == {"onnxruntime", "onnxruntime-openvino"}


def test_this_environment_has_exactly_one_runtime() -> None:
    assert len(installed_runtimes(Path(sys.prefix))) == 1


@pytest.mark.parametrize("content", [None, "", "[]", "{", '"text"'])
def test_damaged_stamp_reads_as_unfinished(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / setup_environment.STAMP_NAME).write_text(content)
    assert read_stamp(tmp_path) == {}


def run_setup(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, setup_environment.__file__, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_second_run_does_nothing_and_says_nothing(tmp_path: Path) -> None:
    stamp = {
        "fingerprint": setup_environment.fingerprint(setup_environment.ROOT),
        "runtime": "cpu",
        "extras": ["dev"],
        "python": sys.version,
    }
    (tmp_path / setup_environment.STAMP_NAME).write_text(json.dumps(stamp))
    python = setup_environment.venv_python(tmp_path)
    python.parent.mkdir(parents=True)
    python.touch()
    done = run_setup("--venv", str(tmp_path), "--runtime", "cpu", "--extras", "dev")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_runtime_that_does_not_exist_is_refused_with_the_choices() -> None:
    done = run_setup("--runtime", "rocm")
    assert done.returncode == 2
    assert "cpu" in done.stderr
    assert "openvino" in done.stderr
