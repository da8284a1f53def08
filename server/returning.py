"""What a caller gets back of its own call: pictures with their boxes drawn, or, in mode `data`, its
own packets as they came. And how many left, and how long that took. On the loop."""

from collections.abc import Callable
from dataclasses import dataclass

from server.clock import now_ns, ns_to_ms
from server.frame import FrameSink, Stamps
from server.overlay import Painter
from server.rtc.assembly import EncodedFrame
from server.rtc.relay import RelayedTime, RelayedTimes
from server.rtc.sender import VideoSender
from server.shot import Shot
from server.telemetry import DurationRecorder, RateMeter, Summary
from server.tracks import OutgoingPicture, OutgoingVideoTrack


@dataclass(frozen=True, slots=True)
class ReturnStatistics:
    """What left so far."""

    frames: int
    fps: float
    server_ms: Summary
    """From a frame's first packet in to its last packet out."""


class Returning:
    """One caller's. `track` serves its pictures; `begin` once the answer has settled what sends
    them; `stop` ends it. `on_shown` hears of every picture that left drawn."""

    def __init__(self, frame_sink: FrameSink, on_shown: Callable[[Shot, Stamps], None]) -> None:
        self.track = OutgoingVideoTrack()
        self.last_sent = Stamps()
        """Of what left last; empty before."""
        self._frame_sink = frame_sink
        self._on_shown = on_shown
        self._painter = Painter()
        self._sender: VideoSender | None = None
        self._keeps_time = False
        # When frames left as they came, by their incoming time.
        self._passed_on = RelayedTimes()
        self._frames = 0
        self._rate = RateMeter()
        self._server_ms = DurationRecorder()

    def begin(self, sender: VideoSender) -> None:
        """This sends it from now on."""
        self._sender = sender

    def stop(self) -> None:
        """Send nothing more. Idempotent."""
        self.track.stop()
        # Whoever hears of it is let go of; a last picture may still be leaving.
        self._on_shown = _shown_to_nobody

    # --- pictures ---

    def show(self, shot: Shot) -> None:
        """The next picture, unless the caller gets its own as they came."""
        if self._sender is None or not self._sender.forwards:
            self.track.offer(OutgoingPicture(shot, self._painter, self._on_sent))

    def _on_sent(self, picture: OutgoingPicture, stamps: Stamps) -> None:
        """After a picture's last packet."""
        self._count(stamps)
        self._on_shown(picture.shot, stamps)

    # --- as they came ---

    def pass_on(
        self, encoded: EncodedFrame, ticks: int, wish_at_source: Callable[[], None], *, wanted: bool
    ) -> None:
        """The next frame as it came, whose media time drawn pictures keep to. Where it is not
        `wanted` so, drawn ones leave from the next on."""
        sender = self._sender
        if sender is None:
            return
        if not self._keeps_time:
            self._keeps_time = True
            sender.keep_time(encoded.rtp_timestamp - ticks)
        if not wanted or not encoded.payloads:
            sender.stop_forwarding()
            return
        rtp_timestamp = sender.forward(encoded, ticks, wish_at_source)
        if rtp_timestamp is None:
            # Drawn pictures go on until a first one can be forwarded, or instead.
            return
        at_ns = now_ns()
        self._passed_on.note(encoded.rtp_timestamp, RelayedTime(rtp_timestamp, at_ns))
        self._count(Stamps(encoded.received_at_ns, encoded.assembled_at_ns, sent_at_ns=at_ns))

    def passed_on(self, rtp_timestamp: int) -> RelayedTime | None:
        """When the frame that came with this time left as it came; None where it did not."""
        return self._passed_on.of(rtp_timestamp)

    # --- counts ---

    def _count(self, stamps: Stamps) -> None:
        self._frames += 1
        self._rate.add(stamps.sent_at_ns)
        self.last_sent = stamps
        self._server_ms.add_ms(ns_to_ms(stamps.sent_at_ns - stamps.received_at_ns))
        self._frame_sink.record(stamps)

    def fps(self, at_ns: int) -> float:
        return round(self._rate.per_second(at_ns), 1)

    def statistics(self, at_ns: int) -> ReturnStatistics:
        return ReturnStatistics(self._frames, self.fps(at_ns), self._server_ms.statistics())

    @property
    def dropped(self) -> dict[str, int]:
        """Pictures that did not leave, by reason."""
        return {
            # A newer picture came before the encoder had time for it.
            "unsent": self.track.statistics().dropped_replaced,
            # Overtaken by a newer picture when the mode changed.
            "late": self.track.dropped_late,
        }


def _shown_to_nobody(shot: Shot, stamps: Stamps) -> None:
    """What becomes of a picture that leaves after the end."""
