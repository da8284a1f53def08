"""The rules of conftest.py hold: a category for every module, honest absence of browsers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.service

TESTS = Path(__file__).parent
PYPROJECT = TESTS.parent / "pyproject.toml"


def outcome(folder: Path, source: str, **environment: str) -> tuple[int, str]:
    """Exit code and output of pytest on one test module under our rules, in `folder`."""
    shutil.copy(TESTS / "conftest.py", folder)
    shutil.copy(PYPROJECT, folder)
    (folder / "test_it.py").write_text(source)
    clean = {key: value for key, value in os.environ.items() if key not in ("CI", "PATH")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_it.py"],
        cwd=folder,
        env={**clean, "PATH": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


BROWSER_TEST = "import pytest\npytestmark = pytest.mark.browser\ndef test_it(): pass\n"
NAMED_TEST = 'import pytest\n@pytest.mark.browser("firefox")\ndef test_it(): pass\n'


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("def test_it(): pass\n", "no category"),
        (
            "import pytest\npytestmark = [pytest.mark.unit, pytest.mark.loopback]\n"
            "def test_it(): pass\n",
            "unit and loopback",
        ),
    ],
)
def test_module_without_one_category_is_not_collected(
    tmp_path: Path, source: str, word: str
) -> None:
    code, output = outcome(tmp_path, source)
    assert code == pytest.ExitCode.USAGE_ERROR
    assert word in output


def test_missing_browser_skips_with_the_reason_at_a_desk(tmp_path: Path) -> None:
    code, output = outcome(tmp_path, BROWSER_TEST)
    assert code == pytest.ExitCode.OK
    assert "1 skipped" in output
    assert "chromium is not installed" in output


def test_missing_browser_fails_under_ci(tmp_path: Path) -> None:
    code, output = outcome(tmp_path, BROWSER_TEST, CI="true")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "chromium is not installed" in output


def test_only_the_named_browser_is_asked_for(tmp_path: Path) -> None:
    firefox = tmp_path / "firefox-esr"
    firefox.write_text("#!/bin/sh\n")
    firefox.chmod(0o755)
    code, output = outcome(tmp_path, NAMED_TEST, CI="true")
    assert code == pytest.ExitCode.OK
    assert "1 passed" in output
