"""Tiny ONNX files: graphs whose outputs are chosen by the test, fed by a real picture input."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from server.settings import DetectorSettings

AnyArray = npt.NDArray[Any]
Dim = int | str

ELEMENT_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int64): TensorProto.INT64,
}


def write_model(
    path: Path,
    outputs: Mapping[str, AnyArray],
    input_shape: Sequence[Dim] = (1, 3, 64, 64),
    *,
    dtype: npt.DTypeLike = np.float32,
    input_name: str = "images",
    metadata: Mapping[str, str] | None = None,
    more_inputs: Mapping[str, tuple[Sequence[Dim], npt.DTypeLike]] | None = None,
    batch_dim: Dim = 1,
) -> Path:
    """A model that answers `outputs` whatever the picture shows; rows repeat over the batch.

    Every output is the constant plus zero times the picture's mean, so that the graph really
    depends on its input and an open batch carries through.
    """
    kind = ELEMENT_TYPES[np.dtype(dtype)]
    inputs = [helper.make_tensor_value_info(input_name, kind, list(input_shape))]
    for name, (shape, other) in (more_inputs or {}).items():
        element = ELEMENT_TYPES[np.dtype(other)]
        inputs.append(helper.make_tensor_value_info(name, element, list(shape)))
    nodes = [
        helper.make_node("Cast", [input_name], ["as_float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["as_float"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Mul", ["mean", "zero"], ["nothing4"]),
    ]
    weights = [numpy_helper.from_array(np.zeros(1, np.float32), "zero")]
    infos = []
    for name, array in outputs.items():
        # Mean is (batch, 1, 1, 1): cut it to the output's number of axes.
        shape_name = f"{name}_axes"
        axes = np.array([-1] + [1] * (array.ndim - 1), np.int64)
        weights.append(numpy_helper.from_array(axes, shape_name))
        weights.append(numpy_helper.from_array(array.astype(np.float32), f"{name}_value"))
        nodes.append(helper.make_node("Reshape", ["nothing4", shape_name], [f"{name}_nothing"]))
        nodes.append(helper.make_node("Add", [f"{name}_value", f"{name}_nothing"], [f"{name}_sum"]))
        element = ELEMENT_TYPES[array.dtype]
        nodes.append(helper.make_node("Cast", [f"{name}_sum"], [name], to=element))
        answer_shape: list[Dim] = [batch_dim, *array.shape[1:]]
        infos.append(helper.make_tensor_value_info(name, element, answer_shape))
    graph = helper.make_graph(nodes, "tiny", inputs, infos, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(path))
    return path


def settings_for(path: Path, cache: Path, **changes: Any) -> DetectorSettings:
    """Settings for a tiny model: plain CPU, no parity check, its own cache folder."""
    defaults: dict[str, Any] = {
        "provider": "cpu",
        "parity": False,
        "fit_shape": False,
        "cache_dir": str(cache),
    }
    return DetectorSettings(model=str(path), **(defaults | changes))
