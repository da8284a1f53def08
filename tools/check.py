"""Format, lint, types and, with `--tests`, all tests: the one verdict on a tree.

Every step runs even when an earlier one failed, so that one run shows everything. Tests come
last, so that pytest's closing line ends the output of a good run.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TYPED = ("server", "sightline", "tools", "bench", "tests")
TSC = ROOT / ".cache" / "node" / "node_modules" / ".bin" / "tsc"
TSCONFIG = ROOT / "web" / "tsconfig.json"


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


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tests", action="store_true", help="run pytest after the checks")
    parser.add_argument("rest", nargs="*", help="arguments for pytest, after --")
    arguments = parser.parse_args()
    failed = [name for name, command in steps() if not passes(name, command)]
    if arguments.tests:
        pytest = (sys.executable, "-m", "pytest", *arguments.rest)
        if subprocess.run(pytest, cwd=ROOT, check=False).returncode != 0:
            failed.append("pytest")
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
