"""Two real peers: pictures arrive at once, losses are repaired, streams change."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from aiortc import MediaStreamTrack, RTCPeerConnection
from aiortc.mediastreams import AudioStreamTrack, MediaStreamError
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpreceiver import RTCRtpReceiver
from aiortc.rtp import RtcpByePacket, RtpPacket, is_rtcp

from server.rtc.decoding import DecodedFrame
from server.rtc.options import RtcOptions
from server.rtc.peer import PeerConnection
from server.rtc.receiver import MAX_SOURCES, VideoReceiver
from tests.rtc.peers import (
    DEADLINE_S,
    Camera,
    calling,
    executor,
    negotiate,
    reaches,
    stock_peer,
)
from tests.rtc.pictures import level_of

pytestmark = pytest.mark.loopback

both_codecs = pytest.mark.parametrize("codec", ["VP8", "H264"])

Send = Callable[[bytes], Coroutine[Any, Any, None]]


def options(codec: str = "VP8", **changes: Any) -> RtcOptions:
    return RtcOptions(video_codecs=(codec,), h264_encoder="libx264", **changes)


def tamper(peer: RTCPeerConnection, decide: Callable[[bytes], bool]) -> None:
    """Let only those plain RTP and RTCP packets leave a peer that `decide` lets through."""
    transport = peer.getSenders()[0].transport
    send: Send = transport._send_rtp

    async def filtered(data: bytes) -> None:
        if decide(data):
            await send(data)

    transport._send_rtp = filtered  # type: ignore[method-assign]


@both_codecs
@pytest.mark.parametrize("ours_at_both_ends", [True, False])
async def test_a_picture_arrives_before_the_next_is_sent(
    codec: str, ours_at_both_ends: bool
) -> None:
    async with calling(options(codec), ours_at_both_ends=ours_at_both_ends) as call:
        for level in (60, 100, 140, 180):
            decoded = await call.see(level)
            assert 0 < decoded.received_at_ns <= decoded.assembled_at_ns <= decoded.decoded_at_ns
        statistics = call.receiver.statistics()
        assert statistics.codec == codec
        assert statistics.plis_sent == 0
        assert dict(statistics.dropped) == {"lost": 0, "decode_queue": 0, "corrupt": 0, "unread": 0}


async def test_with_the_switch_off_a_picture_waits_for_the_next() -> None:
    async with calling(options(), ours_at_both_ends=True) as call:
        await call.see(60)
        call.receiver._options = options(marker_assembly=False)
        call.receiver._assembler = call.receiver._make_assembler()
        call.camera.show(100)
        call.camera.show(140)
        await call.arrival(100)
        assert call.decoded.empty()


async def test_media_time_is_the_sender_s() -> None:
    async with calling(options()) as call:
        first = await call.see(60)
        second = await call.see(100)
        assert second.video_frame.pts is not None
        assert first.video_frame.pts is not None
        step = second.rtp_timestamp - first.rtp_timestamp & 0xFFFFFFFF
        assert second.video_frame.pts - first.video_frame.pts == step == 3000


async def test_lost_packets_are_asked_for_until_they_come() -> None:
    async with calling(options()) as call:
        dropped: dict[int, int] = {}

        def decide(data: bytes) -> bool:
            if is_rtcp(data):
                return True
            packet = RtpPacket.parse(data)
            if len(packet.payload) < 2:
                return True
            # What a retransmission repeats stands in its first two bytes.
            number = packet.sequence_number
            if packet.ssrc != call.far.getSenders()[0]._ssrc:
                number = int.from_bytes(packet.payload[:2], "big")
            if number % 5 == 0 and dropped.get(number, 0) < 2:
                dropped[number] = dropped.get(number, 0) + 1
                return False
            return True

        tamper(call.far, decide)
        await call.shows_until(lambda: call.receiver.statistics().packets_recovered >= 3)
        statistics = call.receiver.statistics()
        assert statistics.packets_requested >= 2 * statistics.packets_recovered
        assert statistics.dropped["lost"] == 0
        assert statistics.plis_sent == 0


@both_codecs
async def test_the_lost_end_of_a_picture_is_asked_for_though_nothing_follows(codec: str) -> None:
    async with calling(options(codec)) as call:
        cut: list[int] = []

        def decide(data: bytes) -> bool:
            if is_rtcp(data):
                return True
            packet = RtpPacket.parse(data)
            if packet.marker and packet.ssrc == call.far.getSenders()[0]._ssrc and not cut:
                cut.append(packet.sequence_number)
                return False
            return True

        await call.goes_on()
        tamper(call.far, decide)
        decoded = call.receiver.statistics().frames_decoded
        call.camera.show_noise()
        async with asyncio.timeout(DEADLINE_S):
            while call.receiver.statistics().frames_decoded == decoded:
                await call.decoded.get()
        assert cut
        assert call.receiver.statistics().packets_requested > 0
        assert call.receiver.statistics().plis_sent == 0


@both_codecs
async def test_a_picture_that_cannot_be_repaired_freezes_until_a_key_frame(codec: str) -> None:
    async with calling(options(codec, frame_deadline_ms=60)) as call:
        victim: set[int] = set()

        def decide(data: bytes) -> bool:
            if is_rtcp(data):
                return True
            packet = RtpPacket.parse(data)
            if not victim:
                victim.add(packet.timestamp)
            return packet.timestamp not in victim

        tamper(call.far, decide)
        before = call.receiver.statistics().key_frames
        await call.shows_until(lambda: call.receiver.statistics().key_frames > before)
        await call.goes_on()
        statistics = call.receiver.statistics()
        assert statistics.plis_sent >= 1
        assert statistics.decode_errors == 0
        assert not any(
            decoded.rtp_timestamp in victim
            for decoded in list(call.decoded._queue)  # type: ignore[attr-defined]
        )


@both_codecs
async def test_the_size_may_change_in_the_middle(codec: str) -> None:
    async with calling(options(codec)) as call:
        await call.see(60)
        wide = await call.see(100, (320, 180))
        assert (wide.video_frame.width, wide.video_frame.height) == (320, 180)
        tall = await call.see(140, (90, 160))
        assert (tall.video_frame.width, tall.video_frame.height) == (90, 160)


async def test_a_sink_that_raises_does_not_end_the_call() -> None:
    async with calling(options()) as call:

        def fail(decoded: DecodedFrame) -> None:
            raise RuntimeError("sink")

        call.track.deliver_to(fail)
        await call.shows_until(lambda: call.receiver.statistics().sink_errors >= 2)
        call.deliver_here()
        await call.goes_on()


async def test_without_sink_the_newest_picture_is_served_and_the_rest_counted() -> None:
    async with calling(options(), sink=False) as call:
        await call.shows_until(lambda: call.receiver.statistics().dropped["unread"] >= 5)
        call.camera.show(200)
        async with asyncio.timeout(DEADLINE_S):
            while abs(level_of(await call.track.recv()) - 200) > 4:
                pass
        waiting = asyncio.create_task(call.track.recv())
        await call.near.close_within(DEADLINE_S)
        with pytest.raises(MediaStreamError):
            await waiting
    with pytest.raises(MediaStreamError):
        await call.track.recv()


async def test_goodbye_ends_the_track_and_leaves_the_connection() -> None:
    async with calling(options()) as call:
        ended = asyncio.Event()
        call.track.on("ended", ended.set)
        sender = call.far.getSenders()[0]
        await sender.transport._send_rtp(bytes(RtcpByePacket(sources=[sender._ssrc])))
        async with asyncio.timeout(DEADLINE_S):
            await ended.wait()
        assert call.near.connectionState == "connected"


async def test_goodbye_of_another_source_is_nobody_s_end() -> None:
    async with calling(options()) as call:
        transport = call.far.getSenders()[0].transport
        await transport._send_rtp(bytes(RtcpByePacket(sources=[1, 2, 3])))
        await call.goes_on()


async def test_the_peer_s_end_ends_the_track() -> None:
    async with calling(options()) as call:
        ended = asyncio.Event()
        call.track.on("ended", ended.set)
        await call.far.close()
        async with asyncio.timeout(DEADLINE_S):
            await ended.wait()


async def test_sources_without_number_are_not_remembered_without_bound() -> None:
    async with calling(options()) as call:
        transport = call.far.getSenders()[0].transport
        payload_type = next(iter(call.receiver._codecs))
        for ssrc in range(1, 300):
            packet = RtpPacket(payload_type=payload_type, ssrc=ssrc, payload=b"\x10\x00hello")
            await transport._send_rtp(packet.serialize())
        await call.goes_on()
        assert len(call.receiver._sources) <= MAX_SOURCES
        assert len(call.receiver.transport._rtp_router.ssrc_table) <= 32
        await call.receiver._reports.receiver_report(call.receiver._sources, 1)


async def test_audio_is_answered_inactive_and_its_track_ends_with_the_call() -> None:
    with executor() as pool:
        near, far = PeerConnection(options(), pool), stock_peer()
        tracks: list[MediaStreamTrack] = []
        near.on("track", tracks.append)
        camera, microphone = Camera(), AudioStreamTrack()
        far.addTrack(microphone)
        far.addTrack(camera)
        try:
            await negotiate(far, near)
            await reaches(near, "connected")
            assert near.localDescription.sdp.count("a=inactive") == 1
            assert {track.kind for track in tracks} == {"audio", "video"}
        finally:
            microphone.stop()
            camera.stop()
            assert await near.close_within(DEADLINE_S) == ()
            await far.close()
    [audio] = [track for track in tracks if track.kind == "audio"]
    with pytest.raises(MediaStreamError):
        await audio.recv()


@pytest.mark.parametrize(("codecs", "first"), [(("VP8", "H264"), "VP8"), (("H264",), "H264")])
async def test_our_order_of_codecs_counts_not_the_offer_s(
    codecs: tuple[str, ...], first: str
) -> None:
    wanted = RtcOptions(video_codecs=codecs, h264_encoder="libx264")
    async with calling(wanted, ours_at_both_ends=False) as call:
        assert call.receiver.statistics().codec == first
        assert ("VP8/90000" in call.near.localDescription.sdp) == ("VP8" in codecs)


async def test_stock_peers_in_the_same_process_stay_stock() -> None:
    async with calling(options()) as call:
        stock = stock_peer()
        stock.addTransceiver("video")
        try:
            [receiver] = stock.getReceivers()
            assert type(receiver) is RTCRtpReceiver
            assert type(receiver.transport) is RTCDtlsTransport
            assert isinstance(call.receiver, VideoReceiver)
        finally:
            await stock.close()


async def test_statistics_tell_what_happened() -> None:
    async with calling(options()) as call:
        await call.goes_on(5)
        await call.shows_until(lambda: call.near.statistics().rtt_ms is not None)
        statistics = call.near.statistics()
        assert statistics.connection_state == "connected"
        assert statistics.last_packet_at_ns > 0
        assert dict(statistics.rejected_datagrams) == {}
        [incoming] = statistics.incoming
        assert incoming.frames_decoded >= 6
        assert incoming.packets_received >= 6
        assert incoming.packets_lost == 0
        report = await call.near.getStats()
        assert any(entry.type == "inbound-rtp" for entry in report.values())


async def test_threads_and_tasks_are_gone_after_a_call() -> None:
    before = {thread.name for thread in threading.enumerate()}
    async with calling(options(), data_channel=True) as call:
        await call.goes_on()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert [task for task in others if not task.done()] == []
    assert {thread.name for thread in threading.enumerate()} <= before
