"""Rates follow pictures and receivers; time is a number that the test moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.rtc.bitrate import (
    GROWTH_PER_S,
    START_SHARE,
    CadenceMeter,
    RateFollower,
    StepFilter,
    ceiling_bps,
)
from tests.fakes import ManualClock

pytestmark = pytest.mark.unit

MIN_BPS, MAX_BPS = 300_000, 6_000_000
VGA = (640, 480)
VGA_CEILING = 2_000_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def follower(clock: ManualClock) -> RateFollower:
    return RateFollower(MIN_BPS, MAX_BPS, clock)


def rate(follower: RateFollower) -> int:
    bits_per_s = follower.allowance().bits_per_s(VGA, 30.0)
    follower.used(bits_per_s)
    return bits_per_s


@pytest.mark.parametrize(
    ("size_wh", "fps", "expected"),
    [
        (VGA, 30, VGA_CEILING),
        ((16, 16), 30, MIN_BPS),
        ((320, 240), 30, 707_106),  # a quarter of the pixels, over a third of the bits
        ((1280, 720), 30, 4_559_014),
        ((1920, 1080), 30, MAX_BPS),
        (VGA, 60, 3_363_585),
        (VGA, 15, 1_189_207),
    ],
)
def test_ceiling_grows_slower_than_the_picture(
    size_wh: tuple[int, int], fps: float, expected: int
) -> None:
    assert ceiling_bps(size_wh, fps, MIN_BPS, MAX_BPS) == expected


def test_start_is_near_the_target_not_at_the_minimum(follower: RateFollower) -> None:
    assert rate(follower) == int(VGA_CEILING * START_SHARE)


def test_nothing_grows_while_the_receiver_is_silent(
    follower: RateFollower, clock: ManualClock
) -> None:
    before = rate(follower)
    clock.advance(60)
    assert rate(follower) == before


def test_estimate_below_the_rate_takes_it_down_at_once(follower: RateFollower) -> None:
    follower.remb(800_000)
    assert rate(follower) == 720_000
    follower.remb(500_000)
    assert rate(follower) == 450_000


def test_estimate_above_the_rate_lets_it_up_slowly(
    follower: RateFollower, clock: ManualClock
) -> None:
    follower.remb(500_000)
    low = rate(follower)
    clock.advance(5)
    follower.remb(3_000_000)
    # Time before the estimate rose does not count towards the rise.
    assert rate(follower) <= low * 1.01
    clock.advance(1)
    assert rate(follower) == pytest.approx(low * GROWTH_PER_S, rel=0.02)
    clock.advance(40)
    assert rate(follower) == VGA_CEILING


def test_step_down_is_not_followed_by_growth_for_a_second(
    follower: RateFollower, clock: ManualClock
) -> None:
    follower.remb(1_500_000)
    follower.remb(600_000)
    low = rate(follower)
    follower.remb(1_500_000)
    clock.advance(1.0)
    assert rate(follower) == low
    clock.advance(1.0)
    assert rate(follower) > low


@given(st.lists(st.tuples(st.integers(0, 50_000_000), st.floats(0, 20)), max_size=30))
def test_rate_never_passes_the_share_of_the_last_estimate(
    steps: list[tuple[int, float]],
) -> None:
    clock = ManualClock()
    follower = RateFollower(MIN_BPS, MAX_BPS, clock)
    for estimate_bps, pause_s in steps:
        follower.remb(estimate_bps)
        for _ in range(2):
            bits_per_s = rate(follower)
            assert MIN_BPS <= bits_per_s <= max(MIN_BPS, min(estimate_bps * 0.9, VGA_CEILING))
            clock.advance(pause_s)


def test_heavy_loss_takes_the_rate_down_and_it_recovers(
    follower: RateFollower, clock: ManualClock
) -> None:
    before = rate(follower)
    follower.loss(0.2, before)
    assert rate(follower) == pytest.approx(before * 0.9, rel=0.01)
    clock.advance(1.5)
    follower.loss(0.2, before)
    assert rate(follower) == pytest.approx(before * 0.81, rel=0.01)
    clock.advance(30)
    follower.loss(0.05, before)
    assert rate(follower) == pytest.approx(before * 0.81, rel=0.01), "still losing"
    follower.loss(0.0, before)
    clock.advance(30)
    assert rate(follower) == before


def test_light_loss_changes_nothing(follower: RateFollower) -> None:
    before = rate(follower)
    follower.loss(0.05, before)
    assert rate(follower) == before


def test_picture_that_grows_gets_more_at_once(follower: RateFollower) -> None:
    allowance = follower.allowance()
    assert allowance.bits_per_s((1280, 720), 30.0) > 2 * allowance.bits_per_s(VGA, 30.0)


def test_cap_holds_for_every_size(follower: RateFollower) -> None:
    follower.remb(1_000_000)
    assert follower.allowance().bits_per_s((1920, 1080), 30.0) == 900_000


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (1_000_000, 1_000_000),
        (1_040_000, 1_000_000),  # a small step up waits
        (1_060_000, 1_060_000),
        (990_000, 1_000_000),
        (970_000, 970_000),  # down sooner than up
    ],
)
def test_encoder_is_spared_small_steps(wanted: int, expected: int) -> None:
    steps = StepFilter()
    steps.step(1_000_000)
    assert steps.step(wanted) == expected


def test_small_steps_that_add_up_are_passed_on() -> None:
    steps = StepFilter()
    values = [steps.step(1_000_000 + 10_000 * n) for n in range(11)]
    assert values[5] == 1_000_000
    assert values[-1] >= 1_060_000


def test_cadence_is_measured_from_media_time() -> None:
    meter = CadenceMeter()
    assert meter.fps == 30.0
    for n in range(60):
        meter.observe(n * 6000)
    assert meter.fps == pytest.approx(15.0, rel=0.01)


@pytest.mark.parametrize("jump", [-1_000_000, 0, 90_001, 10**12])
def test_pause_or_jump_is_no_cadence(jump: int) -> None:
    meter = CadenceMeter()
    for n in range(10):
        meter.observe(n * 3000)
    before = meter.fps
    meter.observe(27_000 + jump)
    assert meter.fps == before


@given(st.lists(st.integers(-(1 << 40), 1 << 40), max_size=50))
def test_cadence_stays_within_reason(ticks: list[int]) -> None:
    meter = CadenceMeter()
    for tick in ticks:
        assert 1.0 <= meter.observe(tick) <= 120.0
