"""The RTCP that a receiver sends: what it got, what it lacks, how fast the sender may be.

Loop only. Packets after the end of the connection are not sent, and that is no error.
"""

import logging
import random
from collections.abc import Mapping

from aiortc import RTCDtlsTransport
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

from server.clock import NS_PER_S
from server.rtc.estimate import RateEstimator
from server.rtc.statistics import SourceStatistics

logger = logging.getLogger(__name__)

MAX_REMB_SOURCES = 8


def report_interval_ns() -> int:
    """RFC 3550 varies it, so that reports of many do not fall together."""
    return int((0.5 + random.random()) * NS_PER_S)


class ReportSender:
    """Sends for one receiver, under the SSRC that the peer connection gave it.

    `transport` may be replaced: bundling does.
    """

    def __init__(self, transport: RTCDtlsTransport) -> None:
        self.transport = transport
        self._estimator = RateEstimator()
        # Of the packets that the estimate is about; the newest ones.
        self._estimated_ssrcs: dict[int, None] = {}
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
        self._estimated_ssrcs.pop(packet.ssrc, None)
        self._estimated_ssrcs[packet.ssrc] = None
        if len(self._estimated_ssrcs) > MAX_REMB_SOURCES:
            del self._estimated_ssrcs[next(iter(self._estimated_ssrcs))]
        bitrate = self._estimator.add(received_at_ns, abs_send_time, size)
        if bitrate is not None and self.ssrc is not None:
            await self._send(
                RtcpPsfbPacket(
                    fmt=RTCP_PSFB_APP,
                    ssrc=self.ssrc,
                    media_ssrc=0,
                    fci=pack_remb_fci(bitrate, list(self._estimated_ssrcs)),
                )
            )

    async def _send(self, packet: AnyRtcpPacket) -> None:
        try:
            await self.transport._send_rtp(bytes(packet))
        except ConnectionError:
            logger.debug("report after the connection ended")
