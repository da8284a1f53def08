"""How many frames may run together so that none of them is late for it.

A frame has waited for at most `waited_ms` when a batch begins, and should have its boxes
`budget_ms` after it came. What a batch costs is learned from those that ran. Inference thread only.
"""

# Weight of the newest run in the remembered duration of its size.
NEWEST = 0.2


class BatchPlan:
    """Remembers durations by size; sizes never run are taken for as many single runs."""

    def __init__(self, budget_ms: float) -> None:
        self._budget_ms = budget_ms
        self._duration_ms: dict[int, float] = {}

    def limit(self, max_batch: int, waited_ms: float) -> int:
        """Frames to take at once, 1 to `max_batch`."""
        size = 1
        while size < max_batch and waited_ms + self._expected_ms(size + 1) <= self._budget_ms:
            size += 1
        return size

    def ran(self, size: int, duration_ms: float) -> None:
        """A batch has run."""
        before_ms = self._duration_ms.get(size, duration_ms)
        self._duration_ms[size] = before_ms + NEWEST * (duration_ms - before_ms)

    @property
    def single_ms(self) -> float:
        """What one frame alone takes; 0 before anything ran."""
        return self._expected_ms(1)

    def _expected_ms(self, size: int) -> float:
        known = self._duration_ms.get(size)
        if known is not None:
            return known
        # From the nearest size below, as if every frame cost the same.
        below = max((each for each in self._duration_ms if each < size), default=0)
        if below:
            return self._duration_ms[below] * size / below
        above = min(self._duration_ms, default=0)
        return self._duration_ms[above] if above else 0.0
