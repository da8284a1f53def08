"""The system refuses what our own filter would refuse, and nothing else."""

import contextlib
import random
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from aioice import stun

from server.rtc import socket_filter
from server.rtc.ice import GuardedStunProtocol, IceConnection
from server.rtc.options import RtcOptions
from server.rtc.socket_filter import MAX_DTLS_BYTES, MAX_RTP_BYTES, MAX_SOURCES
from tests.rtc.peers import calling
from tests.rtc.test_attacks import attack, rejected

pytestmark = [
    pytest.mark.loopback,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a filter of Linux"),
]

OPTIONS = RtcOptions(video_codecs=("VP8",))
# Behind what is to be refused, so that nobody waits for what does not come.
LAST = struct.pack("!HHI12s", 0x0101, 0, stun.COOKIE, b"last of them")
HOSTS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


@contextlib.contextmanager
def pair(family: socket.AddressFamily) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Who is filtered, and a sender connected to it."""
    with (
        socket.socket(family, socket.SOCK_DGRAM) as filtered,
        socket.socket(family, socket.SOCK_DGRAM) as sender,
    ):
        try:
            filtered.bind((HOSTS[family], 0))
        except OSError as error:
            pytest.skip(f"no such address here: {error}")
        filtered.settimeout(5.0)
        sender.connect(filtered.getsockname())
        yield filtered, sender


def passed(filtered: socket.socket, sender: socket.socket, datagrams: list[bytes]) -> list[bytes]:
    """What of these comes in, one at a time: no buffer overflows."""
    came = []
    for datagram in datagrams:
        sender.send(datagram)
        sender.send(LAST)
        while (one := filtered.recv(65_536)) != LAST:
            came.append(one)
    return came


def shapes() -> list[bytes]:
    """Each first byte at each size where something begins or ends."""
    edges = (MAX_RTP_BYTES, MAX_RTP_BYTES + 1, MAX_DTLS_BYTES, MAX_DTLS_BYTES + 1)
    sizes = (1, 7, 8, 19, 20, 200, *edges, 9000)
    return [b"", *(bytes([first]) * size for first in range(4, 256) for size in sizes)]


@pytest.mark.parametrize("family", HOSTS, ids=["IPv4", "IPv6"])
async def test_the_system_and_our_own_filter_agree(family: socket.AddressFamily) -> None:
    connection = IceConnection(options=OPTIONS)
    protocol = GuardedStunProtocol(connection)
    with pair(family) as (filtered, sender):
        address = sender.getsockname()[:2]
        for proven in (True, False):
            connection._proven = {(protocol, address)} if proven else set()
            wanted = [
                datagram
                for datagram in shapes()
                if connection.datagram_kind_refused(datagram, address, protocol) is None
            ]
            assert bool(wanted) == proven
            others = [(HOSTS[family], 9), ("192.0.2.1" if len(address[0]) > 3 else "::2", 9)]
            assert socket_filter.attach(filtered, [others[0], *([address] if proven else [])])
            assert passed(filtered, sender, shapes()) == wanted
    await connection.close()


def test_a_peer_of_too_many_addresses_is_left_to_our_own_filter() -> None:
    with pair(socket.AF_INET) as (filtered, sender):
        others = [("192.0.2.1", port) for port in range(1, MAX_SOURCES + 1)]
        assert socket_filter.attach(filtered, others)
        assert passed(filtered, sender, [b"\x80media"]) == []
        assert socket_filter.attach(filtered, [*others, ("192.0.2.1", 9)])
        assert passed(filtered, sender, [b"\x80media"]) == [b"\x80media"]


def test_stun_is_read_if_it_can_be_and_from_anybody() -> None:
    chance = random.Random(4)
    made = []
    for _ in range(2000):
        body = chance.randbytes(4 * chance.randrange(8))
        kind = chance.choice((0x0001, 0x0011, 0x0101, 0x0111, 0x0003, 0x0002, 0x3FFF))
        length = len(body) if chance.random() < 0.5 else chance.getrandbits(16)
        cookie = stun.COOKIE if chance.random() < 0.8 else chance.getrandbits(32)
        datagram = (
            struct.pack("!HHI12s", kind & 0x03FF, length, cookie, chance.randbytes(12)) + body
        )
        made.append(datagram[: chance.choice((1, 19, 20, 1500, 1500))])
    bindings = [
        one
        for one in made
        if len(one) >= 20
        and struct.unpack("!HHI", one[:8])[1:] == (len(one) - 20, stun.COOKIE)
        and struct.unpack("!H", one[:2])[0] in (0x0001, 0x0011, 0x0101, 0x0111)
    ]
    assert 100 < len(bindings) < 1900
    with pair(socket.AF_INET) as (filtered, sender):
        assert socket_filter.attach(filtered, [])
        assert passed(filtered, sender, made) == bindings


async def test_a_stranger_s_datagrams_never_come_in_and_are_counted() -> None:
    alert = b"\x15\xfe\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x02\x28"
    async with calling(OPTIONS) as call:
        attack(call, [b"", bytes(65_000), b"\x80" * 1501, alert, b"\x80" * 200, b"\1\2\3"] * 5)
        await call.shows_until(lambda: rejected(call, "system") >= 30)
        await call.flows()
        counts = call.near.statistics().rejected_datagrams
        assert set(counts) == {"system"}, counts
    assert call.near.statistics().rejected_datagrams["system"] >= 30


async def test_with_the_switch_off_they_come_in_and_are_refused_here() -> None:
    async with calling(replace(OPTIONS, socket_filter=False)) as call:
        attack(call, [b""] * 5)
        await call.shows_until(lambda: rejected(call, "empty") >= 5)
        assert rejected(call, "system") == 0
