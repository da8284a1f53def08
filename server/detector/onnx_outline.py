"""The outline of an ONNX file, read without loading it.

Walks the protobuf framing of the model, its graph and its weights, so that a cut-off or
foreign file and one whose weights lie in other files are refused before onnxruntime opens
anything, and a file of FP16 weights is known as such. Field numbers are those of onnx.proto.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from server.errors import ModelError

MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_WEIGHT, GRAPH_SPARSE_WEIGHT = 1, 5, 15
NODE_OPERATOR, NODE_ATTRIBUTE = 4, 5
ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH, ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS = 5, 6, 10, 11
TENSOR_TYPE, TENSOR_EXTERNAL, TENSOR_LOCATION = 2, 13, 14
FLOAT, FLOAT16 = 1, 10
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_DEPTH = 16
DYNAMIC_OPERATORS = frozenset((b"DynamicQuantizeLinear", b"ConvInteger", b"MatMulInteger"))


@dataclass(slots=True)
class Outline:
    """What the walk found."""

    graphs: int = 0
    nodes: int = 0
    float_weights: int = 0
    half_weights: int = 0
    external: bool = False
    operators: set[bytes] = field(default_factory=set)

    @property
    def is_dynamically_quantised(self) -> bool:
        """Whether activations are quantised at run time, as `quantize_dynamic` writes it."""
        return not self.operators.isdisjoint(DYNAMIC_OPERATORS)

    @property
    def is_half(self) -> bool:
        """Whether the weights are stored in FP16; a few kept in FP32 do not count."""
        return self.half_weights > self.float_weights


class _BrokenError(Exception):
    """The framing does not hold."""


def read_outline(path: Path) -> Outline:
    """Walk a file; ModelError in one line when it is not a whole ONNX file of its own."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ModelError(f"{path.name}: not a file")
        if size == 0:
            raise ModelError(f"{path.name}: the file is empty")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            outline = Outline()
            for number, kind, start, end in _fields(data, 0, size):
                if number == MODEL_GRAPH and kind == BYTES:
                    _walk_graph(data, start, end, outline, 0)
    except OSError as error:
        raise ModelError(f"{path.name}: cannot be read: {error.strerror or error}") from error
    except _BrokenError as error:
        raise ModelError(f"{path.name}: cut off or not an ONNX file: {error}") from error
    if outline.graphs != 1 or outline.nodes == 0:
        raise ModelError(f"{path.name}: not an ONNX file: it holds no graph of operations")
    if outline.external:
        raise ModelError(
            f"{path.name}: its weights lie in other files (external data); save it as one file"
        )
    return outline


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type and extent of each field of a message; a varint's value is its end."""
    while at < end:
        tag, at = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise _BrokenError(f"no field number at byte {at}")
        if kind == VARINT:
            value, at = _varint(data, at, end)
            yield number, kind, at, value
            continue
        if kind == BYTES:
            length, at = _varint(data, at, end)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise _BrokenError(f"unknown wire type {kind} at byte {at}")
        if at + length > end:
            raise _BrokenError(f"byte {at} promises {length} more, {end - at} are there")
        yield number, kind, at, at + length
        at += length


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _BrokenError(f"a number does not end at byte {at}")


def _walk_graph(data: mmap.mmap, start: int, end: int, outline: Outline, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _BrokenError(f"graphs nested more than {MAX_DEPTH} deep")
    outline.graphs += depth == 0
    for number, kind, inner, inner_end in _fields(data, start, end):
        if kind != BYTES:
            continue
        if number == GRAPH_WEIGHT:
            _walk_tensor(data, inner, inner_end, outline)
        elif number == GRAPH_SPARSE_WEIGHT:
            for _, part_kind, part, part_end in _fields(data, inner, inner_end):
                if part_kind == BYTES:
                    _walk_tensor(data, part, part_end, outline)
        elif number == GRAPH_NODE:
            outline.nodes += 1
            _walk_node(data, inner, inner_end, outline, depth)


def _walk_node(data: mmap.mmap, start: int, end: int, outline: Outline, depth: int) -> None:
    for number, kind, inner, inner_end in _fields(data, start, end):
        if number == NODE_OPERATOR and kind == BYTES:
            outline.operators.add(data[inner:inner_end])
        if number != NODE_ATTRIBUTE or kind != BYTES:
            continue
        for part_number, part_kind, part, part_end in _fields(data, inner, inner_end):
            if part_kind != BYTES:
                continue
            if part_number in (ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS):
                _walk_tensor(data, part, part_end, outline)
            elif part_number in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
                _walk_graph(data, part, part_end, outline, depth + 1)


def _walk_tensor(data: mmap.mmap, start: int, end: int, outline: Outline) -> None:
    size = end - start
    for number, kind, _, value in _fields(data, start, end):
        if (number == TENSOR_EXTERNAL and kind == BYTES) or (
            number == TENSOR_LOCATION and kind == VARINT and value == 1
        ):
            outline.external = True
        elif number == TENSOR_TYPE and kind == VARINT:
            outline.float_weights += size if value == FLOAT else 0
            # Half the bytes hold the same number of weights.
            outline.half_weights += 2 * size if value == FLOAT16 else 0
