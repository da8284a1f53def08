"""How a peer connection stands, and why it ended. On the loop."""

import asyncio
import contextlib

from server.clock import NS_PER_S, now_ns, s_to_ns
from server.rtc.peer import PeerConnection
from server.settings import SessionSettings

WATCH_INTERVAL_S = 0.25


class Liveness:
    """Listens to one connection from when it is made; `wait` returns why it ended.

    It ends when the peer leaves, does not connect in time or falls silent, or by `end`.
    """

    def __init__(self, peer: PeerConnection, settings: SessionSettings) -> None:
        self._peer = peer
        self._settings = settings
        self._connected = False
        self._woken = asyncio.Event()
        """Something changed: it connected, or shall end."""
        self.reason = ""
        """Why it ended; empty while it goes on."""
        self.state = "connecting"
        """connecting, live or stale, then what the owner sets."""
        peer.on("connectionstatechange", self._on_state)

    def end(self, reason: str) -> None:
        """Ask it to end; the first reason stands."""
        self.reason = self.reason or reason
        self._woken.set()

    async def wait(self) -> str:
        """Until the end; returns the reason."""
        opened_at_ns = now_ns()
        connect_timeout_ns = s_to_ns(self._settings.connect_timeout_s)
        while True:
            # A call that has not connected has nothing to be watched: a thousand of them are
            # cheap as long as each sleeps until its deadline.
            left_ns = opened_at_ns + connect_timeout_ns - now_ns()
            wait_s = WATCH_INTERVAL_S if self._connected else max(0.0, left_ns / NS_PER_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()
            self._woken.clear()
            if self.reason:
                return self.reason
            at_ns = now_ns()
            if not self._connected:
                if at_ns - opened_at_ns >= connect_timeout_ns:
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
