"""The framing of protobuf messages, read and written field by field, without their schema.

Enough to change a few fields of an ONNX file and pass the rest on byte for byte; the package
that knows the whole schema is ten times the size of everything else we install for it.
"""

from collections.abc import Callable, Iterator

from server.errors import ModelError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Field = tuple[int, int, bytes]
"""Number, wire type and content; a number's content is its own bytes."""
Rewrite = Callable[[Field], Iterator[Field]]
"""What becomes of one field: nothing, itself, or others."""


def rewritten(message: bytes, rewrite: Rewrite) -> bytes:
    return b"".join(encoded(part) for field in fields(message) for part in rewrite(field))


def fields(message: bytes) -> Iterator[Field]:
    """Each field of a message; ModelError when the framing does not hold."""
    at, end = 0, len(message)
    while at < end:
        tag, at = read_varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            _, after = read_varint(message, at)
            start = at
        elif kind == BYTES:
            length, start = read_varint(message, at)
            after = start + length
        elif kind in (FIXED64, FIXED32):
            start, after = at, at + (8 if kind == FIXED64 else 4)
        else:
            raise ModelError(f"not an ONNX file: wire type {kind}")
        if after > end:
            raise ModelError("not an ONNX file: cut off")
        yield number, kind, message[start:after]
        at = after


def read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ModelError("not an ONNX file: a number does not end")


def encoded(field: Field) -> bytes:
    number, kind, content = field
    tag = as_varint(number << 3 | kind)
    return tag + as_varint(len(content)) + content if kind == BYTES else tag + content


def varint_field(number: int, value: int) -> bytes:
    return as_varint(number << 3 | VARINT) + as_varint(value)


def as_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
