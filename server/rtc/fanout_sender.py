"""A viewer's sender: shared payloads, its own headers and encryption, nothing encoded.

Everything of `VideoSender` that answers a receiver stays (NACK, RTX, reports, REMB); only where
pictures come from differs. A viewer that cannot take all is served up to what it can: what does
not fit is dropped up to the next key frame, so that it never drags the others along.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

from aiortc import clock as wall_clock
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import RTCRtpCodecParameters

from server.clock import NS_PER_S, now_ns
from server.rtc.bitrate import Allowance
from server.rtc.fanout import Fanout, SharedPicture
from server.rtc.options import RtcOptions
from server.rtc.sender import (
    MARKER,
    RTP_EXTENSION,
    RTP_HEADER,
    RTP_VERSION,
    SEND_ERRORS,
    VideoSender,
)
from server.rtc.sender_guards import SentPacket

# Seconds of its rate that a viewer may be sent ahead: a key frame is several pictures' worth.
BURST_S = 0.75
# Least time between two key frames that a slow viewer may cause for everybody.
SLOW_WISH_NS = 2 * NS_PER_S
# Bytes the kernel would not take yet.
UNSENT_BYTES_AT_MOST = 256 * 1024

FindFanout = Callable[[str], Fanout]


class ViewerPace:
    """Decides which pictures a viewer gets; pure.

    Without an estimate of its way: all. With one: what a credit of `BURST_S` at that rate pays
    for. A picture that is left out takes all up to the next key frame along.
    """

    def __init__(self) -> None:
        self.needs_keyframe = True
        self.dropped = 0
        self._credit_bytes: float | None = None
        self._at_ns = 0

    def take(self, size: int, keyframe: bool, rate_bps: int | None, at_ns: int) -> bool:
        """Whether a picture of this size goes out; it counts either way."""
        credit = self._refill(rate_bps, at_ns)
        wanted = keyframe or not self.needs_keyframe
        if wanted and (credit is None or credit > 0):
            # The credit may go below zero once: a key frame larger than a burst must pass too.
            self._credit_bytes = None if credit is None else credit - size
            self.needs_keyframe = False
            return True
        if wanted or self._credit_bytes is not None:
            self.dropped += 1
        self.needs_keyframe = True
        return False

    def _refill(self, rate_bps: int | None, at_ns: int) -> float | None:
        if rate_bps is None:
            self._credit_bytes = None
        else:
            burst = rate_bps / 8 * BURST_S
            elapsed_s = (at_ns - self._at_ns) / NS_PER_S
            before = burst if self._credit_bytes is None else self._credit_bytes
            self._credit_bytes = min(burst, before + rate_bps / 8 * elapsed_s)
        self._at_ns = at_ns
        return self._credit_bytes

    def may_go_on(self) -> bool:
        """Whether a key frame would be sent now."""
        return self._credit_bytes is None or self._credit_bytes > 0


class FanoutSender(VideoSender):
    """A `VideoSender` fed by the fan-out that `find_fanout` names for the negotiated codec.

    Ends when it is stopped or its transport closes.
    """

    def __init__(
        self,
        trackOrKind: MediaStreamTrack | str,
        transport: RTCDtlsTransport,
        *,
        options: RtcOptions,
        encode_executor: Executor,
        find_fanout: FindFanout,
    ) -> None:
        super().__init__(trackOrKind, transport, options=options, encode_executor=encode_executor)
        self._find_fanout = find_fanout
        self._fanout: Fanout | None = None
        self._payload_type = 0
        self._pace = ViewerPace()
        self._slow_wish_at_ns = 0

    @property
    def dropped_slow(self) -> int:
        """Pictures left out because this viewer's way could not take them."""
        return self._pace.dropped

    async def _run_rtp(self, codec: RTCRtpCodecParameters) -> None:
        self._RTCRtpSender__rtp_started.set()
        self._codec_name = codec.name
        assert codec.payloadType is not None
        self._payload_type = codec.payloadType
        fanout = self._fanout = self._find_fanout(codec.name)
        fanout.join(self)
        try:
            # Pictures come by `send_picture`; only being stopped ends this.
            await asyncio.get_running_loop().create_future()
        finally:
            fanout.leave(self)
            self._fanout = None
            if self.track is not None:
                self.track.stop()
                self._RTCRtpSender__track = None
            self._RTCRtpSender__rtp_exited.set()

    def allowance(self) -> Allowance:
        """What this viewer's way can take."""
        return self._rate.allowance()

    def _send_keyframe(self) -> None:
        self._keyframe_requests += 1
        if self._fanout is not None:
            self._fanout.wish_keyframe()

    def send_picture(self, picture: SharedPicture) -> None:
        """Send one picture, or leave it out. On the loop; never raises, never waits."""
        at_ns = now_ns()
        if self.transport.state != "connected":
            return
        rate_bps = 0 if self._unsent_bytes() > UNSENT_BYTES_AT_MOST else self.allowance().cap_bps
        if not self._pace.take(picture.size, picture.keyframe, rate_bps, at_ns):
            self._wish_if_slow(at_ns)
            return
        self._last = picture.result
        self._rate.used(picture.result.bits_per_s)
        ntp_timestamp = wall_clock.current_ntp_time()
        extension = self._header_block.at(ntp_timestamp, at_ns - picture.captured_at_ns)
        first_byte = RTP_VERSION | (RTP_EXTENSION if extension else 0)
        payloads, rtp_timestamp = picture.payloads, picture.rtp_timestamp
        sequence_number, payload_type = self._sequence_number, self._payload_type
        last = len(payloads) - 1
        for index, payload in enumerate(payloads):
            header = RTP_HEADER.pack(
                first_byte,
                payload_type | (MARKER if index == last else 0),
                sequence_number,
                rtp_timestamp,
                self._ssrc,
            )
            header += extension
            self._history.put(SentPacket(sequence_number, header, payload))
            sequence_number = (sequence_number + 1) & 0xFFFF
            try:
                send_rtp_now(self.transport, header + payload)
            except SEND_ERRORS:
                self._send_errors += 1
        self._sequence_number = sequence_number
        self._resend.media_sent(picture.size)
        self._RTCRtpSender__octet_count += picture.size
        self._RTCRtpSender__packet_count += len(payloads)
        self._RTCRtpSender__ntp_timestamp = ntp_timestamp
        self._RTCRtpSender__rtp_timestamp = rtp_timestamp
        self._frames_sent += 1
        self._keyframes_sent += picture.keyframe

    def _wish_if_slow(self, at_ns: int) -> None:
        due = at_ns - self._slow_wish_at_ns >= SLOW_WISH_NS
        if self._fanout is not None and due and self._pace.may_go_on() and self._frames_sent:
            self._slow_wish_at_ns = at_ns
            self._fanout.wish_keyframe()

    def _unsent_bytes(self) -> int:
        pair = self.transport.transport._connection._nominated.get(1)
        buffered = getattr(pair.protocol.transport, "get_write_buffer_size", None) if pair else None
        return buffered() if buffered is not None else 0


def send_rtp_now(transport: RTCDtlsTransport, packet: bytes) -> None:
    """What `RTCDtlsTransport._send_rtp` does, without its three coroutines per packet.

    Raises `ConnectionError` while no pair of addresses is nominated, and what libsrtp raises.
    """
    datagram = transport._tx_srtp.protect(packet)
    pair = transport.transport._connection._nominated.get(1)
    if pair is None:
        raise ConnectionError("no pair of addresses is nominated")
    pair.protocol.transport.sendto(datagram, pair.remote_addr)
