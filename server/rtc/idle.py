"""A receiver for what nobody wants: audio is taken off the wire, and nothing is kept."""

from aiortc import RTCDtlsTransport, RTCRtpReceiver
from aiortc.rtcrtpparameters import RTCRtpReceiveParameters
from aiortc.rtp import AnyRtcpPacket, RtpPacket


class IdleReceiver(RTCRtpReceiver):
    """Takes packets that nobody wants: no decoder, no thread, nothing kept."""

    async def receive(self, parameters: RTCRtpReceiveParameters) -> None:
        """Register for the packets, so that they are routed here."""
        self.transport._register_rtp_receiver(self, parameters)

    async def _handle_rtp_packet(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        """Drop it."""

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        """Nothing to report."""

    def _handle_disconnect(self) -> None:
        self._end_track()

    async def stop(self) -> None:
        """Unregister and end the track."""
        transport: RTCDtlsTransport | None = self.transport
        if transport is not None:
            transport._unregister_rtp_receiver(self)
        self._end_track()

    def _end_track(self) -> None:
        track = self._track
        if track is not None and track.readyState == "live":
            track._queue.put_nowait(None)
