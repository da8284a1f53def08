"""Rates of callers, and refusals by load."""

import asyncio
import itertools

import pytest

from server.access.limits import (
    BURST_TAKES_S,
    CALLERS_AT_MOST,
    SPREAD_RETRY_AFTER_S,
    Buckets,
    CpuMeter,
    Limits,
    Load,
    Turns,
)
from server.clock import NS_PER_S
from server.errors import TooManyError, UnavailableError
from server.settings import LimitSettings

pytestmark = pytest.mark.unit

# So slow that nothing comes back while a test runs.
SLOW_PER_S = 0.001


def limits(load: Load | None = None, **changes: float) -> Limits:
    return Limits(LimitSettings(**changes), lambda: load or Load())  # type: ignore[arg-type]


async def test_a_caller_may_burst_and_is_then_told_when_to_come_back() -> None:
    buckets = Buckets(SLOW_PER_S, 3)
    assert [await buckets.take("a") for _ in range(4)] == [0, 0, 0, 1000]
    assert await buckets.take("b") == 0


async def test_no_rate_means_no_limit_and_no_memory() -> None:
    buckets = Buckets(0, 1)
    assert [await buckets.take("a") for _ in range(50)] == [0] * 50
    assert len(buckets) == 0


async def test_callers_have_a_bound_and_the_longest_away_is_forgotten() -> None:
    buckets = Buckets(SLOW_PER_S, 1)
    for number in range(CALLERS_AT_MOST):
        await buckets.take(str(number))
    await buckets.take("0")
    assert buckets.forgotten == 0
    await buckets.take("another")
    assert len(buckets) == CALLERS_AT_MOST
    assert buckets.forgotten == 1
    assert await buckets.take("0") > 0, "the one that came again is still known"


async def test_a_wrong_key_costs_more_than_a_request() -> None:
    some = limits(requests_per_s=SLOW_PER_S, request_burst=12)
    await some.failure("a")
    await some.request("a")
    await some.request("a")
    with pytest.raises(TooManyError, match="requests_per_s"):
        await some.request("a")
    await some.request("b")


async def test_opening_has_its_own_rate_and_is_counted() -> None:
    some = limits(opens_per_s=SLOW_PER_S, open_burst=1)
    await some.opening("a")
    with pytest.raises(TooManyError, match="opens_per_s") as refusal:
        await some.opening("a")
    assert int(refusal.value.headers["Retry-After"]) > 0
    assert some.statistics().refused == {"opens_per_s": 1}


@pytest.mark.parametrize(
    ("load", "changes", "told"),
    [
        (Load(loop_lag_p99_ms=100), {}, "admit_loop_lag_ms"),
        (Load(inference_wait_p95_ms=500), {}, "admit_wait_ms"),
        (Load(cpu_percent=95), {"admit_cpu_percent": 90}, "admit_cpu_percent"),
        (Load(memory_percent=85), {}, "admit_memory_percent"),
        (Load(megapixels_per_s=30), {"max_megapixels_per_s": 30}, "max_megapixels_per_s"),
    ],
)
def test_a_loaded_server_refuses_new_calls_and_says_by_which_limit(
    load: Load, changes: dict[str, float], told: str
) -> None:
    some = limits(load, **changes)
    with pytest.raises(UnavailableError, match=told) as refusal:
        some.admit()
    assert refusal.value.retry_after_s > 0
    assert some.statistics().refused == {told: 1}


def test_a_limit_of_0_is_not_looked_at() -> None:
    loaded = Load(1e4, 1e4, 1e4, 100, 100)
    limits(loaded, admit_loop_lag_ms=0, admit_wait_ms=0, admit_memory_percent=0).admit()
    limits(Load(99, 499, 1e4, 100, 84)).admit()


async def test_all_callers_together_have_a_rate_and_are_refused_at_once_beyond_it() -> None:
    some = limits(calls_per_s=SLOW_PER_S, call_burst=2)
    await some.check_rate()
    await some.check_rate()
    with pytest.raises(UnavailableError, match="calls_per_s") as refusal:
        await some.check_rate()
    least, most = SPREAD_RETRY_AFTER_S
    assert least <= refusal.value.retry_after_s <= most
    assert some.statistics().refused == {"calls_per_s": 1}


async def test_callers_that_come_together_take_turns() -> None:
    turns = Turns(LimitSettings(calls_per_s=SLOW_PER_S, call_burst=5))
    loop = asyncio.get_running_loop()
    at_s: list[float] = []

    async def come() -> None:
        await turns.take()
        at_s.append(loop.time())

    await asyncio.gather(*(come() for _ in range(5)))
    gaps_s = [later - earlier for earlier, later in itertools.pairwise(at_s)]
    assert min(gaps_s) >= 0.9 * BURST_TAKES_S / 5


async def test_a_rate_of_0_lets_all_in_at_once() -> None:
    some = limits(calls_per_s=0)
    turns = Turns(LimitSettings(calls_per_s=0))
    for _ in range(1000):
        await some.check_rate()
        await turns.take()
    assert not some.statistics().refused


def test_load_is_not_measured_for_every_call() -> None:
    measured = []

    def measure() -> Load:
        measured.append(1)
        return Load()

    some = Limits(LimitSettings(), measure)
    for _ in range(100):
        some.admit()
    assert len(measured) < 100


def test_one_address_has_its_share_of_the_calls() -> None:
    some = limits(max_calls_per_address=2)
    some.check_address(1)
    with pytest.raises(TooManyError, match="max_calls_per_address"):
        some.check_address(2)
    limits(max_calls_per_address=0).check_address(1000)


def test_processor_use_is_a_share_of_all_cores_over_a_second() -> None:
    now_ns = [0]
    meter = CpuMeter(lambda: now_ns[0])
    assert meter.percent() == 0
    sum(range(300_000))
    now_ns[0] = NS_PER_S // 2
    assert meter.percent() == 0, "too early to tell"
    now_ns[0] = NS_PER_S
    assert 0 < meter.percent() < 100


def test_every_limit_is_told() -> None:
    told = limits().settings_json()
    assert told["max_calls_per_address"] == LimitSettings().max_calls_per_address
    assert set(told) == set(LimitSettings.__slots__)
