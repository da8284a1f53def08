"""`python -m tests.fuzz [TARGET ...] [-- libFuzzer options]`: each target for a minute (atheris).

Inputs that led somewhere new are kept under .cache/fuzz; one that breaks a target is written
beside them, and the process ends with its traceback.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from tests.fuzz.seeds import SEEDS

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / ".cache" / "fuzz"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", help="all of them unless named")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return fuzz(arguments.one, arguments.seconds)
    failed = []
    for target in arguments.targets or SEEDS:
        command = [sys.executable, "-m", "tests.fuzz", "--one", target]
        command += ["--seconds", str(arguments.seconds)]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed.append(target)
    print(f"failed: {', '.join(failed)}" if failed else "every target held", flush=True)
    return 1 if failed else 0


def fuzz(name: str, seconds: int) -> int:
    """One target in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["server"]):
        from tests.fuzz.targets import TARGETS

    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]):
        (folder / f"seed-{number}").write_bytes(seed)
    options = ["fuzz", str(folder), f"-max_total_time={seconds}", "-timeout=5"]
    options += [f"-artifact_prefix={CORPUS}/{name}-", "-print_final_stats=1"]
    atheris.Setup(options, TARGETS[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
