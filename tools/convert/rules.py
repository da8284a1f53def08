"""Which nodes of a graph may compute in half precision, and why the others may not.

What stays in float32:

- whatever is not known to be safe (the list of safe ones is `HALF_OPS`): NonMaxSuppression, TopK,
  Range, CumSum, Exp, Log, Pow, sums, comparisons, samplers, control flow, foreign operators;
- the tail behind the last convolution or matrix product: scores and boxes are decoded there, and
  half precision has steps of 0.5 at 640 pixels; the same for a convolution that only sums up a
  distribution over box offsets;
- arithmetic on sizes and indices, which half precision counts exactly only up to 2,048;
- nodes with a constant that half precision cannot hold: too large, or so small that it becomes 0;
- nodes whose results were seen to come near the largest half number (`too_large`).
"""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

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


def reasons_for_full(
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


def tensor_kinds(model: ModelProto) -> dict[str, int]:
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
