"""Percentiles, freezes and growth, by tables."""

import pytest

from bench.statistics import (
    Distribution,
    Freezes,
    Second,
    by_second,
    distribution,
    freezes,
    growth_per_minute,
    median,
    percentile,
    quantiles,
    rate_per_s,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("ordered", "percent", "expected"),
    [
        ([7.0], 0, 7.0),
        ([7.0], 99, 7.0),
        ([1.0, 2.0], 50, 1.5),
        ([1.0, 2.0, 3.0], 50, 2.0),
        ([1.0, 2.0, 3.0], 100, 3.0),
        ([0.0, 10.0, 20.0, 30.0, 40.0], 95, 38.0),
        ([float(value) for value in range(101)], 99, 99.0),
    ],
)
def test_percentile_table(ordered: list[float], percent: float, expected: float) -> None:
    assert percentile(ordered, percent) == pytest.approx(expected)


@pytest.mark.parametrize(("ordered", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_percentile_of_nothing_or_beyond_the_range_is_refused(
    ordered: list[float], percent: float
) -> None:
    with pytest.raises(ValueError, match="perc"):
        percentile(ordered, percent)


def test_distribution_of_nothing_is_none() -> None:
    assert distribution([]) is None


def test_distribution_does_not_need_sorted_values() -> None:
    assert distribution([40.0, 0.0, 30.0, 10.0, 20.0]) == Distribution(
        count=5, mean=20.0, p50=20.0, p95=38.0, p99=39.6, max=40.0
    )


def test_median_of_three_runs_is_the_middle_one() -> None:
    assert median([19.0, 45.0, 17.0]) == 19.0


@pytest.mark.parametrize(
    ("arrived_ms", "expected"),
    [
        ([], Freezes(1, 1000, 1000)),  # nothing came at all
        ([100, 250, 400, 550, 700, 850], Freezes(0, 0, 150)),
        ([100, 300, 500, 700, 900], Freezes(0, 0, 200)),  # a limit is not over itself
        ([100, 301, 500, 700, 900], Freezes(1, 201, 201)),
        ([150, 300, 450], Freezes(1, 550, 550)),  # stopped for good
        ([-50, 150, 300, 450, 600, 750, 900, 1400], Freezes(0, 0, 150)),  # around the window
    ],
)
def test_freeze_table(arrived_ms: list[float], expected: Freezes) -> None:
    assert freezes(arrived_ms, 0, 1000) == expected


@pytest.mark.parametrize(
    ("at_s", "values", "expected"),
    [
        ([], [], 0.0),
        ([1.0], [5.0], 0.0),
        ([1.0, 1.0], [5.0, 9.0], 0.0),
        ([0.0, 1.0, 2.0], [20.0, 20.0, 20.0], 0.0),
        ([0.0, 1.0, 2.0], [20.0, 21.0, 22.0], 60.0),  # a queue that grows by 1 ms a second
        ([0.0, 30.0, 60.0], [30.0, 25.0, 20.0], -10.0),
    ],
)
def test_growth_table(at_s: list[float], values: list[float], expected: float) -> None:
    assert growth_per_minute(at_s, values) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("count", "duration_s", "expected"), [(300, 10.0, 30.0), (0, 10.0, 0.0), (5, 0.0, 0.0)]
)
def test_rate_table(count: int, duration_s: float, expected: float) -> None:
    assert rate_per_s(count, duration_s) == expected


def test_quantiles_are_the_shape_of_a_distribution() -> None:
    found = quantiles([3.0, 1.0, 2.0])
    assert len(found) == 101
    assert (found[0], found[50], found[100]) == (1.0, 2.0, 3.0)
    assert quantiles([]) == []


def test_seconds_hold_what_began_in_them() -> None:
    found = by_second([0.1, 0.9, 2.0, 0.5], [10.0, 30.0, 5.0, 20.0])
    assert found == [Second(0, 3, 20.0, 29.0), Second(2, 1, 5.0, 5.0)]
    assert by_second([], []) == []
