"""When the next picture is due: a fixed grid of instants, never a burst to catch up. Pure."""

from dataclasses import dataclass
from typing import Final

from server.clock import NS_PER_S

# A caller this late, in intervals, still gets the slot it is late for. A camera's picture may
# come late and the one after it on time; but two are never closer than the rest of an interval.
SLACK: Final = 0.5


@dataclass(frozen=True, slots=True)
class Slot:
    """One instant of the grid."""

    index: int
    """Counts every interval since the start, also those that were skipped."""
    due_at_ns: int
    skipped: int
    """Intervals given up since the slot before, because the caller came too late for them."""


class Pace:
    """The grid `start + index / fps`, walked by one caller.

    No drift: each instant is computed from the start, not from the last one. No bursts: a
    caller that comes more than half an interval late for a slot is given a later one, so that
    a stall of the sender is not followed by a salvo which the receiver would have to digest.
    """

    def __init__(self, fps: float, start_at_ns: int) -> None:
        if fps <= 0:
            raise ValueError(f"fps must be above 0, not {fps}")
        self._fps = fps
        self._start_at_ns = start_at_ns
        self._index = -1

    def next_slot(self, now_ns: int) -> Slot:
        """The first slot after the last one that is not over; it may be due already."""
        elapsed_intervals = (now_ns - self._start_at_ns) * self._fps / NS_PER_S
        earliest = -int(-(elapsed_intervals - SLACK) // 1)
        index = max(self._index + 1, earliest)
        skipped = index - self._index - 1
        self._index = index
        return Slot(index, self._start_at_ns + round(index * NS_PER_S / self._fps), skipped)

    def is_over(self, slot: Slot, now_ns: int) -> bool:
        """Whether the slot can no longer be used: its caller woke up too late."""
        return (now_ns - slot.due_at_ns) * self._fps > SLACK * NS_PER_S
