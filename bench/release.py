"""`python -m bench release`: all that the README's tables say, measured one after the other.

Each step is another command in a process of its own, so it measures what it would measure alone.
The records are joined in one file: steps that were measured before stay in it, so a single one can
be measured again with `--only`.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.command import NOT_MEASURED, OK, OVER_BUDGET
from bench.errors import UsageError
from bench.options import RESULTS, add_clip
from bench.reading import read_records
from bench.record import readable
from bench.table import tables

ROOT: Final = Path(__file__).parents[1]
YOLOX: Final = "yolox_nano.onnx"
GLASS: Final = ("glass", "--runs", "2", "--seconds", "{seconds}")


@dataclass(frozen=True, slots=True)
class Step:
    """One record of the release: a command, with `{seconds}` for the time of each run."""

    name: str
    arguments: tuple[str, ...]
    model: str | None = YOLOX
    """File of the models' folder that it is measured with."""
    takes_clip: bool = True

    def command(self, models: Path, clip: Path | None, seconds: float) -> list[str]:
        command = [argument.format(seconds=seconds) for argument in self.arguments]
        if self.model is not None:
            command += ["--model", str(models / self.model)]
        if clip is not None and self.takes_clip:
            command += ["--clip", str(clip)]
        return command


STEPS: Final = (
    Step("call", (*GLASS, "--runs", "3", "--floor")),
    Step("call-data", (*GLASS, "--mode", "data")),
    Step("call-vp8", (*GLASS, "--codec", "VP8")),
    Step("call-yolo26n-320", GLASS, "yolo26n_320.onnx"),
    Step("call-yolo26n-640", GLASS, "yolo26n.onnx"),
    Step("call-no-detector", (*GLASS, "--no-detector"), None),
    Step("three-calls", (*GLASS, "--clients", "3")),
    Step("three-calls-smooth", (*GLASS, "--clients", "3", "--mode", "smooth")),
    Step("sessions", ("sessions", "--begin", "3", "--up-to", "8")),
    Step("browsers", ("browser", "--codec", "VP8", "--seconds", "{seconds}", "--runs", "2")),
    Step("tiles", ("tiles", "--browser", "chromium", "--runs", "2"), takes_clip=False),
    Step("fanout", ("fanout", "--viewers", "1", "24"), None),
    Step("rtsp", ("rtsp", "--seconds", "{seconds}"), takes_clip=False),
    Step("compare", ("compare", "--clients", "1,3", "--runs", "3")),
)
NAMES: Final = tuple(step.name for step in STEPS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Measures everything the README's tables say; half an hour."
    add = parser.add_argument
    add("--models", type=Path, default=ROOT / "models", metavar="DIR", help="of files (models/)")
    add_clip(parser)
    add("--seconds", type=float, default=20.0, help="measured time of each run (20)")
    add("--only", choices=NAMES, action="append", metavar="STEP", help=f"of {', '.join(NAMES)}")
    add(
        "--into",
        type=Path,
        default=RESULTS / "measured.json",
        metavar="FILE",
        help="the joined records; those of other steps stay (results/measured.json)",
    )


def run(options: argparse.Namespace) -> int:
    joined = read_joined(options.into)
    steps = [step for step in STEPS if not options.only or step.name in options.only]
    missing = []
    for number, step in enumerate(steps, 1):
        print(f"{number}/{len(steps)} {step.name}", file=sys.stderr, flush=True)
        if step.model is not None and not (options.models / step.model).is_file():
            missing.append(f"{step.name} (no {step.model} in {options.models.name}/)")
            continue
        record = measure(step.command(options.models, options.clip, options.seconds))
        if record is None:
            missing.append(step.name)
            continue
        joined[step.name] = record
        options.into.parent.mkdir(parents=True, exist_ok=True)
        options.into.write_text(readable({"records": joined}), encoding="utf-8")
    if joined:
        print(tables([record for _, record in read_records([options.into])]))
    if missing:
        print(f"not measured: {', '.join(missing)}", file=sys.stderr)
    return NOT_MEASURED if missing else OK


def read_joined(path: Path) -> dict[str, Any]:
    """The records of a joined file by name; none when there is no file yet."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path.name}: cannot be read: {error}") from error
    if not isinstance(found, dict) or set(found) != {"records"}:
        raise UsageError(f"{path.name}: is no file of joined records")
    return dict(found["records"])


def measure(command: Sequence[str]) -> dict[str, Any] | None:
    """The record of one command; None when it has measured nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "bench", *command, "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode not in (OK, OVER_BUDGET):
        return None
    record = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(record, dict)
    return record
