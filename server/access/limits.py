"""How much one caller may ask, and when new calls are refused for the sake of running ones.

Rates are leaky buckets of `aiolimiter`: no thread, no wall clock, one small object a caller and
one for all of them. Load is measured, not guessed: the loop's lag, the wait for the detector,
pixels, processor and memory.
"""

import math
import os
import random
import resource
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiolimiter import AsyncLimiter

from server.clock import NS_PER_MS, NS_PER_S, now_ns
from server.errors import TooManyError, UnavailableError
from server.settings import LimitSettings

CALLERS_AT_MOST = 10_000
MEASURE_EVERY_NS = 250 * NS_PER_MS
CPU_WINDOW_NS = NS_PER_S
RETRY_AFTER_S = 5
# Those who are refused together do not come back together.
SPREAD_RETRY_AFTER_S = (1, 5)
# A full burst of new calls is drawn out over so long.
BURST_TAKES_S = 0.8
# Wrong keys and tokens cost this many requests: guessing is slow, a typing error is not.
FAILURE_COST = 10


@dataclass(frozen=True, slots=True)
class Load:
    """What the server carries now. The wait is 0 while no call is live."""

    loop_lag_p99_ms: float = 0.0
    inference_wait_p95_ms: float = 0.0
    megapixels_per_s: float = 0.0
    cpu_percent: float = 0.0
    memory_percent: float = 0.0


@dataclass(frozen=True, slots=True)
class LimitStatistics:
    """Refusals since start by reason, and the load as last measured."""

    refused: dict[str, int]
    callers: int
    callers_forgotten: int
    load: Load


class Buckets:
    """One bucket a caller; bound: CALLERS_AT_MOST, whoever came longest ago is forgotten."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._buckets: OrderedDict[str, AsyncLimiter] = OrderedDict()
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._buckets)

    async def take(self, caller: str) -> int:
        """0 when there was room, else the seconds until there is. Never waits."""
        if not self._per_s:
            return 0
        bucket = self._buckets.get(caller)
        if bucket is None:
            bucket = AsyncLimiter(self._burst, self._burst / self._per_s)
            self._buckets[caller] = bucket
            if len(self._buckets) > CALLERS_AT_MOST:
                self._buckets.popitem(last=False)
                self.forgotten += 1
        self._buckets.move_to_end(caller)
        if not bucket.has_capacity():
            return max(1, math.ceil(1 / self._per_s))
        await bucket.acquire()
        return 0


class Turns:
    """New calls are built one after another, so that frames of running ones pass between two.

    Nobody waits longer than BURST_TAKES_S: turns come at least as fast as `Limits.check_rate`
    lets callers in.
    """

    def __init__(self, settings: LimitSettings) -> None:
        per_s = settings.calls_per_s
        self._turns = (
            AsyncLimiter(1, min(BURST_TAKES_S / settings.call_burst, 1 / per_s)) if per_s else None
        )

    async def take(self) -> None:
        """Wait for one."""
        if self._turns is not None:
            await self._turns.acquire()


class CpuMeter:
    """Share of all cores this process used over the last second or more."""

    def __init__(self, clock_ns: Callable[[], int] = now_ns) -> None:
        self._clock_ns = clock_ns
        self._cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else (os.cpu_count() or 1)
        )
        self._since_ns, self._used_s = clock_ns(), _used_s()
        self._percent = 0.0

    def percent(self) -> float:
        at_ns = self._clock_ns()
        if at_ns - self._since_ns >= CPU_WINDOW_NS:
            used_s = _used_s()
            elapsed_s = (at_ns - self._since_ns) / NS_PER_S
            self._percent = 100 * (used_s - self._used_s) / elapsed_s / self._cores
            self._since_ns, self._used_s = at_ns, used_s
        return self._percent


def _used_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Limits:
    """On the loop. `measure` is asked at most four times a second, and only for new calls."""

    def __init__(self, settings: LimitSettings, measure: Callable[[], Load]) -> None:
        self._settings = settings
        self._measure = measure
        self._requests = Buckets(settings.requests_per_s, settings.request_burst)
        self._opens = Buckets(settings.opens_per_s, settings.open_burst)
        self._calls = Buckets(settings.calls_per_s, settings.call_burst)
        self._refused: Counter[str] = Counter()
        self._load = Load()
        self._measured_at_ns = 0

    def refused(self, reason: str) -> None:
        """Count a refusal made elsewhere."""
        self._refused[reason] += 1

    async def request(self, caller: str) -> None:
        """Any request; refuses with 429 when the caller has no room left."""
        if wait_s := await self._requests.take(caller):
            self._refused["requests_per_s"] += 1
            raise TooManyError(
                f"requests_per_s: over {self._settings.requests_per_s:g} requests a second", wait_s
            )

    async def failure(self, caller: str) -> None:
        """A wrong key or token."""
        for _ in range(FAILURE_COST):
            await self._requests.take(caller)

    async def opening(self, caller: str) -> None:
        """Something new is asked for: a call, a stream, a token."""
        if wait_s := await self._opens.take(caller):
            self._refused["opens_per_s"] += 1
            raise TooManyError(
                f"opens_per_s: over {self._settings.opens_per_s:g} new calls a second", wait_s
            )

    def check_address(self, calls: int) -> None:
        """One more call from an address that has so many."""
        most = self._settings.max_calls_per_address
        if most and calls >= most:
            self._refused["max_calls_per_address"] += 1
            raise TooManyError(
                f"max_calls_per_address: {calls} calls of this address are up, at most {most}",
                RETRY_AFTER_S,
            )

    def admit(self) -> None:
        """Refuse a new call with 503 before it takes from those that run."""
        load, settings = self.load(), self._settings
        for name, value, most, unit in (
            ("admit_loop_lag_ms", load.loop_lag_p99_ms, settings.admit_loop_lag_ms, "ms"),
            ("admit_wait_ms", load.inference_wait_p95_ms, settings.admit_wait_ms, "ms"),
            ("admit_cpu_percent", load.cpu_percent, settings.admit_cpu_percent, "%"),
            (
                "admit_memory_percent",
                load.memory_percent,
                settings.admit_memory_percent,
                "% of its memory",
            ),
            (
                "max_megapixels_per_s",
                load.megapixels_per_s,
                settings.max_megapixels_per_s,
                "megapixels a second",
            ),
        ):
            if most and value >= most:
                self._refused[name] += 1
                raise UnavailableError(
                    f"{name}: the server is at {value:.0f} {unit}, at {most:g} it takes no more",
                    RETRY_AFTER_S,
                )

    async def check_rate(self) -> None:
        """One more call, whoever's. 503, not 429: the caller may be asking for the first time."""
        if await self._calls.take("all"):
            self._refused["calls_per_s"] += 1
            raise UnavailableError(
                f"calls_per_s: the server takes {self._settings.calls_per_s:g} new calls a second",
                random.randint(*SPREAD_RETRY_AFTER_S),
            )

    def load(self) -> Load:
        at_ns = now_ns()
        if not self._measured_at_ns or at_ns - self._measured_at_ns >= MEASURE_EVERY_NS:
            self._load = self._measure()
            self._measured_at_ns = at_ns
        return self._load

    def statistics(self) -> LimitStatistics:
        return LimitStatistics(
            refused=dict(self._refused),
            callers=len(self._requests),
            callers_forgotten=self._requests.forgotten + self._opens.forgotten,
            load=self.load(),
        )

    def settings_json(self) -> dict[str, Any]:
        """Every limit as it stands."""
        return {name: getattr(self._settings, name) for name in LimitSettings.__slots__}
