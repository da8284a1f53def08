"""`python -m tools.evaluate --model M... --data DIR`: accuracy, latency, figures, one report.

The last line of standard output is one JSON object with `--json`; messages and progress go to
standard error. Exit status: 0 done, 1 failed, 2 wrong use.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

try:
    import faster_coco_eval  # noqa: F401
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error.name} is not installed: `make environment EXTRAS=evaluate` brings it"
    ) from None

from server.detector.load import load_detector
from server.errors import SightlineError
from server.model_registry import resolve_model
from server.settings import PROVIDERS, DetectorSettings
from tools.evaluate.choose import Chosen, choose, with_input_side
from tools.evaluate.dataset import DataSet, load_data
from tools.evaluate.figures import DARK, FIGURES, LIGHT, png, svg
from tools.evaluate.report import Circumstances, report_html
from tools.evaluate.run import FLOOR, MAX_BOXES, Detector, Run, evaluate
from tools.evaluate.tables import class_csv_text, csv_text, differences, run_json, text_table
from tools.progress import Progress

# Overlaps at which each family's authors suppress boxes when they publish figures.
DEFAULT_IOU = 0.65
FAMILY_IOU = {"yolov8": 0.7, "nanodet": 0.6, "ssd": 0.3, "yunet": 0.3}
PACKAGES = ("onnxruntime", "onnxruntime-openvino", "onnxruntime-gpu", "numpy", "faster-coco-eval")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m tools.evaluate",
        description="Evaluate models in several precisions on labelled pictures.",
    )
    made.add_argument("--model", nargs="+", required=True, help="names or paths of ONNX models")
    made.add_argument(
        "--data", required=True, type=Path, help="COCO folder, or YOLO images/ and labels/"
    )
    made.add_argument("--precision", default="fp32", help="comma list of fp32, fp16, bf16")
    made.add_argument("--classes", default="", help="comma list of class names to score")
    made.add_argument("--sizes", default="", help="comma list of input sides for open models")
    made.add_argument(
        "--provider", choices=PROVIDERS, default="auto", help="auto takes the best there is"
    )
    made.add_argument("--threads", type=int, default=0, help="inference threads; 0 takes the cores")
    made.add_argument("--iou", type=float, help="overlap for suppression (default: by family)")
    made.add_argument("--limit", type=int, default=0, metavar="N", help="at most N pictures")
    made.add_argument("--out", type=Path, metavar="DIR", help="write report, figures, tables here")
    made.add_argument("--json", action="store_true", help="last line of output is one JSON object")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        precisions = _precisions(options.precision)
        data = load_data(options.data).limited(options.limit)
        if options.classes:
            data = data.only([name.strip() for name in options.classes.split(",")])
        runs = list(_runs(options, data, precisions))
    except SightlineError as error:
        print(error, file=sys.stderr)
        if options.json:
            print(json.dumps({"ok": False, "error": str(error)}))
        return 1
    print(text_table(runs))
    written = _write(options.out, runs, _circumstances(options)) if options.out else []
    for path in written[:1]:
        print(f"report: {path}", file=sys.stderr)
    if options.json:
        print(json.dumps(_answer(runs, written)))
    return 0


def _precisions(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ("fp32", "fp16", "bf16")]
    if unknown or not names:
        raise SightlineError(f"--precision: {text!r} is not a list of fp32, fp16, bf16")
    return names


def _runs(options: argparse.Namespace, data: DataSet, precisions: Sequence[str]) -> Iterator[Run]:
    sides = [int(side) for side in options.sizes.split(",") if side.strip()] or [0]
    cache_dir = os.environ.get("SIGHTLINE_CACHE_DIR", "")
    with tempfile.TemporaryDirectory(prefix="sightline-evaluate-") as folder:
        for model in options.model:
            path = resolve_model(model, cache_dir)
            for side in sides:
                sized = with_input_side(path, side, Path(folder)) if side else path
                for precision in precisions:
                    yield _run(options, data, sized, precision, Path(folder))


def _run(
    options: argparse.Namespace, data: DataSet, path: Path, precision: str, folder: Path
) -> Run:
    chosen = choose(path, options.provider, precision, folder)
    detector = _load(options, chosen)
    progress = Progress(f"{path.stem} {precision}", len(data.pictures), " pictures")
    try:
        run = evaluate(
            detector,
            data,
            model=chosen.file,
            precision=precision,
            on_picture=progress.advance,
        )
    finally:
        progress.close()
        detector.close()
    return replace(run, note=chosen.note, timed=chosen.timed)


def _load(options: argparse.Namespace, chosen: Chosen) -> Detector:
    def load(iou: float) -> Detector:
        return load_detector(
            DetectorSettings(
                model=str(chosen.file),
                provider=chosen.provider,
                precision=chosen.precision,
                threads=options.threads,
                confidence_floor=FLOOR,
                iou=iou,
                max_boxes=MAX_BOXES,
                # The padded square that published figures are made with.
                fit_shape=False,
                parity=False,
            )
        )

    first = options.iou or DEFAULT_IOU
    detector = load(first)
    wanted = options.iou or FAMILY_IOU.get(detector.reports()[0].family, first)
    if wanted != first:
        detector.close()
        detector = load(wanted)
    return detector


def _write(folder: Path, runs: Sequence[Run], circumstances: Circumstances) -> list[Path]:
    """Report first, then figures and tables; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, str | bytes] = {
        "report.html": report_html(runs, circumstances),
        "runs.csv": csv_text(runs),
        "classes.csv": class_csv_text(runs),
        "runs.json": json.dumps({"runs": [run_json(run) for run in runs]}, indent=1) + "\n",
    }
    for kind in FIGURES:
        files[f"{kind.key}.png"] = png(kind, runs)
        files[f"{kind.key}.svg"] = svg(kind, runs, LIGHT)
        files[f"{kind.key}-dark.svg"] = svg(kind, runs, DARK)
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(raw)
    return [folder / name for name in files]


def _answer(runs: Sequence[Run], written: Sequence[Path]) -> dict[str, Any]:
    return {
        "ok": True,
        "runs": [run_json(run) for run in runs],
        "against_fp32": differences(runs),
        "report": str(written[0]) if written else None,
    }


def _circumstances(options: argparse.Namespace) -> Circumstances:
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    names = [Path(model).name for model in options.model]
    iou = f"{options.iou:g}" if options.iou else "that of each family's authors"
    command = ["--model", *names, "--data", options.data.name, "--precision", options.precision]
    if options.classes:
        command += ["--classes", options.classes]
    return Circumstances(
        machine=f"{_cpu_name()}, {len(os.sched_getaffinity(0))} cores, {platform.system()}"
        if hasattr(os, "sched_getaffinity")
        else f"{_cpu_name()}, {os.cpu_count()} cores, {platform.system()}",
        packages=", ".join(versions),
        made_on=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command="python -m tools.evaluate " + shlex.join(command),
        iou_text=iou,
    )


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
