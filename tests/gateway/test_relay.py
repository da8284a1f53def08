"""A source's own packets for many viewers: order, times, repairs, and who asks for key frames."""

import itertools
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import cast

import pytest
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtp import (
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    RtcpPsfbPacket,
    RtcpReceiverInfo,
    RtcpRrPacket,
    RtcpRtpfbPacket,
)

from server.rtc.assembly import EncodedFrame
from server.rtc.bitrate import Allowance
from server.rtc.fanout_sender import FanoutSender
from server.rtc.picture_source import VIEWERS_AT_ONCE, SharedPicture
from server.rtc.relay import PENDING_AT_MOST, TIMES_KEPT, Relay
from tests.gateway.test_fanout import OPTIONS
from tests.gateway.test_fanout_sender import PARAMETERS, Wire
from tests.serving import until

pytestmark = pytest.mark.unit

STEP = 3000


class Later:
    """Keeps what would be called in the loop's next turn."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def __call__(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def run(self) -> None:
        while self.calls:
            self.calls.pop(0)()


class Seeing:
    """A viewer that keeps what it is sent."""

    def __init__(self) -> None:
        self.pictures: list[SharedPicture] = []

    def send_picture(self, picture: SharedPicture) -> None:
        self.pictures.append(picture)

    def allowance(self) -> Allowance:
        raise AssertionError("nobody encodes here")


class Wishes:
    """A source that counts how often it is asked for a key frame."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def frame(index: int, *, key: bool = False, codec: str = "H264", packets: int = 2) -> EncodedFrame:
    payloads = tuple(bytes([index % 256, part]) * 10 for part in range(packets))
    return EncodedFrame(codec, b"", 70_000 + index * STEP, key, False, 1, 2, payloads)


def feed(relay: Relay, wish: Callable[[], None], indices: list[int]) -> None:
    for index in indices:
        relay.offer(frame(index, key=index % 10 == 0), index * STEP, wish)


def test_nothing_is_kept_or_asked_for_while_nobody_watches() -> None:
    relay, wishes = Relay(Later()), Wishes()
    feed(relay, wishes, list(range(30)))
    assert (relay.codec, relay.statistics().pictures, wishes.count) == ("H264", 0, 0)
    assert relay.relayed(70_000) is None


def test_a_viewer_that_joins_asks_the_source_and_one_right_after_a_key_frame_is_replayed() -> None:
    relay, wishes = Relay(Later()), Wishes()
    feed(relay, wishes, [3])
    first, second = Seeing(), Seeing()
    relay.join(first)
    assert wishes.count == 1
    feed(relay, wishes, [4, 10, 11])
    relay.join(second)
    assert wishes.count == 1
    assert [picture.keyframe for picture in second.pictures] == [True, False]
    assert [picture.payloads for picture in second.pictures] == [
        picture.payloads for picture in first.pictures[1:]
    ]
    relay.leave(second)
    relay.leave(second)
    feed(relay, wishes, [12])
    assert len(second.pictures) == 2


def test_frames_that_are_missing_are_a_step_in_time_and_nothing_else() -> None:
    relay, viewer = Relay(Later()), Seeing()
    relay.join(viewer)
    feed(relay, Wishes(), [0, 1, 5])
    times = [picture.rtp_timestamp for picture in viewer.pictures]
    steps = [(b - a) & 0xFFFFFFFF for a, b in itertools.pairwise(times)]
    assert steps == [STEP, 4 * STEP]
    told = relay.relayed(70_000 + 5 * STEP)
    assert told is not None
    assert told.rtp_timestamp == times[-1]


def test_times_of_frames_are_remembered_up_to_a_bound() -> None:
    relay = Relay(Later())
    relay.join(Seeing())
    feed(relay, Wishes(), list(range(TIMES_KEPT + 1)))
    assert relay.relayed(70_000) is None
    assert relay.relayed(70_000 + STEP) is not None


def test_another_source_goes_on_later_and_has_its_own_codec() -> None:
    relay, viewer, first, second = Relay(Later()), Seeing(), Wishes(), Wishes()
    relay.join(viewer)
    feed(relay, first, [500, 501])
    relay.source_came()
    assert relay.codec == ""
    relay.wish_keyframe()
    assert first.count == 0, "a source that has left is not asked"
    relay.offer(frame(0, key=True, codec="VP8"), 0, second)
    assert relay.codec == "VP8"
    before, after = (picture.rtp_timestamp for picture in viewer.pictures[-2:])
    assert 0 < (after - before) & 0xFFFFFFFF < 0x80000000


@pytest.mark.parametrize("turns_between", [0, 1])
def test_many_viewers_are_served_in_turns_and_each_in_order(turns_between: int) -> None:
    later = Later()
    relay, viewers = Relay(later), [Seeing() for _ in range(3 * VIEWERS_AT_ONCE)]
    for viewer in viewers:
        relay.join(viewer)
    count = PENDING_AT_MOST + 4
    for index in range(count):
        feed(relay, Wishes(), [index])
        if index == 0:
            assert not viewers[-1].pictures, "the loop looks at something else in between"
        for _ in range(min(turns_between, len(later.calls))):
            later.calls.pop(0)()
    later.run()
    for viewer in viewers:
        times = [picture.rtp_timestamp for picture in viewer.pictures]
        assert len(times) == count
        assert times == sorted(times, key=lambda time: (time - times[0]) & 0xFFFFFFFF)


# --- with a viewer's real sender ---


@asynccontextmanager
async def relayed(relay: Relay) -> AsyncIterator[tuple[FanoutSender, Wire]]:
    wire = Wire()
    with ThreadPoolExecutor(1) as executor:
        sender = FanoutSender(
            "video",
            cast(RTCDtlsTransport, wire),
            options=OPTIONS,
            encode_executor=executor,
            find_fanout=lambda codec: relay,
        )
        await sender.send(PARAMETERS)
        try:
            await until(lambda: relay.statistics().viewers == 1)
            yield sender, wire
        finally:
            await sender.stop()


async def test_a_viewers_packets_have_no_gap_though_the_sources_had() -> None:
    relay, wishes = Relay(Later()), Wishes()
    async with relayed(relay) as (sender, wire):
        feed(relay, wishes, [0, 1, 2, 7, 10])
        packets = wire.media()
        numbers = [packet.sequence_number for packet in packets]
        first = numbers[0]
        assert numbers == [(first + step) & 0xFFFF for step in range(10)]
        assert [packet.marker for packet in packets] == [0, 1] * 5
        assert packets[0].payload == frame(0).payloads[0]
        # Whatever it may ask for again is there.
        nack = RtcpRtpfbPacket(RTCP_RTPFB_NACK, 1, sender._ssrc, lost=numbers[4:6])
        await sender._handle_rtcp_packet(nack)
        again = wire.media(98)
        assert [int.from_bytes(packet.payload[:2], "big") for packet in again] == numbers[4:6]
        statistics = sender.statistics()
        assert (statistics.resent_packets, statistics.resend_unknown) == (2, 0)


async def test_a_viewers_wish_for_a_key_frame_reaches_the_source() -> None:
    relay, wishes = Relay(Later()), Wishes()
    async with relayed(relay) as (sender, _):
        feed(relay, wishes, [0, 1])
        asked = wishes.count
        await sender._handle_rtcp_packet(RtcpPsfbPacket(RTCP_PSFB_PLI, 1, sender._ssrc))
        assert wishes.count == asked + 1


def half_lost(sender: FanoutSender) -> RtcpRrPacket:
    """What a viewer reports that lost every second packet."""
    return RtcpRrPacket(
        1,
        [
            RtcpReceiverInfo(
                ssrc=sender._ssrc, fraction_lost=128, packets_lost=0, highest_sequence=0,
                jitter=0, lsr=0, dlsr=0,
            )
        ],
    )  # fmt: skip


async def test_neither_a_low_estimate_nor_loss_alone_leaves_pictures_out_but_both_do() -> None:
    relay, wishes = Relay(Later()), Wishes()
    async with relayed(relay) as (sender, wire):

        def offer(*indices: int) -> None:
            for index in indices:
                picture = frame(index, key=not index, packets=60)
                relay.offer(picture, index * STEP, wishes)

        sender._rate.remb(10**9)
        offer(*range(60))
        await sender._handle_rtcp_packet(half_lost(sender))
        sender._rate.remb(1)
        offer(*range(60, 120))
        assert sender.dropped_slow == 0
        await sender._handle_rtcp_packet(half_lost(sender))
        offer(*range(120, 220))
        assert sender.dropped_slow > 0
        wire.unsent_bytes = 10_000_000
        sent = len(wire.sent)
        relay.offer(frame(220, key=True, packets=60), 220 * STEP, wishes)
        assert len(wire.sent) == sent
