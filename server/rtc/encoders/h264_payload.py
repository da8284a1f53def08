"""H264 byte stream to RTP payloads by RFC 6184, packetization mode 1."""

from server.rtc.encoders.base import PAYLOAD_MAX

START_CODE = b"\x00\x00\x01"
TYPE_MASK = 0x1F
NRI_MASK = 0x60
STAP_A = 24
FU_A = 28
FU_START = 0x80
FU_END = 0x40


def nal_units(bitstream: bytes) -> list[bytes]:
    """The NAL units of an Annex B byte stream, without start codes and trailing zeros."""
    units = []
    at = bitstream.find(START_CODE)
    while at >= 0:
        begin = at + 3
        at = bitstream.find(START_CODE, begin)
        # A four-byte start code leaves its first zero with the unit before; a NAL unit itself
        # never ends in a zero byte.
        unit = bitstream[begin : at if at >= 0 else None].rstrip(b"\x00")
        if unit:
            units.append(unit)
    return units


def packetise(bitstream: bytes, limit: int = PAYLOAD_MAX) -> tuple[bytes, ...]:
    """RTP payloads of one picture: small units together, large ones in fragments."""
    payloads: list[bytes] = []
    group: list[bytes] = []
    group_size = 1
    for unit in nal_units(bitstream):
        if group and group_size + 2 + len(unit) > limit:
            payloads.append(_aggregate(group))
            group, group_size = [], 1
        if len(unit) > limit:
            _fragment(unit, limit, payloads)
        else:
            group.append(unit)
            group_size += 2 + len(unit)
    if group:
        payloads.append(_aggregate(group))
    return tuple(payloads)


def _aggregate(units: list[bytes]) -> bytes:
    if len(units) == 1:
        return units[0]
    importance = max(unit[0] & NRI_MASK for unit in units)
    parts = [bytes((importance | STAP_A,))]
    for unit in units:
        parts += (len(unit).to_bytes(2, "big"), unit)
    return b"".join(parts)


def _fragment(unit: bytes, limit: int, payloads: list[bytes]) -> None:
    indicator = (unit[0] & ~TYPE_MASK) | FU_A
    kind = unit[0] & TYPE_MASK
    step = limit - 2
    last = len(unit) - step
    for at in range(1, len(unit), step):
        flags = FU_START if at == 1 else FU_END if at >= last else 0
        payloads.append(bytes((indicator, kind | flags)) + unit[at : at + step])
