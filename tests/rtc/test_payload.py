import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.rtc.payload import Payload, parse_payload
from tests.rtc.streams import vp8_payload

pytestmark = pytest.mark.unit

START = b"\x00\x00\x00\x01"


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"\x10\x00rest", Payload(b"\x00rest", True, True, True)),
        (b"\x10\x01rest", Payload(b"\x01rest", True, True, False)),
        (b"\x00\x00rest", Payload(b"\x00rest", False, False, False)),
        # A second partition starts, not a frame.
        (b"\x11\x00rest", Payload(b"\x00rest", False, False, False)),
        (b"\x90\x80\x7f\x00", Payload(b"\x00", True, True, True, 0x7F, 7)),
        (b"\x90\x80\x81\x02\x00", Payload(b"\x00", True, True, True, 0x102, 15)),
        # Picture id, TL0PICIDX, and TID with KEYIDX in one byte.
        (b"\x90\xf0\x81\x02\x05\x21\x01", Payload(b"\x01", True, True, False, 0x102, 15)),
    ],
)
def test_vp8_descriptors_are_read(payload: bytes, expected: Payload) -> None:
    assert parse_payload("VP8", payload) == expected


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"\x67\x42\xc0", Payload(START + b"\x67\x42\xc0", True, True, True)),
        (b"\x68\xce\x3c", Payload(START + b"\x68\xce\x3c", True, False, False)),
        (b"\x09\xf0", Payload(START + b"\x09\xf0", True, True, False)),
        (b"\x65\x88\x01", Payload(START + b"\x65\x88\x01", True, False, True)),
        # A slice that is not the first of its picture.
        (b"\x65\x08\x01", Payload(START + b"\x65\x08\x01", False, False, True)),
        (b"\x41\x9a\x01", Payload(START + b"\x41\x9a\x01", True, False, False)),
        (b"\x06\x05\x01", Payload(START + b"\x06\x05\x01", False, False, False)),
        # A fragmented IDR slice: begins, goes on.
        (b"\x7c\x85\x88\x01", Payload(START + b"\x65\x88\x01", True, False, True)),
        (b"\x7c\x05\x88\x01", Payload(b"\x88\x01", False, False, True)),
        (
            b"\x78\x00\x02\x67\x42\x00\x02\x68\xce",
            Payload(START + b"\x67\x42" + START + b"\x68\xce", True, True, True),
        ),
    ],
)
def test_h264_structures_are_read(payload: bytes, expected: Payload) -> None:
    assert parse_payload("H264", payload) == expected


@pytest.mark.parametrize(
    ("codec", "payload"),
    [
        ("VP8", b"\x10"),
        ("VP8", b"\x80"),
        ("VP8", b"\x90\x80"),
        ("VP8", b"\x90\x80\x81"),
        ("VP8", b"\x90\xf0\x01\x01"),
        ("VP8", vp8_payload(start=False, key=False, body=b"")),
        ("H264", b"\x65"),
        ("H264", b"\x7c\x85"),
        ("H264", b"\x78\x00"),
        ("H264", b"\x78\x00\x05\x67\x42"),
        ("H264", b"\x78\x00\x00"),
        ("H264", b"\x19\x00\x01"),
        ("H264", b"\x00\x01"),
        ("opus", b"\x01\x02"),
    ],
)
def test_malformed_payloads_are_refused(codec: str, payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w+"):
        parse_payload(codec, payload)


@given(st.sampled_from(["VP8", "H264"]), st.binary(min_size=1, max_size=40))
def test_any_bytes_are_read_or_refused(codec: str, payload: bytes) -> None:
    try:
        parsed = parse_payload(codec, payload)
    except ValueError:
        return
    assert parsed.data
    assert parsed.starts_frame or not parsed.starts_surely
