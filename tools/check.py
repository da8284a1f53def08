"""Format, lint, types and, with `--tests`, all tests: the one verdict on a tree.

Every step runs even when an earlier one failed, so that one run shows everything. Unit tests and
those of services run beside the checks and the tests in browsers, which wait more than they work.
What measures and is timed, the tests on loopback, has the machine to itself. It comes last, so that
pytest's closing line ends the output of a good run.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

ROOT = Path(__file__).resolve().parents[1]
TYPED = ("server", "sightline", "tools", "bench", "tests")
TSC = ROOT / ".cache" / "node" / "node_modules" / ".bin" / "tsc"
TSCONFIG = ROOT / "web" / "tsconfig.json"
PYTEST: Final = (sys.executable, "-m", "pytest")
NO_TESTS_COLLECTED: Final = 5


def steps() -> Iterator[tuple[str, Sequence[str]]]:
    """Name and command of each check, in order."""
    yield "ruff format", (sys.executable, "-m", "ruff", "format", "--check", "--quiet", ".")
    yield "ruff check", (sys.executable, "-m", "ruff", "check", "--quiet", ".")
    yield "mypy", (sys.executable, "-m", "mypy", "--no-error-summary", *TYPED)
    if not TSCONFIG.exists():
        return
    if shutil.which("node") is None:
        print("tsc: skipped, Node.js is not installed", flush=True)
        return
    yield "tsc", (str(TSC), "--project", str(TSCONFIG), "--noEmit")


def passes(name: str, command: Sequence[str]) -> bool:
    """Runs one step in the foreground and says how it went."""
    begun_s = time.monotonic()
    try:
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
    except FileNotFoundError:
        print(f"{name}: {command[0]} is missing; `make test` installs it", flush=True)
        return False
    verdict = "ok" if code == 0 else f"failed ({code})"
    print(f"{name}: {verdict}, {time.monotonic() - begun_s:.1f} s", flush=True)
    return code == 0


def failed_checks() -> list[str]:
    return [name for name, command in steps() if not passes(name, command)]


def failed_checks_and_tests(rest: Sequence[str]) -> list[str]:
    """What failed, of everything; `rest` goes to pytest."""
    if "-m" in rest:  # a choice of categories already
        failed = failed_checks()
        return failed if run_tests((*PYTEST, *rest)) == 0 else [*failed, "tests"]
    with tempfile.TemporaryFile() as log, beside(tests_of("(unit or service)", rest), log) as quiet:
        failed = failed_checks()
        codes = {"browser": run_tests(tests_of("browser", rest))}
        codes["unit and service"] = quiet.wait()
        log.seek(0)
        shutil.copyfileobj(log, sys.stdout.buffer)
        sys.stdout.flush()
    codes["loopback"] = run_tests(tests_of("loopback", rest))
    # A choice of tests need not have some of every category.
    if set(codes.values()) == {NO_TESTS_COLLECTED}:
        return [*failed, "pytest: no such tests"]
    passed = (0, NO_TESTS_COLLECTED)
    return failed + [f"{name} tests" for name, code in codes.items() if code not in passed]


def tests_of(categories: str, rest: Sequence[str]) -> Sequence[str]:
    """The command for the tests of a choice of the categories of tests/conftest.py."""
    return (*PYTEST, "-m", f"{categories} and not long", *rest)


def run_tests(command: Sequence[str]) -> int:
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def beside(command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Runs while other things do, and says nothing that is not in its log."""
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tests", action="store_true", help="run pytest after the checks")
    parser.add_argument("rest", nargs="*", help="arguments for pytest, after --")
    arguments = parser.parse_args()
    failed = failed_checks_and_tests(arguments.rest) if arguments.tests else failed_checks()
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
