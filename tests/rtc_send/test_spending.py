"""What left is counted against what a narrow path carries."""

import pytest

from server.rtc.bitrate import LOSS_HIGH, NARROW_S, RateFollower
from server.rtc.spending import AHEAD_AT_MOST_S, BURST_S, OVERHEAD_BYTES, PACE, Spending
from tests.fakes import ManualClock

pytestmark = pytest.mark.unit


def test_on_a_wide_path_nothing_is_counted() -> None:
    spending = Spending(ManualClock())
    for _ in range(1000):
        spending.sent(1200)
    assert not spending.is_overdrawn
    assert spending.pause_s(1_000_000) == 0


def test_on_a_narrow_path_what_is_ahead_is_waited_for() -> None:
    clock = ManualClock()
    spending = Spending(clock)
    spending.allow(300_000)
    size = 300_000 // 8 // 10 - OVERHEAD_BYTES
    for _ in range(2):
        spending.sent(size)
    assert spending.ahead_s == pytest.approx(0.2, abs=0.001)
    told = [spending.is_overdrawn]
    spending.sent(size)
    told.append(spending.is_overdrawn)
    clock.advance(0.3 - AHEAD_AT_MOST_S + 0.001)
    told.append(spending.is_overdrawn)
    assert told == [False, True, False]
    clock.advance(1)
    assert spending.ahead_s == 0
    # Idle time is not saved up.
    spending.sent(size)
    assert spending.ahead_s == pytest.approx(0.1, abs=0.001)


def test_the_first_part_of_a_picture_leaves_at_once_and_the_rest_at_a_pace() -> None:
    spending = Spending(ManualClock())
    spending.allow(400_000)
    burst = int(BURST_S * 400_000 / 8)
    assert spending.pause_s(burst) == 0
    pause_s = spending.pause_s(burst + 1)
    assert pause_s == pytest.approx(8 * 1240 / (PACE * 400_000))


LARGE_BPS, SMALL_BPS = 2_000_000, 200_000


@pytest.mark.parametrize(
    ("estimate_bps", "sent_bps", "is_narrow"),
    [
        (LARGE_BPS, SMALL_BPS, False),  # a radio path loses much of whatever is sent
        (SMALL_BPS, LARGE_BPS, True),
        (None, SMALL_BPS, True),  # nothing tells the two apart
    ],
)
def test_a_path_is_narrow_when_much_is_lost_of_more_than_the_receiver_believes_in(
    estimate_bps: int | None, sent_bps: int, is_narrow: bool
) -> None:
    follower = RateFollower(100_000, 6_000_000, ManualClock())
    if estimate_bps is not None:
        follower.remb(estimate_bps)
    follower.loss(LOSS_HIGH, sent_bps)
    assert follower.is_narrow is is_narrow


def test_a_path_is_narrow_for_a_while_after_a_heavy_loss_not_after_an_estimate() -> None:
    clock = ManualClock()
    follower = RateFollower(100_000, 6_000_000, clock)
    follower.remb(LARGE_BPS)
    follower.remb(SMALL_BPS)
    told = [follower.is_narrow]
    follower.loss(LOSS_HIGH, LARGE_BPS)
    told.append(follower.is_narrow)
    clock.advance(NARROW_S)
    told.append(follower.is_narrow)
    assert told == [False, True, False]
