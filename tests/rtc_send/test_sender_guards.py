"""What receivers may ask for, and how often; time is a number that the test moves."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.clock import NS_PER_MS, NS_PER_S
from server.rtc.sender_guards import (
    REQUESTS_AT_ONCE,
    REQUESTS_PER_S,
    KeyframeThrottle,
    PacketHistory,
    ResendGuard,
    RtpTimeline,
    SentPacket,
    history_capacity,
)
from tests.fakes import ManualClock

pytestmark = pytest.mark.unit

HALF_SECOND_NS = NS_PER_S // 2


def encode_one(throttle: KeyframeThrottle) -> bool:
    """One picture: key frame if granted, as the sender does it."""
    granted = throttle.grant()
    if granted:
        throttle.made()
    return granted


def test_no_key_frame_without_a_wish() -> None:
    assert not KeyframeThrottle(HALF_SECOND_NS, ManualClock()).grant()


def test_first_wish_is_granted_at_once() -> None:
    throttle = KeyframeThrottle(HALF_SECOND_NS, ManualClock())
    throttle.wish()
    assert encode_one(throttle)
    assert not encode_one(throttle)


def test_wish_that_comes_too_early_is_granted_when_the_time_has_come() -> None:
    clock = ManualClock()
    throttle = KeyframeThrottle(HALF_SECOND_NS, clock)
    throttle.wish()
    assert encode_one(throttle)
    clock.at_ns += 10 * NS_PER_MS
    throttle.wish()
    assert not encode_one(throttle)
    clock.at_ns += HALF_SECOND_NS
    assert encode_one(throttle)


def test_storm_of_wishes_gives_two_key_frames_a_second() -> None:
    clock = ManualClock()
    throttle = KeyframeThrottle(HALF_SECOND_NS, clock)
    count = 0
    for _ in range(300):  # ten seconds at 30 pictures a second, a wish before each
        throttle.wish()
        count += encode_one(throttle)
        clock.at_ns += NS_PER_S // 30
    assert 18 <= count <= 20


def test_key_frame_made_for_another_reason_answers_the_wish() -> None:
    throttle = KeyframeThrottle(HALF_SECOND_NS, ManualClock())
    throttle.wish()
    throttle.made()
    assert not throttle.grant()


def packet(sequence_number: int, size: int = 1000) -> SentPacket:
    return SentPacket(sequence_number, bytes(12), bytes(size - 12))


def test_history_gives_back_what_it_holds_and_nothing_older() -> None:
    history = PacketHistory(512)
    for n in range(65_000, 65_536 + 100):
        history.put(packet(n & 0xFFFF))
    assert history.get(99) is not None
    assert history.get(65_535) is not None
    newest = 65_536 + 99
    oldest = history.get((newest - 511) & 0xFFFF)
    assert oldest is not None
    assert oldest.sequence_number == newest - 511
    assert history.get((newest - 512) & 0xFFFF) is None
    assert history.get(100) is None


@pytest.mark.parametrize(
    ("max_bps", "capacity"),
    [(300_000, 512), (6_000_000, 1024), (100_000_000, 8192)],
)
def test_history_holds_a_second_of_the_highest_rate(max_bps: int, capacity: int) -> None:
    assert history_capacity(max_bps, 1200) == capacity


def test_unknown_packet_is_counted_and_not_sent() -> None:
    guard = ResendGuard(10_000)
    assert not guard.allow(None, 0, NS_PER_MS)
    assert guard.unknown == 1


def test_packet_is_sent_again_once_per_round_trip() -> None:
    guard, sent = ResendGuard(10_000), packet(1)
    at_ns, round_trip_ns = NS_PER_S, 50 * NS_PER_MS
    assert guard.allow(sent, at_ns, round_trip_ns)
    assert not guard.allow(sent, at_ns + 49 * NS_PER_MS, round_trip_ns)
    assert guard.allow(sent, at_ns + 50 * NS_PER_MS, round_trip_ns)
    assert (guard.resent_packets, guard.repeated) == (2, 1)


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 200)), max_size=40),
    st.integers(2_000, 200_000),
)
def test_flood_of_requests_never_costs_more_than_the_media(
    rounds: list[tuple[int, int]], burst_bytes: int
) -> None:
    guard = ResendGuard(burst_bytes)
    media_bytes, at_ns = 0, NS_PER_S
    for sent_packets, asked in rounds:
        packets = [packet(n) for n in range(sent_packets)]
        for sent in packets:
            media_bytes += sent.size
            guard.media_sent(sent.size)
        for n in range(asked):
            at_ns += NS_PER_S
            guard.allow(packets[n % sent_packets], at_ns, NS_PER_MS)
        assert guard.resent_bytes <= media_bytes + burst_bytes
    total = guard.resent_packets + guard.refused
    assert total == sum(asked for _, asked in rounds)


def test_silence_earns_no_credit() -> None:
    guard, at_ns = ResendGuard(3_000), NS_PER_S
    allowed = 0
    for n in range(100):
        at_ns += 3600 * NS_PER_S
        allowed += guard.allow(packet(n), at_ns, NS_PER_MS)
    assert allowed == 3


def test_timestamps_keep_the_distances_of_media_time() -> None:
    timeline = RtpTimeline(1000)
    assert [timeline.timestamp(t) for t in (500, 3500, 6500)] == [1500, 4500, 7500]


def test_timestamps_wrap_at_32_bits() -> None:
    timeline = RtpTimeline((1 << 32) - 10)
    assert [timeline.timestamp(t) for t in (0, 20)] == [(1 << 32) - 10, 10]


@pytest.mark.parametrize("later", [6500, 6499, 0, -(10**9)])
def test_time_that_stands_still_or_goes_back_moves_on_by_one_tick(later: int) -> None:
    timeline = RtpTimeline(0)
    for ticks in (500, 3500, 6500):
        timeline.timestamp(ticks)
    assert timeline.timestamp(later) == 6501
    assert timeline.timestamp(later + 3000) == 9501, "and distances hold from there"


@given(st.integers(0, (1 << 32) - 1), st.lists(st.integers(-(1 << 50), 1 << 50), min_size=2))
def test_timestamps_move_as_media_time_does_or_by_one_tick(origin: int, ticks: list[int]) -> None:
    timeline = RtpTimeline(origin)
    stamps = [timeline.timestamp(t) for t in ticks]
    for (before, after), (old, new) in zip(pairwise(stamps), pairwise(ticks), strict=True):
        expected = new - old if new > old else 1
        assert (after - before) % (1 << 32) == expected % (1 << 32)


def test_numbers_in_requests_are_looked_at_up_to_a_rate() -> None:
    guard = ResendGuard(1000)
    at_ns = 100 * NS_PER_S
    assert guard.admit(5000, at_ns) == REQUESTS_AT_ONCE
    assert guard.admit(5000, at_ns) == 0
    assert guard.refused == 10_000 - REQUESTS_AT_ONCE
    assert guard.admit(5000, at_ns + NS_PER_S // 4) == REQUESTS_PER_S // 4
    assert guard.admit(3, at_ns + 10 * NS_PER_S) == 3
