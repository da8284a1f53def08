"""One peer connection made of our parts, and of nobody else's.

aiortc makes its parts in two private methods; they are overridden here, so that a stock
`RTCPeerConnection` in the same process stays stock. `tests/rtc/test_contract.py` pins them.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

from aiortc import (
    MediaStreamTrack,
    RTCBundlePolicy,
    RTCConfiguration,
    RTCDtlsTransport,
    RTCIceTransport,
    RTCPeerConnection,
    RTCRtpReceiver,
    RTCRtpSender,
    RTCRtpTransceiver,
    RTCSctpTransport,
    RTCSessionDescription,
)
from aiortc.codecs import get_capabilities
from aiortc.rtcdtlstransport import RTCCertificate
from aiortc.rtcrtpparameters import RTCRtpCodecCapability
from aiortc.sdp import SessionDescription, candidate_from_sdp

from server.clock import ns_to_ms
from server.rtc.extensions import also_common
from server.rtc.fanout_sender import FanoutSender, FindFanout
from server.rtc.guard import GuardedDtlsTransport
from server.rtc.ice import IceConnection, IceGatherer
from server.rtc.idle import IdleReceiver
from server.rtc.options import RtcOptions
from server.rtc.receiver import VideoReceiver
from server.rtc.sender import SenderStatistics, VideoSender
from server.rtc.statistics import ReceiverStatistics

logger = logging.getLogger(__name__)

CUT_TIMEOUT_S = 0.5

# The name of the session in the offers of FFmpeg's WHIP muxer.
FFMPEG_WHIP = "FFmpegPublishSession"


@dataclass(frozen=True, slots=True)
class PeerStatistics:
    """One peer connection at one instant."""

    connection_state: str
    ice_state: str
    last_packet_at_ns: int
    rtt_ms: float | None
    """By ICE consent; None until measured."""
    rejected_datagrams: Mapping[str, int]
    """By kind: empty, oversize, unknown, foreign, overflow, stun, rtp, rtcp, data, dtls; `system`
    are those that the system's filter refused or had no room for."""
    incoming: tuple[ReceiverStatistics, ...]
    outgoing: tuple[SenderStatistics, ...]


class PeerConnection(RTCPeerConnection):
    """An `RTCPeerConnection` by `options`. Loop only.

    `encode_executor` belongs to the caller and must outlive the connection. With `find_fanout`
    outgoing video is what that fan-out encodes for all its viewers. Ends by `close` or
    `close_within`, when the peer closes DTLS, or when it stops answering.
    """

    # aiortc's private state that the overridden factories share with the rest of it.
    _RTCPeerConnection__certificates: list[RTCCertificate]
    _RTCPeerConnection__dtlsTransports: set[RTCDtlsTransport]
    _RTCPeerConnection__iceTransports: set[RTCIceTransport]
    _RTCPeerConnection__isClosed: asyncio.Future[bool] | None
    _RTCPeerConnection__remoteDescription: Callable[[], SessionDescription]
    _RTCPeerConnection__sctp: RTCSctpTransport | None
    _RTCPeerConnection__stream_id: str
    _RTCPeerConnection__transceivers: list[RTCRtpTransceiver]
    _RTCPeerConnection__updateConnectionState: Callable[[], None]
    _RTCPeerConnection__updateIceConnectionState: Callable[[], None]
    _RTCPeerConnection__updateIceGatheringState: Callable[[], None]

    def __init__(
        self,
        options: RtcOptions,
        encode_executor: Executor,
        find_fanout: FindFanout | None = None,
    ) -> None:
        super().__init__(RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))
        self._options = options
        self._encode_executor = encode_executor
        self._find_fanout = find_fanout
        self._connecting: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None

    # What the session asks.

    @property
    def last_packet_at_ns(self) -> int:
        """When the peer last proved to be there: media, report or consent; 0 before."""
        instants = [connection.last_check_at_ns for connection in self._connections()]
        instants += [
            transport.last_packet_at_ns
            for transport in self._RTCPeerConnection__dtlsTransports
            if isinstance(transport, GuardedDtlsTransport)
        ]
        return max(instants, default=0)

    @property
    def failure(self) -> str:
        """Why it did not connect, where that is known; empty otherwise."""
        for transport in self._RTCPeerConnection__dtlsTransports:
            if isinstance(transport, GuardedDtlsTransport) and transport.failure:
                return transport.failure
        return ""

    @property
    def remote_credentials(self) -> tuple[str, str]:
        """The peer's ICE user fragment and password, once its description is set."""
        ice = self._RTCPeerConnection__remoteDescription().media[0].ice
        return (ice.usernameFragment or "", ice.password or "") if ice else ("", "")

    async def add_candidates(self, lines: Iterable[str]) -> None:
        """Take candidates found after the description, as `candidate:...`; what cannot be used
        is passed over."""
        for line in lines:
            try:
                candidate = candidate_from_sdp(line.removeprefix("candidate:"))
            except (ValueError, AssertionError, IndexError):
                logger.debug("candidate passed over: %.80s", line)
                continue
            for transport in self._RTCPeerConnection__iceTransports:
                await transport.addRemoteCandidate(candidate)

    def statistics(self) -> PeerStatistics:
        """A snapshot."""
        rejected: dict[str, int] = {}
        rtt_ns = 0
        for connection in self._connections():
            rtt_ns = max(rtt_ns, connection.rtt_ns)
            for kind, count in connection.rejections.counts.items():
                rejected[kind] = rejected.get(kind, 0) + count
            if dropped := connection.dropped_by_system():
                rejected["system"] = rejected.get("system", 0) + dropped
        transceivers = self._RTCPeerConnection__transceivers
        return PeerStatistics(
            connection_state=self.connectionState,
            ice_state=self.iceConnectionState,
            last_packet_at_ns=self.last_packet_at_ns,
            rtt_ms=ns_to_ms(rtt_ns) if rtt_ns else None,
            rejected_datagrams=rejected,
            incoming=tuple(
                transceiver.receiver.statistics()
                for transceiver in transceivers
                if isinstance(transceiver.receiver, VideoReceiver)
            ),
            outgoing=tuple(
                transceiver.sender.statistics()
                for transceiver in transceivers
                if isinstance(transceiver.sender, VideoSender)
            ),
        )

    async def setRemoteDescription(self, sessionDescription: RTCSessionDescription) -> None:
        """As the base class; audio that only the peer wants is answered inactive, and header
        extensions that only we know are agreed to."""
        before = set(self._RTCPeerConnection__transceivers)
        await super().setRemoteDescription(sessionDescription)
        if any(self._without_transport()):
            raise ValueError("a section is in no bundle and has no transport of its own")
        description = self._RTCPeerConnection__remoteDescription()
        if description.name == FFMPEG_WHIP:
            for transport in self._RTCPeerConnection__dtlsTransports:
                if isinstance(transport, GuardedDtlsTransport):
                    transport.says_goodbye = False
        offered = {
            media.rtp.muxId: media.rtp.headerExtensions for media in description.media if media.rtp
        }
        for transceiver in self._RTCPeerConnection__transceivers:
            if transceiver.kind == "audio" and transceiver not in before:
                transceiver.direction = "inactive"
            if transceiver.kind == "video" and self._options.header_extensions:
                transceiver._headerExtensions += also_common(offered.get(transceiver.mid or "", ()))

    # The end.

    async def close(self) -> None:
        """As the base class, but first ends what still connects. Idempotent."""
        current = asyncio.current_task()
        connecting = [task for task in self._connecting if task is not current]
        for task in connecting:
            task.cancel()
        if connecting:
            # Otherwise a handshake that succeeds right now would start receivers after all.
            await asyncio.wait(connecting)
        # Of a description that was refused; aiortc cannot close what has no transport.
        for transceiver in [*self._without_transport()]:
            self._RTCPeerConnection__transceivers.remove(transceiver)
            await transceiver.receiver.stop()
            await transceiver.sender.stop()
        await super().close()
        # aiortc leaves these to the garbage collector, and everything else with them.
        for transport in self._RTCPeerConnection__dtlsTransports:
            transport.remove_all_listeners()
        if self._RTCPeerConnection__sctp is not None:
            self._RTCPeerConnection__sctp._data_channel_queue.clear()

    def _without_transport(self) -> Iterable[RTCRtpTransceiver]:
        for transceiver in self._RTCPeerConnection__transceivers:
            transport: RTCDtlsTransport | None = transceiver.receiver.transport
            if transport is None:
                yield transceiver

    async def close_within(self, timeout_s: float) -> tuple[str, ...]:
        """Close; after `timeout_s` cut what does not end, and return the names of what did not.

        Takes `CUT_TIMEOUT_S` longer at most. Idempotent; a second caller waits for the first.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self.close(), name="peer-close")
        closing = self._closing
        await asyncio.wait([closing], timeout=timeout_s)
        survivors = self._survivors()
        if not closing.done():
            closing.cancel()
            survivors = ("peer-close", *survivors)
        elif closing.cancelled() or closing.exception() is None:
            return survivors
        else:
            logger.error("closing a peer failed", exc_info=closing.exception())
        await self._cut()
        return survivors

    async def _cut(self) -> None:
        """Give back ports and threads though the orderly end failed or hangs."""
        sctp = self._RTCPeerConnection__sctp
        stops = [] if sctp is None else [sctp.stop()]
        for transceiver in self._RTCPeerConnection__transceivers:
            transceiver.receiver._handle_disconnect()
            stops.append(transceiver.sender.stop())
        stops += [transport.stop() for transport in self._RTCPeerConnection__dtlsTransports]
        stops += [transport.stop() for transport in self._RTCPeerConnection__iceTransports]
        tasks = [asyncio.create_task(stop) for stop in stops]
        _, pending = await asyncio.wait(tasks, timeout=CUT_TIMEOUT_S)
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in self._connections():
            connection.cut()
        closed = self._RTCPeerConnection__isClosed
        if closed is not None and not closed.done():
            closed.set_result(True)

    def _survivors(self) -> tuple[str, ...]:
        """Names of tasks, threads and sockets of this peer that still are."""
        names = [task.get_name() for task in self._connecting if not task.done()]
        for transceiver in self._RTCPeerConnection__transceivers:
            if isinstance(transceiver.receiver, VideoReceiver):
                names += transceiver.receiver.survivors()
            task = transceiver.sender._RTCRtpSender__rtp_task  # type: ignore[attr-defined]
            if task is not None and not task.done():
                names.append(f"{transceiver.kind}-sender")
        names += ["ice-socket" for connection in self._connections() if connection.has_open_socket]
        return tuple(names)

    # What aiortc calls to make its parts.

    async def _RTCPeerConnection__connect(self) -> None:
        """Connect, as a task that `close` knows of and whose failure is told."""
        task = asyncio.current_task()
        assert task is not None
        self._connecting.add(task)
        try:
            await super()._RTCPeerConnection__connect()  # type: ignore[misc]
        except Exception:
            # aiortc starts this as a task that nobody awaits: without this the peer would hang
            # half-open, and the reason appear when the task is collected.
            logger.exception("connecting a peer failed")
            self._closing = self._closing or asyncio.create_task(self.close(), name="peer-close")
        finally:
            self._connecting.discard(task)

    def _RTCPeerConnection__createDtlsTransport(self) -> RTCDtlsTransport:
        credentials = self._local_credentials()
        gatherer = IceGatherer(self._options, *credentials)
        gatherer.on("statechange", self._RTCPeerConnection__updateIceGatheringState)
        ice = RTCIceTransport(gatherer)
        ice.on("statechange", self._RTCPeerConnection__updateIceConnectionState)
        ice.on("statechange", self._RTCPeerConnection__updateConnectionState)
        self._RTCPeerConnection__iceTransports.add(ice)
        certificates = self._RTCPeerConnection__certificates
        dtls: RTCDtlsTransport
        if self._options.datagram_guard:
            dtls = GuardedDtlsTransport(ice, certificates, gatherer.connection.rejections)
        else:
            dtls = RTCDtlsTransport(ice, certificates)
        dtls.on("statechange", self._RTCPeerConnection__updateConnectionState)
        self._RTCPeerConnection__dtlsTransports.add(dtls)
        self._RTCPeerConnection__updateIceGatheringState()
        self._RTCPeerConnection__updateIceConnectionState()
        self._RTCPeerConnection__updateConnectionState()
        return dtls

    def _RTCPeerConnection__createTransceiver(
        self, direction: str, kind: str, sender_track: MediaStreamTrack | None = None
    ) -> RTCRtpTransceiver:
        transport = self._bundle_transport()
        bundled = transport is not None
        if transport is None:
            transport = self._RTCPeerConnection__createDtlsTransport()
        transceiver = RTCRtpTransceiver(
            direction=direction,
            kind=kind,
            sender=self._make_sender(sender_track or kind, kind, transport),
            receiver=self._make_receiver(kind, transport),
        )
        transceiver.receiver._set_rtcp_ssrc(transceiver.sender._ssrc)
        transceiver.sender._stream_id = self._RTCPeerConnection__stream_id
        transceiver._bundled = bundled
        if kind == "video":
            transceiver.setCodecPreferences(_video_codecs(self._options.video_codecs))
        self._RTCPeerConnection__transceivers.append(transceiver)
        return transceiver

    def _make_sender(
        self, track_or_kind: MediaStreamTrack | str, kind: str, transport: RTCDtlsTransport
    ) -> RTCRtpSender:
        if kind == "video" and self._find_fanout is not None:
            return FanoutSender(
                track_or_kind,
                transport,
                options=self._options,
                encode_executor=self._encode_executor,
                find_fanout=self._find_fanout,
            )
        if kind == "video":
            return VideoSender(
                track_or_kind,
                transport,
                options=self._options,
                encode_executor=self._encode_executor,
            )
        return RTCRtpSender(track_or_kind, transport)

    def _make_receiver(self, kind: str, transport: RTCDtlsTransport) -> RTCRtpReceiver:
        if kind == "video":
            return VideoReceiver(transport, options=self._options)
        return IdleReceiver(kind, transport)

    def _bundle_transport(self) -> RTCDtlsTransport | None:
        """The transport that everything shares, once there is one."""
        for transceiver in self._RTCPeerConnection__transceivers:
            return transceiver.receiver.transport
        sctp = self._RTCPeerConnection__sctp
        return None if sctp is None else sctp.transport

    def _local_credentials(self) -> tuple[str | None, str | None]:
        """Transports of one connection share their ICE credentials."""
        transport = self._bundle_transport()
        if transport is None:
            return None, None
        parameters = transport.transport.iceGatherer.getLocalParameters()
        return parameters.usernameFragment, parameters.password

    def _connections(self) -> Iterable[IceConnection]:
        for transport in self._RTCPeerConnection__iceTransports:
            gatherer = transport.iceGatherer
            if isinstance(gatherer, IceGatherer):
                yield gatherer.connection


def _video_codecs(names: tuple[str, ...]) -> list[RTCRtpCodecCapability]:
    """aiortc's capabilities of these names in this order, and retransmission."""
    capabilities = get_capabilities("video").codecs
    wanted = [*(name.upper() for name in names), "RTX"]
    return [
        capability for name in wanted for capability in capabilities if _name(capability) == name
    ]


def _name(capability: RTCRtpCodecCapability) -> str:
    return capability.mimeType.split("/")[1].upper()
