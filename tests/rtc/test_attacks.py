"""Datagrams that used to end a session: from strangers, and from the peer itself."""

import socket
import struct
from collections.abc import Iterable
from dataclasses import replace

import pytest
from aioice import stun
from aiortc import rtcsctptransport
from aiortc.rtp import RtpPacket, is_rtcp, pack_rtcp_packet

from server.rtc.options import RtcOptions
from tests.rtc.peers import Call, calling, reaches

pytestmark = pytest.mark.loopback

# Our own filter; the one in the system has `test_socket_filter.py`.
OPTIONS = RtcOptions(video_codecs=("VP8",), socket_filter=False)


def media_ports(call: Call) -> list[tuple[str, int]]:
    """Every address the near peer listens on."""
    gatherer = call.receiver.transport.transport.iceGatherer
    return [(candidate.ip, candidate.port) for candidate in gatherer.getLocalCandidates()]


def attack(call: Call, datagrams: Iterable[bytes]) -> None:
    """Send each datagram from a third socket to every open media port."""
    for address, port in media_ports(call):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as stranger:
            for datagram in datagrams:
                stranger.sendto(datagram, (address, port))


def rejected(call: Call, kind: str) -> int:
    return call.near.statistics().rejected_datagrams.get(kind, 0)


async def counted(call: Call, kind: str, at_least: int) -> None:
    """Media flows until the kernel has handed over the datagrams, and after."""
    await call.shows_until(lambda: rejected(call, kind) >= at_least)
    await call.flows()
    assert call.near.connectionState == "connected"


async def test_empty_datagrams_from_a_stranger_cost_nothing() -> None:
    async with calling(OPTIONS) as call:
        attack(call, [b""] * 5)
        await counted(call, "empty", 5)


async def test_with_the_switch_off_one_empty_datagram_ends_the_session() -> None:
    async with calling(replace(OPTIONS, datagram_guard=False)) as call:
        attack(call, [b""])
        await reaches(call.near, "closed")


@pytest.mark.parametrize("size", [1501, 2048, 2049, 9000, 65_000])
async def test_oversize_datagrams_from_a_stranger_cost_nothing(size: int) -> None:
    async with calling(OPTIONS) as call:
        attack(call, [bytes([first]) * size for first in (22, 128, 159, 191)])
        await call.shows_until(lambda: rejected(call, "oversize") + rejected(call, "foreign") >= 4)
        await call.flows()


async def test_each_first_byte_from_a_stranger_costs_nothing() -> None:
    async with calling(OPTIONS) as call:
        for size in (1, 20, 200, 1400):
            attack(call, [bytes([first]) + bytes(size - 1) for first in range(256)])
            await call.flows(1)
        # 44 first bytes are DTLS, 64 are RTP; 0 to 3 are STUN.
        await call.shows_until(lambda: rejected(call, "foreign") >= 4 * (44 + 64))
        await call.shows_until(lambda: rejected(call, "unknown") >= 4 * (256 - 44 - 64 - 4))
        await counted(call, "stun", 4 * 4)


def malformed_stun() -> list[bytes]:
    """Requests whose attributes lie about themselves, with and without the cookie."""
    made = []
    for attribute in [*range(0x30), *range(0x8000, 0x8030)]:
        for length, value in ((0, b""), (1, b"\x01\0\0\0"), (3, b"abc\0"), (200, b"abcd")):
            body = struct.pack("!HH", attribute, length) + value
            made += [
                struct.pack("!HHI12s", kind, len(body), stun.COOKIE, b"t" * 12) + body
                for kind in (0x0001, 0x0101, 0x0111, 0x0011, 0x0003)
            ]
    made += [b"\0", b"\0" * 19, b"\0\1\0\0" + b"\0" * 16, b"\3" * 1400]
    return made


async def test_malformed_stun_from_a_stranger_is_counted_and_not_logged_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with calling(OPTIONS) as call:
        caplog.clear()
        attack(call, malformed_stun())
        await counted(call, "stun", 100)
        assert len([r for r in caplog.records if "datagram" in r.getMessage()]) <= 3
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_stranger_s_dtls_alert_does_not_reach_the_handshake() -> None:
    alert = b"\x15\xfe\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x02\x28"
    async with calling(OPTIONS) as call:
        attack(call, [alert] * 3)
        await counted(call, "foreign", 3)


async def test_a_flood_is_bounded_before_the_pump() -> None:
    async with calling(OPTIONS) as call:
        [connection] = call.near._connections()
        for _ in range(3 * OPTIONS.datagram_queue_packets):
            connection.data_received(b"\x80" + bytes(60), 1)
        assert connection._queue.qsize() <= OPTIONS.datagram_queue_packets
        assert rejected(call, "overflow") == 2 * OPTIONS.datagram_queue_packets
        await call.flows()


# What follows comes from the peer itself, encrypted with the session's keys.


def rtp_with_extension(call: Call, extension_id: int, value: bytes) -> bytes:
    """An RTP packet of the call with one raw header extension."""
    packet = RtpPacket(
        payload_type=next(iter(call.receiver._codecs)), ssrc=4711, payload=b"\x10\x00body"
    ).serialize()
    body = bytes([extension_id << 4 | len(value) - 1]) + value
    body += bytes(-len(body) % 4)
    header = bytes([packet[0] | 0x10]) + packet[1:12]
    return header + struct.pack("!HH", 0xBEDE, len(body) // 4) + body + packet[12:]


@pytest.mark.parametrize(
    ("extension_id", "value"),
    [(3, b"\1"), (3, b"\1\2\3\4\5"), (1, b"\xff\xfe"), (15, b"x" * 16), (3, b"x" * 16)],
)
async def test_a_malformed_header_extension_costs_its_packet(
    extension_id: int, value: bytes
) -> None:
    async with calling(OPTIONS) as call:
        transport = call.far.getSenders()[0].transport
        await transport._send_rtp(rtp_with_extension(call, extension_id, value))
        await call.goes_on()
        # The other two do not get as far as an exception that aiortc does not expect.
        assert rejected(call, "rtp") == (1 if extension_id == 3 else 0)
        assert call.near.connectionState == "connected"


def malformed_rtcp(call: Call) -> list[bytes]:
    media = call.near.getSenders()[0]._ssrc
    ours = struct.pack("!LL", 1, media)
    remb = b"REMB" + bytes([255]) + b"\x00\x00\x01" + struct.pack("!L", media)
    return [
        pack_rtcp_packet(206, 15, struct.pack("!LL", 1, 0) + remb),
        pack_rtcp_packet(206, 15, ours + b"REMB"),
        pack_rtcp_packet(205, 1, ours + b"\xff\xff\xff\xff" * 300),
        pack_rtcp_packet(205, 1, b"\0" * 4),
        pack_rtcp_packet(203, 31, b"\0" * 4),
        pack_rtcp_packet(202, 3, b"\0" * 8),
        pack_rtcp_packet(200, 31, b"\0" * 24),
        pack_rtcp_packet(201, 1, b"\0" * 4),
        b"\x80\xc8\xff\xff" + b"\0" * 24,
        b"\x00\xc8\x00\x00" + b"\0" * 24,
    ]


async def test_malformed_reports_cost_themselves() -> None:
    async with calling(OPTIONS) as call:
        transport = call.far.getSenders()[0].transport
        for packet in malformed_rtcp(call):
            await transport._send_rtp(packet)
        await call.goes_on()
        assert call.near.connectionState == "connected"
        assert rejected(call, "rtcp") >= 1


@pytest.mark.parametrize("payload", [b"\x80", b"\x90\x80", b"\0", b"\x90\xf0\x81", b"\xff" * 3])
async def test_a_malformed_payload_costs_its_picture(payload: bytes) -> None:
    async with calling(replace(OPTIONS, frame_deadline_ms=60)) as call:
        transport = call.far.getSenders()[0].transport
        send = transport._send_rtp
        harmed: set[int] = set()

        async def harming(data: bytes) -> None:
            packet = RtpPacket.parse(data)
            if not is_rtcp(data) and (not harmed or packet.timestamp in harmed):
                harmed.add(packet.timestamp)
                packet.payload = payload
                data = packet.serialize()
            await send(data)

        transport._send_rtp = harming  # type: ignore[method-assign]
        before = call.receiver.statistics().key_frames
        await call.shows_until(lambda: call.receiver.statistics().key_frames > before)
        await call.goes_on()
        assert harmed


def malformed_sctp(tag: int) -> list[bytes]:
    """SCTP packets with a right checksum, made to trip aiortc's assertions."""

    def packet(verification_tag: int, chunks: bytes) -> bytes:
        header = struct.pack("!HHL", 5000, 5000, verification_tag)
        crc32c = vars(rtcsctptransport)["crc32c"]
        checksum = crc32c(header + b"\0\0\0\0" + chunks)
        return header + struct.pack("<L", checksum) + chunks

    init = struct.pack("!BBHLLHHL", 1, 0, 20, 1, 65536, 10, 10, 1)
    data = struct.pack("!BBHLHHL", 0, 3, 17, 1, 0, 0, 51) + b"x\0\0\0"
    forward = struct.pack("!BBHL", 192, 0, 8, 0xFFFFFFF0)
    return [
        packet(0, init + init),
        packet(0, init + data),
        packet(tag, data),
        packet(tag, forward),
        packet(tag, struct.pack("!BBH", 130, 0, 4)),
        packet(tag, struct.pack("!BBHHH", 130, 0, 8, 13, 2)),
        packet(tag, struct.pack("!BBHL", 3, 0, 8, 1)),
        b"",
        b"\0" * 11,
        b"\xff" * 100,
    ]


async def test_malformed_sctp_costs_its_packet() -> None:
    async with calling(OPTIONS, data_channel=True) as call:
        await call.shows_until(
            lambda: call.near.sctp is not None and call.near.sctp.state == "connected"
        )
        assert call.near.sctp is not None
        transport = call.far.getSenders()[0].transport
        for packet in malformed_sctp(call.near.sctp._local_verification_tag):
            if packet:
                await transport._send_data(packet)
        await call.goes_on()
        await counted(call, "data", 1)


async def test_what_is_no_dtls_record_costs_itself() -> None:
    async with calling(OPTIONS) as call:
        send = call.far.getSenders()[0].transport.transport._send
        for first in range(4, 256):
            await send(bytes([first]) * 40)
        await call.goes_on()
        await send(b"\x80" * 1501)
        await send(b"\x90")
        await counted(call, "oversize", 1)
