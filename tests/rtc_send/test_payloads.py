"""What is cut into payloads comes together again, byte for byte."""

import pytest
from aiortc.codecs.h264 import H264PayloadDescriptor
from aiortc.codecs.vpx import VpxPayloadDescriptor
from hypothesis import given
from hypothesis import strategies as st

from server.rtc.encoders import h264_payload, vp8

pytestmark = pytest.mark.unit

LIMIT = 100


def is_a_unit(data: bytes) -> bool:
    """No start code inside, no zero at the end, a single-unit type in front."""
    return b"\x00\x00\x01" not in data and not data.endswith(b"\x00")


# Runs of one byte make long units without making the search slow.
UNIT = st.builds(
    lambda kind, nri, runs: bytes((nri | kind,)) + b"".join(bytes((v,)) * n for v, n in runs),
    st.integers(1, 23),
    st.sampled_from([0x00, 0x20, 0x40, 0x60]),
    st.lists(st.tuples(st.integers(1, 255), st.integers(1, 180)), min_size=1, max_size=6),
).filter(is_a_unit)
START = st.sampled_from([b"\x00\x00\x01", b"\x00\x00\x00\x01"])


@given(st.lists(st.tuples(START, UNIT), max_size=12))
def test_h264_units_survive_the_journey(parts: list[tuple[bytes, bytes]]) -> None:
    units = [unit for _, unit in parts]
    payloads = h264_payload.packetise(b"".join(start + unit for start, unit in parts), LIMIT)
    together = b"".join(H264PayloadDescriptor.parse(p)[1] for p in payloads)
    assert h264_payload.nal_units(together) == units
    assert together == b"".join(b"\x00\x00\x00\x01" + unit for unit in units)


@given(st.lists(UNIT, max_size=12), st.integers(20, 400))
def test_h264_payloads_keep_the_limit_and_are_no_more_than_needed(
    units: list[bytes], limit: int
) -> None:
    stream = b"".join(b"\x00\x00\x01" + unit for unit in units)
    payloads = h264_payload.packetise(stream, limit)
    assert all(0 < len(p) <= limit for p in payloads)
    # Two neighbours that would fit into one payload are in one.
    kinds = [p[0] & 0x1F for p in payloads]
    for (first, kind), (second, next_kind) in zip(
        zip(payloads, kinds, strict=True),
        list(zip(payloads, kinds, strict=True))[1:],
        strict=False,
    ):
        if kind not in (24, 28) and next_kind not in (24, 28):
            assert 1 + 2 + len(first) + 2 + len(second) > limit


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1, 2 * LIMIT - 5, 2 * LIMIT - 3])
def test_h264_fragments_carry_one_start_and_one_end(size: int) -> None:
    unit = b"\x65" + b"\x11" * (size - 1)
    payloads = h264_payload.packetise(b"\x00\x00\x01" + unit, LIMIT)
    if size <= LIMIT:
        assert payloads == (unit,)
        return
    flags = [p[1] & 0xC0 for p in payloads]
    assert flags[0] == 0x80
    assert flags[-1] == 0x40
    assert all(f == 0 for f in flags[1:-1])
    assert all(p[0] == 0x60 | 28 for p in payloads)
    assert all(p[1] & 0x1F == 5 for p in payloads)


def test_h264_aggregate_is_as_important_as_its_most_important_unit() -> None:
    payloads = h264_payload.packetise(b"\x00\x00\x01\x06\x11\x00\x00\x01\x68\x22", LIMIT)
    assert payloads == (b"\x78\x00\x02\x06\x11\x00\x02\x68\x22",)


@pytest.mark.parametrize("stream", [b"", b"\x00\x00\x01", b"\x00\x00\x00\x01\x00", b"no code"])
def test_h264_stream_without_units_gives_no_payload(stream: bytes) -> None:
    assert h264_payload.packetise(stream) == ()


@given(st.binary(min_size=1, max_size=3000), st.integers(0, (1 << 15) - 1), st.integers(5, 1300))
def test_vp8_picture_survives_the_journey(data: bytes, picture_id: int, limit: int) -> None:
    payloads = vp8.packetise(data, picture_id, limit)
    assert all(4 < len(p) <= limit for p in payloads)
    parsed = [VpxPayloadDescriptor.parse(p) for p in payloads]
    assert b"".join(part for _, part in parsed) == data
    assert [d.partition_start for d, _ in parsed] == [1] + [0] * (len(payloads) - 1)
    assert all(d.partition_id == 0 and d.picture_id == picture_id for d, _ in parsed)


def test_vp8_nothing_gives_no_payload() -> None:
    assert vp8.packetise(b"", 1) == ()
