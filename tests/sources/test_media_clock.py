"""One time line over all connections of a source, and what is left out when it comes late."""

import itertools

import pytest

from server.clock import NS_PER_S
from server.pull.media_clock import Lateness, MediaClock

pytestmark = pytest.mark.unit


def test_time_between_pictures_is_the_sources_whenever_they_come() -> None:
    clock = MediaClock()
    arrivals_ms = [0, 120, 190, 330]
    ticks = [
        clock.ticks(7.0 + 0.1 * number, arrival * NS_PER_S // 1000)
        for number, arrival in enumerate(arrivals_ms)
    ]
    assert [later - earlier for earlier, later in itertools.pairwise(ticks)] == [9000] * 3


def test_time_goes_on_over_a_reconnection_and_a_leap_and_never_back() -> None:
    clock = MediaClock()
    before = clock.ticks(100.0, 0)
    clock.restart()
    after = clock.ticks(0.0, 5 * NS_PER_S)
    assert after - before == 5 * 90_000
    leapt = clock.ticks(50_000.0, 6 * NS_PER_S)
    assert leapt - after == 90_000
    assert clock.ticks(49_999.9, 6 * NS_PER_S + 1) == leapt + 1
    assert clock.ticks(None, 8 * NS_PER_S) == 8 * 90_000


def test_punctual_packets_and_such_without_time_all_stay() -> None:
    lateness = Lateness()
    assert not any(
        lateness.is_late(index / 10, 50 + index / 10 + 0.2 * (index % 3 == 0), index % 10 == 0)
        for index in range(100)
    )
    assert not lateness.is_late(None, 99.0, False)


def test_late_packets_are_left_out_up_to_a_key_frame_that_is_punctual() -> None:
    lateness = Lateness()
    assert not lateness.is_late(0.0, 0.0, True)
    # A second late: out, key frames too, until the backlog has been read away.
    assert lateness.is_late(0.1, 1.1, False)
    assert lateness.is_late(0.2, 1.1, True)
    assert lateness.is_late(1.0, 1.1, False)
    assert not lateness.is_late(1.1, 1.2, True)
    assert not lateness.is_late(1.2, 1.3, False)


def test_a_clock_that_runs_another_way_is_believed_after_a_while() -> None:
    lateness = Lateness()
    lateness.is_late(0.0, 0.0, True)
    out = [lateness.is_late(second, 3.0 + second, True) for second in range(1, 12)]
    assert out[0]
    assert not any(out[6:])
