"""One encoder for many viewers: a picture is encoded once and its payloads are shared.

What a viewer costs is a header and its encryption (`fanout_sender.py`). Without viewers nothing
is encoded and no encoder exists. Loop only, but for the job on the encode executor.

Bounds: one picture waits while one is encoded, the newest; key frames on demand come at most
twice a second; what a joining viewer is given at once is `picture_source.REPLAY_AT_MOST` pictures.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.utils import random32

from server.clock import NS_PER_MS, NS_PER_S, now_ns
from server.rtc.bitrate import Allowance
from server.rtc.encoders import EncodeResult, EncoderSlot, Renderable, make_encoder
from server.rtc.options import RtcOptions
from server.rtc.picture_source import VIEWERS_AT_ONCE, PictureSource, SharedPicture, Viewer
from server.rtc.sender_guards import KeyframeThrottle, RtpTimeline

logger = logging.getLogger(__name__)

KEYFRAME_INTERVAL_NS = NS_PER_S // 2
RATE_INTERVAL_NS = 250 * NS_PER_MS


@dataclass(frozen=True, slots=True)
class FanoutStatistics:
    """Counts since the fan-out was made."""

    codec: str
    encoder: str
    viewers: int
    encoded: int
    keyframes: int
    replays: int
    failures: int
    dropped_replaced: int
    """Pictures that gave way to a newer one while the encoder was busy."""
    target_bps: int


class Fanout(PictureSource):
    """See the module. `on_sent` hears of every picture after the last viewer's last packet,
    `on_wish` that somebody waits for a key frame: the source may be slow to bring a picture."""

    def __init__(
        self,
        codec_name: str,
        options: RtcOptions,
        encode_executor: Executor,
        on_sent: Callable[[Renderable, SharedPicture], None],
        on_wish: Callable[[], None],
    ) -> None:
        super().__init__()
        self._codec = RTCRtpCodecParameters(mimeType=f"video/{codec_name}", clockRate=90_000)
        self._options = options
        self._encode_executor = encode_executor
        self._on_sent = on_sent
        self._on_wish = on_wish
        self._loop = asyncio.get_running_loop()
        self._slot: EncoderSlot | None = None
        self._keyframes = KeyframeThrottle(KEYFRAME_INTERVAL_NS, now_ns)
        self._timeline = RtpTimeline(random32())
        self._busy = False
        self._waiting: tuple[Renderable, int, int] | None = None
        self._allowance: Allowance | None = None
        self._allowance_at_ns = 0
        self._last: EncodeResult | None = None
        self._encoded = 0
        self._keyframes_made = 0
        self._failures = 0
        self._dropped_replaced = 0

    def statistics(self) -> FanoutStatistics:
        last = self._last
        return FanoutStatistics(
            codec=self._codec.name,
            encoder=last.encoder if last else "",
            viewers=len(self._viewers),
            encoded=self._encoded,
            keyframes=self._keyframes_made,
            replays=self._replays,
            failures=self._failures,
            dropped_replaced=self._dropped_replaced,
            target_bps=last.bits_per_s if last and self._viewers else 0,
        )

    # --- viewers ---

    def wish_keyframe(self) -> None:
        self._keyframes.wish()
        self._on_wish()

    def _let_go(self) -> None:
        # An encoder that nobody watches would only hold memory.
        self._slot = None
        self._waiting = None

    # --- pictures ---

    def offer(self, picture: Renderable, ticks: int, captured_at_ns: int) -> None:
        """Encode and send a picture of this media time in 1/90000 s, if anybody watches."""
        if not self._viewers:
            return
        if self._busy:
            if self._waiting is not None:
                self._dropped_replaced += 1
            self._waiting = (picture, ticks, captured_at_ns)
            return
        self._encode(picture, ticks, captured_at_ns)

    def _encode(self, picture: Renderable, ticks: int, captured_at_ns: int) -> None:
        if self._slot is None:
            self._slot = EncoderSlot(
                lambda failed: make_encoder(self._codec, self._options, failed)
            )
        self._busy = True
        self._slot.submit(
            self._encode_executor,
            picture,
            self._keyframes.grant(),
            self._common_allowance(),
            partial(self._encoded_one, picture, ticks, captured_at_ns),
        )

    def _encoded_one(
        self,
        picture: Renderable,
        ticks: int,
        captured_at_ns: int,
        outcome: EncodeResult | Exception,
    ) -> None:
        if isinstance(outcome, Exception):
            self._failures += 1
            if self._failures == 1:
                logger.warning("a shared picture was lost: %s", outcome)
            self._recent.clear()
            self._next()
            return
        self._last = outcome
        self._encoded += 1
        if outcome.picture.keyframe:
            self._keyframes.made()
            self._keyframes_made += 1
        payloads, keyframe = outcome.picture.payloads, outcome.picture.keyframe
        rtp_timestamp = self._timeline.timestamp(ticks)
        size = sum(map(len, payloads))
        shared = SharedPicture(payloads, keyframe, rtp_timestamp, captured_at_ns, size, outcome)
        self._recent.add(shared)
        self._deliver(picture, shared, list(self._viewers) if payloads else [])

    def _deliver(
        self, picture: Renderable, shared: SharedPicture, viewers: list[Viewer], begin: int = 0
    ) -> None:
        """Some viewers now, the rest after the loop has looked at something else."""
        end = begin + VIEWERS_AT_ONCE
        for viewer in viewers[begin:end]:
            if viewer in self._viewers:
                viewer.send_picture(shared)
        if end < len(viewers):
            self._loop.call_soon(self._deliver, picture, shared, viewers, end)
            return
        self._on_sent(picture, shared)
        self._next()

    def _next(self) -> None:
        self._busy = False
        if self._waiting is not None and self._viewers:
            waiting, self._waiting = self._waiting, None
            self._encode(*waiting)

    # --- rate ---

    def _common_allowance(self) -> Allowance:
        at_ns = now_ns()
        if self._allowance is None or at_ns - self._allowance_at_ns > RATE_INTERVAL_NS:
            self._allowance = common_allowance([viewer.allowance() for viewer in self._viewers])
            self._allowance_at_ns = at_ns
        return self._allowance


def common_allowance(allowances: list[Allowance]) -> Allowance:
    """What one encoding for all may use: the slowest viewer is followed down to half of what
    the middle one takes; who takes less than that is served less often instead."""
    first = allowances[0]
    caps = sorted(a.cap_bps for a in allowances if a.cap_bps is not None)
    # A viewer that has not said anything yet takes whatever the others do.
    cap_bps = max(caps[0], caps[len(caps) // 2] // 2) if caps else None
    share = max(allowance.share for allowance in allowances)
    return Allowance(share, cap_bps, first.min_bps, first.max_bps)
