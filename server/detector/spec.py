"""Values of the detector package: what a model file says, what a head needs and gives.

Nothing here loads onnxruntime, so tools may import it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from server.geometry import Float32Array, InputSpec
from server.settings import DetectorSettings as DetectorSettings

AnyArray = npt.NDArray[Any]
Int32Array = npt.NDArray[np.int32]
Tensors = Mapping[str, AnyArray]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A declared input or output; an open dimension is its name or None."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str

    def __str__(self) -> str:
        dims = "x".join(str(dim) if dim is not None else "?" for dim in self.shape)
        return f"{self.name} {dims or 'scalar'} {self.dtype}"


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What the YAML file beside a model overrides; None leaves the model's own."""

    family: str | None = None
    names: tuple[str, ...] | None = None
    floor: float | None = None
    decoded: bool | None = None
    input: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known of a model when its head is chosen.

    `outputs` are those of one real run on an even grey input, so that shapes are numbers
    even where the file leaves them open.
    """

    model: str
    inputs: tuple[TensorInfo, ...]
    outputs: Tensors
    input_wh: tuple[int, int]
    metadata: Mapping[str, str]
    names: tuple[str, ...] | None
    sidecar: Sidecar = field(default_factory=Sidecar)
    family: str | None = None
    """The family that sidecar or metadata name; shapes alone decide when it is None."""

    def describe(self) -> str:
        """Inputs and outputs in one line, for refusals."""
        found = ", ".join(
            f"{name} {'x'.join(map(str, array.shape)) or 'scalar'}"
            for name, array in self.outputs.items()
        )
        return f"inputs [{', '.join(map(str, self.inputs))}], outputs [{found}]"


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """A head's boxes of one picture in input pixels, unsorted, at or above the floor."""

    xyxy_input: Float32Array
    confidence: Float32Array
    class_id: Int32Array
    landmarks_input: Float32Array | None = None


class Head(Protocol):
    """How one family's outputs become boxes. Stateless after construction."""

    @property
    def family(self) -> str: ...
    @property
    def class_count(self) -> int: ...
    @property
    def overlapping(self) -> bool:
        """Whether one object yields several boxes, so that NMS is needed."""
        ...

    def input_spec(self, input_wh: tuple[int, int]) -> InputSpec:
        """What the family's training code feeds its models."""
        ...

    def decode(self, outputs: Tensors, item: int, floor: float) -> Candidates:
        """Boxes of picture `item` of the batch; all outputs are float32 or integers."""
        ...


def half_precision_path(path: Path) -> Path:
    """Where the FP16 file of a model lies: `yolo26n.onnx` -> `yolo26n.fp16.onnx`."""
    return path.with_name(f"{path.stem}.fp16{path.suffix}")


def full_precision_path(path: Path) -> Path | None:
    """The FP32 original beside an FP16 file, by name; None when the name is not of one."""
    stem = path.name.removesuffix(f".fp16{path.suffix}")
    return None if stem == path.name else path.with_name(stem + path.suffix)
