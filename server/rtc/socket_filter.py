"""What may not enter is dropped by the system, before it costs this process anything.

A program for the kernel's packet filter (classic BPF, which needs no rights) on one UDP socket. It
refuses what `IceConnection.datagram_kind_refused` and aioice's parser would refuse anyway, so a
socket without it, on another system or where it is forbidden, behaves the same at a higher price.
"""

import contextlib
import ctypes
import ipaddress
import logging
import socket
import struct
import sys
from collections.abc import Collection

from aioice import stun

logger = logging.getLogger(__name__)

# SRTP packets are limited by pylibsrtp, DTLS records by what aiortc reads at once.
MAX_RTP_BYTES = 1500
MAX_DTLS_BYTES = 2048
# A peer has a handful. With more, anybody's media gets as far as the filter in `ice.py`.
MAX_SOURCES = 32

SO_ATTACH_FILTER = 26
SO_MEMINFO = 55
# nine counters, of which the last is what the filter refused or the buffer had no room for
MEMINFO = struct.Struct("=9I")

# Operations, as linux/bpf_common.h and linux/filter.h put them together.
LENGTH, BYTE, HALF, WORD = 0x80, 0x30, 0x28, 0x20
EQUAL, GREATER, AT_LEAST, AND, SUBTRACT_X, TO_X, RETURN = 0x15, 0x25, 0x35, 0x54, 0x1C, 0x07, 0x06
NETWORK = 0xFFF0_0000
"""Added to an offset that counts from the IP header; others count from the UDP header."""

SOURCE_PORT = 0
BODY = 8
STUN_HEADER_BYTES = 20
# Without the two bits that tell a request, an indication, an answer and an error apart.
STUN_METHOD, BINDING = 0x3EEF, 0x0001

Instruction = tuple[int, int, int, int]
"""Operation, argument, and how many to pass over when a comparison holds and when it does not."""
Program = list[Instruction]

TAKEN: Instruction = (RETURN, 0xFFFF_FFFF, 0, 0)
REFUSED: Instruction = (RETURN, 0, 0, 0)


def attach(opened: socket.socket, sources: Collection[tuple[str, int]] | None) -> bool:
    """From now on only STUN, and media and DTLS from these sources (None: from any) are read.

    False where the system has no such filter.
    """
    if not sys.platform.startswith("linux"):
        return False
    instructions = program(opened.family, sources)
    code = b"".join(
        struct.pack("=HBBI", operation, holds, holds_not, argument)
        for operation, argument, holds, holds_not in instructions
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_program = struct.pack("@HP", len(instructions), ctypes.addressof(buffer))
    try:
        opened.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_program)
    except OSError as error:
        logger.debug("no filter in the system: %s", error)
        return False
    return True


def dropped(opened: socket.socket) -> int:
    """Datagrams that the system refused or had no room for; 0 where it does not say."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, struct.error):
            counters = opened.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, MEMINFO.size)
            return int(MEMINFO.unpack(counters)[-1])
    return 0


def program(family: int, sources: Collection[tuple[str, int]] | None) -> Program:
    """First the shape, by the ranges of RFC 7983, then the source."""
    first_byte = _load(BYTE, BODY)
    made = [
        *_load(LENGTH),
        *_require(GREATER, BODY),
        *first_byte,
        *_unless(GREATER, 3, _binding()),
        *_refuse(GREATER, 191),
        *_when(AT_LEAST, 128, [*_load(LENGTH), *_refuse(GREATER, BODY + MAX_RTP_BYTES)]),
        *first_byte,
        *_unless(AT_LEAST, 128, _dtls()),
    ]
    if sources is None or len(sources) > MAX_SOURCES:
        return [*made, TAKEN]
    for host, port in sources:
        made += _from(family, host, port)
    return [*made, REFUSED]


def _binding() -> Program:
    """STUN: a binding with the cookie, as long as it says."""
    return [
        *_load(LENGTH),
        *_require(AT_LEAST, BODY + STUN_HEADER_BYTES),
        *_load(WORD, BODY + 4),
        *_require(EQUAL, stun.COOKIE),
        *_load(HALF, BODY),
        (AND, STUN_METHOD, 0, 0),
        *_require(EQUAL, BINDING),
        *_load(HALF, BODY + 2),
        (TO_X, 0, 0, 0),
        *_load(LENGTH),
        (SUBTRACT_X, 0, 0, 0),
        *_require(EQUAL, BODY + STUN_HEADER_BYTES),
        TAKEN,
    ]


def _dtls() -> Program:
    return [
        *_require(AT_LEAST, 20),
        *_refuse(GREATER, 63),
        *_load(LENGTH),
        *_refuse(GREATER, BODY + MAX_DTLS_BYTES),
    ]


def _from(family: int, host: str, port: int) -> Program:
    """Taken, if it comes from there; else on with what follows."""
    packed = ipaddress.ip_address(host.partition("%")[0]).packed
    words = struct.unpack(f"!{len(packed) // 4}I", packed)
    source_address = NETWORK + (8 if family == socket.AF_INET6 else 12)
    then: Program = [*_load(HALF, SOURCE_PORT), *_when(EQUAL, port, [TAKEN])]
    for number, word in reversed(list(enumerate(words))):
        then = [*_load(WORD, source_address + 4 * number), *_when(EQUAL, word, then)]
    return then


def _load(operation: int, offset: int = 0) -> Program:
    return [(operation, offset, 0, 0)]


def _require(comparison: int, argument: int) -> Program:
    return [(comparison, argument, 1, 0), REFUSED]


def _refuse(comparison: int, argument: int) -> Program:
    return [(comparison, argument, 0, 1), REFUSED]


def _when(comparison: int, argument: int, then: Program) -> Program:
    return [(comparison, argument, 0, len(then)), *then]


def _unless(comparison: int, argument: int, then: Program) -> Program:
    return [(comparison, argument, len(then), 0), *then]
