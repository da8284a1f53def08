"""One viewer of a stream, from its offer to its end. On the loop."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiortc import MediaStreamTrack, RTCDataChannel, RTCSessionDescription

from server.clock import NS_PER_S, now_ns
from server.data_channel import CHANNEL_LABEL, CLOCK_LABEL, DetectionChannel
from server.errors import UnavailableError, UnprocessableError
from server.liveness import Liveness
from server.logs import log_event, short
from server.offer import Offer, one_line, video_codec
from server.rtc.peer import PeerConnection, PeerStatistics
from server.settings import SessionSettings
from server.streams import ANNOTATED, Stream

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
        self._settings = settings
        self._peer = peer
        self._rung = rung
        self._describe = describe
        self._codec = ""
        self._channel = DetectionChannel()
        self._clock_channel = DetectionChannel()
        self._liveness = Liveness(peer, settings)
        self._opened_at_ns = now_ns()
        self._close_task: asyncio.Task[tuple[str, ...]] | None = None
        stream.join(self)

    async def negotiate(self, offer: Offer) -> str:
        """The answer's SDP. On failure the caller closes the viewer; nothing else is left."""
        peer = self._peer
        peer.on("datachannel", self._on_datachannel)
        peer.addTrack(SharedTrack())
        try:
            await peer.setRemoteDescription(RTCSessionDescription(offer.sdp, "offer"))
            for transceiver in peer.getTransceivers():
                wanted = transceiver.kind == "video"
                transceiver.direction = "sendonly" if wanted else "inactive"
            answer = await peer.createAnswer()
            assert answer is not None, "createAnswer returns None only after close"
            await peer.setLocalDescription(answer)
        except UnavailableError:
            # No free media port: come back later, the offer is not at fault.
            raise
        except Exception as error:
            # aiortc's SDP code raises a dozen builtin kinds on bad text (reliability notes, B.4).
            logger.debug("Negotiation failed", exc_info=True)
            raise UnprocessableError(f"sdp: cannot be negotiated: {one_line(error)}") from error
        sdp: str = peer.localDescription.sdp
        self._codec = video_codec(sdp)
        return sdp

    async def run(self) -> str:
        """Live until the viewer leaves, falls silent or is told to; returns the reason."""
        reason = await self._liveness.wait()
        last = self.statistics()
        survivors = await self.close(reason)
        outgoing = last.peer.outgoing[0] if last.peer.outgoing else None
        log_event(
            logger,
            "viewer ended",
            session=short(self.id),
            stream=self.stream.name,
            reason=self._liveness.reason,
            age_s=last.age_s,
            codec=self._codec,
            view=self.view,
            rung=self._rung,
            frames_out=outgoing.frames_sent if outgoing is not None else 0,
            resent=outgoing.resent_packets if outgoing is not None else None,
            rtt_ms=last.peer.rtt_ms,
            still_running=survivors,
        )
        return self._liveness.reason

    def end(self, reason: str) -> None:
        """Ask the viewer to end; the first reason stands."""
        self._liveness.end(reason)

    async def close(self, reason: str) -> tuple[str, ...]:
        """Free everything within the close deadline; names what survived it. Idempotent."""
        if self._close_task is None:
            self.end(reason)
            self._close_task = asyncio.create_task(self._close(), name=f"close {self.id}")
        return await asyncio.shield(self._close_task)

    async def _close(self) -> tuple[str, ...]:
        self.stream.leave(self)
        survivors = await self._peer.close_within(self._settings.close_timeout_s)
        self._peer.remove_all_listeners()
        return survivors

    async def add_candidates(self, lines: tuple[str, ...]) -> None:
        """Take candidates that the peer found after its offer."""
        await self._peer.add_candidates(lines)

    @property
    def remote_credentials(self) -> tuple[str, str]:
        """The peer's ICE user fragment and password."""
        return self._peer.remote_credentials

    # --- what the stream asks ---

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
            state="closing" if self._close_task is not None else self._liveness.state,
            view=self.view,
            rung=self._rung,
            codec=self._codec,
            age_s=round((now_ns() - self._opened_at_ns) / NS_PER_S, 1),
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
