"""Half precision without hardware that has it: float32 arithmetic, every result rounded to half.

A runtime that lacks half kernels computes a half file in float32 and drops the roundings in
between (seen with onnxruntime's CPU provider), so running the file there proves the weights and
no more. Here each result makes the way through float16 explicitly. That is how accelerators work,
multiplying halves and summing up in float32, only that they round less often, because they fuse.
"""

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tools.convert.rules import LAYOUT_OPS


def emulated(half: ModelProto) -> ModelProto:
    """A float32 model that answers as `half` does on hardware with half precision."""
    typed = onnx.shape_inference.infer_shapes(half)
    values = [*typed.graph.input, *typed.graph.value_info, *typed.graph.output]
    halves = {
        value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT16
    }
    copy = ModelProto()
    copy.CopyFrom(half)
    graph = copy.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    nodes = []
    for value in graph.input:
        if value.name in halves:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        nodes.append(node)
        for position, name in enumerate(node.output):
            if name not in halves or node.op_type in LAYOUT_OPS:
                continue
            stored = f"{name}/stored"
            if node.op_type == "Cast":
                node.output[position] = stored
            else:
                raw = f"{name}/raw"
                node.output[position] = raw
                nodes.append(helper.make_node("Cast", [raw], [stored], to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    for value in graph.output:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return copy
