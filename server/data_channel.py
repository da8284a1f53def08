"""The `detections` data channel: what the server says about each detected frame.

On the loop only. Bound: BUFFERED_BYTES_AT_MOST waiting in the channel; beyond it messages are
dropped and counted, because a late box is worth nothing.
"""

import json
from typing import TYPE_CHECKING, Any

from server.clock import NS_PER_MS, now_ns, unix_ms

if TYPE_CHECKING:
    from aiortc import RTCDataChannel

CHANNEL_LABEL = "detections"
# For a viewer that wants the clock and the names, and no message for each picture.
CLOCK_LABEL = "clock"
BUFFERED_BYTES_AT_MOST = 64 * 1024
MESSAGE_BYTES_AT_MOST = 1024


class DetectionChannel:
    """Sends to the peer's channel once it is open; answers its clock pings."""

    def __init__(self) -> None:
        self._channel: RTCDataChannel | None = None
        self._dropped_full = 0
        self._refused = 0

    def open(self, channel: "RTCDataChannel", hello: dict[str, Any]) -> None:
        """Take the peer's channel into use; a second one replaces the first."""
        self._channel = channel
        channel.on("message", self._answer)
        self.send({"type": "hello", **hello})

    @property
    def is_open(self) -> bool:
        """Whether somebody listens."""
        return self._channel is not None and self._channel.readyState == "open"

    def send(self, message: dict[str, Any]) -> None:
        """Send if there is an open channel with room."""
        if self.is_open:
            self.send_text(json.dumps(message, separators=(",", ":")))

    def send_text(self, text: str) -> None:
        """Send JSON text, which may be shared by several channels, as `send` does."""
        channel = self._channel
        if channel is None or channel.readyState != "open":
            return
        if channel.bufferedAmount > BUFFERED_BYTES_AT_MOST:
            self._dropped_full += 1
            return
        channel.send(text)

    @property
    def dropped_full(self) -> int:
        return self._dropped_full

    @property
    def refused(self) -> int:
        """Messages from the peer that were not a ping."""
        return self._refused

    def _answer(self, text: str | bytes) -> None:
        """Reply to `{"type": "ping", "t": ...}` with our clock, so that a page can map it."""
        server_ms = now_ns() / NS_PER_MS
        if len(text) > MESSAGE_BYTES_AT_MOST:
            self._refused += 1
            return
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict) or message.get("type") != "ping":
            self._refused += 1
            return
        sent_at = message.get("t")
        if isinstance(sent_at, int | float):
            wall_ms = round(unix_ms(), 3)
            self.send({"type": "pong", "t": sent_at, "server_ms": server_ms, "unix_ms": wall_ms})
