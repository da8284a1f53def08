"""What an RTP payload says about the frame it belongs to, and its bytes for the decoder.

VP8 by RFC 7741, H264 by RFC 6184 in packetization modes 0 and 1. Malformed payloads raise
`ValueError` and nothing else.
"""

from dataclasses import dataclass

_START_CODE = b"\x00\x00\x00\x01"
_NAL_SLICE, _NAL_IDR, _NAL_SPS, _NAL_PPS, _NAL_AUD = 1, 5, 7, 8, 9
_STAP_A, _FU_A = 24, 28


@dataclass(frozen=True, slots=True)
class Payload:
    """One packet's share of a frame.

    `starts_frame` says that a picture may begin here, `starts_surely` that nothing it needs is
    before (an H264 slice may have its parameter sets there). `is_key` says that a key frame
    begins here, or that this packet is part of one. `picture_id` is VP8's, when sent.
    """

    data: bytes
    starts_frame: bool
    starts_surely: bool
    is_key: bool
    picture_id: int | None = None
    picture_id_bits: int = 15


def parse_payload(codec_name: str, payload: bytes) -> Payload:
    """Read a non-empty payload of the named codec (`VP8` or `H264`)."""
    if codec_name == "VP8":
        return _parse_vp8(payload)
    if codec_name == "H264":
        return _parse_h264(payload)
    raise ValueError(f"no payload format for {codec_name}")


def _parse_vp8(payload: bytes) -> Payload:
    first = payload[0]
    position = 1
    picture_id: int | None = None
    picture_id_bits = 15
    if first & 0x80:
        extension = _byte(payload, 1)
        position = 2
        if extension & 0x80:
            picture_id = _byte(payload, position)
            position += 1
            if picture_id & 0x80:
                picture_id = (picture_id & 0x7F) << 8 | _byte(payload, position)
                position += 1
            else:
                picture_id_bits = 7
        if extension & 0x40:
            position += 1
        if extension & 0x30:
            position += 1
    if position >= len(payload):
        raise ValueError("VP8 payload ends inside its descriptor")
    starts = bool(first & 0x10) and not first & 0x0F
    is_key = starts and not payload[position] & 0x01
    return Payload(payload[position:], starts, starts, is_key, picture_id, picture_id_bits)


def _byte(payload: bytes, position: int) -> int:
    if position >= len(payload):
        raise ValueError("VP8 payload ends inside its descriptor")
    return payload[position]


def _parse_h264(payload: bytes) -> Payload:
    if len(payload) < 2:
        raise ValueError("H264 payload is shorter than 2 bytes")
    nal_type = payload[0] & 0x1F
    if 1 <= nal_type <= 23:
        return Payload(_START_CODE + payload, *_nal_flags(nal_type, payload[1]))
    if nal_type == _FU_A:
        return _parse_fragment(payload)
    if nal_type == _STAP_A:
        return _parse_aggregate(payload)
    raise ValueError(f"H264 payload structure {nal_type} is not taken")


def _parse_fragment(payload: bytes) -> Payload:
    if len(payload) < 3:
        raise ValueError("H264 fragment is empty")
    header = payload[1]
    nal_type = header & 0x1F
    if not header & 0x80:
        return Payload(payload[2:], False, False, nal_type == _NAL_IDR)
    nal_header = bytes((payload[0] & 0xE0 | nal_type,))
    return Payload(_START_CODE + nal_header + payload[2:], *_nal_flags(nal_type, payload[2]))


def _parse_aggregate(payload: bytes) -> Payload:
    parts: list[bytes] = []
    starts = surely = is_key = False
    position = 1
    while position < len(payload):
        if position + 2 > len(payload):
            raise ValueError("H264 aggregate ends inside a length")
        size = payload[position] << 8 | payload[position + 1]
        nal = payload[position + 2 : position + 2 + size]
        if size == 0 or len(nal) < size:
            raise ValueError("H264 aggregate ends inside a unit")
        flags = _nal_flags(nal[0] & 0x1F, nal[1] if size > 1 else 0)
        starts, surely, is_key = starts | flags[0], surely | flags[1], is_key | flags[2]
        parts += (_START_CODE, nal)
        position += 2 + size
    if not parts:
        raise ValueError("H264 aggregate is empty")
    return Payload(b"".join(parts), starts, surely, is_key)


def _nal_flags(nal_type: int, second_byte: int) -> tuple[bool, bool, bool]:
    """`starts_frame`, `starts_surely` and `is_key` of a unit."""
    if nal_type in (_NAL_SLICE, _NAL_IDR):
        # first_mb_in_slice is the slice header's first Exp-Golomb number; a leading 1 bit is 0.
        return bool(second_byte & 0x80), False, nal_type == _NAL_IDR
    surely = nal_type in (_NAL_AUD, _NAL_SPS)
    return surely or nal_type == _NAL_PPS, surely, nal_type == _NAL_SPS
