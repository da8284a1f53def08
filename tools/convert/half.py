"""Float32 graph to half precision, where half precision is safe.

Every node is put into half or left in full float32 by `rules.py`; a Cast is set only where a value
crosses between the two. `roi` and `scales` of Resize are float32 by the standard whatever the
picture is; converting them is what breaks the stock converter on YOLO files.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tools.convert.graph import body_names, drop_unused_initializers, subgraphs
from tools.convert.rules import FULL_INPUTS, reasons_for_full, tensor_kinds


@dataclass(frozen=True, slots=True)
class Converted:
    """The new model and what was done, for people."""

    model: ModelProto
    half_nodes: int
    full_nodes: int
    casts: int
    reasons: dict[str, int]
    """Why nodes stayed in float32, with counts."""


def to_half(
    model: ModelProto, *, half_io: bool = False, too_large: Collection[str] = ()
) -> Converted:
    """A half-precision copy of a plain model (`graph.load_plain`).

    `too_large` names tensors whose values do not fit; the nodes that make them stay in float32.
    With `half_io` the inputs and outputs of the model are float16 too.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    kinds = tensor_kinds(copy)
    constants = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in copy.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }
    reasons = reasons_for_full(copy, kinds, constants, frozenset(too_large))
    casts = _rewrite(copy, kinds, constants, reasons, half_io)
    del copy.graph.value_info[:]
    drop_unused_initializers(copy.graph)
    _note(copy)
    full = {index: reason for index, reason in reasons.items() if reason}
    return Converted(
        model=copy,
        half_nodes=len(reasons) - len(full),
        full_nodes=len(full),
        casts=casts,
        reasons=dict(Counter(full.values())),
    )


def _rewrite(
    model: ModelProto,
    kinds: dict[str, int],
    constants: dict[str, np.ndarray],
    reasons: dict[int, str],
    half_io: bool,
) -> int:
    """Sets types, constants and Casts by `reasons`; the number of Casts set."""
    graph = model.graph
    # Under which name a float tensor is to be had in each precision.
    half_names: dict[str, str] = {}
    full_names: dict[str, str] = {}
    new_nodes: list[NodeProto] = []
    casts = 0

    def cast(source: str, target: str, kind: int) -> str:
        nonlocal casts
        casts += 1
        new_nodes.append(helper.make_node("Cast", [source], [target], name=target, to=kind))
        return target

    def in_half(name: str) -> str:
        if name not in half_names:
            if name in constants:
                half_names[name] = _half_constant(model, name, constants[name])
            else:
                half_names[name] = cast(full_names[name], f"{name}/half", TensorProto.FLOAT16)
        return half_names[name]

    def in_full(name: str) -> str:
        if name not in full_names:
            full_names[name] = cast(half_names[name], f"{name}/full", TensorProto.FLOAT)
        return full_names[name]

    full_names |= {name: name for name in constants}
    for value in graph.input:
        if kinds.get(value.name) == TensorProto.FLOAT:
            names = half_names if half_io else full_names
            names[value.name] = value.name
            if half_io:
                value.type.tensor_type.elem_type = TensorProto.FLOAT16

    for index, node in enumerate(graph.node):
        half = reasons.get(index) == ""
        pinned = FULL_INPUTS.get(node.op_type, ()) if half else range(len(node.input))
        for position, name in enumerate(node.input):
            if kinds.get(name) == TensorProto.FLOAT and name:
                node.input[position] = in_full(name) if position in pinned else in_half(name)
        for body in subgraphs(node):
            read = [name for name in body_names(body) if name in half_names or name in full_names]
            _rename_outer(body, {name: in_full(name) for name in read})
        new_nodes.append(node)
        for name in node.output:
            if kinds.get(name) == TensorProto.FLOAT:
                (half_names if half else full_names)[name] = name

    casts += _settle_outputs(model, new_nodes, half_names, full_names, half_io)
    del graph.node[:]
    graph.node.extend(new_nodes)
    return casts


def _half_constant(model: ModelProto, name: str, values: np.ndarray) -> str:
    target = f"{name}/half"
    model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), target))
    return target


def _rename_outer(body: onnx.GraphProto, names: dict[str, str]) -> None:
    """A control-flow body reads outer values by name: point it at the float32 ones."""
    own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
    own |= {name for node in body.node for name in node.output}
    names = {old: new for old, new in names.items() if old not in own}
    for node in body.node:
        for position, name in enumerate(node.input):
            if name in names:
                node.input[position] = names[name]
        for inner in subgraphs(node):
            _rename_outer(inner, names)
    for value in body.output:
        if value.name in names:
            body.node.append(helper.make_node("Identity", [names[value.name]], [value.name]))


def _settle_outputs(
    model: ModelProto,
    new_nodes: list[NodeProto],
    half_names: dict[str, str],
    full_names: dict[str, str],
    half_io: bool,
) -> int:
    """Outputs keep their names and get the wanted type; the number of Casts set."""
    casts = 0
    made = {name for node in new_nodes for name in node.output}
    for value in model.graph.output:
        name = value.name
        if value.type.tensor_type.elem_type != TensorProto.FLOAT:
            continue
        if half_io:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
        if (half_names if half_io else full_names).get(name) == name or name not in made:
            continue
        # The node that made it keeps working under another name; a Cast takes over this one.
        inner = f"{name}/inner"
        _rename(new_nodes, name, inner)
        kind = TensorProto.FLOAT16 if half_io else TensorProto.FLOAT
        new_nodes.append(helper.make_node("Cast", [inner], [name], name=f"{name}/out", to=kind))
        casts += 1
    return casts


def _rename(nodes: Iterable[NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for position, name in enumerate(node.input):
            if name == old:
                node.input[position] = new
        for position, name in enumerate(node.output):
            if name == old:
                node.output[position] = new
        for body in subgraphs(node):
            _rename(body.node, old, new)


def _note(model: ModelProto) -> None:
    """Leaves a word in the metadata; what was there (class names) stays."""
    for row in model.metadata_props:
        if row.key == "precision":
            row.value = "fp16"
            return
    row = model.metadata_props.add()
    row.key, row.value = "precision", "fp16"
