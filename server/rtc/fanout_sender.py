"""A viewer's sender: shared payloads, its own headers and encryption, nothing encoded.

Everything of `VideoSender` that answers a receiver stays (NACK, RTX, reports, REMB); only where
pictures come from differs. A viewer that cannot take what the others can is served up to what it
can: what does not fit is dropped up to the next key frame, so that it never drags them along.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import RTCRtpCodecParameters

from server.clock import NS_PER_S, now_ns
from server.rtc.bitrate import Allowance
from server.rtc.options import RtcOptions
from server.rtc.picture_source import PictureSource, SharedPicture
from server.rtc.sender import VideoSender

# Seconds of its rate that a viewer may be sent ahead: a key frame is several pictures' worth.
BURST_S = 0.75
# Least time between two key frames that a slow viewer may cause for everybody.
SLOW_WISH_NS = 2 * NS_PER_S
# So much more than a viewer's rate is still that rate: encoders are spared small steps.
NEARLY = 1.05
# Bytes the kernel would not take yet.
UNSENT_BYTES_AT_MOST = 256 * 1024

FindFanout = Callable[[str], PictureSource]


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
        self._fanout: PictureSource | None = None
        self._pace = ViewerPace()
        self._slow_wish_at_ns = 0

    @property
    def dropped_slow(self) -> int:
        """Pictures left out because this viewer's way could not take them."""
        return self._pace.dropped

    async def _run_rtp(self, codec: RTCRtpCodecParameters) -> None:
        self._RTCRtpSender__rtp_started.set()
        self._note_codec(codec)
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
        rate_bps = self._rate_bps(picture)
        if not self._pace.take(picture.size, picture.keyframe, rate_bps, at_ns):
            self._wish_if_slow(at_ns)
            return
        if picture.result is not None:
            self._last = picture.result
            self._rate.used(picture.result.bits_per_s)
        self._send_now(
            picture.payloads, picture.size, picture.rtp_timestamp, picture.captured_at_ns, at_ns
        )
        self._keyframes_sent += picture.keyframe

    def _rate_bps(self, picture: SharedPicture) -> int | None:
        """What pictures may take on this viewer's way; None for whatever they need."""
        if self._unsent_bytes() > UNSENT_BYTES_AT_MOST:
            return 0
        cap_bps = self.allowance().cap_bps
        if picture.result is None:
            # A forwarded picture does not get smaller for whoever cannot take it. An estimate that
            # is still growing is no reason to leave pictures out; a path that proved narrow is.
            return cap_bps if self._rate.is_narrow else None
        # What was encoded for this rate goes out whole: encoders miss it, and key frames come on
        # top. Whoever is given more than that, because the others can take it, has to choose.
        meant_for_it = cap_bps is None or picture.result.bits_per_s <= NEARLY * cap_bps
        return None if meant_for_it else cap_bps

    def _wish_if_slow(self, at_ns: int) -> None:
        due = at_ns - self._slow_wish_at_ns >= SLOW_WISH_NS
        if self._fanout is not None and due and self._pace.may_go_on() and self._frames_sent:
            self._slow_wish_at_ns = at_ns
            self._fanout.wish_keyframe()

    def _unsent_bytes(self) -> int:
        pair = self.transport.transport._connection._nominated.get(1)
        buffered = getattr(pair.protocol.transport, "get_write_buffer_size", None) if pair else None
        return buffered() if buffered is not None else 0
