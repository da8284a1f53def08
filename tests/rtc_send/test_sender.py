"""The sender against a transport that notes what leaves; real codecs, no network."""

import asyncio
import contextlib
import struct
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, cast

import pytest
from aiortc.codecs import CODECS
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import (
    RTCRtcpParameters,
    RTCRtpHeaderExtensionParameters,
    RTCRtpSendParameters,
)
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    HeaderExtensionsMap,
    RtcpPacket,
    RtcpPsfbPacket,
    RtcpReceiverInfo,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtpPacket,
    is_rtcp,
    pack_remb_fci,
    unwrap_rtx,
)
from av import VideoFrame

from server.rtc.bitrate import Allowance
from server.rtc.encoders import (
    EncodedPicture,
    EncodeError,
    EncoderSlot,
    VideoEncoder,
    make_encoder,
)
from server.rtc.options import RtcOptions
from server.rtc.sender import FAILURE_RUN, VideoSender
from tests.rtc_send.pictures import Receiver, picture

pytestmark = pytest.mark.unit

DEADLINE_S = 10.0
PARAMETERS = RTCRtpSendParameters(
    codecs=[c for c in CODECS["video"] if c.payloadType in (97, 98)],
    headerExtensions=[
        RTCRtpHeaderExtensionParameters(id=1, uri="urn:ietf:params:rtp-hdrext:sdes:mid"),
        RTCRtpHeaderExtensionParameters(
            id=3, uri="http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
        ),
    ],
    muxId="0",
    rtcp=RTCRtcpParameters(cname="test"),
)


class NotingTransport:
    """What the sender needs of a DTLS transport; keeps what was sent, fails when told."""

    def __init__(self) -> None:
        self.state = "connected"
        self._stats_id = "transport"
        self.sent: list[bytes] = []
        self.error: Exception | None = None
        self.extensions = HeaderExtensionsMap()
        self.extensions.configure(PARAMETERS)

    def _register_rtp_sender(self, sender: object, parameters: object) -> None: ...

    def _unregister_rtp_sender(self, sender: object) -> None: ...

    def _get_stats(self) -> dict[str, object]:
        return {}

    async def _send_rtp(self, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append(data)

    def media(self) -> list[RtpPacket]:
        return [RtpPacket.parse(d, self.extensions) for d in self.sent if not is_rtcp(d)]


class HandedTrack(MediaStreamTrack):
    """Serves what the test hands in; `idle` is set while the sender waits for more."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self._items: asyncio.Queue[Any] = asyncio.Queue()
        self.idle = asyncio.Event()

    async def recv(self) -> Any:
        self.idle.set()
        item = await self._items.get()
        if isinstance(item, BaseException):
            raise item
        return item

    async def play(self, *items: Any) -> None:
        """Hand in and wait until all of it went through the sender."""
        for item in items:
            await self.idle.wait()
            self.idle.clear()
            self._items.put_nowait(item)
            await self.idle.wait()

    def hand_in(self, item: Any) -> None:
        self._items.put_nowait(item)


class Raising:
    """A `Renderable` that fails where it is told to."""

    def __init__(self, frame: VideoFrame, *, render: bool = False, sent: bool = False) -> None:
        self._frame = frame
        self._render = render
        self._sent = sent

    def render(self) -> VideoFrame:
        if self._render:
            raise ZeroDivisionError("drawing")
        return self._frame

    def sent(self, encode_started_at_ns: int, encoded_at_ns: int, sent_at_ns: int) -> None:
        if self._sent:
            raise KeyError("callback")


class Rig:
    """A started sender and its surroundings."""

    def __init__(self, options: RtcOptions, executor: ThreadPoolExecutor) -> None:
        self.transport = NotingTransport()
        self.track = HandedTrack()
        self.sender = VideoSender(
            self.track,
            cast(RTCDtlsTransport, self.transport),
            options=options,
            encode_executor=executor,
        )

    async def feedback(self, packet: Any, *, over_the_wire: bool = True) -> None:
        packets = RtcpPacket.parse(bytes(packet)) if over_the_wire else [packet]
        for parsed in packets:
            await self.sender._handle_rtcp_packet(parsed)

    async def nack(self, *sequence_numbers: int) -> None:
        for number in sequence_numbers:
            await self.feedback(RtcpRtpfbPacket(RTCP_RTPFB_NACK, 1, self.sender._ssrc, [number]))

    async def pli(self, fmt: int = RTCP_PSFB_PLI) -> None:
        await self.feedback(RtcpPsfbPacket(fmt, 1, self.sender._ssrc))

    async def ended(self) -> None:
        """Wait until the sender has ended by itself."""
        await self.sender._RTCRtpSender__rtp_exited.wait()


@contextlib.asynccontextmanager
async def rig(options: RtcOptions | None = None) -> AsyncIterator[Rig]:
    executor = ThreadPoolExecutor(1)
    made = Rig(options or RtcOptions(), executor)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await made.sender.send(PARAMETERS)
            yield made
            await made.sender.stop()
    finally:
        executor.shutdown()


async def test_picture_leaves_as_packets_that_a_receiver_puts_together() -> None:
    async with rig() as r:
        await r.track.play(*(picture(n, (640, 480)) for n in range(3)))
        packets = r.transport.media()
        statistics = r.sender.statistics()
    receiver = Receiver("VP8")
    stamps = sorted({p.timestamp for p in packets})
    assert [b - a for a, b in pairwise(stamps)] == [3000, 3000]
    for stamp in stamps:
        group = [p for p in packets if p.timestamp == stamp]
        assert [p.marker for p in group] == [0] * (len(group) - 1) + [1]
        assert len(receiver.decode([p.payload for p in group])) == 1
    numbers = [p.sequence_number for p in packets]
    assert numbers == list(range(numbers[0], numbers[0] + len(packets)))
    assert {p.payload_type for p in packets} == {97}
    assert {p.ssrc for p in packets} == {r.sender._ssrc}
    assert {p.extensions.mid for p in packets} == {"0"}
    assert all(p.extensions.abs_send_time is not None for p in packets)
    assert statistics.frames_sent == 3
    assert statistics.packets_sent == len(packets)
    assert statistics.bytes_sent == sum(len(p.payload) for p in packets)
    assert statistics.target_bps == 1_200_000


async def test_picture_without_time_gets_the_time_of_its_encoding() -> None:
    async with rig() as r:
        await r.track.play(VideoFrame(320, 240, "yuv420p"), VideoFrame(320, 240, "yuv420p"))
        first, second = sorted({p.timestamp for p in r.transport.media()})
    assert 0 < second - first < 90_000 * DEADLINE_S


async def test_request_for_a_key_frame_is_answered_by_the_next_picture() -> None:
    async with rig() as r:
        await r.track.play(picture(0))
        r.sender._keyframes._made_at_ns = None  # the first picture's grant lies long ago
        await r.pli()
        await r.track.play(picture(1), picture(2))
        statistics = r.sender.statistics()
    assert statistics.keyframes_sent == 2
    assert statistics.keyframe_requests == 1


@pytest.mark.parametrize("fmt", [RTCP_PSFB_PLI, RTCP_PSFB_FIR])
async def test_storm_of_requests_gives_no_storm_of_key_frames(fmt: int) -> None:
    async with rig() as r:
        for n in range(10):
            await r.pli(fmt)
            await r.track.play(picture(n))
        statistics = r.sender.statistics()
    assert statistics.keyframe_requests == 10
    # Ten small pictures take far less than the half second between two key frames; a stalled
    # machine may fit one more in.
    assert 1 <= statistics.keyframes_sent <= 3


async def test_lost_packet_is_sent_again_with_rtx() -> None:
    async with rig() as r:
        await r.track.play(picture(0, (640, 480)))
        original = r.transport.media()[0]
        r.transport.sent.clear()
        await r.nack(original.sequence_number)
        (rtx,) = r.transport.media()
    assert rtx.payload_type == 98
    assert rtx.ssrc == r.sender._rtx_ssrc
    again = unwrap_rtx(rtx, payload_type=97, ssrc=r.sender._ssrc)
    for field in ("payload", "sequence_number", "timestamp", "marker", "payload_type"):
        assert getattr(again, field) == getattr(original, field)
    assert again.extensions.mid == "0"


async def test_without_rtx_the_very_same_bytes_leave_again() -> None:
    executor = ThreadPoolExecutor(1)
    r = Rig(RtcOptions(), executor)
    plain = RTCRtpSendParameters(
        codecs=PARAMETERS.codecs[:1],
        headerExtensions=PARAMETERS.headerExtensions,
        muxId="0",
        rtcp=PARAMETERS.rtcp,
    )
    async with asyncio.timeout(DEADLINE_S):
        await r.sender.send(plain)
        await r.track.play(picture(0))
        original = r.transport.sent[0]
        r.transport.sent.clear()
        await r.nack(RtpPacket.parse(original).sequence_number)
        assert r.transport.sent == [original]
        await r.sender.stop()
    executor.shutdown()


async def test_numbers_after_65535_in_one_request_wrap() -> None:
    async with rig() as r:
        r.sender._sequence_number = 65_535
        await r.track.play(picture(0), picture(1), picture(2))
        numbers = [p.sequence_number for p in r.transport.media()]
        assert numbers[:3] == [65_535, 0, 1]
        r.transport.sent.clear()
        blp = 0b11
        fci = struct.pack("!LLHH", 1, r.sender._ssrc, 65_535, blp)
        raw = struct.pack("!BBH", 0x80 | RTCP_RTPFB_NACK, 205, len(fci) // 4) + fci
        for packet in RtcpPacket.parse(raw):
            await r.sender._handle_rtcp_packet(packet)
        wanted = [struct.unpack("!H", p.payload[:2])[0] for p in r.transport.media()]
    assert wanted == [65_535, 0, 1]


async def test_asking_twice_within_a_round_trip_is_answered_once() -> None:
    async with rig() as r:
        r.sender._RTCRtpSender__rtt = 60.0  # as long as the sender believes, half a second
        await r.track.play(picture(0))
        number = r.transport.media()[0].sequence_number
        r.transport.sent.clear()
        await r.nack(number, number, number)
        statistics = r.sender.statistics()
        assert len(r.transport.sent) == 1
    assert (statistics.resent_packets, statistics.resend_repeated) == (1, 2)


async def test_flood_of_requests_is_bounded_by_the_media() -> None:
    async with rig() as r:
        r.sender._RTCRtpSender__rtt = 0.0
        await r.track.play(*(picture(n, (640, 480)) for n in range(5)))
        numbers = [p.sequence_number for p in r.transport.media()]
        media_bytes = sum(map(len, r.transport.sent))
        r.transport.sent.clear()
        for sent in r.sender._history._packets:
            if sent is not None:
                sent.resent_at_ns = 0
        for _ in range(50):
            await r.nack(*numbers)
            for sent in r.sender._history._packets:
                if sent is not None:
                    sent.resent_at_ns = 0  # as if a round trip had passed
        statistics = r.sender.statistics()
    assert statistics.resend_refused > 0
    assert statistics.resent_bytes <= media_bytes + 128 * 1024


async def test_unknown_packets_are_not_sent() -> None:
    async with rig() as r:
        await r.track.play(picture(0))
        r.transport.sent.clear()
        await r.nack(60_000, 60_001)
        assert r.transport.sent == []
        assert r.sender.statistics().resend_unknown == 2


async def test_estimate_of_the_receiver_is_followed() -> None:
    async with rig() as r:
        await r.track.play(picture(0, (640, 480)))
        fci = pack_remb_fci(700_000, [r.sender._ssrc])
        await r.feedback(RtcpPsfbPacket(RTCP_PSFB_APP, 1, 0, fci))
        await r.track.play(picture(1, (640, 480)))
        statistics = r.sender.statistics()
    assert statistics.remb_bps == pytest.approx(700_000, rel=0.01)
    assert statistics.target_bps == pytest.approx(630_000, rel=0.01)
    assert statistics.keyframes_sent == 1, "a new rate needs no new encoder"


@pytest.mark.parametrize(
    "fci",
    [
        b"",
        b"REMB",
        b"XXXX\x01\x00\x00\x00",
        pack_remb_fci(100, [1, 2])[:-3],
        b"REMB\xff\xff\xff\xff",
    ],
)
async def test_broken_estimate_changes_nothing(fci: bytes) -> None:
    async with rig() as r:
        packet = RtcpPsfbPacket(RTCP_PSFB_APP, 1, 0, fci)
        await r.feedback(packet, over_the_wire=False)
        await r.track.play(picture(0))
        assert r.sender.statistics().remb_bps is None


async def test_estimate_for_somebody_else_changes_nothing() -> None:
    async with rig() as r:
        fci = pack_remb_fci(400_000, [r.sender._ssrc ^ 1])
        await r.feedback(RtcpPsfbPacket(RTCP_PSFB_APP, 1, 0, fci))
        assert r.sender.statistics().remb_bps is None


async def test_loss_is_reported_and_takes_the_rate_down() -> None:
    async with rig() as r:
        await r.track.play(picture(0, (640, 480)))
        before = r.sender.statistics().target_bps
        report = RtcpReceiverInfo(r.sender._ssrc, 64, 10, 0, 0, 0, 0)
        await r.feedback(RtcpRrPacket(1, [report]))
        await r.track.play(picture(1, (640, 480)))
        statistics = r.sender.statistics()
    assert statistics.fraction_lost == 0.25
    assert statistics.target_bps < before


@pytest.mark.parametrize("estimate_bps", [None, 30_000_000])
async def test_after_a_heavy_loss_pictures_and_repairs_wait_for_the_rate_of_a_narrow_path_only(
    estimate_bps: int | None,
) -> None:
    async with rig(RtcOptions(bitrate_min_bps=50_000)) as r:
        await r.track.play(picture(0))
        if estimate_bps is not None:
            fci = pack_remb_fci(estimate_bps, [r.sender._ssrc])
            await r.feedback(RtcpPsfbPacket(RTCP_PSFB_APP, 1, 0, fci))
        heavy = RtcpReceiverInfo(r.sender._ssrc, 200, 10, 0, 0, 0, 0)
        for _ in range(8):
            await r.feedback(RtcpRrPacket(1, [heavy]))
            await r.track.play(picture(1))
        first = r.transport.media()[-1].sequence_number
        await r.pli()
        # A key frame beyond a quarter of a second's bits; then there is no credit left.
        for n in range(2, 12):
            await r.track.play(picture(37 * n))
        await r.nack(first)
        statistics = r.sender.statistics()
    if estimate_bps is None:
        assert statistics.frames_skipped >= 1
        assert (statistics.resend_refused, statistics.resent_packets) == (1, 0)
    else:
        assert statistics.frames_skipped == 0
        assert (statistics.resend_refused, statistics.resent_packets) == (0, 1)


async def test_failed_drawing_costs_its_picture_only() -> None:
    async with rig() as r:
        await r.track.play(picture(0), Raising(picture(1), render=True), picture(2))
        statistics = r.sender.statistics()
    assert statistics.render_failures == 1
    assert statistics.frames_sent == 2
    assert statistics.keyframes_sent == 1, "the encoder is not to blame"
    assert statistics.failure == ""


async def test_failed_callback_costs_nothing() -> None:
    async with rig() as r:
        await r.track.play(Raising(picture(0), sent=True), Raising(picture(1)))
        statistics = r.sender.statistics()
    assert statistics.callback_failures == 1
    assert statistics.frames_sent == 2


async def test_failed_encode_costs_its_picture_and_a_key_frame_follows() -> None:
    too_large = VideoFrame(16, 20_000, "yuv420p")
    async with rig() as r:
        await r.track.play(picture(0), too_large, picture(1), picture(2))
        statistics = r.sender.statistics()
    assert statistics.encode_failures == 1
    assert statistics.frames_sent == 3
    assert statistics.keyframes_sent == 2
    assert statistics.failure == ""


async def test_run_of_failures_shows_until_a_picture_succeeds() -> None:
    async with rig() as r:
        await r.track.play(*(Raising(picture(n), render=True) for n in range(FAILURE_RUN)))
        assert r.sender.statistics().failure == "render: ZeroDivisionError: drawing"
        await r.track.play(picture(99))
        assert r.sender.statistics().failure == ""
        assert r.sender.statistics().frames_sent == 1


async def test_thing_that_is_no_picture_costs_itself_only() -> None:
    async with rig() as r:
        await r.track.play(object(), picture(0))
        statistics = r.sender.statistics()
    assert (statistics.render_failures, statistics.frames_sent) == (1, 1)


@pytest.mark.parametrize("error", [OSError(105, "no buffer"), ConnectionError("no pair")])
async def test_transport_that_fails_for_a_while_costs_packets_only(error: Exception) -> None:
    async with rig() as r:
        r.transport.error = error
        await r.track.play(picture(0))
        assert r.sender.statistics().send_errors >= 1
        r.transport.error = None
        await r.track.play(picture(1))
        assert r.transport.media()
        assert r.sender.statistics().failure == ""


async def test_closed_transport_ends_the_sender_and_its_track() -> None:
    async with rig() as r:
        await r.track.play(picture(0))
        r.transport.error = ConnectionError("not connected")
        r.transport.state = "closed"
        r.track.hand_in(picture(1))
        await r.ended()
        assert "closed" in r.sender.statistics().failure
        assert r.track.readyState == "ended"


async def test_end_of_the_track_ends_the_sender_without_complaint() -> None:
    async with rig() as r:
        await r.track.play(picture(0))
        r.track.hand_in(MediaStreamError())
        await r.ended()
        assert r.sender.statistics().failure == ""


async def test_track_that_breaks_ends_the_sender_with_its_reason() -> None:
    async with rig() as r:
        r.track.hand_in(LookupError("camera"))
        await r.ended()
        assert r.sender.statistics().failure == "LookupError: camera"


async def test_executor_that_is_gone_ends_the_sender_with_its_reason() -> None:
    executor = ThreadPoolExecutor(1)
    r = Rig(RtcOptions(), executor)
    executor.shutdown()
    async with asyncio.timeout(DEADLINE_S):
        await r.sender.send(PARAMETERS)
        r.track.hand_in(picture(0))
        await r.ended()
        assert "shutdown" in r.sender.statistics().failure
        await r.sender.stop()


async def test_stop_while_encoding_returns_and_the_late_result_is_dropped() -> None:
    executor = ThreadPoolExecutor(1)
    r = Rig(RtcOptions(), executor)
    rendering, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))

    class Slow(Raising):
        def render(self) -> VideoFrame:
            loop.call_soon_threadsafe(rendering.set)
            assert release.wait(DEADLINE_S)
            return super().render()

    async with asyncio.timeout(DEADLINE_S):
        await r.sender.send(PARAMETERS)
        r.track.hand_in(Slow(picture(0)))
        await rendering.wait()
        await r.sender.stop()
        release.set()
        # The job's last act is to schedule its result; it runs before this returns.
        await asyncio.to_thread(executor.shutdown)
    assert r.transport.media() == []
    assert complaints == []


async def test_stop_before_start_and_twice_returns() -> None:
    executor = ThreadPoolExecutor(1)
    r = Rig(RtcOptions(), executor)
    async with asyncio.timeout(DEADLINE_S):
        await r.sender.stop()
    async with rig() as other, asyncio.timeout(DEADLINE_S):
        await other.sender.stop()
    executor.shutdown()


async def test_sender_without_a_track_waits_and_takes_one_later() -> None:
    executor = ThreadPoolExecutor(1)
    transport = NotingTransport()
    sender = VideoSender(
        "video",
        cast(RTCDtlsTransport, transport),
        options=RtcOptions(),
        encode_executor=executor,
    )
    track = HandedTrack()
    async with asyncio.timeout(DEADLINE_S):
        await sender.send(PARAMETERS)
        sender.replaceTrack(track)
        await track.play(picture(0))
        assert transport.media()
        await sender.stop()
    executor.shutdown()


async def test_disabled_sender_drains_its_track_and_sends_nothing() -> None:
    async with rig() as r:
        r.sender._enabled = False
        await r.track.play(picture(0), picture(1))
        assert r.transport.media() == []
        r.sender._enabled = True
        await r.track.play(picture(2))
        assert r.transport.media()


async def test_time_that_jumps_back_still_goes_forward_on_the_wire() -> None:
    async with rig() as r:
        await r.track.play(picture(100), picture(0), picture(1))
        stamps = list(dict.fromkeys(p.timestamp for p in r.transport.media()))
    assert (stamps[1] - stamps[0]) % (1 << 32) == 1
    assert (stamps[2] - stamps[1]) % (1 << 32) == 3000


async def test_hardware_that_fails_while_encoding_is_left_for_software() -> None:
    class Failing:
        """An encoder of a name that is not software."""

        name, note = "h264_nvenc", ""

        def encode(
            self, video_frame: VideoFrame, keyframe: bool, bits_per_s: int, fps: float
        ) -> EncodedPicture:
            raise EncodeError("out of sessions")

    h264 = next(c for c in CODECS["video"] if c.name == "H264")
    asked: list[frozenset[str]] = []

    def make(failed_names: frozenset[str]) -> VideoEncoder:
        asked.append(failed_names)
        return make_encoder(h264, RtcOptions(), failed_names) if failed_names else Failing()

    slot = EncoderSlot(make)
    allowance = Allowance(0.6, None, 300_000, 6_000_000)
    with pytest.raises(EncodeError, match="out of sessions"):
        slot.encode(picture(0), False, allowance)
    result = slot.encode(picture(1), False, allowance)
    assert result.picture.keyframe
    assert result.encoder == "libx264"
    assert asked == [frozenset(), frozenset({"h264_nvenc"})]


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("too long"), ConnectionError()])
async def test_report_that_cannot_be_sent_does_not_end_the_reports(error: Exception) -> None:
    async with rig() as r:
        r.transport.error = error
        await r.sender._send_rtcp([RtcpRrPacket(1)])


async def test_stock_statistics_still_count_what_we_send() -> None:
    async with rig() as r:
        await r.track.play(picture(0))
        report = await r.sender.getStats()
        outbound = report[f"outbound-rtp_{id(r.sender)}"]
        statistics = r.sender.statistics()
    assert outbound.packetsSent == statistics.packets_sent > 0
    assert outbound.bytesSent == statistics.bytes_sent
