"""The RTCP that a receiver sends: what it got, what it lacks, how fast the sender may be.

Loop only. Packets after the end of the connection are not sent, and that is no error.
"""

import logging
import random
from collections.abc import Callable, Mapping

from aiortc import RTCDtlsTransport
from aiortc.rate import RemoteBitrateEstimator
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    AnyRtcpPacket,
    RtcpPsfbPacket,
    RtcpReceiverInfo,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtpPacket,
    pack_remb_fci,
)

from server.clock import NS_PER_MS, NS_PER_S
from server.rtc.statistics import SourceStatistics

logger = logging.getLogger(__name__)

# aiortc's rate counter walks each millisecond of a pause; its own window is one second.
RATE_WINDOW_MS = 1000
MAX_REMB_SOURCES = 8


def report_interval_ns() -> int:
    """RFC 3550 varies it, so that reports of many do not fall together."""
    return int((0.5 + random.random()) * NS_PER_S)


class ReportSender:
    """Sends for one receiver, under the SSRC that the peer connection gave it.

    `transport` is asked for each time: bundling may replace it.
    """

    def __init__(self, transport: Callable[[], RTCDtlsTransport]) -> None:
        self._transport = transport
        self._estimator = RemoteBitrateEstimator()
        self._estimator_fed_at_ms = 0
        self.ssrc: int | None = None

    async def receiver_report(self, sources: Mapping[int, SourceStatistics], now_ns: int) -> None:
        """What came of each source since the last report."""
        if self.ssrc is None or not sources:
            return
        reports = []
        for ssrc, source in sources.items():
            lsr, dlsr = source.last_sender_report(now_ns)
            reports.append(
                RtcpReceiverInfo(
                    ssrc=ssrc,
                    fraction_lost=source.take_fraction_lost(),
                    packets_lost=source.packets_lost,
                    highest_sequence=source.highest_sequence,
                    jitter=source.jitter & 0xFFFFFFFF,
                    lsr=lsr,
                    dlsr=dlsr,
                )
            )
        await self._send(RtcpRrPacket(ssrc=self.ssrc, reports=reports))

    async def nack(self, media_ssrc: int, lost: list[int]) -> None:
        """Ask for packets again; the numbers are sorted."""
        if self.ssrc is not None:
            await self._send(
                RtcpRtpfbPacket(
                    fmt=RTCP_RTPFB_NACK, ssrc=self.ssrc, media_ssrc=media_ssrc, lost=lost
                )
            )

    async def picture_loss(self, media_ssrc: int) -> None:
        """Ask for a key frame."""
        if self.ssrc is not None:
            await self._send(
                RtcpPsfbPacket(fmt=RTCP_PSFB_PLI, ssrc=self.ssrc, media_ssrc=media_ssrc)
            )

    async def estimate(self, packet: RtpPacket, size: int, received_at_ns: int) -> None:
        """Feed the bandwidth estimator; tell the sender its answer, when it has one (REMB)."""
        abs_send_time = packet.extensions.abs_send_time
        if abs_send_time is None:
            return
        arrival_ms = received_at_ns // NS_PER_MS
        if arrival_ms - self._estimator_fed_at_ms > RATE_WINDOW_MS:
            self._estimator.incoming_bitrate.reset()
        self._estimator_fed_at_ms = arrival_ms
        answer = self._estimator.add(
            arrival_time_ms=arrival_ms,
            abs_send_time=abs_send_time,
            payload_size=size,
            ssrc=packet.ssrc,
        )
        if answer is not None and self.ssrc is not None:
            bitrate, ssrcs = answer
            await self._send(
                RtcpPsfbPacket(
                    fmt=RTCP_PSFB_APP,
                    ssrc=self.ssrc,
                    media_ssrc=0,
                    fci=pack_remb_fci(bitrate, ssrcs[:MAX_REMB_SOURCES]),
                )
            )

    async def _send(self, packet: AnyRtcpPacket) -> None:
        try:
            await self._transport()._send_rtp(bytes(packet))
        except ConnectionError:
            logger.debug("report after the connection ended")
