"""The newest waiting frame of every session, from many threads to the one that infers.

Bound: one frame a session. Drop policy: a newer frame replaces the one that waits, and one that
has waited for too long is passed over. Turns are fair: whoever was served last goes to the back,
so one fast camera cannot starve another. Only who was added has a place: what a thread still puts
for one that was removed is refused, because nobody would take it away any more.
"""

import enum
import threading
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from server.clock import now_ns

KeyT = TypeVar("KeyT", bound=Hashable)
ItemT = TypeVar("ItemT")


NEVER_NS = 1 << 63


class Left(enum.Enum):
    """What an item found when it was left."""

    WAITING = "waiting"
    """Nothing of its key."""
    REPLACED = "replaced"
    """One that still waited for its turn; that is gone."""
    STALE = "stale"
    """One whose time had passed; that is gone."""
    CLOSED = "closed"
    """A closed mailbox, or none of its key any more; the item is gone."""


@dataclass(frozen=True, slots=True)
class _Item(Generic[ItemT]):
    value: ItemT
    until_ns: int


@dataclass(frozen=True, slots=True)
class MailboxStatistics:
    """Counts since start, and what waits now."""

    put: int
    taken: int
    dropped_replaced: int
    dropped_stale: int
    dropped_closed: int
    waiting: int


class Mailbox(Generic[KeyT, ItemT]):
    """`put` never blocks and may be called on any thread; `take` belongs to one thread.

    Nothing is called out while the lock is held.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        # Insertion order is the order of turns: the first key is served next. None once closed.
        self._turns: dict[KeyT, _Item[ItemT] | None] = {}
        self._closed = False
        self._nudged = False
        self._put = 0
        self._taken = 0
        self._dropped_replaced = 0
        self._dropped_stale = 0
        self._dropped_closed = 0

    def add(self, key: KeyT) -> None:
        """Take items of `key` from now on, until it is removed."""
        with self._condition:
            if not self._closed:
                self._turns.setdefault(key, None)

    def put(self, key: KeyT, value: ItemT, until_ns: int = NEVER_NS) -> Left:
        """Leave the newest item of `key`, which is of use until an instant."""
        with self._condition:
            if key not in self._turns:
                self._dropped_closed += 1
                return Left.CLOSED
            self._put += 1
            before = self._turns[key]
            self._turns[key] = _Item(value, until_ns)
            self._condition.notify()
            if before is None:
                return Left.WAITING
            if before.until_ns < now_ns():
                self._dropped_stale += 1
                return Left.STALE
            self._dropped_replaced += 1
            return Left.REPLACED

    def take(self, limit: int = 1) -> list[tuple[KeyT, ItemT]] | None:
        """Wait for something and take up to `limit` items, never two of one key; with a limit
        of 0 wait for a nudge.

        None means the mailbox is closed; an empty list, that the taker was nudged.
        """
        with self._condition:
            served = self._fresh(limit)
            while not served and not self._closed and not self._nudged:
                self._condition.wait()
                served = self._fresh(limit)
            if self._closed:
                return None
            self._nudged = False
            for key, _ in served:
                # To the back of the turns, with nothing waiting.
                del self._turns[key]
                self._turns[key] = None
            self._taken += len(served)
            return served

    def _fresh(self, limit: int) -> list[tuple[KeyT, ItemT]]:
        """Whose turn it is, of those whose items are still of use. One that is not stays where it
        is: the next of its key takes its place, and counts it."""
        at_ns = now_ns()
        served: list[tuple[KeyT, ItemT]] = []
        for key, item in self._turns.items():
            if len(served) == limit:
                break
            if item is not None and item.until_ns >= at_ns:
                served.append((key, item.value))
        return served

    def remove(self, key: KeyT) -> None:
        """Forget the key and what waits for it; what is put for it from now on is refused."""
        with self._condition:
            if self._turns.pop(key, None) is not None:
                self._dropped_closed += 1

    def nudge(self) -> None:
        """Wake the taker though there may be nothing for it."""
        with self._condition:
            self._nudged = True
            self._condition.notify()

    def close(self) -> None:
        """Wake the taker for good; what waits is dropped and counted."""
        with self._condition:
            self._closed = True
            self._dropped_closed += self._count_waiting()
            self._turns.clear()
            self._condition.notify_all()

    def statistics(self) -> MailboxStatistics:
        with self._condition:
            return MailboxStatistics(
                put=self._put,
                taken=self._taken,
                dropped_replaced=self._dropped_replaced,
                dropped_stale=self._dropped_stale,
                dropped_closed=self._dropped_closed,
                waiting=self._count_waiting(),
            )

    def _count_waiting(self) -> int:
        return sum(item is not None for item in self._turns.values())
