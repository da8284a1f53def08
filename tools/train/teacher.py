"""A stronger detector looks at the same pictures; its feature maps are imitated while training.

The boxes of a few thousand pictures say little per picture. The maps of a network trained on far
more say something at every cell. They are compared after each channel is brought to mean 0 and
deviation 1, so only where a channel is strong matters, not how it is scaled. The teacher is a
file named by the user (YOLOX-nano, Apache-2.0, in our runs); nothing of it ends up in our file.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnx.utils import extract_model
from torch import Tensor, nn

from server.detector.names import COCO_NAMES
from tools.train.model import cells

YOLOX_NANO_MAPS = ("input.471", "input.531", "input.591")
YOLOX_NANO_ANSWERS = ("onnx::Shape_1066", "onnx::Shape_1108", "output.1")
"""Per stride (N, 4 + 1 + 80, H, W): box, objectness and class scores (both after sigmoid)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Lesson:
    """What the teacher sees in a batch, in the order of our own cells."""

    maps: list[Tensor]
    scores: Tensor
    """(N, A, C) of our classes; 0 where the teacher does not know the class."""
    boxes: Tensor
    """(N, A, 4), `xyxy_input`."""
    known: Tensor
    """(C,), 1 for the classes that the teacher knows."""


class Teacher:
    """Feature maps and answers at strides 8, 16 and 32 of YOLOX, fed BGR 0..255."""

    def __init__(self, path: Path, names: Sequence[str], threads: int = 2):
        maps = (*YOLOX_NANO_MAPS, *YOLOX_NANO_ANSWERS)
        self._theirs = [COCO_NAMES.index(name) for name in names if name in COCO_NAMES]
        self._ours = [i for i, name in enumerate(names) if name in COCO_NAMES]
        self._classes = len(names)
        descriptor, cut = tempfile.mkstemp(suffix=".onnx")
        os.close(descriptor)
        try:
            _cut(path, Path(cut), maps)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
            available = onnxruntime.get_available_providers()
            if "CUDAExecutionProvider" in available:
                providers.insert(0, "CUDAExecutionProvider")
            elif "OpenVINOExecutionProvider" in available:
                config = {"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}}
                load_config = {"load_config": json.dumps(config), "device_type": "CPU"}
                load_config["num_of_threads"] = str(threads)
                providers.insert(0, ("OpenVINOExecutionProvider", load_config))
            self._session = onnxruntime.InferenceSession(cut, options, providers=providers)
        finally:
            os.unlink(cut)
        self.name = path.stem
        self.provider: str = self._session.get_providers()[0]
        probe = np.zeros((1, 3, 64, 64), np.float32)
        found = self._session.run(None, {"images": probe})[: len(YOLOX_NANO_MAPS)]
        self.widths = tuple(out.shape[1] for out in found)

    def look(self, pictures_rgb: Tensor) -> Lesson:
        """At uint8 pictures (N, 3, H, W)."""
        device = pictures_rgb.device
        bgr = np.ascontiguousarray(pictures_rgb.flip(1).float().cpu().numpy())
        found = [torch.from_numpy(m).to(device) for m in self._session.run(None, {"images": bgr})]
        maps, levels = found[: len(YOLOX_NANO_MAPS)], found[len(YOLOX_NANO_MAPS) :]
        answers = torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2)
        centres, strides = cells(int(bgr.shape[2]), int(bgr.shape[3]), device)
        scores = answers.new_zeros(*answers.shape[:2], self._classes)
        theirs = [5 + index for index in self._theirs]
        scores[..., self._ours] = answers[..., theirs] * answers[..., 4:5]
        known = answers.new_zeros(self._classes)
        known[self._ours] = 1.0
        return Lesson(maps, scores, unpack(answers[..., :4], centres, strides), known)


def unpack(raw: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """YOLOX's boxes (offset of the middle from the cell's corner, logarithm of the sides, both in
    strides) as corners."""
    middle = centres + (raw[..., :2] - 0.5) * strides
    half = raw[..., 2:].clamp(max=6.0).exp() * strides / 2
    return torch.cat((middle - half, middle + half), -1)


def _cut(source: Path, target: Path, maps: tuple[str, ...]) -> None:
    import onnx

    extract_model(str(source), str(target), ["images"], list(maps))
    model = onnx.load(str(target))
    for value in [*model.graph.input, *model.graph.output]:
        shape = value.type.tensor_type.shape
        for axis, name in ((0, "n"), (2, f"h_{value.name}"), (3, f"w_{value.name}")):
            shape.dim[axis].dim_param = name
    del model.graph.value_info[:]
    onnx.save(model, str(target))


class Imitation(nn.Module):
    """One 1x1 convolution per stride from our width to the teacher's, thrown away afterwards."""

    def __init__(self, width: int, teacher_widths: tuple[int, ...]) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(nn.Conv2d(width, w, 1) for w in teacher_widths)

    def forward(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        """Mean over strides of 1 - correlation."""
        total = theirs[0].new_zeros(())
        for adapter, x, y in zip(self.adapters, ours, theirs, strict=True):
            a, b = _standardise(adapter(x).float()), _standardise(y)
            total = total + (1.0 - (a * b).mean())
        return total / len(theirs)


def _standardise(x: Tensor) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    centred = x - mean
    deviation = centred.square().mean((0, 2, 3), keepdim=True).sqrt()
    return centred / (deviation + 1e-5)
