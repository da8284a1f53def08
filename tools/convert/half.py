"""Float32 graph to half precision, where half precision is safe.

Every node is put into half or left in full float32, by rules; a Cast is set only where a value
crosses between the two. What stays in full precision, and why:

- whatever is not known to be safe (the list of safe ones is `HALF_OPS`): NonMaxSuppression, TopK,
  Range, CumSum, Exp, Log, Pow, sums, comparisons, samplers, control flow, foreign operators;
- the tail behind the last convolution or matrix product: scores and boxes are decoded there, and
  half precision has steps of 0.5 at 640 pixels; the same for a convolution that only sums up a
  distribution over box offsets;
- arithmetic on sizes and indices, which half precision counts exactly only up to 2,048;
- nodes with a constant that half precision cannot hold: too large, or so small that it becomes 0;
- nodes whose results were seen to come near the largest half number (`too_large`).

`roi` and `scales` of Resize are float32 by the standard whatever the picture is; converting them
is what breaks the stock converter on YOLO files.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tools.convert.graph import body_names, drop_unused_initializers, subgraphs

HALF_MAX = float(np.finfo(np.float16).max)
HALF_TINY = float(np.finfo(np.float16).smallest_subnormal)

HEAVY_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Where the time goes; without one downstream a node belongs to the tail."""

LAYOUT_OPS = frozenset(
    {
        "Concat",
        "DepthToSpace",
        "Dropout",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Pad",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""Move values without changing them, so they follow the precision of what they move."""

HALF_OPS = (
    HEAVY_OPS
    | LAYOUT_OPS
    | frozenset(
        {
            "Abs",
            "Add",
            "AveragePool",
            "Clip",
            "Div",
            "Elu",
            "Erf",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "LayerNormalization",
            "LeakyRelu",
            "Max",
            "MaxPool",
            "Min",
            "Mish",
            "Mul",
            "Neg",
            "PRelu",
            "Relu",
            "Resize",
            "Sigmoid",
            "Softmax",
            "Softplus",
            "Sub",
            "Swish",
            "Tanh",
            "Upsample",
            "Where",
        }
    )
)

FULL_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}
"""Inputs that are float32 by the standard, by position."""


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
    kinds = _tensor_kinds(copy)
    constants = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in copy.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }
    reasons = _choose(copy, kinds, constants, frozenset(too_large))
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


def _tensor_kinds(model: ModelProto) -> dict[str, int]:
    """Element type by tensor name, as far as inference knows."""
    graph = model.graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.HasField("tensor_type"):
            kinds[value.name] = value.type.tensor_type.elem_type
    for node in graph.node:
        # Inference gives up behind foreign operators; most operators keep their first input's type.
        for name in node.output:
            if name and name not in kinds and node.op_type in HALF_OPS and node.input:
                kinds[name] = kinds.get(node.input[0], TensorProto.UNDEFINED)
    return kinds


def _choose(
    model: ModelProto,
    kinds: dict[str, int],
    constants: dict[str, np.ndarray],
    too_large: frozenset[str],
) -> dict[int, str]:
    """By index of a node that handles floats: "" for half, else why it stays in float32."""
    nodes = list(model.graph.node)

    def is_float(name: str) -> bool:
        return kinds.get(name) == TensorProto.FLOAT

    reasons: dict[int, str] = {}
    for index, node in enumerate(nodes):
        if not any(is_float(name) for name in [*node.input, *node.output]):
            continue
        unknown = any(name and not kinds.get(name) for name in node.output)
        reasons[index] = "type unknown" if unknown else _own_reason(node, constants, too_large)

    consumers = defaultdict(list)
    producer: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node.input:
            consumers[name].append(index)
        for name in node.output:
            producer[name] = index

    _mark_tail(nodes, reasons, consumers)
    _mark_counting(nodes, reasons, is_float, producer, constants)
    _mark_layout(nodes, reasons, is_float, producer, constants)
    return reasons


def _own_reason(
    node: NodeProto, constants: dict[str, np.ndarray], too_large: frozenset[str]
) -> str:
    if node.domain not in ("", "ai.onnx"):
        return "foreign operator"
    if node.op_type not in HALF_OPS:
        return "operator kept safe"
    if any(name in too_large for name in node.output):
        return "values near the largest half number"
    pinned = FULL_INPUTS.get(node.op_type, ())
    for position, name in enumerate(node.input):
        if position not in pinned and name in constants and not _fits(constants[name], node):
            return "constant out of range"
    if _sums_distribution(node, constants):
        return "box decoding"
    return ""


def _fits(values: np.ndarray, node: NodeProto) -> bool:
    """Whether half precision holds a constant: no overflow, and not rounded to nothing.

    Among weights single tiny ones do no harm; a tensor that is tiny as a whole does, and so does
    any tiny part of a few numbers that the node computes with (an epsilon, a scale).
    """
    finite = np.abs(values[np.isfinite(values)])
    if not finite.size:
        return True
    if finite.max() > HALF_MAX:
        return False
    nonzero = finite[finite > 0]
    if not nonzero.size:
        return True
    few = values.size <= 16 and node.op_type not in HEAVY_OPS
    judged = nonzero.min() if few else nonzero.max()
    return bool(judged >= 64 * HALF_TINY)


def _sums_distribution(node: NodeProto, constants: dict[str, np.ndarray]) -> bool:
    """A convolution or product with 0, 1, 2 ... n: the expected value of a box offset."""
    if node.op_type not in HEAVY_OPS or len(node.input) < 2 or node.input[1] not in constants:
        return False
    weights = constants[node.input[1]].ravel()
    return 2 <= weights.size <= 64 and np.array_equal(weights, np.arange(weights.size))


def _mark_tail(
    nodes: list[NodeProto], reasons: dict[int, str], consumers: dict[str, list[int]]
) -> None:
    """Everything from which no more heavy work in half follows decodes scores and boxes."""
    leads_to_work: dict[int, bool] = {}
    for index in reversed(range(len(nodes))):
        leads_to_work[index] = any(
            leads_to_work[after] or (nodes[after].op_type in HEAVY_OPS and reasons.get(after) == "")
            for name in nodes[index].output
            for after in consumers[name]
        )
        if (
            reasons.get(index) == ""
            and not leads_to_work[index]
            and nodes[index].op_type not in HEAVY_OPS
        ):
            reasons[index] = "box decoding"


def _mark_counting(
    nodes: list[NodeProto],
    reasons: dict[int, str],
    is_float: Callable[[str], bool],
    producer: dict[str, int],
    constants: dict[str, np.ndarray],
) -> None:
    """Floats that came from integers, or become integers, are sizes and indices."""

    def makes_floats(node: NodeProto) -> bool:
        return not any(is_float(name) for name in node.input) and any(
            is_float(name) for name in node.output
        )

    counting = set()
    for index, node in enumerate(nodes):
        floats = [name for name in node.input if is_float(name) and name not in constants]
        if makes_floats(node) or (floats and all(producer.get(n, -1) in counting for n in floats)):
            if reasons.get(index) == "" and node.op_type not in HEAVY_OPS:
                reasons[index] = "sizes and indices"
            if node.op_type not in HEAVY_OPS:
                counting.add(index)
    waiting = [
        index
        for index, node in enumerate(nodes)
        if node.op_type == "Cast"
        and any(is_float(name) for name in node.input)
        and not any(is_float(name) for name in node.output)
    ]
    while waiting:
        for name in nodes[waiting.pop()].input:
            before = producer.get(name)
            if (
                before is not None
                and is_float(name)
                and reasons.get(before) == ""
                and nodes[before].op_type not in HEAVY_OPS
            ):
                reasons[before] = "sizes and indices"
                waiting.append(before)


def _mark_layout(
    nodes: list[NodeProto],
    reasons: dict[int, str],
    is_float: Callable[[str], bool],
    producer: dict[str, int],
    constants: dict[str, np.ndarray],
) -> None:
    """Moving float32 values as they are spares two Casts."""
    for index, node in enumerate(nodes):
        if reasons.get(index) != "" or node.op_type not in LAYOUT_OPS:
            continue
        moved = [name for name in node.input if is_float(name) and name not in constants]
        if moved and all(reasons.get(producer.get(name, -1), "") for name in moved):
            reasons[index] = "moves float32 values"


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
