"""Incoming video: packets of one track in, decoded pictures out.

Replaces aiortc's receive path: assembly at the marker bit, timed NACK, throttled PLI, a bounded
decoder. The parts are pure or have their own modules; this one is the way between them.
"""

import asyncio
import logging
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from aiortc import MediaStreamTrack, RTCDtlsTransport, RTCRtpReceiver
from aiortc import clock as wall_clock
from aiortc.codecs import is_rtx
from aiortc.rtcrtpparameters import RTCRtpCodecParameters, RTCRtpReceiveParameters
from aiortc.rtp import AnyRtcpPacket, RtcpByePacket, RtcpSrPacket, RtpPacket, unwrap_rtx
from aiortc.stats import RTCInboundRtpStreamStats, RTCStatsReport

from server.clock import NS_PER_MS, NS_PER_S, now_ns
from server.rtc.assembly import AssemblyPacket, EncodedFrame, FrameAssembler
from server.rtc.decoding import DecoderWorker
from server.rtc.feedback import NackTracker, PliThrottle
from server.rtc.ice import IceConnection
from server.rtc.options import RtcOptions
from server.rtc.payload import parse_payload
from server.rtc.remote_track import RemoteVideoTrack
from server.rtc.reports import ReportSender, report_interval_ns
from server.rtc.statistics import ReceiverStatistics, SourceStatistics
from server.rtc.stock import StockAssembler

__all__ = ["RemoteVideoTrack", "VideoReceiver"]

logger = logging.getLogger(__name__)

MAX_SOURCES = 8
SOURCE_SWITCH_AFTER_NS = NS_PER_S

# A whole frame as it came, and its media time in 1/90000 s since the first.
ForwardSink = Callable[[EncodedFrame, int], None]
STOP_TIMEOUT_S = 1.0


class VideoReceiver(RTCRtpReceiver):
    """One incoming video track. Loop only, but for the decoder thread it owns."""

    def __init__(
        self,
        transport: RTCDtlsTransport,
        *,
        options: RtcOptions,
    ) -> None:
        self._remote_track: MediaStreamTrack | None = None
        # The kind only chooses aiortc's own buffers and estimator, which ours replace: those for
        # video are a thousand objects a call.
        super().__init__("audio", transport)
        self._options = options
        self._codecs: dict[int, RTCRtpCodecParameters] = {}
        self._rtx_sources: dict[int, int] = {}
        self._sources: dict[int, SourceStatistics] = {}
        self._active_ssrc: int | None = None
        self._active_at_ns = 0
        self._reports = ReportSender(transport)
        self._packets_foreign = 0
        self._assembler = self._make_assembler()
        self._restarts_seen = 0
        self._nack = NackTracker(
            give_up_ns=int(options.frame_deadline_ms * NS_PER_MS), repeats=options.timed_nack
        )
        self._pli = PliThrottle(interval_ns=int(options.pli_interval_ms * NS_PER_MS))
        self._worker: DecoderWorker | None = None
        self._pts: int | None = None
        self._last_rtp_timestamp = 0
        self._codec_name = ""
        self._forward_sink: ForwardSink | None = None
        # Since when somebody beyond the decoder waits for a key frame.
        self._key_frame_wished_at_ns: int | None = None
        self._stopped = False
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._timer_at_ns = 0

    # What aiortc's peer connection and transport call.

    @property
    def _track(self) -> Any:
        return self._remote_track

    @_track.setter
    def _track(self, track: MediaStreamTrack | None) -> None:
        # The peer connection makes the track; ours takes its place under the same id.
        if track is not None and not isinstance(track, RemoteVideoTrack):
            track = RemoteVideoTrack(track.id)
        self._remote_track = track

    @property
    def track(self) -> Any:
        """The `RemoteVideoTrack`, from the remote description on."""
        return self._remote_track

    def _set_rtcp_ssrc(self, ssrc: int) -> None:
        self._reports.ssrc = ssrc

    def setTransport(self, transport: RTCDtlsTransport) -> None:
        super().setTransport(transport)
        self._reports.transport = transport

    @property
    def _connection(self) -> IceConnection | None:
        """Bundling may replace the transport, so it is asked for each time."""
        connection = self.transport.transport._connection
        return connection if isinstance(connection, IceConnection) else None

    @property
    def _rtt_ns(self) -> int:
        connection = self._connection
        return connection.rtt_ns if connection else 0

    async def receive(self, parameters: RTCRtpReceiveParameters) -> None:
        """Begin to receive; the second call, and one after `stop`, do nothing."""
        track = self._remote_track
        if self._worker is not None or self._stopped or not isinstance(track, RemoteVideoTrack):
            return
        for codec in parameters.codecs:
            assert codec.payloadType is not None, "negotiated codecs have one"
            self._codecs[codec.payloadType] = codec
        for encoding in parameters.encodings:
            if encoding.rtx is not None:
                self._rtx_sources[encoding.rtx.ssrc] = encoding.ssrc
        self._worker = DecoderWorker(
            name=f"video-decoder-{parameters.muxId}",
            sink=track.put_from_decoder,
            reference_lost=self._reference_lost,
            queue_frames=self._options.decode_queue_frames
            if self._options.bounded_decode
            else None,
            max_picture_pixels=self._options.max_picture_pixels,
        )
        self.transport._register_rtp_receiver(self, parameters)
        self._task = asyncio.create_task(self._run_timers(), name="video-receiver-timers")

    async def stop(self) -> None:
        """End the track, the timers and the decoder thread; waits `STOP_TIMEOUT_S` at most."""
        self._stopped = True
        # aiortc stops transceivers that never got a transport, after an offer that it refused.
        transport: RTCDtlsTransport | None = self.transport
        if transport is not None:
            transport._unregister_rtp_receiver(self)
        self._end()
        if self._task is not None:
            self._task.cancel()
            ended, _ = await asyncio.wait([self._task], timeout=STOP_TIMEOUT_S)
            if ended:
                # How it was cancelled leads back here.
                self._task = None
        if self._worker is not None and not await self._worker.wait_ended(STOP_TIMEOUT_S):
            logger.warning("%s still decodes after %g s", self._worker.name, STOP_TIMEOUT_S)
        self._forward_sink = None

    def forward_to(self, sink: ForwardSink) -> None:
        """Hand every whole frame to `sink` too, on the loop and before it is decoded; `sink` must
        not block or raise."""
        self._forward_sink = sink

    def wish_keyframe(self) -> None:
        """Ask the peer for a key frame, and again until one is there; the throttle of all such
        requests applies."""
        if self._key_frame_wished_at_ns is None:
            self._key_frame_wished_at_ns = now_ns()
            self._wake.set()

    def survivors(self) -> tuple[str, ...]:
        """Names of what still runs."""
        names = []
        if self._task is not None and not self._task.done():
            names.append(self._task.get_name())
        if self._worker is not None and self._worker.is_alive:
            names.append(self._worker.name)
        return tuple(names)

    def _handle_disconnect(self) -> None:
        self._end()

    def _end(self) -> None:
        """End track and decoder without waiting for either."""
        if self._worker is not None:
            self._worker.request_stop()
        if self._remote_track is not None:
            self._remote_track.stop()

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        if isinstance(packet, RtcpSrPacket):
            source = self._sources.get(packet.ssrc)
            if source is not None:
                source.sender_report(packet.sender_info.ntp_timestamp, now_ns())
        elif isinstance(packet, RtcpByePacket) and self._active_ssrc in packet.sources:
            self._end()

    async def _handle_rtp_packet(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        """Take one packet: statistics, feedback, assembly, decode queue."""
        codec = self._codecs.get(packet.payload_type)
        if not self._enabled or self._stopped or codec is None:
            return
        connection = self._connection
        received_at_ns = connection.datagram_received_at_ns if connection else now_ns()
        source = self._source(packet.ssrc, codec.clockRate)
        if source is None:
            return
        size = len(packet.payload) + packet.padding_size
        source.packet(packet.sequence_number, packet.timestamp, size, received_at_ns)
        await self._reports.estimate(packet, size, received_at_ns)
        retransmitted = is_rtx(codec)
        if retransmitted:
            media_ssrc = self._rtx_sources.get(packet.ssrc, self._active_ssrc)
            media_type = codec.parameters.get("apt")
            # Without payload it probes the path.
            if media_ssrc is None or len(packet.payload) < 2 or not isinstance(media_type, int):
                return
            codec = self._codecs.get(media_type)
            if codec is None:
                return
            packet = unwrap_rtx(packet, payload_type=media_type, ssrc=media_ssrc)
        now = now_ns()
        if not self._is_active(packet.ssrc, now):
            return
        await self._take(packet, codec, retransmitted, received_at_ns, now)

    # One packet of the active source.

    async def _take(
        self,
        packet: RtpPacket,
        codec: RTCRtpCodecParameters,
        retransmitted: bool,
        received_at_ns: int,
        now: int,
    ) -> None:
        try:
            payload = parse_payload(codec.name, packet.payload) if packet.payload else None
        except ValueError as error:
            logger.debug("payload refused: %s", error)
            return
        repairable = self._nack.received(packet.sequence_number, now)
        frames = self._assembler.add(
            AssemblyPacket(
                sequence_number=packet.sequence_number,
                rtp_timestamp=packet.timestamp,
                marker=bool(packet.marker),
                codec_name=codec.name,
                payload=payload,
                received_at_ns=received_at_ns,
                retransmitted=retransmitted,
                wire_payload=packet.payload,
            ),
            now,
        )
        if self._assembler.counters.restarts != self._restarts_seen:
            self._restarts_seen = self._assembler.counters.restarts
            self._nack.restart()
            self._nack.received(packet.sequence_number, now)
        elif not repairable:
            frames += self._assembler.abandon_hole(now)
        self._submit(frames, now)
        await self._send_feedback(now)

    def _submit(self, frames: list[EncodedFrame], now: int) -> None:
        """Give frames to the decoder; what it must drop is a loss like any other."""
        while frames and self._worker is not None:
            frame = frames.pop(0)
            self._codec_name = frame.codec_name
            pts = self._unwrapped_pts(frame.rtp_timestamp)
            if frame.is_key:
                self._key_frame_wished_at_ns = None
            if self._forward_sink is not None:
                self._forward_sink(frame, pts)
            if not self._worker.submit_nowait(frame, pts):
                frames = self._assembler.reference_lost(frame.rtp_timestamp, now) + frames

    def _unwrapped_pts(self, rtp_timestamp: int) -> int:
        """RTP time since the first frame; a step back stays a step back."""
        if self._pts is None:
            self._pts = 0
        else:
            step = rtp_timestamp - self._last_rtp_timestamp + 0x80000000 & 0xFFFFFFFF
            self._pts += step - 0x80000000
        self._last_rtp_timestamp = rtp_timestamp
        return self._pts

    def _reference_lost(self, rtp_timestamp: int) -> None:
        now = now_ns()
        self._submit(self._assembler.reference_lost(rtp_timestamp, now), now)
        self._wake.set()

    # Sources.

    def _source(self, ssrc: int, clock_rate: int) -> SourceStatistics | None:
        """The statistics of a source; None when there are too many."""
        source = self._sources.get(ssrc)
        if source is None:
            if len(self._sources) >= MAX_SOURCES:
                self._packets_foreign += 1
                return None
            source = self._sources[ssrc] = SourceStatistics(clock_rate)
        return source

    def _is_active(self, ssrc: int, now: int) -> bool:
        """Whether a packet belongs to the picture; another source may follow a silent one."""
        if ssrc != self._active_ssrc:
            if self._active_ssrc is not None and now - self._active_at_ns < SOURCE_SWITCH_AFTER_NS:
                self._packets_foreign += 1
                return False
            if self._active_ssrc is not None:
                counters = self._assembler.counters
                self._assembler = self._make_assembler()
                self._assembler.counters = counters
                self._nack.restart()
            self._active_ssrc = ssrc
        self._active_at_ns = now
        return True

    def _make_assembler(self) -> FrameAssembler | StockAssembler:
        options = self._options
        if not options.marker_assembly:
            return StockAssembler()
        return FrameAssembler(
            deadline_ns=int(options.frame_deadline_ms * NS_PER_MS),
            freeze_limit_ns=int(options.freeze_limit_ms * NS_PER_MS),
            max_packets=options.max_packets_buffered,
        )

    # Feedback.

    async def _send_feedback(self, now: int) -> None:
        """Send what is due, and see to it that the timers know when the next is."""
        if self._active_ssrc is None:
            return
        open_since_ns = self._assembler.open_since_ns
        lost: list[int] = []
        if len(self._nack):
            self._nack.forget_before(self._assembler.floor_sequence_number)
            lost = self._nack.due(now, self._rtt_ns)
        elif open_since_ns is not None and self._options.timed_nack:
            lost = self._nack.beyond(open_since_ns, now, self._rtt_ns)
        if lost:
            await self._reports.nack(self._active_ssrc, lost)
        wanted_at_ns = self._key_frame_wanted_at_ns()
        if wanted_at_ns is not None and self._pli.take(wanted_at_ns, now):
            await self._reports.picture_loss(self._active_ssrc)
        due_ns = self._next_due_ns()
        if due_ns is not None and due_ns < self._timer_at_ns:
            self._wake.set()

    def _next_due_ns(self) -> int | None:
        instants = []
        open_since_ns = self._assembler.open_since_ns
        if len(self._nack):
            instants.append(self._nack.next_due_ns())
        elif open_since_ns is not None and self._options.timed_nack:
            instants.append(self._nack.beyond_due_ns(open_since_ns, self._rtt_ns))
        if self._assembler.next_deadline_ns is not None:
            instants.append(self._assembler.next_deadline_ns)
        wanted_at_ns = self._key_frame_wanted_at_ns()
        if wanted_at_ns is not None and self._active_ssrc is not None:
            instants.append(self._pli.due_at_ns(wanted_at_ns))
        return min((instant for instant in instants if instant is not None), default=None)

    def _key_frame_wanted_at_ns(self) -> int | None:
        """Since when a key frame is wanted, by the decoder or by somebody else."""
        wishes = (self._assembler.key_frame_wanted_at_ns, self._key_frame_wished_at_ns)
        return min((wish for wish in wishes if wish is not None), default=None)

    async def _run_timers(self) -> None:
        """NACK repeats, frame deadlines, waiting PLIs and receiver reports, until cancelled."""
        try:
            await self._serve_timers()
        except Exception:
            # Without its timers a track would stall at the first loss: better to end it.
            logger.exception("the timers of an incoming video failed; the track ends")
            self._end()

    async def _serve_timers(self) -> None:
        report_at_ns = now_ns() + report_interval_ns()
        while True:
            due_ns = self._next_due_ns()
            self._timer_at_ns = report_at_ns if due_ns is None else min(report_at_ns, due_ns)
            timeout_s = max(0.0, (self._timer_at_ns - now_ns()) / NS_PER_S)
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            now = now_ns()
            self._submit(self._assembler.expire(now), now)
            await self._send_feedback(now)
            if now >= report_at_ns:
                report_at_ns = now + report_interval_ns()
                await self._reports.receiver_report(self._sources, now)

    # Statistics.

    async def getStats(self) -> RTCStatsReport:
        """W3C statistics, for those who want them in that form."""
        report = RTCStatsReport()
        for ssrc, source in self._sources.items():
            report.add(
                RTCInboundRtpStreamStats(
                    timestamp=wall_clock.current_datetime(),
                    type="inbound-rtp",
                    id=f"inbound-rtp_{id(self)}_{ssrc}",
                    ssrc=ssrc,
                    kind="video",
                    transportId=self.transport._stats_id,
                    packetsReceived=source.packets_received,
                    packetsLost=source.packets_lost,
                    jitter=source.jitter,
                )
            )
        report.update(self.transport._get_stats())
        return report

    def statistics(self) -> ReceiverStatistics:
        """A snapshot."""
        active = self._sources.get(self._active_ssrc or 0) or SourceStatistics(90_000)
        assembled = self._assembler.counters
        decoding = self._worker.counters if self._worker is not None else None
        track = self._remote_track
        return ReceiverStatistics(
            codec=self._codec_name,
            packets_received=sum(source.packets_received for source in self._sources.values()),
            bytes_received=sum(source.bytes_received for source in self._sources.values()),
            packets_lost=active.packets_lost,
            packets_foreign=self._packets_foreign,
            jitter_ms=active.jitter_ms,
            packets_requested=self._nack.packets_requested,
            packets_recovered=self._nack.packets_recovered,
            plis_sent=self._pli.sent,
            frames_assembled=assembled.frames_released,
            key_frames=assembled.key_frames_released,
            frames_decoded=decoding.frames_decoded if decoding else 0,
            decode_errors=decoding.decode_errors if decoding else 0,
            dropped=MappingProxyType(
                {
                    "lost": assembled.frames_dropped,
                    "decode_queue": decoding.dropped_full if decoding else 0,
                    "corrupt": decoding.dropped_corrupt if decoding else 0,
                    "unread": track.dropped_unread if isinstance(track, RemoteVideoTrack) else 0,
                }
            ),
            restarts=assembled.restarts,
            sink_errors=decoding.sink_errors if decoding else 0,
            decode_queue_frames=self._worker.frames_waiting if self._worker else 0,
            last_error=decoding.last_error if decoding else "",
        )
