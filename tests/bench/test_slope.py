"""Growth with its confidence, against numbers that are known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.slope import slope, student_t_95

pytestmark = pytest.mark.unit


def test_a_straight_line_is_found_without_doubt() -> None:
    found = slope([0, 10, 20, 30, 40], [100, 101, 102, 103, 104])
    assert found is not None
    assert found.per_hour == pytest.approx(360)
    assert found.low == pytest.approx(360)
    assert found.high == pytest.approx(360)


def test_noise_around_a_level_is_not_called_growth() -> None:
    noise = np.random.default_rng(3).normal(0, 1, 400)
    found = slope([5.0 * n for n in range(400)], list(100 + noise))
    assert found is not None
    assert found.low < 0 < found.high
    # 400 independent samples are worth about as many.
    assert found.worth > 300


def test_samples_that_follow_each_other_are_worth_fewer_and_widen_the_interval() -> None:
    steps = np.random.default_rng(4).normal(0, 1, 400)
    walk = np.zeros(400)
    for index in range(1, 400):
        walk[index] = 0.9 * walk[index - 1] + steps[index]
    at_s = [5.0 * n for n in range(400)]
    alike, shuffled = (
        slope(at_s, list(walk)),
        slope(at_s, list(np.random.default_rng(5).permutation(walk))),
    )
    assert alike is not None
    assert shuffled is not None
    assert alike.worth < shuffled.worth / 4
    assert alike.high - alike.low > 2 * (shuffled.high - shuffled.low)


def test_the_interval_holds_the_truth_about_95_times_in_100() -> None:
    at_s = [5.0 * n for n in range(60)]
    held = 0
    for seed in range(300):
        noise = np.random.default_rng(seed).normal(0, 2, 60)
        found = slope(at_s, [at * 0.01 + wobble for at, wobble in zip(at_s, noise, strict=True)])
        assert found is not None
        held += found.low <= 36 <= found.high
    assert 270 <= held <= 297


def test_a_limit_is_kept_only_by_the_whole_interval() -> None:
    noise = np.random.default_rng(6).normal(0, 1, 50)
    found = slope([5.0 * n for n in range(50)], list(noise))
    assert found is not None
    assert found.is_below(found.high + 0.01)
    assert not found.is_below(found.per_hour)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_samples_have_no_slope(count: int) -> None:
    assert slope(list(range(count)), [1.0] * count) is None


def test_samples_of_one_instant_have_no_slope() -> None:
    assert slope([7.0] * 9, [float(n) for n in range(9)]) is None


def test_as_many_instants_as_values_are_asked_for() -> None:
    with pytest.raises(ValueError, match="as many"):
        slope([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("degrees", "table"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)],
)
def test_student_is_as_in_the_tables(degrees: float, table: float) -> None:
    assert student_t_95(degrees) == pytest.approx(table, rel=0.01)


@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=40))
def test_every_interval_holds_its_own_slope(values: list[float]) -> None:
    found = slope([float(n) for n in range(len(values))], values)
    assert found is not None
    assert found.low <= found.per_hour <= found.high
    assert math.isfinite(found.high)
