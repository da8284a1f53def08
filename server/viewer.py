"""One viewer of a stream, from its offer to its end. On the loop."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiortc import MediaStreamTrack, RTCDataChannel

from server.data_channel import CHANNEL_LABEL, CLOCK_LABEL, DetectionChannel
from server.logs import log_event, short
from server.offer import Offer, video_codec
from server.peer_life import PeerLife
from server.rtc.peer import PeerConnection, PeerStatistics
from server.settings import SessionSettings
from server.stream import ANNOTATED, Stream, WatcherFacts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ViewerStatistics:
    """One viewer as it stands."""

    session: str
    stream: str
    state: str
    view: str
    rung: str
    codec: str
    age_s: float
    peer: PeerStatistics


class SharedTrack(MediaStreamTrack):
    """Stands for a stream's picture in the peer connection; its fan-out does the sending."""

    kind = "video"

    async def recv(self) -> Any:
        raise NotImplementedError("a fan-out sends this track")


class Viewer:
    """Joins its stream when made, which may refuse; leaves it when closed."""

    def __init__(
        self,
        session_id: str,
        settings: SessionSettings,
        peer: PeerConnection,
        stream: Stream,
        rung: str,
        view: str,
        describe: Callable[[str], dict[str, Any]],
    ) -> None:
        self.id = session_id
        self.stream = stream
        self.view = view
        self._peer = peer
        self._rung = rung
        self._describe = describe
        self._codec = ""
        self._channel = DetectionChannel()
        self._clock_channel = DetectionChannel()
        self._life = PeerLife(session_id, peer, settings)
        stream.join(self)

    async def negotiate(self, offer: Offer) -> str:
        """The answer's SDP. On failure the caller closes the viewer; nothing else is left."""
        self._peer.on("datachannel", self._on_datachannel)
        self._peer.addTrack(SharedTrack())
        sdp = await self._life.answer(offer, self._only_send_video)
        self._codec = video_codec(sdp)
        return sdp

    def _only_send_video(self) -> None:
        for transceiver in self._peer.getTransceivers():
            wanted = transceiver.kind == "video"
            transceiver.direction = "sendonly" if wanted else "inactive"

    async def run(self) -> str:
        """Live until the viewer leaves, falls silent or is told to; returns the reason."""
        await self._life.wait()
        last = self.statistics()
        survivors = await self.close(self._life.reason)
        outgoing = last.peer.outgoing[0] if last.peer.outgoing else None
        log_event(
            logger,
            "viewer ended",
            session=short(self.id),
            stream=self.stream.name,
            reason=self._life.reason,
            age_s=last.age_s,
            codec=self._codec,
            view=self.view,
            rung=self._rung,
            frames_out=outgoing.frames_sent if outgoing is not None else 0,
            resent=outgoing.resent_packets if outgoing is not None else None,
            rtt_ms=last.peer.rtt_ms,
            still_running=survivors,
        )
        return self._life.reason

    def end(self, reason: str) -> None:
        """Ask the viewer to end; the first reason stands."""
        self._life.end(reason)

    async def close(self, reason: str) -> tuple[str, ...]:
        """Free everything within the close deadline; names what survived it. Idempotent."""
        return await self._life.close(reason, lambda: self.stream.leave(self))

    async def add_candidates(self, lines: tuple[str, ...]) -> None:
        """Take candidates that the peer found after its offer."""
        await self._peer.add_candidates(lines)

    @property
    def remote_credentials(self) -> tuple[str, str]:
        """The peer's ICE user fragment and password."""
        return self._peer.remote_credentials

    # --- what the stream asks ---

    def facts(self) -> WatcherFacts:
        now = self.statistics()
        outgoing = now.peer.outgoing[0] if now.peer.outgoing else None
        return WatcherFacts(
            way="webrtc",
            view=now.view,
            rung=now.rung,
            codec=now.codec,
            state=now.state,
            age_s=now.age_s,
            rtt_ms=now.peer.rtt_ms,
            packets_sent=outgoing.packets_sent if outgoing is not None else 0,
            packets_resent=outgoing.resent_packets if outgoing is not None else 0,
        )

    def watches(self, codec: str, rung: str) -> bool:
        watched = (ANNOTATED, self._codec, self._rung)
        return self._channel.is_open and (self.view, codec, rung) == watched

    @property
    def listens(self) -> bool:
        return self._channel.is_open

    def tell(self, text: str) -> None:
        self._channel.send_text(text)

    def announce(self, text: str) -> None:
        """Say something to the viewer, on whichever channel it listens."""
        for channel in (self._channel, self._clock_channel):
            channel.send_text(text)

    def statistics(self) -> ViewerStatistics:
        return ViewerStatistics(
            session=self.id,
            stream=self.stream.name,
            state=self._life.state,
            view=self.view,
            rung=self._rung,
            codec=self._codec,
            age_s=self._life.age_s,
            peer=self._peer.statistics(),
        )

    def _on_datachannel(self, channel: RTCDataChannel) -> None:
        ours = {CHANNEL_LABEL: self._channel, CLOCK_LABEL: self._clock_channel}.get(channel.label)
        if ours is not None:
            hello = {"session": self.id, "stream": self.stream.name, "view": self.view}
            if self.view != ANNOTATED:
                # The source's.
                hello["encoder"] = ""
            ours.open(channel, {**self._describe(self._codec), **hello})
