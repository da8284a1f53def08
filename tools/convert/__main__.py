"""`python -m tools.convert MODEL`: the half-precision file of a detector, checked on pictures.

The last line of standard output is one JSON object with `--json`; messages go to standard error.
Exit status: 0 done, 1 refused or over the tolerance.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

try:
    import onnx  # noqa: F401
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error.name} is not installed: `make environment EXTRAS=evaluate` brings it"
    ) from None

from server.detector.spec import half_precision_path
from server.errors import ModelError
from server.model_registry import resolve_model
from tools.convert.check import (
    Comparison,
    Tolerance,
    built_in_pictures,
    convert_file,
    pictures_of,
)
from tools.convert.half import Converted

FREE_ORDER = ("yolo26", "end2end")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m tools.convert",
        description="Make the half-precision file of an ONNX detector and check that it answers "
        "the same on real pictures.",
    )
    made.add_argument("model", help="name from the registry or path of an ONNX file")
    made.add_argument("--out", type=Path, metavar="FILE", help="default: MODEL.fp16.onnx beside it")
    made.add_argument(
        "--io",
        choices=("fp32", "fp16"),
        default="fp32",
        help="type of inputs and outputs; fp16 rounds boxes to half a pixel beyond 512",
    )
    made.add_argument(
        "--check-on", type=Path, metavar="DIR", help="pictures to compare on (default: built in)"
    )
    made.add_argument(
        "--tolerance",
        type=float,
        default=Tolerance().confidence,
        help="largest difference in confidence (default %(default)s)",
    )
    made.add_argument("--keep", action="store_true", help="write the file even if it is over it")
    made.add_argument("--json", action="store_true", help="last line of output is one JSON object")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    limit = Tolerance(confidence=options.tolerance)
    try:
        source = resolve_model(options.model, os.environ.get("SIGHTLINE_CACHE_DIR", ""))
        target = options.out or half_precision_path(source)
        pictures = pictures_of(options.check_on) if options.check_on else built_in_pictures()
        converted, comparison = convert_file(
            source,
            target,
            half_io=options.io == "fp16",
            pictures=pictures,
            limit=limit,
            keep_bad=options.keep,
        )
    except (ModelError, OSError) as error:
        message = str(error) if isinstance(error, ModelError) else f"{error.filename}: {error}"
        print(message, file=sys.stderr)
        if options.json:
            print(json.dumps({"ok": False, "error": message}))
        return 1
    problems = comparison.problems(limit)
    print(_text(source, target, converted, comparison))
    for problem in problems:
        print(f"over the tolerance: {problem}", file=sys.stderr)
    if options.json:
        print(json.dumps(_answer(source, target, converted, comparison, problems)))
    return 1 if problems else 0


def _text(source: Path, target: Path, converted: Converted, comparison: Comparison) -> str:
    before, after = source.stat().st_size, target.stat().st_size
    reasons = ", ".join(f"{name} {count}" for name, count in sorted(converted.reasons.items()))
    lines = [
        f"{target}: {after / 1e6:.2f} MB, {after / before:.0%} of {source.name}",
        f"  {converted.half_nodes} nodes in half, {converted.full_nodes} in float32"
        f"{f' ({reasons})' if reasons else ''}, {converted.casts} casts",
    ]
    if comparison.detector:
        lines.append(
            f"  {comparison.detector}, {comparison.pictures} pictures: {comparison.boxes} boxes, "
            f"{comparison.missing} missing; confidence off by {comparison.confidence_mean:.4f} "
            f"on average, {comparison.confidence_largest:.4f} at most; overlap "
            f"{comparison.iou_mean:.4f} on average, {comparison.iou_least:.4f} at least"
        )
    else:
        lines.append("  no detector that we know: only raw outputs were compared, on noise")
    if comparison.detector in FREE_ORDER:
        return "\n".join(lines)  # rows of equal rank trade places, so a difference says nothing
    lines += [
        f"  output {gap.name}: off by {gap.relative_error:.3%} (RMS), {gap.largest:.4g} at most"
        for gap in comparison.outputs
    ]
    return "\n".join(lines)


def _answer(
    source: Path,
    target: Path,
    converted: Converted,
    comparison: Comparison,
    problems: Sequence[str],
) -> dict[str, Any]:
    return {
        "ok": not problems,
        "problems": list(problems),
        "source": str(source),
        "path": str(target),
        "source_bytes": source.stat().st_size,
        "bytes": target.stat().st_size,
        "half_nodes": converted.half_nodes,
        "full_nodes": converted.full_nodes,
        "casts": converted.casts,
        "reasons": converted.reasons,
        "comparison": asdict(comparison),
    }


if __name__ == "__main__":
    sys.exit(main())
