"""The newest value for one waiting reader, on the event loop only.

Bound: one value. Drop policy: a newer value replaces one that nobody took, and is counted.
"""

import asyncio
from dataclasses import dataclass
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")


class LatestClosed(Exception):
    """The writer is gone; there will be no further value."""


@dataclass(frozen=True, slots=True)
class LatestStatistics:
    """Counts since start."""

    put: int
    taken: int
    dropped_replaced: int


class Latest(Generic[ValueT]):
    """`set` replaces, `wait_next` takes; both on the loop that made it."""

    def __init__(self) -> None:
        self._value: ValueT | None = None
        self._ready = asyncio.Event()
        self._closed = False
        self._put = 0
        self._taken = 0
        self._dropped_replaced = 0

    def set(self, value: ValueT) -> None:
        """Offer a value; after `close` it is ignored."""
        if self._closed:
            return
        self._put += 1
        if self._value is not None:
            self._dropped_replaced += 1
        self._value = value
        self._ready.set()

    async def wait_next(self) -> ValueT:
        """The newest value not yet taken; raises LatestClosed once closed."""
        while self._value is None:
            if self._closed:
                raise LatestClosed
            self._ready.clear()
            await self._ready.wait()
        value, self._value = self._value, None
        self._taken += 1
        return value

    def close(self) -> None:
        """End the reader; idempotent."""
        self._closed = True
        self._value = None
        self._ready.set()

    def statistics(self) -> LatestStatistics:
        return LatestStatistics(self._put, self._taken, self._dropped_replaced)
