"""Which values of a model come near the largest half number, seen on real pictures."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, ValueInfoProto

from tools.convert.rules import HALF_MAX

NEAR = HALF_MAX / 4
TENSORS_PER_PASS = 48
"""Values kept at the same time: all at once would take gigabytes on a large model."""

AnyArray = np.ndarray


def quiet_session(model: bytes) -> onnxruntime.InferenceSession:
    """A session on the CPU that logs nothing below an error."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def too_large(model: ModelProto, feeds: Sequence[Mapping[str, AnyArray]]) -> frozenset[str]:
    """Names of float32 tensors inside the graph that exceed a quarter of the half range."""
    graph = model.graph
    floats = {
        value.name
        for value in [*graph.value_info, *graph.output]
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    names = [name for node in graph.node for name in node.output if name in floats]
    found = set()
    for first in range(0, len(names), TENSORS_PER_PASS):
        part = names[first : first + TENSORS_PER_PASS]
        copy = ModelProto()
        copy.CopyFrom(model)
        del copy.graph.output[:]
        for name in part:
            value = ValueInfoProto()
            value.name = name
            value.type.tensor_type.elem_type = TensorProto.FLOAT
            copy.graph.output.append(value)
        session = quiet_session(copy.SerializeToString())
        for feed in feeds:
            for name, values in zip(part, session.run(part, dict(feed)), strict=True):
                if values.size and float(np.abs(values[np.isfinite(values)]).max(initial=0)) > NEAR:
                    found.add(name)
    return frozenset(found)
