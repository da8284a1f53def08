"""The outgoing half of one video: pictures from a track, encoded off the loop, sent in a burst.

Replaces aiortc's send loop and its feedback handling; what it leans on is pinned by
`tests/rtc_send/test_contract_send.py`. What differs, and why:

- A picture is drawn and encoded in one job on the encode executor, never in the executor that
  the loop uses for itself, and comes back by one thread-safe call.
- The packets of a picture are built from one header template: 7.8 us each instead of 12.6.
- Key frames on demand are bounded to two a second, answers to NACK to the media's own rate.
- A failing codec costs pictures, never the sender; a run of failures shows in `statistics()`.
"""

import asyncio
import contextlib
import logging
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import cast

import pylibsrtp
from aiortc import clock as wall_clock
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import RTCRtpCodecParameters, RTCRtpSendParameters
from aiortc.rtcrtpsender import RTCEncodedFrame, RTCRtpSender, random_sequence_number
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    AnyRtcpPacket,
    RtcpPsfbPacket,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtcpSrPacket,
    unpack_remb_fci,
)
from aiortc.utils import random32
from av import VideoFrame

from server.clock import NS_PER_MS, NS_PER_S, now_ns
from server.rtc.assembly import EncodedFrame
from server.rtc.bitrate import RateFollower
from server.rtc.encoders import (
    EncodeError,
    EncodeResult,
    EncoderSlot,
    Renderable,
    RenderError,
    VideoEncoder,
    make_encoder,
)
from server.rtc.encoders.base import PAYLOAD_MAX
from server.rtc.extensions import HeaderBlock
from server.rtc.options import RtcOptions
from server.rtc.sender_guards import (
    KeyframeThrottle,
    PacketHistory,
    ResendGuard,
    RtpTimeline,
    SentPacket,
    history_capacity,
)
from server.rtc.spending import Spending

logger = logging.getLogger(__name__)

KEYFRAME_INTERVAL_NS = NS_PER_S // 2
# What a burst of answers to NACK may hold: a key frame's worth.
RESEND_BURST_BYTES = 128 * 1024
# The time in which one packet is not sent twice, while the round trip is not known, and its
# bounds when it is: a receiver next door asks again after some milliseconds, too.
ROUND_TRIP_UNKNOWN_NS = 30 * NS_PER_MS
ROUND_TRIP_RANGE_NS = (5 * NS_PER_MS, 500 * NS_PER_MS)
# Failures in a row after which the sender counts as broken, until a picture succeeds.
FAILURE_RUN = 10

MARKER = 0x80
RTP_HEADER = struct.Struct("!BBHLL")
RTP_VERSION = 0x80
RTP_EXTENSION = 0x10
SEND_ERRORS = (ConnectionError, OSError, pylibsrtp.Error, ValueError)


@dataclass(frozen=True, slots=True)
class SenderStatistics:
    """One outgoing video so far. Times in ms, rates in bits per second."""

    codec: str
    """As negotiated: H264, VP8; empty before the start."""
    encoder: str
    """The live encoder; empty before the first picture."""
    encoder_note: str
    """Why it is not the one asked for; empty otherwise."""
    frames_sent: int
    frames_forwarded: int
    """Of them, those that left as they came."""
    frames_empty: int
    """Pictures for which the encoder gave nothing."""
    frames_skipped: int
    """Pictures that were not encoded, because more had left than a narrow path carries."""
    packets_sent: int
    bytes_sent: int
    """Payload bytes, without headers and retransmissions."""
    resent_packets: int
    resent_bytes: int
    resend_unknown: int
    """Asked for, but no longer or never in the history."""
    resend_repeated: int
    """Asked for again within a round trip."""
    resend_refused: int
    """Asked for beyond the bound."""
    keyframes_sent: int
    keyframe_requests: int
    encode_failures: int
    render_failures: int
    callback_failures: int
    send_errors: int
    target_bps: int
    remb_bps: int | None
    rtt_ms: float | None
    fraction_lost: float | None
    failure: str
    """The reason while pictures keep failing, or for which the sender ended; empty otherwise."""


class OutgoingFrame(RTCEncodedFrame):
    """A picture ready to leave, and whom to tell when it has."""

    def __init__(self, result: EncodeResult, timestamp: int, source: Renderable | None) -> None:
        super().__init__(list(result.picture.payloads), timestamp, 0)
        self.result = result
        self.source = source


class VideoSender(RTCRtpSender):
    """An `RTCRtpSender` for one video. Loop only, but for the job on the encode executor.

    The executor belongs to the caller and must outlive the sender. Ends when its track does,
    when it is stopped, or when its transport is closed.
    """

    # aiortc's private state that we share with the methods we keep (stop, getStats, RTCP).
    _RTCRtpSender__kind: str
    _RTCRtpSender__track: MediaStreamTrack | None
    _RTCRtpSender__rtt: float | None
    _RTCRtpSender__ntp_timestamp: int
    _RTCRtpSender__rtp_timestamp: int
    _RTCRtpSender__octet_count: int
    _RTCRtpSender__packet_count: int
    _RTCRtpSender__rtp_started: asyncio.Event
    _RTCRtpSender__rtp_task: asyncio.Future[None] | None
    _RTCRtpSender__rtp_exited: asyncio.Event
    _RTCRtpSender__rtx_payload_type: int | None
    _RTCRtpSender__rtx_sequence_number: int

    def __init__(
        self,
        trackOrKind: MediaStreamTrack | str,
        transport: RTCDtlsTransport,
        *,
        options: RtcOptions,
        encode_executor: Executor,
    ) -> None:
        # Before aiortc's own: it calls `replaceTrack`, which sets this.
        self._track_present = asyncio.Event()
        super().__init__(trackOrKind, transport)
        assert self.kind == "video"
        self._options = options
        self._encode_executor = encode_executor
        self._rate = RateFollower(options.bitrate_min_bps, options.bitrate_max_bps, now_ns)
        self._keyframes = KeyframeThrottle(KEYFRAME_INTERVAL_NS, now_ns)
        self._history = PacketHistory(history_capacity(options.bitrate_max_bps, PAYLOAD_MAX))
        self._resend = ResendGuard(RESEND_BURST_BYTES)
        self._spending = Spending(now_ns)
        self._timeline = RtpTimeline(random32())
        self._sequence_number = random_sequence_number()
        self._header_block = HeaderBlock(())
        self._slot: EncoderSlot | None = None
        self._make_slot: Callable[[], EncoderSlot] | None = None
        self._codec_name = ""
        self._payload_type = 0
        # While set, pictures leave as they came and whoever wants a key frame asks there.
        self._wish_at_source: Callable[[], None] | None = None
        self._frames_forwarded = 0
        self._last: EncodeResult | None = None
        self._failures_in_a_row = 0
        self._failure = ""
        self._frames_sent = 0
        self._frames_empty = 0
        self._frames_skipped = 0
        self._keyframes_sent = 0
        self._keyframe_requests = 0
        self._encode_failures = 0
        self._render_failures = 0
        self._callback_failures = 0
        self._send_errors = 0
        self._remb_bps: int | None = None
        # As of the last receiver report.
        self._reported_at_ns = now_ns()
        self._reported_bytes = 0
        self._fraction_lost: float | None = None

    def statistics(self) -> SenderStatistics:
        """A snapshot."""
        rtt_s, last = self._RTCRtpSender__rtt, self._last
        return SenderStatistics(
            codec=self._codec_name,
            encoder=last.encoder if last else "",
            encoder_note=last.note if last else "",
            frames_sent=self._frames_sent,
            frames_forwarded=self._frames_forwarded,
            frames_empty=self._frames_empty,
            frames_skipped=self._frames_skipped,
            packets_sent=self._RTCRtpSender__packet_count,
            bytes_sent=self._RTCRtpSender__octet_count,
            resent_packets=self._resend.resent_packets,
            resent_bytes=self._resend.resent_bytes,
            resend_unknown=self._resend.unknown,
            resend_repeated=self._resend.repeated,
            resend_refused=self._resend.refused,
            keyframes_sent=self._keyframes_sent,
            keyframe_requests=self._keyframe_requests,
            encode_failures=self._encode_failures,
            render_failures=self._render_failures,
            callback_failures=self._callback_failures,
            send_errors=self._send_errors,
            target_bps=last.bits_per_s if last else 0,
            remb_bps=self._remb_bps,
            rtt_ms=None if rtt_s is None else max(0.0, rtt_s * 1000),
            fraction_lost=self._fraction_lost,
            failure=self._failure,
        )

    def replaceTrack(self, track: MediaStreamTrack | None) -> None:
        super().replaceTrack(track)
        if track is None:
            self._track_present.clear()
        else:
            self._track_present.set()

    # -- media ------------------------------------------------------------------------------

    async def send(self, parameters: RTCRtpSendParameters) -> None:
        self._header_block = HeaderBlock(parameters.headerExtensions, parameters.muxId)
        await super().send(parameters)

    async def stop(self) -> None:
        """As the base class. Idempotent."""
        await super().stop()
        task = self._RTCRtpSender__rtp_task
        if task is not None:
            await asyncio.wait([task])
            if task.cancelled():
                # This takes from it where it was cancelled, which leads back here.
                with contextlib.suppress(asyncio.CancelledError):
                    task.result()

    async def _run_rtp(self, codec: RTCRtpCodecParameters) -> None:
        self._RTCRtpSender__rtp_started.set()
        self._note_codec(codec)
        make_slot = self._make_slot = partial(EncoderSlot, self._encoder_factory(codec))
        self._slot = make_slot()
        try:
            while True:
                await self._track_present.wait()
                frame = await self._next_encoded_frame(codec)
                if frame is not None and not self.forwards:
                    await self._send_frame(frame)
        except MediaStreamError:
            pass  # the track ended
        except ConnectionError as error:
            self._failure = f"transport {self.transport.state}: {error}"
        except Exception as error:
            # The top of the task: the call goes on without its picture, and its statistics say why.
            self._failure = f"{type(error).__name__}: {error}"
            logger.exception("outgoing video ended")
        finally:
            # Whatever happened, `stop()` waits for this event.
            if self.track is not None:
                self.track.stop()
                self._RTCRtpSender__track = None
            self._slot = None
            self._RTCRtpSender__rtp_exited.set()

    def _note_codec(self, codec: RTCRtpCodecParameters) -> None:
        assert codec.payloadType is not None, "negotiated codecs have one"
        self._codec_name = codec.name
        self._payload_type = codec.payloadType

    def _encoder_factory(
        self, codec: RTCRtpCodecParameters
    ) -> Callable[[frozenset[str]], VideoEncoder]:
        options = self._options
        return lambda failed_names: make_encoder(codec, options, failed_names)

    async def _next_encoded_frame(self, codec: RTCRtpCodecParameters) -> OutgoingFrame | None:
        """The next picture of the track, encoded; None when it came to nothing."""
        # Our tracks serve no packets, and pictures that are yet to be drawn beside frames.
        data = cast("VideoFrame | Renderable", await self.track.recv())
        if not self._enabled:
            return None
        if self._spending.is_overdrawn:
            self._frames_skipped += 1
            return None
        try:
            result = await self._encode(data)
        except RenderError as error:
            self._render_failures += 1
            self._note_failure(f"render: {error}")
            return None
        except EncodeError as error:
            self._encode_failures += 1
            self._note_failure(f"encode: {error}")
            return None
        self._failures_in_a_row = 0
        self._failure = ""
        self._last = result
        self._rate.used(result.bits_per_s)
        self._spending.allow(result.bits_per_s if self._rate.is_narrow else 0)
        if result.picture.keyframe:
            self._keyframes.made()
            self._keyframes_sent += 1
        if not result.picture.payloads:
            self._frames_empty += 1
            return None
        ticks = result.ticks
        if ticks is None:
            ticks = result.encode_started_at_ns * 9 // 100_000
        source = None if isinstance(data, VideoFrame) else data
        return OutgoingFrame(result, self._timeline.timestamp(ticks), source)

    async def _encode(self, data: VideoFrame | Renderable) -> EncodeResult:
        """Run one job on the encode executor. Raises what the job raised."""
        assert self._slot is not None
        done: asyncio.Future[EncodeResult] = asyncio.get_running_loop().create_future()

        def deliver(outcome: EncodeResult | Exception) -> None:
            if done.done():
                return  # stopped meanwhile
            if isinstance(outcome, Exception):
                done.set_exception(outcome)
            else:
                done.set_result(outcome)

        keyframe, allowance = self._keyframes.grant(), self._rate.allowance()
        self._slot.submit(self._encode_executor, data, keyframe, allowance, deliver)
        return await done

    def _note_failure(self, reason: str) -> None:
        self._failures_in_a_row += 1
        # One line at the start of a run, one when it is long enough to matter.
        if self._failures_in_a_row == 1:
            logger.warning("outgoing video lost a picture: %s", reason)
        elif self._failures_in_a_row == FAILURE_RUN:
            self._failure = reason
            logger.error("outgoing video keeps failing: %s", reason)

    async def _send_frame(self, frame: OutgoingFrame) -> None:
        ntp_timestamp = wall_clock.current_ntp_time()
        source = frame.source
        captured_at_ns = getattr(source, "captured_at_ns", None)
        age_ns = None if captured_at_ns is None else now_ns() - captured_at_ns
        extension = self._header_block.at(ntp_timestamp, age_ns)
        last, sent_bytes = len(frame.payloads) - 1, 0
        for index, payload in enumerate(frame.payloads):
            if pause_s := self._spending.pause_s(sent_bytes):
                await asyncio.sleep(pause_s)
                # A receiver's estimator compares when packets left with when they came.
                extension = self._header_block.at(wall_clock.current_ntp_time(), age_ns)
            packet = self._number(payload, frame.timestamp, index == last, extension)
            self._resend.media_sent(len(packet))
            self._spending.sent(len(packet))
            sent_bytes += len(packet)
            await self._send_packet(packet)
            self._RTCRtpSender__octet_count += len(payload)
            self._RTCRtpSender__packet_count += 1
        self._note_sent(ntp_timestamp, frame.timestamp)
        if source is not None:
            result = frame.result
            try:
                source.sent(result.encode_started_at_ns, result.encoded_at_ns, now_ns())
            except Exception:
                # Not our code: it must not take the picture of the next frame along.
                self._callback_failures += 1
                if self._callback_failures == 1:
                    logger.exception("sent() of an outgoing picture failed")

    # -- pictures that leave as they came ---------------------------------------------------

    @property
    def forwards(self) -> bool:
        """Whether pictures leave as they came; those of the track do not then."""
        return self._wish_at_source is not None

    def forward(
        self, frame: EncodedFrame, ticks: int, wish_at_source: Callable[[], None]
    ) -> int | None:
        """Send a whole picture of somebody else's encoder, at once; returns its RTP timestamp.

        None when it cannot leave: it has another codec, nothing is connected yet, or the first
        one is no key frame, which is asked for by `wish_at_source`. `ticks` is its media time in
        1/90000 s, on the same line as that of the track's pictures.
        """
        if frame.codec_name != self._codec_name or self.transport.state != "connected":
            return None
        if not self.forwards and not frame.is_key:
            wish_at_source()
            return None
        self._wish_at_source = wish_at_source
        rtp_timestamp = self._timeline.timestamp(ticks)
        size = sum(map(len, frame.payloads))
        self._send_now(frame.payloads, size, rtp_timestamp, frame.received_at_ns, now_ns())
        self._keyframes_sent += frame.is_key
        self._frames_forwarded += 1
        return rtp_timestamp

    def keep_time(self, rtp_timestamp: int) -> None:
        """Begin the line of media time there, before anything leaves: pictures of one peer then go
        back with the RTP timestamps that they came with."""
        if not self._frames_sent:
            self._timeline = RtpTimeline(rtp_timestamp)

    def stop_forwarding(self) -> None:
        """Send the track's pictures again, the first of them a key frame. Idempotent."""
        if self.forwards and self._make_slot is not None:
            # A new encoder begins with a key frame, whatever the throttle says.
            self._slot = self._make_slot()
        self._wish_at_source = None

    def _send_now(
        self,
        payloads: Sequence[bytes],
        size: int,
        rtp_timestamp: int,
        captured_at_ns: int,
        at_ns: int,
    ) -> None:
        """A whole picture, without waiting for anything; what cannot leave is counted."""
        ntp_timestamp = wall_clock.current_ntp_time()
        extension = self._header_block.at(ntp_timestamp, at_ns - captured_at_ns)
        last = len(payloads) - 1
        for index, payload in enumerate(payloads):
            packet = self._number(payload, rtp_timestamp, index == last, extension)
            try:
                send_rtp_now(self.transport, packet)
            except SEND_ERRORS:
                self._send_errors += 1
        self._resend.media_sent(size)
        self._RTCRtpSender__octet_count += size
        self._RTCRtpSender__packet_count += len(payloads)
        self._note_sent(ntp_timestamp, rtp_timestamp)

    # -- packets ----------------------------------------------------------------------------

    def _number(self, payload: bytes, timestamp: int, is_last: bool, extension: bytes) -> bytes:
        """The next packet; it is kept for whoever asks for it again."""
        sequence_number = self._sequence_number
        self._sequence_number = (sequence_number + 1) & 0xFFFF
        header = RTP_HEADER.pack(
            RTP_VERSION | (RTP_EXTENSION if extension else 0),
            self._payload_type | (MARKER if is_last else 0),
            sequence_number,
            timestamp,
            self._ssrc,
        )
        header += extension
        self._history.put(SentPacket(sequence_number, header, payload))
        return header + payload

    def _note_sent(self, ntp_timestamp: int, rtp_timestamp: int) -> None:
        """A picture's last packet has left; aiortc's reports tell these two times."""
        self._RTCRtpSender__ntp_timestamp = ntp_timestamp
        self._RTCRtpSender__rtp_timestamp = rtp_timestamp
        self._frames_sent += 1

    async def _send_packet(self, packet: bytes) -> None:
        """Send one RTP packet. A failure costs the packet; a closed transport ends us."""
        try:
            await self.transport._send_rtp(packet)
        except SEND_ERRORS as error:
            self._send_errors += 1
            if self.transport.state in ("closed", "failed"):
                raise ConnectionError(str(error)) from error

    # -- feedback ---------------------------------------------------------------------------

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        if isinstance(packet, RtcpRtpfbPacket) and packet.fmt == RTCP_RTPFB_NACK:
            # aiortc's parser does not wrap the numbers that follow 65535.
            admitted = self._resend.admit(len(packet.lost), now_ns())
            for sequence_number in packet.lost[:admitted]:
                await self._retransmit(sequence_number & 0xFFFF)
        elif isinstance(packet, RtcpPsfbPacket) and packet.fmt in (RTCP_PSFB_PLI, RTCP_PSFB_FIR):
            self._send_keyframe()
        elif isinstance(packet, RtcpPsfbPacket) and packet.fmt == RTCP_PSFB_APP:
            self._handle_remb(packet.fci)
        elif isinstance(packet, (RtcpRrPacket, RtcpSrPacket)):
            await super()._handle_rtcp_packet(packet)
            for report in packet.reports:
                if report.ssrc == self._ssrc:
                    self._fraction_lost = report.fraction_lost / 256
                    self._rate.loss(self._fraction_lost, self._take_sent_bps())

    def _take_sent_bps(self) -> float:
        """The rate at which media left since the last call. Repairs do not count: they come on top
        of what was meant to fit the estimate, the more of them the more is lost."""
        at_ns, sent_bytes = now_ns(), self._RTCRtpSender__octet_count
        elapsed_s = max(1, at_ns - self._reported_at_ns) / NS_PER_S
        sent_bps = 8 * (sent_bytes - self._reported_bytes) / elapsed_s
        self._reported_at_ns, self._reported_bytes = at_ns, sent_bytes
        return sent_bps

    def _handle_remb(self, fci: bytes) -> None:
        try:
            bitrate, ssrcs = unpack_remb_fci(fci)
        except (ValueError, struct.error):
            return  # another application's message, or a broken one
        if self._ssrc in ssrcs:
            self._remb_bps = bitrate
            self._rate.remb(bitrate)

    def _send_keyframe(self) -> None:
        self._keyframe_requests += 1
        if self._wish_at_source is not None:
            self._wish_at_source()
        else:
            self._keyframes.wish()

    async def _retransmit(self, sequence_number: int) -> None:
        if self._spending.is_overdrawn:
            self._resend.refused += 1
            return
        sent = self._history.get(sequence_number)
        if not self._resend.allow(sent, now_ns(), self._round_trip_ns()):
            return
        assert sent is not None
        self._spending.sent(sent.size)
        packet = sent.header + sent.payload
        rtx_payload_type = self._RTCRtpSender__rtx_payload_type
        if rtx_payload_type is not None:
            rtx_sequence_number = self._RTCRtpSender__rtx_sequence_number
            self._RTCRtpSender__rtx_sequence_number = (rtx_sequence_number + 1) & 0xFFFF
            packet = as_rtx(sent, rtx_payload_type, rtx_sequence_number, self._rtx_ssrc)
        # Without RTX the very same bytes leave again: with AES-GCM, the same number with
        # other contents would give the key away.
        try:
            await self.transport._send_rtp(packet)
        except SEND_ERRORS:
            self._send_errors += 1

    def _round_trip_ns(self) -> int:
        rtt_s = self._RTCRtpSender__rtt
        if rtt_s is None:
            return ROUND_TRIP_UNKNOWN_NS
        low, high = ROUND_TRIP_RANGE_NS
        return max(low, min(int(rtt_s * NS_PER_S), high))

    async def _send_rtcp(self, packets: list[AnyRtcpPacket]) -> None:
        # aiortc survives a ConnectionError here; anything else would end its RTCP task, and
        # with it every later `stop()`.
        try:
            await super()._send_rtcp(packets)
        except SEND_ERRORS:
            self._send_errors += 1


def as_rtx(sent: SentPacket, payload_type: int, sequence_number: int, ssrc: int) -> bytes:
    """A packet once more, in the stream of repairs (RFC 4588)."""
    header = sent.header
    return b"".join(
        (
            struct.pack("!BBH", header[0], (header[1] & MARKER) | payload_type, sequence_number),
            header[4:8],
            struct.pack("!L", ssrc),
            header[RTP_HEADER.size :],
            struct.pack("!H", sent.sequence_number),
            sent.payload,
        )
    )


def send_rtp_now(transport: RTCDtlsTransport, packet: bytes) -> None:
    """What `RTCDtlsTransport._send_rtp` does, without its three coroutines per packet.

    Raises `ConnectionError` while no pair of addresses is nominated, and what libsrtp raises.
    """
    datagram = transport._tx_srtp.protect(packet)
    pair = transport.transport._connection._nominated.get(1)
    if pair is None:
        raise ConnectionError("no pair of addresses is nominated")
    pair.protocol.transport.sendto(datagram, pair.remote_addr)
