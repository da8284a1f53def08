"""The same network for another input size: an ONNX file with its declared sizes rewritten.

Convolutions do not care how large a picture is; a file does, because its export wrote one size
down. This rewrites the sizes of the picture input, and forgets those of the outputs and of the
values between, which onnxruntime works out anew. Whether the graph holds other constants of
its size only shows when it runs, so the result must be tried. Field numbers are those of
onnx.proto.
"""

from collections.abc import Iterator

from server.detector.protobuf import (
    BYTES,
    Field,
    Rewrite,
    encoded,
    fields,
    rewritten,
    varint_field,
)
from server.errors import ModelError

MODEL_GRAPH = 7
GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_VALUE = 11, 12, 13
VALUE_NAME, VALUE_TYPE = 1, 2
TYPE_TENSOR = 1
TENSOR_SHAPE = 2
SHAPE_DIM = 1
DIM_VALUE = 1


def with_input_size(model: bytes, input_name: str, size_wh: tuple[int, int]) -> bytes:
    """The file with `input_name` taking pictures of `size_wh`, channels first.

    ModelError when the input is not there or is not a fixed N x C x H x W.
    """
    found = False

    def in_graph(field: Field) -> Iterator[Field]:
        nonlocal found
        number, kind, content = field
        if number == GRAPH_VALUE:
            return
        if number == GRAPH_OUTPUT:
            yield number, kind, rewritten(content, _in_value(_with_open_sizes))
        elif number == GRAPH_INPUT and _name_of(content) == input_name:
            found = True
            yield number, kind, rewritten(content, _in_value(_with_size(size_wh)))
        else:
            yield field

    def in_model(field: Field) -> Iterator[Field]:
        number, kind, content = field
        yield field if number != MODEL_GRAPH else (number, kind, rewritten(content, in_graph))

    reshaped = rewritten(model, in_model)
    if not found:
        raise ModelError(f"the file has no input {input_name}")
    return reshaped


def _in_value(shape_rewrite: Rewrite) -> Rewrite:
    """Apply a rewrite to the tensor type inside a ValueInfoProto."""

    def in_type(field: Field) -> Iterator[Field]:
        number, kind, content = field
        if number == TYPE_TENSOR:
            content = rewritten(content, shape_rewrite)
        yield number, kind, content

    def in_value(field: Field) -> Iterator[Field]:
        number, kind, content = field
        if number == VALUE_TYPE:
            content = rewritten(content, in_type)
        yield number, kind, content

    return in_value


def _with_open_sizes(field: Field) -> Iterator[Field]:
    """As many dimensions as before, none of them known."""
    number, kind, content = field
    if number == TENSOR_SHAPE:
        content = b"".join(encoded((SHAPE_DIM, BYTES, b"")) for _ in fields(content))
    yield number, kind, content


def _with_size(size_wh: tuple[int, int]) -> Rewrite:
    def rewrite(field: Field) -> Iterator[Field]:
        number, kind, content = field
        if number != TENSOR_SHAPE:
            yield field
            return
        dims = list(fields(content))
        if len(dims) != 4 or any(dim[0] != SHAPE_DIM for dim in dims):
            raise ModelError(f"the input has {len(dims)} dimensions, not N x C x H x W")
        width, height = size_wh
        for axis, side in ((2, height), (3, width)):
            dims[axis] = (SHAPE_DIM, BYTES, varint_field(DIM_VALUE, side))
        yield number, kind, b"".join(encoded(dim) for dim in dims)

    return rewrite


def _name_of(value: bytes) -> str:
    for number, _, content in fields(value):
        if number == VALUE_NAME:
            return content.decode("utf-8", "replace")
    return ""
