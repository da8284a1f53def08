"""An ONNX model made plain before it is converted, or refused with the reason.

Plain: weights inside the file, no model-local functions, every constant an initializer, no
initializer among the inputs, batch normalisation folded into the convolution before it.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, inliner, numpy_helper

from server.errors import ModelError
from server.model_registry import PYTORCH_ADVICE

QUANTISED_OPS = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)
MAX_FILE_BYTES = 2**31 - 1


def load_plain(path: Path) -> ModelProto:
    """The model of the file, made plain; ModelError says what is wrong with it."""
    if path.suffix.lower() in (".pt", ".pth"):
        raise ModelError(f"{path.name}: {PYTORCH_ADVICE}")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ModelError(f"{path.name}: over 2 GiB, which is more than one ONNX file may hold")
        # Never follow a path that the model names: that is for whoever wrote the model to say.
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # protobuf's DecodeError has no public base to name
        raise ModelError(f"{path.name}: not an ONNX file: {_one_line(error)}") from None
    if not model.graph.node:
        raise ModelError(f"{path.name}: holds no graph")
    refuse_unfit(model, path.name)
    if model.functions:
        model = inliner.inline_local_functions(model)
    _constants_to_initializers(model.graph)
    _hide_initializers(model)
    fold_batch_norm(model.graph)
    try:
        return onnx.shape_inference.infer_shapes(model)
    except (RuntimeError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"{path.name}: shapes do not fit: {_one_line(error)}") from None


def refuse_unfit(model: ModelProto, name: str) -> None:
    """ModelError for a model that half precision cannot help, with the reason."""
    ops = Counter(node.op_type for node in model.graph.node)
    outside = sum(
        tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer
    )
    if outside:
        raise ModelError(
            f"{name}: {outside} weights lie in another file; save the model as one file first "
            "(onnx.save with save_as_external_data=False)"
        )
    quantised = sorted(QUANTISED_OPS & set(ops))
    if quantised:
        raise ModelError(
            f"{name}: already quantised to 8 bits ({', '.join(quantised)}): half precision would "
            "make it larger and bring nothing back; convert the float file it was made from"
        )
    if any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer):
        raise ModelError(f"{name}: already half precision")
    if not any(tensor.data_type == TensorProto.FLOAT for tensor in _weights(model.graph)):
        raise ModelError(f"{name}: holds no float32 weights to convert")


def _weights(graph: GraphProto) -> list[TensorProto]:
    constants = [
        attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    return [*graph.initializer, *constants]


def _constants_to_initializers(graph: GraphProto) -> None:
    kept = []
    for node in graph.node:
        tensor = _constant(node)
        if tensor is None:
            kept.append(node)
        else:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(kept)


def _constant(node: NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        copy = TensorProto()
        copy.CopyFrom(attribute.t)
        return copy
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name in ("value_float", "value_floats"):
        return numpy_helper.from_array(np.asarray(value, np.float32))
    if attribute.name in ("value_int", "value_ints"):
        return numpy_helper.from_array(np.asarray(value, np.int64))
    return None


def _hide_initializers(model: ModelProto) -> None:
    """Old exporters list every weight among the inputs, which keeps runtimes from folding."""
    names = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in names]
    if len(kept) != len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(kept)
        model.ir_version = max(model.ir_version, 4)


def fold_batch_norm(graph: GraphProto) -> None:
    """Conv + BatchNormalization become one Conv, computed in float64.

    Runtimes do the same when they load, but from the rounded weights of a half-precision file,
    and a small variance does not survive the rounding.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    producers = {name: node for node in graph.node for name in node.output}
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv = producers.get(norm.input[0])
        parameters = list(norm.input[1:5])
        if (
            conv is None
            or conv.op_type != "Conv"
            or uses[norm.input[0]] != 1
            or not all(name in constants for name in [*conv.input[1:], *parameters])
            or any(name for name in norm.output[1:])
        ):
            continue
        scale, shift, mean, variance = (
            numpy_helper.to_array(constants[name]).astype(np.float64) for name in parameters
        )
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        gain = scale / np.sqrt(variance + epsilon)
        weight = numpy_helper.to_array(constants[conv.input[1]]).astype(np.float64)
        bias = (
            numpy_helper.to_array(constants[conv.input[2]]).astype(np.float64)
            if len(conv.input) > 2
            else np.zeros_like(mean)
        )
        folded_weight = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
        folded_bias = (bias - mean) * gain + shift
        names = [f"{norm.output[0]}/folded_{part}" for part in ("weight", "bias")]
        for name, values in zip(names, (folded_weight, folded_bias), strict=True):
            tensor = numpy_helper.from_array(values.astype(np.float32), name)
            graph.initializer.append(tensor)
            constants[name] = tensor
        source = conv.input[0]
        del conv.input[:]
        conv.input.extend([source, *names])
        conv.output[0] = norm.output[0]
        producers[norm.output[0]] = conv
        graph.node.remove(norm)
    drop_unused_initializers(graph)


def drop_unused_initializers(graph: GraphProto) -> None:
    """Weights that no node reads any more."""
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output} | outer_names(graph)
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    if len(kept) != len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """Bodies of If, Loop and Scan."""
    found = []
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            found.append(attribute.g)
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            found.extend(attribute.graphs)
    return found


def outer_names(graph: GraphProto) -> set[str]:
    """Every name read inside the bodies of control-flow nodes."""
    bodies = [body for node in graph.node for body in subgraphs(node)]
    return set().union(*(body_names(body) for body in bodies))


def body_names(body: GraphProto) -> set[str]:
    """Every name that a body reads or gives out, at any depth."""
    names = {name for node in body.node for name in node.input}
    return names | {value.name for value in body.output} | outer_names(body)


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
