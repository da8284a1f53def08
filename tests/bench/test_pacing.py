"""Pictures leave on a fixed grid: no drift, no bursts."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.pacing import SLACK, Pace
from server.clock import NS_PER_MS, NS_PER_S

pytestmark = pytest.mark.unit


def test_a_punctual_caller_gets_every_slot_without_drift() -> None:
    pace = Pace(30, start_at_ns=7)
    at_ns = 7
    for index in range(30_001):
        slot = pace.next_slot(at_ns)
        assert (slot.index, slot.skipped) == (index, 0)
        at_ns = slot.due_at_ns + NS_PER_MS
    assert slot.due_at_ns == 7 + 1000 * NS_PER_S


def test_a_stall_is_skipped_over_not_caught_up() -> None:
    pace = Pace(10, start_at_ns=0)
    pace.next_slot(0)
    after_stall = pace.next_slot(2_130 * NS_PER_MS)
    assert (after_stall.index, after_stall.skipped) == (21, 20)
    assert pace.next_slot(2_131 * NS_PER_MS).index == 22


def test_a_slot_is_over_after_half_an_interval() -> None:
    pace = Pace(10, start_at_ns=0)
    slot = pace.next_slot(0)
    assert not pace.is_over(slot, 50 * NS_PER_MS)
    assert pace.is_over(slot, 51 * NS_PER_MS)


@pytest.mark.parametrize("fps", [0, -1])
def test_a_rate_that_is_none_is_refused(fps: float) -> None:
    with pytest.raises(ValueError, match="fps"):
        Pace(fps, 0)


@given(
    st.sampled_from([1.0, 24.0, 29.97, 30.0, 60.0]),
    st.lists(st.integers(0, 400 * NS_PER_MS), min_size=1, max_size=60),
)
def test_two_pictures_are_never_closer_than_half_an_interval(
    fps: float, delays_ns: list[int]
) -> None:
    """The camera's loop under a caller that is late by any amount, at waking and at asking."""
    pace = Pace(fps, 0)
    at_ns = 0
    left_at_ns = []
    for number, delay_ns in enumerate(delays_ns):
        late_ns = delay_ns if number % 2 else 0
        at_ns += delay_ns - late_ns
        slot = pace.next_slot(at_ns)
        at_ns = max(at_ns, slot.due_at_ns) + late_ns
        while pace.is_over(slot, at_ns):
            slot = pace.next_slot(at_ns)
            at_ns = max(at_ns, slot.due_at_ns)
        left_at_ns.append(at_ns)
    least_ns = (1 - SLACK) * NS_PER_S / fps - 2
    assert all(after - before >= least_ns for before, after in pairwise(left_at_ns))
