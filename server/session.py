"""One call, from its offer to its end.

`negotiate` answers the offer; `run` is the call's life and returns why it ended; `close` may
be called at any time and more than once. Frames arrive on the decoder thread, results on the
inference thread; both hand over to the loop with one thread-safe call.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiortc import RTCDataChannel, RTCRtpTransceiver
from aiortc.mediastreams import MediaStreamTrack

from server.call_options import CallOptions
from server.clock import now_ns
from server.data_channel import CHANNEL_LABEL, DetectionChannel
from server.detections import Detections
from server.errors import UnprocessableError
from server.feed import Analyst, Feed, FeedStatistics, Inference
from server.frame import Frame, FrameSink, Stamps
from server.logs import log_event, short
from server.messages import frame_message
from server.offer import Offer, video_codec
from server.peer_life import PeerLife
from server.returning import Returning
from server.rtc.assembly import EncodedFrame
from server.rtc.decoding import DecodedFrame
from server.rtc.peer import PeerConnection, PeerStatistics
from server.rtc.receiver import RemoteVideoTrack, VideoReceiver
from server.rtc.relay import RelayedTime
from server.rtc.sender import VideoSender
from server.settings import SessionSettings
from server.shot import Shot
from server.stream import Publication

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SessionStatistics:
    """One call as it stands."""

    session: str
    state: str
    options: CallOptions
    age_s: float
    frames_in: int
    frames_out: int
    fps_in: float
    fps_out: float
    size_wh: tuple[int, int]
    server_ms: dict[str, float]
    dropped: dict[str, int]
    peer: PeerStatistics


class Session:
    """Made and used on the loop; see the module for the two threads that call in."""

    def __init__(
        self,
        session_id: str,
        settings: SessionSettings,
        options: CallOptions,
        peer: PeerConnection,
        inference: Inference,
        frame_sink: FrameSink,
        describe: Callable[[str], dict[str, Any]],
        publication: Publication | None = None,
        analyst: Analyst | None = None,
    ) -> None:
        self.id = session_id
        self._peer = peer
        self._inference = inference
        self._frame_sink = frame_sink
        self._analyst = analyst
        self._describe = describe
        self._told_names: tuple[str, ...] = ()
        self._publication = publication
        self._returns_picture = publication is None or publication.returns_picture
        self._codec = ""
        self._loop = asyncio.get_running_loop()
        self._channel = DetectionChannel()
        self._returning = Returning(frame_sink, self._on_shown)
        self._receiver: VideoReceiver | None = None
        self._life = PeerLife(session_id, peer, settings)
        self._feed = Feed(
            session_id,
            settings.fade_ms,
            options,
            inference,
            self._deliver,
            self._on_detected,
            analyst,
        )

    # --- the story of a call, on the loop ---

    async def negotiate(self, offer: Offer) -> str:
        """The answer's SDP. On failure the caller closes the session; nothing else is left."""
        self._peer.on("track", self._on_track)
        self._peer.on("datachannel", self._on_datachannel)
        if self._returns_picture:
            self._peer.addTrack(self._returning.track)
        sdp = await self._life.answer(offer, self._direct)
        self._codec = video_codec(sdp)
        video = self._video_transceiver()
        if self._returns_picture and video is not None and isinstance(video.sender, VideoSender):
            self._returning.begin(video.sender)
        self._feed.open()
        return sdp

    def _direct(self) -> None:
        video = self._video_transceiver()
        if video is None or video._offerDirection not in ("sendrecv", "recvonly"):
            raise UnprocessableError("sdp: the video section sends nothing (a=sendrecv is wanted)")
        for transceiver in self._peer.getTransceivers():
            if not self._returns_picture:
                # Audio too: a publisher that sends it is not asked to offer anew (RFC 9725).
                transceiver.direction = "recvonly"
            elif transceiver.kind != "video":
                transceiver.direction = "inactive"

    async def run(self) -> str:
        """Live until the peer leaves, falls silent or is told to; returns the reason."""
        await self._life.wait()
        last = self.statistics()
        survivors = await self.close(self._life.reason)
        log_event(
            logger,
            "session ended",
            session=short(self.id),
            kind=self._publication.kind if self._publication is not None else "call",
            stream=self.stream_name,
            reason=self._life.reason,
            age_s=last.age_s,
            codec=self._codec,
            mode=last.options.mode,
            frames_in=last.frames_in,
            frames_out=last.frames_out,
            dropped={name: count for name, count in last.dropped.items() if count},
            packets_lost=sum(incoming.packets_lost for incoming in last.peer.incoming),
            rtt_ms=last.peer.rtt_ms,
            server_p95_ms=last.server_ms["p95"] if last.frames_out else None,
            still_running=survivors,
        )
        return self._life.reason

    # --- what the peer connection tells us, on the loop: only state is set here ---

    def _on_track(self, track: MediaStreamTrack) -> None:
        if isinstance(track, RemoteVideoTrack):
            track.deliver_to(self._on_decoded)
            video = self._video_transceiver()
            if video is not None and isinstance(video.receiver, VideoReceiver):
                self._receiver = video.receiver
                self._receiver.forward_to(self._on_assembled)

    def _on_datachannel(self, channel: RTCDataChannel) -> None:
        if channel.label == CHANNEL_LABEL:
            self._channel.open(channel, self._hello())

    def _hello(self) -> dict[str, Any]:
        """What boxes mean; told again when another model took over."""
        self._told_names = self._inference.names
        return {"session": self.id, "mode": self._feed.options.mode, **self.described()}

    # --- a frame's way through, in order ---

    def _on_assembled(self, encoded: EncodedFrame, ticks: int) -> None:
        """On the loop: a frame as it came, for those who want it so."""
        assert self._receiver is not None
        wish_at_source = self._receiver.wish_keyframe
        covered = self._analyst is not None and self._analyst.covers
        if self._publication is not None:
            self._publication.hide(covered)
            if not covered:
                self._publication.forward(encoded, ticks, wish_at_source)
        wanted = self._feed.options.mode == "data" and not covered
        self._returning.pass_on(encoded, ticks, wish_at_source, wanted=wanted)

    def _on_decoded(self, decoded: DecodedFrame) -> None:
        """On the decoder thread: to the detector, or past it."""
        stamps = Stamps(
            received_at_ns=decoded.received_at_ns,
            assembled_at_ns=decoded.assembled_at_ns,
            decoded_at_ns=decoded.decoded_at_ns,
        )
        self._feed.take(decoded.video_frame, decoded.rtp_timestamp, stamps)

    def _on_detected(self, frame: Frame, detections: Detections) -> None:
        """On the inference thread: boxes of a picture that went ahead (`smooth`, `data`)."""
        self._call_soon(self._tell_ahead, frame, detections, self._feed.options.mode)

    def _deliver(self, shot: Shot) -> None:
        """On either thread: the next picture. In `exact` the message of its boxes follows once its
        last packet has left."""
        if self._publication is None:
            self._call_soon(self._returning.show, shot)
        else:
            self._call_soon(self._publish, self._publication, shot)

    def _publish(self, publication: Publication, shot: Shot) -> None:
        """On the loop: a picture for the caller, where it wants one, and for all who watch."""
        if self._returns_picture:
            self._returning.show(shot)
        publication.offer(shot)

    def _on_shown(self, shot: Shot, stamps: Stamps) -> None:
        """On the loop: a picture has left with its boxes drawn."""
        exact = self._feed.options.mode == "exact"
        if exact and shot.detections is not None and stamps.boxed_at_ns:
            self._send_detections(shot.frame, shot.detections, stamps)

    def _tell_ahead(self, frame: Frame, detections: Detections, mode: str) -> None:
        """On the loop: boxes of a picture that did not wait for them."""
        if mode == "smooth" and self._publication is not None:
            self._publication.detected(frame, detections)
        passed_on = self._returning.passed_on(frame.rtp_timestamp)
        if passed_on is not None:
            self._frame_sink.record(frame.stamps)
        self._send_detections(frame, detections, frame.stamps, passed_on)

    def _send_detections(
        self,
        frame: Frame,
        detections: Detections,
        stamps: Stamps,
        passed_on: RelayedTime | None = None,
    ) -> None:
        """On the loop. In `exact` the picture has left and every stage is this frame's own; in
        `smooth` pictures do not wait for boxes, so the later stages are those of the last one; in
        `data` there are none, and `rtp_timestamp` is that of the very picture that was returned."""
        if self._inference.names is not self._told_names:
            self._channel.send({"type": "hello", **self._hello()})
        last, rtp_timestamp = self._returning.last_sent, frame.rtp_timestamp
        if passed_on is not None:
            last = Stamps(received_at_ns=stamps.received_at_ns, sent_at_ns=passed_on.sent_at_ns)
            rtp_timestamp = passed_on.rtp_timestamp
        at_ns = now_ns()
        incoming = self._feed.statistics(at_ns)
        message = frame_message(
            self.id,
            frame,
            detections,
            rtp_timestamp=rtp_timestamp,
            stages_ms={**last.stages_ms(), **stamps.stages_ms()},
            sent=last,
        )
        message |= {
            "fps_in": incoming.fps,
            "fps_out": self._returning.fps(at_ns),
            "dropped": self._dropped(incoming),
        }
        self._channel.send(message)

    # --- the end ---

    def end(self, reason: str) -> None:
        """Ask the call to end; the first reason stands."""
        self._life.end(reason)

    async def close(self, reason: str) -> tuple[str, ...]:
        """Free everything within the close deadline; names what survived it. Idempotent."""
        return await self._life.close(reason, self._let_go)

    def _let_go(self) -> None:
        # Producers before consumers: no new result, no new picture.
        self._feed.close()
        if self._publication is not None:
            self._publication.end()
        self._returning.stop()

    # --- what others ask of a call, on the loop ---

    def announce(self, text: str) -> None:
        """Say something to the caller, if it listens."""
        self._channel.send_text(text)

    def update(self, changes: Mapping[str, object]) -> CallOptions:
        """Change live options; refuses the whole change if any part is wrong."""
        self._feed.options = self._feed.options.updated(changes)
        return self._feed.options

    @property
    def options(self) -> CallOptions:
        return self._feed.options

    @property
    def dropped(self) -> dict[str, int]:
        return self._dropped(self._feed.statistics(now_ns()))

    @property
    def stream_name(self) -> str:
        """The stream this call is the source of; empty for none."""
        return self._publication.stream.name if self._publication is not None else ""

    async def add_candidates(self, lines: tuple[str, ...]) -> None:
        """Take candidates that the peer found after its offer."""
        await self._peer.add_candidates(lines)

    @property
    def remote_credentials(self) -> tuple[str, str]:
        """The peer's ICE user fragment and password."""
        return self._peer.remote_credentials

    def described(self) -> dict[str, Any]:
        """What runs for this call: model, codec, encoder; for the answer and the hello."""
        return self._describe(self._codec)

    def statistics(self) -> SessionStatistics:
        at_ns = now_ns()
        incoming, returned = self._feed.statistics(at_ns), self._returning.statistics(at_ns)
        return SessionStatistics(
            session=self.id,
            state=self._life.state,
            options=self._feed.options,
            age_s=self._life.age_s,
            frames_in=incoming.frames,
            frames_out=returned.frames,
            fps_in=incoming.fps,
            fps_out=returned.fps,
            size_wh=incoming.size_wh,
            server_ms=returned.server_ms.to_json(),
            dropped=self._dropped(incoming),
            peer=self._peer.statistics(),
        )

    # --- small parts ---

    def _call_soon(self, callback: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(partial(callback, *arguments))
        except RuntimeError:
            # The loop is gone: the server stops while this thread still had a frame.
            logger.debug("Dropped a frame of %s: the loop is closed", self.id)

    def _video_transceiver(self) -> RTCRtpTransceiver | None:
        for transceiver in self._peer.getTransceivers():
            if transceiver.kind == "video":
                return transceiver
        return None

    def _dropped(self, incoming: FeedStatistics) -> dict[str, int]:
        """Frames that came in, or should have, and did not go out, by reason."""
        dropped = {
            # A newer frame came before the detector had time for it.
            "replaced": incoming.dropped_replaced,
            # It had waited for the detector for too long.
            "stale": incoming.dropped_stale,
            **self._returning.dropped,
        }
        received = self._receiver.statistics().dropped if self._receiver is not None else {}
        # Lost on the way, too many for the decoder, or damaged.
        return dropped | {
            reason: dropped.get(reason, 0) + received.get(reason, 0)
            for reason in ("lost", "decode_queue", "corrupt")
        }
