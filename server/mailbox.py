"""The newest waiting frame of every session, from many threads to the one that infers.

Bound: one frame a session. Drop policy: a newer frame replaces the one that waits. Turns are
fair: whoever was served last goes to the back, so one fast camera cannot starve another.
"""

import threading
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class MailboxStatistics:
    """Counts since start, and what waits now."""

    put: int
    taken: int
    dropped_replaced: int
    dropped_closed: int
    waiting: int


class Mailbox(Generic[KeyT, ItemT]):
    """`put` never blocks and may be called on any thread; `take` belongs to one thread.

    Nothing is called out while the lock is held.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        # Insertion order is the order of turns: the first key is served next.
        self._turns: dict[KeyT, ItemT | None] = {}
        self._waiting = 0
        self._closed = False
        self._nudged = False
        self._put = 0
        self._taken = 0
        self._dropped_replaced = 0
        self._dropped_closed = 0

    def put(self, key: KeyT, item: ItemT) -> bool:
        """Leave the newest item of `key`; True when it replaced one that was never taken."""
        with self._condition:
            if self._closed:
                self._dropped_closed += 1
                return False
            self._put += 1
            replaced = self._turns.get(key) is not None
            self._turns[key] = item
            if replaced:
                self._dropped_replaced += 1
            else:
                self._waiting += 1
                self._condition.notify()
            return replaced

    def take(self, limit: int = 1) -> list[tuple[KeyT, ItemT]] | None:
        """Wait for something and take up to `limit` items, never two of one key.

        None means the mailbox is closed; an empty list, that the taker was nudged.
        """
        with self._condition:
            while not self._waiting and not self._closed and not self._nudged:
                self._condition.wait()
            if self._closed:
                return None
            self._nudged = False
            served: list[tuple[KeyT, ItemT]] = []
            for key, item in self._turns.items():
                if item is not None:
                    served.append((key, item))
                    if len(served) == limit:
                        break
            for key, _ in served:
                # To the back of the turns, with nothing waiting.
                del self._turns[key]
                self._turns[key] = None
            self._waiting -= len(served)
            self._taken += len(served)
            return served

    def remove(self, key: KeyT) -> None:
        """Forget the key and what waits for it."""
        with self._condition:
            if self._turns.pop(key, None) is not None:
                self._waiting -= 1
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
            self._dropped_closed += self._waiting
            self._waiting = 0
            self._turns.clear()
            self._condition.notify_all()

    def statistics(self) -> MailboxStatistics:
        with self._condition:
            return MailboxStatistics(
                put=self._put,
                taken=self._taken,
                dropped_replaced=self._dropped_replaced,
                dropped_closed=self._dropped_closed,
                waiting=self._waiting,
            )
