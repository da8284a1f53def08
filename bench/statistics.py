"""What a series of measurements says: percentiles, freezes, growth, rate. Pure functions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

FREEZE_MS: Final = 200.0


@dataclass(frozen=True, slots=True)
class Distribution:
    """One quantity, in its own unit (milliseconds unless the name says otherwise)."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Freezes:
    """Times when no new picture came for longer than a limit."""

    count: int
    total_ms: float
    longest_gap_ms: float
    """The longest time between two pictures, a freeze or not."""


@dataclass(frozen=True, slots=True)
class Second:
    """One quantity over one second of a window."""

    at_s: int
    count: int
    p50: float
    p95: float


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the sorted values lie, linear between neighbours."""
    if not ordered:
        raise ValueError("no values, so no percentile")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent is 0 to 100, not {percent}")
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle."""
    return percentile(sorted(values), 50)


def worst(values: Iterable[float | None]) -> float | None:
    """The largest; none where there are none, or where one has no number: that is the worst."""
    found = list(values)
    if not found or None in found:
        return None
    return max(value for value in found if value is not None)


def distribution(values: Sequence[float]) -> Distribution | None:
    """None when there is nothing to describe: an empty series has no zeros in it."""
    if not values:
        return None
    ordered = sorted(values)
    return Distribution(
        count=len(ordered),
        mean=sum(ordered) / len(ordered),
        p50=percentile(ordered, 50),
        p95=percentile(ordered, 95),
        p99=percentile(ordered, 99),
        max=ordered[-1],
    )


def freezes(
    arrived_ms: Sequence[float],
    begin_ms: float,
    end_ms: float,
    limit_ms: float = FREEZE_MS,
) -> Freezes:
    """Gaps over `limit_ms` between arrivals, from `begin_ms` to `end_ms`.

    The window's edges count as arrivals, so that a picture that stopped for good is a freeze.
    """
    inside = [at for at in arrived_ms if begin_ms <= at <= end_ms]
    instants = [begin_ms, *inside, end_ms]
    gaps = [after - before for before, after in pairwise(instants)]
    frozen = [gap for gap in gaps if gap > limit_ms]
    return Freezes(len(frozen), sum(frozen), max(gaps))


def growth_per_minute(at_s: Sequence[float], values: Sequence[float]) -> float:
    """Slope of a line through the values by least squares, per minute; 0 for under two instants.

    A queue that never shrinks shows here long before it shows in a percentile.
    """
    count = len(values)
    if count < 2:
        return 0.0
    mean_at, mean_value = sum(at_s) / count, sum(values) / count
    spread = sum((at - mean_at) ** 2 for at in at_s)
    if spread == 0:
        return 0.0
    tilt = sum(
        (at - mean_at) * (value - mean_value) for at, value in zip(at_s, values, strict=True)
    )
    return 60 * tilt / spread


def quantiles(values: Sequence[float]) -> list[float]:
    """The values at 0, 1 .. 100 percent: the shape of a distribution, whatever its size."""
    ordered = sorted(values)
    return [percentile(ordered, percent) for percent in range(101)] if ordered else []


def by_second(at_s: Sequence[float], values: Sequence[float]) -> list[Second]:
    """The values of each whole second that has any, in order of time."""
    found: dict[int, list[float]] = {}
    for at, value in zip(at_s, values, strict=True):
        found.setdefault(int(at), []).append(value)
    seconds = []
    for second, inside in sorted(found.items()):
        ordered = sorted(inside)
        middle, high = percentile(ordered, 50), percentile(ordered, 95)
        seconds.append(Second(second, len(inside), middle, high))
    return seconds


def rate_per_s(count: int, duration_s: float) -> float:
    """Events per second over a window; 0 for an empty window."""
    return count / duration_s if duration_s > 0 else 0.0
