"""Counting without logging: histograms of durations, rates, and the lag of the event loop.

Each recorder is written by one thread at a time and may be read by any: a snapshot taken
while a value is being added may miss that value, never break.
"""

import asyncio
import bisect
from collections import deque
from dataclasses import dataclass

from server.clock import NS_PER_MS, NS_PER_S, now_ns, ns_to_ms
from server.frame import STAGE_NAMES, Stamps

# Upper bounds in milliseconds: fine where the budget is, coarse beyond it.
BOUNDS_MS: tuple[float, ...] = (
    0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50,
    75, 100, 150, 200, 300, 500, 1000, 2000, 5000, 10000,
)  # fmt: skip
RECENT = 600


@dataclass(frozen=True, slots=True)
class Summary:
    """Durations in milliseconds: all since start, and percentiles of the most recent ones."""

    count: int
    sum_ms: float
    p50: float
    p95: float
    p99: float
    max: float
    bucket_counts: tuple[int, ...]

    def to_json(self) -> dict[str, float]:
        return {
            "count": self.count,
            "p50": round(self.p50, 3),
            "p95": round(self.p95, 3),
            "p99": round(self.p99, 3),
            "max": round(self.max, 3),
        }


class DurationRecorder:
    """Buckets since start for Prometheus; the most recent values for percentiles."""

    def __init__(self) -> None:
        self._bucket_counts = [0] * (len(BOUNDS_MS) + 1)
        self._count = 0
        self._sum_ms = 0.0
        # Bound: RECENT values; the oldest falls out.
        self._recent_ms: deque[float] = deque(maxlen=RECENT)

    def add_ms(self, duration_ms: float) -> None:
        self._bucket_counts[bisect.bisect_left(BOUNDS_MS, duration_ms)] += 1
        self._count += 1
        self._sum_ms += duration_ms
        self._recent_ms.append(duration_ms)

    def statistics(self) -> Summary:
        recent_ms = sorted(self._recent_ms.copy())
        return Summary(
            count=self._count,
            sum_ms=self._sum_ms,
            p50=percentile(recent_ms, 50),
            p95=percentile(recent_ms, 95),
            p99=percentile(recent_ms, 99),
            max=recent_ms[-1] if recent_ms else 0.0,
            bucket_counts=tuple(self._bucket_counts),
        )


def percentile(ascending: list[float], percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed; 0 when empty."""
    if not ascending:
        return 0.0
    rank = -(-len(ascending) * percent // 100)
    return ascending[max(0, int(rank) - 1)]


class RateMeter:
    """Events per second over the last `window_s` seconds."""

    def __init__(self, window_s: float = 2.0) -> None:
        self._window_ns = int(window_s * NS_PER_S)
        # Bound: 1,000 events a window; beyond that the rate reads as that bound.
        self._at_ns: deque[int] = deque(maxlen=1000)

    def add(self, at_ns: int) -> None:
        self._at_ns.append(at_ns)

    def per_second(self, at_ns: int) -> float:
        recent = [event_ns for event_ns in self._at_ns.copy() if event_ns > at_ns - self._window_ns]
        if len(recent) < 2:
            return 0.0
        # Intervals, not events, over the time they cover; silence at the end counts against it.
        covered_ns = max(recent[-1] - recent[0], at_ns - recent[0] - NS_PER_S // 2)
        return (len(recent) - 1) * NS_PER_S / covered_ns if covered_ns else 0.0


class FrameTelemetry:
    """Stage times of every frame that left, on the loop.

    `total` is from the first packet in to the last packet out; `own` is that less the time in
    the model and the wait for it: the server's own share.
    """

    def __init__(self) -> None:
        self._recorders = {name: DurationRecorder() for name in (*STAGE_NAMES, "total", "own")}

    def record(self, stamps: Stamps) -> None:
        stages_ms = stamps.stages_ms()
        for name, duration_ms in stages_ms.items():
            self._recorders[name].add_ms(duration_ms)
        if not stamps.sent_at_ns:
            # Boxes of a picture that left without them, and was recorded then.
            return
        total_ms = ns_to_ms(stamps.sent_at_ns - stamps.received_at_ns)
        self._recorders["total"].add_ms(total_ms)
        model_ms = stages_ms.get("wait", 0.0) + stages_ms.get("infer", 0.0)
        self._recorders["own"].add_ms(total_ms - model_ms)

    def statistics(self) -> dict[str, Summary]:
        return {name: recorder.statistics() for name, recorder in self._recorders.items()}


class LoopLagSampler:
    """How late a 10 ms timer of the event loop fires: what every packet would have waited.

    `run` is a task of the application's; cancelling it ends it.
    """

    INTERVAL_NS = 10 * NS_PER_MS

    def __init__(self) -> None:
        self.recorder = DurationRecorder()

    async def run(self) -> None:
        while True:
            begun_ns = now_ns()
            await asyncio.sleep(self.INTERVAL_NS / NS_PER_S)
            lag_ns = now_ns() - begun_ns - self.INTERVAL_NS
            self.recorder.add_ms(max(0, lag_ns) / NS_PER_MS)
