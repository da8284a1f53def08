"""Who opened which call: what entitles to its session URL, and what ends it with its token."""

import asyncio
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from server.access.auth import Principal
from server.clock import unix_ms

TOKEN_ENDED = "token ended"


@dataclass(frozen=True, slots=True)
class Holding:
    """One call and whose it is. `group` is the address it counts for; empty for none. `address` is
    where it was opened from."""

    principal: Principal
    address: str
    group: str
    stream: str | None
    end: "weakref.WeakMethod[Callable[[str], None]]"
    timer: asyncio.TimerHandle | None


class Holdings:
    """On the loop. Bound: the calls that are alive, and those that ended since the last one."""

    def __init__(self, is_alive: Callable[[str], bool]) -> None:
        self._is_alive = is_alive
        self._held: dict[str, Holding] = {}
        self._ended_by_token = 0

    def add(
        self,
        session_id: str,
        principal: Principal,
        end: Callable[[str], None],
        *,
        address: str = "",
        group: str = "",
        stream: str | None = None,
    ) -> None:
        """From now on the call is this principal's, and ends when its token does. `end` is a method
        of whoever lives as long as the call; it is not kept alive for this."""
        self.prune()
        timer = None
        if principal.expires_at_unix_s is not None:
            left_s = max(0.0, principal.expires_at_unix_s - unix_ms() / 1000)
            timer = asyncio.get_running_loop().call_later(left_s, self._end, session_id)
        self._held[session_id] = Holding(
            principal, address, group, stream, weakref.WeakMethod(end), timer
        )

    def find(self, session_id: str) -> Holding | None:
        """Whose it is; None for what was not opened through the gate."""
        return self._held.get(session_id)

    def may_touch(self, session_id: str, principal: Principal) -> bool:
        """Its own, or one whose stream it controls."""
        holding = self._held.get(session_id)
        if holding is None:
            return False
        own = holding.principal.identity == principal.identity
        return own or principal.allows("control", holding.stream)

    def end_token(self, token_id: str) -> int:
        """End all that was opened with this token; how many that were."""
        sessions = [
            name for name, held in self._held.items() if held.principal.token_id == token_id
        ]
        for session_id in sessions:
            self._end(session_id)
        return len(sessions)

    def count(self, group: str) -> int:
        """The calls of one address."""
        self.prune()
        return sum(held.group == group for held in self._held.values())

    def prune(self) -> None:
        """Forget what has ended."""
        for session_id in [name for name in self._held if not self._is_alive(name)]:
            self._forget(session_id)

    def close(self) -> None:
        """Let no timer outlive the application."""
        for session_id in list(self._held):
            self._forget(session_id)

    @property
    def ended_by_token(self) -> int:
        return self._ended_by_token

    def _end(self, session_id: str) -> None:
        holding = self._held.get(session_id)
        end = holding.end() if holding is not None else None
        if end is not None and self._is_alive(session_id):
            self._ended_by_token += 1
            end(TOKEN_ENDED)
        self._forget(session_id)

    def _forget(self, session_id: str) -> None:
        holding = self._held.pop(session_id, None)
        if holding is not None and holding.timer is not None:
            holding.timer.cancel()
