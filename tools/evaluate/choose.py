"""Which file runs on which provider, so that a precision is really that precision."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import onnx

from server.detector.engine import host
from server.detector.spec import half_precision_path
from server.errors import ModelError
from tools.convert.check import convert_file, write_emulated

HALF_DEVICES = ("tensorrt", "cuda", "coreml", "directml")
EMULATED_NOTE = (
    "no device here computes FP16: the half-precision file was emulated, every result of a half "
    "node rounded to FP16 and summed up in FP32 as accelerators do; so its accuracy counts and "
    "its time is left out"
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What to load."""

    file: Path
    provider: str
    precision: str
    note: str = ""
    timed: bool = True
    """Whether the time it takes says anything about the precision."""


def choose(path: Path, provider: str, precision: str, folder: Path) -> Chosen:
    """The file and engine for `precision`; files that must be made are made in `folder`.

    FP16 needs a device that computes it. Where there is none, the half-precision file is emulated
    on the CPU, which gives its accuracy and not its speed.
    """
    if precision != "fp16":
        return Chosen(path, provider, precision)
    machine = host()
    if provider in (*HALF_DEVICES, "auto") and any(machine.has(name) for name in HALF_DEVICES):
        # The loader takes the half file that lies beside the one asked for.
        own = folder / f"device-{path.stem}"
        own.mkdir(exist_ok=True)
        copy = own / path.name
        if not copy.is_file():
            shutil.copyfile(path, copy)
            _half_file(path, half_precision_path(copy))
        return Chosen(copy, provider, "fp16")
    emulation = folder / f"emulated-{path.stem}" / path.name
    if not emulation.is_file():
        half = folder / half_precision_path(path).name
        _half_file(path, half)
        write_emulated(onnx.load(str(half)), path, emulation)
    return Chosen(emulation, "cpu", "fp32", EMULATED_NOTE, timed=False)


def _half_file(path: Path, target: Path) -> None:
    beside = half_precision_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if beside.is_file() and beside.stat().st_mtime >= path.stat().st_mtime:
        shutil.copyfile(beside, target)
        return
    print(f"{path.name}: converting to half precision", file=sys.stderr, flush=True)
    convert_file(path, target)


def with_input_side(path: Path, side: int, folder: Path) -> Path:
    """A copy of a model of open input size, fixed to `side`; ModelError when the size is fixed."""
    model = onnx.load(str(path), load_external_data=False)
    hidden = {tensor.name for tensor in model.graph.initializer}
    pictures = [
        value
        for value in model.graph.input
        if value.name not in hidden and len(value.type.tensor_type.shape.dim) == 4
    ]
    if len(pictures) != 1:
        raise ModelError(f"{path.name}: has no single picture input to size")
    dims = pictures[0].type.tensor_type.shape.dim
    fixed = [dim.dim_value for dim in dims[2:] if dim.dim_value]
    if fixed and fixed != [side, side]:
        raise ModelError(
            f"{path.name}: its input is fixed at {'x'.join(map(str, fixed))}; --sizes is for "
            "models of open size"
        )
    for dim in dims[2:]:
        dim.dim_value = side
    target = folder / f"{path.stem}-{side}" / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(target))
    for suffix in (".yaml", ".yml"):
        if path.with_suffix(suffix).is_file():
            shutil.copyfile(path.with_suffix(suffix), target.with_suffix(suffix))
    return target
