"""A viewer's sender on a wire that keeps what leaves: headers, feedback, repairs."""

import dataclasses
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import (
    RTCRtcpParameters,
    RTCRtpCodecParameters,
    RTCRtpHeaderExtensionParameters,
    RTCRtpSendParameters,
)
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    HeaderExtensionsMap,
    RtcpPsfbPacket,
    RtcpRtpfbPacket,
    RtpPacket,
    pack_remb_fci,
)

from server.clock import now_ns
from server.rtc.extensions import ABS_SEND_TIME, MID
from server.rtc.fanout import Fanout
from server.rtc.fanout_sender import FanoutSender
from server.rtc.options import RtcOptions
from server.rtc.picture_source import SharedPicture
from tests.gateway.test_fanout import OPTIONS, Stage
from tests.serving import until

pytestmark = pytest.mark.unit

PARAMETERS = RTCRtpSendParameters(
    codecs=[
        RTCRtpCodecParameters(mimeType="video/H264", clockRate=90_000, payloadType=97),
        RTCRtpCodecParameters(
            mimeType="video/rtx", clockRate=90_000, payloadType=98, parameters={"apt": 97}
        ),
    ],
    headerExtensions=[
        RTCRtpHeaderExtensionParameters(id=1, uri=MID),
        RTCRtpHeaderExtensionParameters(id=2, uri=ABS_SEND_TIME),
    ],
    muxId="0",
    rtcp=RTCRtcpParameters(cname="viewer"),
)


class Wire:
    """What a sender needs of DTLS, SRTP and ICE; encrypts nothing and keeps what leaves."""

    def __init__(self) -> None:
        self.state = "connected"
        self._stats_id = "wire"
        self.sent: list[bytes] = []
        self.unsent_bytes = 0
        self._tx_srtp = SimpleNamespace(protect=lambda packet: packet)
        socket = SimpleNamespace(
            sendto=lambda packet, address: self.sent.append(packet),
            get_write_buffer_size=lambda: self.unsent_bytes,
        )
        pair = SimpleNamespace(protocol=SimpleNamespace(transport=socket), remote_addr=("", 0))
        self.nominated = {1: pair}
        self.transport = SimpleNamespace(_connection=SimpleNamespace(_nominated=self.nominated))
        self._extensions = HeaderExtensionsMap()
        self._extensions.configure(PARAMETERS)

    async def _send_rtp(self, packet: bytes) -> None:
        self.sent.append(packet)

    def _register_rtp_sender(self, sender: object, parameters: object) -> None: ...

    def _unregister_rtp_sender(self, sender: object) -> None: ...

    def _get_stats(self) -> dict[str, Any]:
        return {}

    def media(self, payload_type: int = 97) -> list[RtpPacket]:
        packets = [RtpPacket.parse(p, self._extensions) for p in self.sent if p[1] & 0x7F < 72]
        packets += [RtpPacket.parse(p, self._extensions) for p in self.sent if p[1] & 0x7F > 95]
        return [packet for packet in packets if packet.payload_type == payload_type]


@asynccontextmanager
async def viewing(on: Stage, options: RtcOptions = OPTIONS) -> AsyncIterator[tuple[Any, Wire]]:
    """A viewer that has joined."""
    wire = Wire()

    def find(codec: str) -> Fanout:
        assert codec == "H264"
        return on.fanout

    pool = ThreadPoolExecutor(1)
    sender = FanoutSender(
        "video",
        cast(RTCDtlsTransport, wire),
        options=options,
        encode_executor=pool,
        find_fanout=find,
    )
    await sender.send(PARAMETERS)
    viewers = on.fanout.statistics().viewers
    await until(lambda: on.fanout.statistics().viewers > viewers)
    try:
        yield sender, wire
    finally:
        await sender.stop()
        pool.shutdown()


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    pool = ThreadPoolExecutor(1)
    try:
        yield Stage(pool)
    finally:
        pool.shutdown(wait=True)


async def test_viewers_have_their_own_numbers_and_the_same_payloads() -> None:
    async with stage() as on, viewing(on) as (_, one), viewing(on) as (_, other):
        for _ in range(3):
            await on.play()
        first, second = one.media(), other.media()
        assert [p.payload for p in first] == [p.payload for p in second]
        assert [p.timestamp for p in first] == [p.timestamp for p in second]
        assert len({p.ssrc for p in first + second}) == 2
        for packets in (first, second):
            numbers = [(p.sequence_number - packets[0].sequence_number) & 0xFFFF for p in packets]
            assert numbers == list(range(len(packets)))
            assert sum(p.marker for p in packets) == 3
            assert {p.extensions.mid for p in packets} == {"0"}
            assert all(p.extensions.abs_send_time is not None for p in packets)


async def test_lost_packet_is_sent_again_to_whom_it_was_lost() -> None:
    async with stage() as on, viewing(on) as (sender, one), viewing(on) as (_, other):
        await on.play()
        lost = one.media()[0]
        await sender._handle_rtcp_packet(
            RtcpRtpfbPacket(
                fmt=RTCP_RTPFB_NACK, ssrc=1, media_ssrc=sender._ssrc, lost=[lost.sequence_number]
            )
        )
        [again] = one.media(98)
        assert again.payload == lost.sequence_number.to_bytes(2, "big") + lost.payload
        assert again.timestamp == lost.timestamp
        assert other.media(98) == []


async def test_picture_loss_of_one_viewer_asks_the_shared_encoder() -> None:
    async with stage() as on, viewing(on) as (sender, _):
        wishes = on.wishes
        await sender._handle_rtcp_packet(
            RtcpPsfbPacket(fmt=RTCP_PSFB_PLI, ssrc=1, media_ssrc=sender._ssrc)
        )
        assert on.wishes == wishes + 1
        assert sender.statistics().keyframe_requests == 1


async def test_estimate_of_a_viewer_bounds_the_shared_rate() -> None:
    async with stage() as on, viewing(on) as (sender, _):
        fci = pack_remb_fci(400_000, [sender._ssrc])
        await sender._handle_rtcp_packet(
            RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=fci)
        )
        assert sender.allowance().cap_bps == 360_000
        await on.play()
        assert on.fanout.statistics().target_bps <= 360_000


async def test_viewer_whose_socket_is_full_is_left_out_until_a_key_frame() -> None:
    async with stage() as on, viewing(on) as (sender, slow), viewing(on) as (_, other):
        await on.play()
        before = len(slow.media())
        slow.unsent_bytes = 10_000_000
        for _ in range(3):
            await on.play()
        assert len(slow.media()) == before
        assert len(other.media()) > before
        assert sender.dropped_slow == 3
        slow.unsent_bytes = 0
        assert not (await on.play()).keyframe
        assert len(slow.media()) == before


@pytest.mark.parametrize(("encoded_for_bps", "drops"), [(360_000, False), (1_000_000, True)])
async def test_what_was_encoded_for_a_viewers_rate_goes_out_though_the_encoder_missed_it(
    encoded_for_bps: int, drops: bool
) -> None:
    async with stage() as on, viewing(on) as (sender, wire):
        sender._rate.remb(400_000)
        first = await on.play()
        assert first.result is not None
        result = dataclasses.replace(first.result, bits_per_s=encoded_for_bps)
        # A picture a viewer's burst is made of, sixty times at once.
        for number in range(60):
            sender.send_picture(
                SharedPicture((bytes(1000),) * 10, False, number, now_ns(), 10_000, result)
            )
        assert bool(sender.dropped_slow) is drops
        assert (len(wire.media()) < 600) is drops


async def test_viewer_without_a_way_out_costs_nobody_else_anything() -> None:
    async with stage() as on, viewing(on) as (sender, lost), viewing(on) as (_, other):
        lost.nominated.clear()
        await on.play()
        assert lost.sent == []
        assert sender.statistics().send_errors == len(other.media())


async def test_stopped_viewer_leaves() -> None:
    async with stage() as on:
        async with viewing(on):
            assert on.fanout.watched
        assert not on.fanout.watched
