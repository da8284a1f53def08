import pytest

from server.batching import BatchPlan

pytestmark = pytest.mark.unit


def test_nothing_is_known_at_first_so_a_whole_batch_is_tried() -> None:
    assert BatchPlan(budget_ms=50).limit(8, waited_ms=20) == 8


def test_a_batch_grows_only_as_far_as_its_first_frame_is_still_in_time() -> None:
    plan = BatchPlan(budget_ms=50)
    plan.ran(1, 10)
    assert plan.limit(8, waited_ms=20) == 3
    assert plan.limit(8, waited_ms=45) == 1
    assert plan.limit(2, waited_ms=0) == 2


def test_what_a_size_really_costs_counts_more_than_the_guess() -> None:
    plan = BatchPlan(budget_ms=50)
    plan.ran(1, 10)
    plan.ran(3, 12)
    # From three on a frame costs 4 ms, as far as is known.
    assert plan.limit(8, waited_ms=20) == 7


def test_a_slower_machine_is_noticed() -> None:
    plan = BatchPlan(budget_ms=50)
    plan.ran(1, 5)
    for _ in range(30):
        plan.ran(1, 25)
    assert plan.single_ms == pytest.approx(25, abs=0.1)
    assert plan.limit(8, waited_ms=0) == 2
