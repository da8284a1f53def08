"""The small YAML file beside a model that overrules what we make of the model itself.

`yolo.onnx` -> `yolo.yaml`; an FP16 file without its own takes the original's. All keys are
optional:

    family: yolox
    names: [person, car]           # or {0: person, 1: car}
    confidence: 0.3                # boxes of this model below are dropped
    decoded: true                  # YOLOX: the grid is already decoded
    input: {size: [640, 640], colour: rgb, scale: 0.00392, mean: [0, 0, 0], std: [1, 1, 1],
            placement: letterbox, pad: 114}
"""

import ast
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from server.detector.names import parse_names
from server.detector.spec import Sidecar, full_precision_path
from server.errors import ModelError
from server.geometry import PLACEMENTS, InputSpec

KEYS = frozenset(("family", "names", "confidence", "decoded", "input"))
INPUT_KEYS = frozenset(("size", "colour", "scale", "mean", "std", "placement", "pad"))
MAX_BYTES = 1 << 20
MAX_SIDE = 8192


def sidecar_path(model_path: Path) -> Path | None:
    """The sidecar that applies to a model, if there is one."""
    original = full_precision_path(model_path)
    for path in (model_path, original):
        if path is not None and path.with_suffix(".yaml").is_file():
            return path.with_suffix(".yaml")
    return None


def read_sidecar(model_path: Path) -> Sidecar:
    """The model's sidecar, checked; an empty one when there is no file."""
    path = sidecar_path(model_path)
    if path is None:
        return Sidecar()
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelError(f"{path.name}: larger than {MAX_BYTES} bytes, not a sidecar")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path.name}: not readable as YAML: {reason}") from error
    if content is None:
        return Sidecar()
    if not isinstance(content, dict):
        raise ModelError(f"{path.name}: holds no keys; known are {', '.join(sorted(KEYS))}")
    _refuse_unknown(content, KEYS, path.name)
    names = None
    if "names" in content:
        names = parse_names(content["names"])
        if names is None:
            raise ModelError(f"{path.name}: names: neither a list nor a mapping of index to name")
    floor = content.get("confidence")
    if floor is not None and not (_is_number(floor) and 0 <= floor <= 1):
        raise ModelError(f"{path.name}: confidence: {floor!r} is not a number of 0..1")
    decoded = content.get("decoded")
    if decoded is not None and not isinstance(decoded, bool):
        raise ModelError(f"{path.name}: decoded: {decoded!r} is neither true nor false")
    family = content.get("family")
    if family is not None and not isinstance(family, str):
        raise ModelError(f"{path.name}: family: {family!r} is not a word")
    return Sidecar(
        family=family,
        names=names,
        floor=None if floor is None else float(floor),
        decoded=decoded,
        input=check_input(content.get("input"), f"{path.name}: input"),
    )


def check_input(content: object, where: str) -> Mapping[str, Any]:
    """The `input` mapping of a sidecar or of `sightline.input` metadata, checked."""
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ModelError(f"{where}: holds no keys; known are {', '.join(sorted(INPUT_KEYS))}")
    _refuse_unknown(content, INPUT_KEYS, where)
    good: Mapping[str, Callable[[Any], bool]] = {
        "size": _is_size,
        "colour": lambda value: value in ("rgb", "bgr"),
        "scale": _is_number,
        "mean": lambda value: _is_list(value, 3),
        "std": lambda value: _is_list(value, 3) and all(part > 0 for part in value),
        "placement": lambda value: value in PLACEMENTS,
        "pad": lambda value: isinstance(value, int) and 0 <= value <= 255,
    }
    for key, value in content.items():
        if not good[key](value):
            raise ModelError(f"{where}: {key}: {value!r} is not usable")
    return content


def apply_input(spec: InputSpec, content: Mapping[str, Any]) -> InputSpec:
    """The family's input with the checked overrides; the size is not taken from here."""
    changes = {key: value for key, value in content.items() if key != "size"}
    for key in ("mean", "std"):
        if key in changes:
            changes[key] = tuple(float(part) for part in changes[key])
    return replace(spec, **changes)


def literal(text: str) -> object:
    """Metadata written as JSON or as a Python literal; None when it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        try:
            return ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None


def _refuse_unknown(content: Mapping[Any, Any], known: frozenset[str], where: str) -> None:
    unknown = sorted(str(key) for key in content.keys() - known)
    if unknown:
        raise ModelError(
            f"{where}: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(side, int) and 16 <= side <= MAX_SIDE for side in value)
    )


def _is_list(value: object, length: int) -> bool:
    return (
        isinstance(value, list) and len(value) == length and all(_is_number(part) for part in value)
    )
