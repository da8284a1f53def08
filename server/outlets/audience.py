"""Who listens to the bulletin from outside, by SSE or WebSocket: admitted, counted, ended.

Bounds: `max_listeners` in all and `max_listeners_per_address`; one more is refused. On the loop.
"""

import secrets
from collections import Counter
from dataclasses import dataclass

from server.errors import TooManyError, UnavailableError
from server.outlets.bulletin import Subscription
from server.settings import OutletSettings

RETRY_AFTER_S = 10
LEFT, SLOW, STOPPED, STREAM_ENDED = "left", "too slow", "server stops", "stream ended"


@dataclass(frozen=True, slots=True)
class AudienceStatistics:
    """Counts since start, and who listens now."""

    listening: dict[str, int]
    """By kind: sse, websocket."""
    admitted: int
    refused: int
    ended: dict[str, int]
    """By reason."""
    sent: int
    """Messages."""


class Listener:
    """One connection; made by `Audience.admit`."""

    def __init__(self, kind: str, group: str, subscription: Subscription) -> None:
        self.id = f"listener-{secrets.token_urlsafe(18)}"
        self.kind = kind
        self.group = group
        self.subscription = subscription
        self.reason = ""
        self.sent = 0

    def end(self, reason: str) -> None:
        """Send nothing more; the first reason stands."""
        self.reason = self.reason or reason
        self.subscription.close()


class Audience:
    """All of them."""

    def __init__(self, settings: OutletSettings) -> None:
        self._settings = settings
        self._listeners: dict[str, Listener] = {}
        self._groups: Counter[str] = Counter()
        self._closed = False
        self._admitted = 0
        self._refused = 0
        self._ended: Counter[str] = Counter()
        # By those that have left.
        self._sent = 0

    def check(self, group: str) -> None:
        """Refuse one more listener of this address; an empty one is not counted."""
        most, each = self._settings.max_listeners, self._settings.max_listeners_per_address
        if self._closed:
            raise UnavailableError("the server is stopping", RETRY_AFTER_S)
        if len(self._listeners) >= most:
            self._refused += 1
            raise UnavailableError(f"max_listeners: {most} listen already", RETRY_AFTER_S)
        if group and each and self._groups[group] >= each:
            self._refused += 1
            raise TooManyError(
                f"max_listeners_per_address: {each} of this address listen already", RETRY_AFTER_S
            )

    def admit(self, kind: str, group: str, subscription: Subscription) -> Listener:
        """After `check`, with no wait in between. Whoever calls this calls `leave`."""
        listener = Listener(kind, group, subscription)
        self._listeners[listener.id] = listener
        self._groups[group] += 1
        self._admitted += 1
        return listener

    def leave(self, listener: Listener) -> None:
        """It is gone. Idempotent."""
        if self._listeners.pop(listener.id, None) is None:
            return
        listener.end(LEFT)
        self._ended[listener.reason] += 1
        self._sent += listener.sent
        self._groups[listener.group] -= 1
        if not self._groups[listener.group]:
            del self._groups[listener.group]

    def has(self, listener_id: str) -> bool:
        return listener_id in self._listeners

    def close(self) -> None:
        """End them all, and admit nobody any more."""
        self._closed = True
        for listener in self._listeners.values():
            listener.end(STOPPED)

    def statistics(self) -> AudienceStatistics:
        listeners = list(self._listeners.values())
        return AudienceStatistics(
            listening=dict(Counter(listener.kind for listener in listeners)),
            admitted=self._admitted,
            refused=self._refused,
            ended=dict(self._ended),
            sent=self._sent + sum(listener.sent for listener in listeners),
        )
