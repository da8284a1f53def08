"""A stronger detector looks at the same pictures; its feature maps are imitated while training.

The boxes of a few thousand pictures say little per picture. The maps of a network trained on far
more say something at every cell. They are compared after each channel is brought to mean 0 and
deviation 1, so only where a channel is strong matters, not how it is scaled. The teacher is a
file named by the user (YOLOX-nano, Apache-2.0, in our runs); nothing of it ends up in our file.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnx.utils import extract_model
from torch import Tensor, nn

YOLOX_NANO_MAPS = ("input.471", "input.531", "input.591")


class Teacher:
    """Feature maps at strides 8, 16 and 32 of an ONNX detector fed BGR 0..255."""

    def __init__(self, path: Path, maps: tuple[str, ...] = YOLOX_NANO_MAPS, threads: int = 2):
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
        self.widths = tuple(out.shape[1] for out in self._session.run(None, {"images": probe}))

    def maps(self, pictures_rgb: Tensor) -> list[Tensor]:
        """Maps for uint8 pictures (N, 3, H, W)."""
        bgr = np.ascontiguousarray(pictures_rgb.flip(1).float().cpu().numpy())
        found = self._session.run(None, {"images": bgr})
        return [torch.from_numpy(m).to(pictures_rgb.device) for m in found]


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
