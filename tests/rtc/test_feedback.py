import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.clock import NS_PER_MS
from server.rtc.feedback import (
    MAX_GAP_PACKETS,
    MAX_MISSING_PACKETS,
    MAX_REQUEST_PACKETS,
    MIN_REPEAT_NS,
    OPEN_FRAME_NS,
    NackTracker,
    PliThrottle,
)

pytestmark = pytest.mark.unit

MS = NS_PER_MS
GIVE_UP_NS = 200 * MS


def tracker(*sequence_numbers: int, repeats: bool = True) -> NackTracker:
    """One that saw these packets at 0."""
    made = NackTracker(give_up_ns=GIVE_UP_NS, repeats=repeats)
    for sequence_number in sequence_numbers:
        made.received(sequence_number, 0)
    return made


def test_a_gap_is_asked_for_at_once_and_again_after_a_round_trip() -> None:
    nack = tracker(10, 13)
    assert nack.due(0, 0) == [11, 12]
    assert nack.due(MIN_REPEAT_NS - 1, 0) == []
    assert nack.due(MIN_REPEAT_NS, 50 * MS) == [11, 12]
    assert nack.next_due_ns() == MIN_REPEAT_NS + 50 * MS
    assert nack.due(MIN_REPEAT_NS + 49 * MS, 50 * MS) == []
    assert nack.due(MIN_REPEAT_NS + 50 * MS, 50 * MS) == [11, 12]
    assert nack.packets_requested == 6


def test_what_arrives_is_not_asked_for_again() -> None:
    nack = tracker(10, 13)
    nack.due(0, 0)
    nack.received(12, 5 * MS)
    assert nack.due(30 * MS, 0) == [11]
    nack.received(11, 31 * MS)
    assert nack.due(60 * MS, 0) == []
    assert nack.next_due_ns() is None
    assert nack.packets_recovered == 2


def test_asking_ends_at_the_deadline_of_the_frame() -> None:
    nack = tracker(10, 12)
    asked = [now for now in range(0, 400 * MS, MS) if nack.due(now, 0)]
    assert asked[0] == 0
    assert GIVE_UP_NS - 21 * MS < asked[-1] < GIVE_UP_NS
    assert len(nack) == 0
    assert nack.packets_given_up == 1


def test_the_stock_way_asks_once() -> None:
    nack = tracker(10, 12, repeats=False)
    assert [now for now in range(0, 400 * MS, MS) if nack.due(now, 0)] == [0]


def test_numbers_wrap_and_come_sorted() -> None:
    nack = tracker(0xFFFE, 1)
    assert nack.due(0, 0) == [0, 0xFFFF]
    nack.received(0xFFFF, 1)
    assert nack.due(MIN_REPEAT_NS, 0) == [0]


def test_reorder_without_loss_leaves_nothing_to_ask() -> None:
    nack = tracker(10, 12, 11, 14, 13)
    assert nack.due(0, 0) == []
    assert nack.packets_recovered == 2


def test_packets_below_the_assembler_s_floor_are_forgotten() -> None:
    nack = tracker(0xFFFD, 3)
    nack.forget_before(1)
    assert nack.due(0, 0) == [1, 2]
    nack.forget_before(3)
    assert len(nack) == 0


def test_an_outage_is_not_asked_for() -> None:
    nack = tracker(10)
    assert nack.received(10 + MAX_GAP_PACKETS + 2, 0) is False
    assert len(nack) == 0
    assert nack.received(10 + MAX_GAP_PACKETS + 4, 0) is True
    assert nack.due(0, 0) == [10 + MAX_GAP_PACKETS + 3]


def test_a_gap_at_the_limit_is_asked_for_in_bounded_requests() -> None:
    nack = tracker(10)
    assert nack.received(10 + MAX_GAP_PACKETS + 1, 0) is True
    first = nack.due(0, 0)
    assert len(first) == MAX_REQUEST_PACKETS
    assert nack.next_due_ns() == 0
    assert len(first + nack.due(0, 0)) == MAX_GAP_PACKETS
    assert nack.due(0, 0) == []


@given(st.lists(st.integers(0, 0xFFFF), max_size=400))
def test_memory_is_bounded_whatever_arrives(sequence_numbers: list[int]) -> None:
    nack = tracker()
    for now, sequence_number in enumerate(sequence_numbers):
        nack.received(sequence_number, now)
        assert len(nack) <= MAX_MISSING_PACKETS
        due_ns = nack.next_due_ns()
        assert due_ns is None or due_ns >= 0
        requested = nack.due(now, 0)
        assert requested == sorted(set(requested))
        assert sequence_number not in requested


def test_key_frames_are_asked_for_twice_a_second_at_most() -> None:
    pli = PliThrottle(interval_ns=500 * MS)
    sent = [now for now in range(0, 3000 * MS, 10 * MS) if pli.take(0, now)]
    assert sent == [0, 500 * MS, 1000 * MS, 1500 * MS, 2000 * MS, 2500 * MS]
    assert pli.sent == 6


def test_a_wish_too_early_waits_for_its_turn() -> None:
    pli = PliThrottle(interval_ns=500 * MS)
    assert pli.due_at_ns(100 * MS) == 100 * MS
    assert not pli.take(100 * MS, 99 * MS)
    assert pli.take(100 * MS, 100 * MS)
    assert pli.due_at_ns(200 * MS) == 600 * MS
    assert not pli.take(200 * MS, 599 * MS)
    assert pli.take(200 * MS, 600 * MS)


def test_what_follows_the_newest_packet_is_asked_for_when_a_frame_stays_open() -> None:
    nack = tracker()
    assert nack.beyond(0, 1000 * MS, 0) == [], "nothing has come yet"
    nack.received(65_534, 1)
    assert nack.beyond(1, OPEN_FRAME_NS, 0) == [], "not open for long"
    now_ns = 1 + OPEN_FRAME_NS
    assert nack.beyond_due_ns(1, 0) == now_ns
    assert nack.beyond(1, now_ns, 30 * MS) == [0, 1, 65_535]
    assert nack.beyond(1, now_ns + 29 * MS, 30 * MS) == []
    nack.received(65_535, now_ns)
    assert nack.beyond(now_ns, now_ns + OPEN_FRAME_NS, 30 * MS) == [0, 1, 2]
