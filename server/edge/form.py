"""`multipart/form-data`, from a whole body that is already bounded. Pure functions."""

from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser

from server.errors import MalformedError

PARTS_AT_MOST = 32
HEAD_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a form; `filename` is empty for plain text."""

    name: str
    filename: str
    data: bytes

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace").strip()


def parse_form(content_type: str, body: bytes) -> list[Field]:
    """The fields in order; refuses what is no form, ends early or has too many parts."""
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not 1 <= len(boundary) <= 70:
        raise MalformedError("Content-Type: multipart/form-data without a boundary")
    delimiter = b"\r\n--" + boundary.encode(errors="replace")
    # The first delimiter has no line before it.
    _, *parts = (b"\r\n" + body).split(delimiter, PARTS_AT_MOST + 2)
    if len(parts) > PARTS_AT_MOST + 1:
        raise MalformedError(f"body: a form of more than {PARTS_AT_MOST} parts")
    if not parts or not parts[-1].startswith(b"--"):
        raise MalformedError("body: not a whole form")
    return [_field(part) for part in parts[:-1]]


def _field(part: bytes) -> Field:
    head, found, data = part.partition(b"\r\n\r\n")
    if not found or len(head) > HEAD_BYTES:
        raise MalformedError("body: a part of the form has no head")
    headers = BytesHeaderParser().parsebytes(head.lstrip(b" \t\r\n") + b"\r\n\r\n")
    name = headers.get_param("name", header="content-disposition")
    filename = headers.get_param("filename", header="content-disposition")
    if not isinstance(name, str):
        raise MalformedError("body: a part of the form has no name")
    return Field(name, filename if isinstance(filename, str) else "", data)
