"""The one place where clocks are read.

Instants are integers of monotonic nanoseconds (`*_at_ns`); on one machine every process
reads the same clock, so the bench may subtract across processes. `loop.time()` is not used
to measure: under uvloop it has whole milliseconds. Wall-clock time (`*_unix_ms`) is for
records that people read and is never subtracted from.
"""

import time

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

now_ns = time.monotonic_ns


def unix_ms() -> float:
    """Wall-clock time for records; steps when the operator sets the clock."""
    return time.time_ns() / NS_PER_MS


def ns_to_ms(duration_ns: int) -> float:
    """A duration for the edge: JSON, logs, pages."""
    return duration_ns / NS_PER_MS


def s_to_ns(duration_s: float) -> int:
    """A setting in seconds as a deadline arithmetic value."""
    return int(duration_s * NS_PER_S)
