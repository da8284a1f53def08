"""One peer connection from its offer to its end, whoever it belongs to. On the loop."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from aiortc import RTCSessionDescription

from server.clock import NS_PER_S, now_ns, s_to_ns
from server.errors import UnavailableError, UnprocessableError
from server.logs import short
from server.offer import Offer, one_line
from server.rtc.peer import PeerConnection
from server.settings import SessionSettings

logger = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.25


class PeerLife:
    """Watches one connection from when it is made: `answer`, then `wait`, then `close`.

    It ends when the peer leaves, does not connect in time or falls silent, or by `end`.
    """

    def __init__(self, owner_id: str, peer: PeerConnection, settings: SessionSettings) -> None:
        self._owner_id = owner_id
        self._peer = peer
        self._settings = settings
        self._opened_at_ns = now_ns()
        self._connected = False
        self._woken = asyncio.Event()
        """Something changed: it connected, or shall end."""
        self._close_task: asyncio.Task[tuple[str, ...]] | None = None
        self.reason = ""
        """Why it ended; empty while it goes on."""
        self.state = "connecting"
        """connecting, live or stale, closing, closed."""
        peer.on("connectionstatechange", self._on_state)

    @property
    def age_s(self) -> float:
        return round((now_ns() - self._opened_at_ns) / NS_PER_S, 1)

    async def answer(self, offer: Offer, direct: Callable[[], None]) -> str:
        """The answer's SDP. `direct` says in which direction each kind of media goes once the
        offer is known; it may refuse."""
        peer = self._peer
        try:
            await peer.setRemoteDescription(RTCSessionDescription(offer.sdp, "offer"))
            direct()
            answer = await peer.createAnswer()
            assert answer is not None, "createAnswer returns None only after close"
            await peer.setLocalDescription(answer)
        except (UnprocessableError, UnavailableError):
            # Ours: the offer is at fault in a known way, or there is no free media port.
            raise
        except Exception as error:
            # aiortc's SDP code raises a dozen builtin kinds on bad text (reliability notes, B.4).
            logger.debug("Negotiation failed", exc_info=True)
            raise UnprocessableError(f"sdp: cannot be negotiated: {one_line(error)}") from error
        sdp: str = peer.localDescription.sdp
        return sdp

    async def wait(self) -> None:
        """Until something ends it; `reason` says what."""
        try:
            self.end(await self._watch())
        except Exception:
            # The top of this peer's task: whatever went wrong ends it and no other.
            logger.exception("%s failed", short(self._owner_id))
            self.end("failed")

    def end(self, reason: str) -> None:
        """Ask it to end; the first reason stands."""
        self.reason = self.reason or reason
        self._woken.set()

    async def close(self, reason: str, let_go: Callable[[], None]) -> tuple[str, ...]:
        """Let go of what the connection is used for, then close it within the close deadline;
        names what survived it. Idempotent."""
        if self._close_task is None:
            self.end(reason)
            self.state = "closing"
            self._close_task = asyncio.create_task(
                self._close(let_go), name=f"close {self._owner_id}"
            )
        return await asyncio.shield(self._close_task)

    async def _close(self, let_go: Callable[[], None]) -> tuple[str, ...]:
        let_go()
        survivors = await self._peer.close_within(self._settings.close_timeout_s)
        self._peer.remove_all_listeners()
        self.state = "closed"
        return survivors

    async def _watch(self) -> str:
        began_at_ns = now_ns()
        connect_timeout_ns = s_to_ns(self._settings.connect_timeout_s)
        while True:
            # A call that has not connected has nothing to be watched: a thousand of them are
            # cheap as long as each sleeps until its deadline.
            left_ns = began_at_ns + connect_timeout_ns - now_ns()
            wait_s = WATCH_INTERVAL_S if self._connected else max(0.0, left_ns / NS_PER_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()
            self._woken.clear()
            if self.reason:
                return self.reason
            at_ns = now_ns()
            if not self._connected:
                if at_ns - began_at_ns >= connect_timeout_ns:
                    return "did not connect"
                continue
            silent_ns = at_ns - self._peer.last_packet_at_ns
            if silent_ns > s_to_ns(self._settings.silent_timeout_s):
                return "peer fell silent"
            stale = silent_ns > s_to_ns(self._settings.stale_after_s)
            self.state = "stale" if stale else "live"

    def _on_state(self) -> None:
        state = self._peer.connectionState
        if state == "connected":
            self._connected = True
            self.state = "live"
            self._woken.set()
        elif state == "failed":
            self.end(self._peer.failure or "connection failed")
        elif state == "closed":
            self.end("peer left")
