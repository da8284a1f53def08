import threading

import pytest

from server.clock import NS_PER_S, now_ns
from server.mailbox import Left, Mailbox

pytestmark = pytest.mark.unit


def mailbox_of(keys: str = "a") -> Mailbox[str, int]:
    mailbox: Mailbox[str, int] = Mailbox()
    for key in keys:
        mailbox.add(key)
    return mailbox


def test_the_newest_frame_replaces_the_waiting_one() -> None:
    mailbox = mailbox_of()
    assert mailbox.put("a", 1) is Left.WAITING
    assert mailbox.put("a", 2) is Left.REPLACED
    assert mailbox.take() == [("a", 2)]
    statistics = mailbox.statistics()
    assert (statistics.put, statistics.taken, statistics.dropped_replaced) == (2, 1, 1)
    assert statistics.waiting == 0


def test_turns_are_fair_when_one_session_is_always_faster() -> None:
    mailbox = mailbox_of("abc")
    for key in "abc":
        mailbox.put(key, 0)
    served = []
    for turn in range(9):
        [(key, _)] = mailbox.take() or []
        served.append(key)
        for _ in range(5):
            mailbox.put("a", turn)
        mailbox.put(key, turn)
    assert sorted(served) == sorted("abc" * 3)


def test_a_batch_holds_at_most_one_frame_of_a_session() -> None:
    mailbox = mailbox_of("ab")
    for value in range(3):
        mailbox.put("a", value)
        mailbox.put("b", value)
    assert sorted(mailbox.take(limit=8) or []) == [("a", 2), ("b", 2)]
    assert mailbox.statistics().waiting == 0


def test_who_was_served_goes_to_the_back() -> None:
    mailbox = mailbox_of("ab")
    mailbox.put("a", 1)
    mailbox.put("b", 1)
    assert mailbox.take() == [("a", 1)]
    mailbox.put("a", 2)
    assert mailbox.take() == [("b", 1)]
    assert mailbox.take() == [("a", 2)]


def test_with_a_limit_of_0_only_a_nudge_is_waited_for() -> None:
    mailbox = mailbox_of()
    mailbox.put("a", 1)
    mailbox.nudge()
    assert mailbox.take(limit=0) == []
    assert mailbox.take() == [("a", 1)]


def test_removing_a_session_drops_and_counts_its_frame() -> None:
    mailbox = mailbox_of()
    mailbox.put("a", 1)
    mailbox.remove("a")
    mailbox.remove("never there")
    assert mailbox.statistics().waiting == 0
    assert mailbox.statistics().dropped_closed == 1


def test_nothing_is_kept_for_who_was_removed() -> None:
    mailbox = mailbox_of()
    mailbox.remove("a")
    # Its decoder may still be at work.
    assert mailbox.put("a", 1) is Left.CLOSED
    statistics = mailbox.statistics()
    assert (statistics.waiting, statistics.dropped_closed) == (0, 1)
    mailbox.add("a")
    assert mailbox.put("a", 2) is Left.WAITING, "nothing of before"


def test_adding_again_keeps_what_waits() -> None:
    mailbox = mailbox_of()
    mailbox.put("a", 1)
    mailbox.add("a")
    assert mailbox.take() == [("a", 1)]


def test_close_wakes_the_taker_and_refuses_what_comes_later() -> None:
    mailbox = mailbox_of()
    taken: list[list[tuple[str, int]] | None] = []
    thread = threading.Thread(target=lambda: taken.append(mailbox.take()))
    thread.start()
    mailbox.close()
    thread.join(5)
    assert not thread.is_alive()
    assert taken == [None]
    assert mailbox.put("a", 1) is Left.CLOSED
    assert mailbox.statistics().dropped_closed == 1


def test_a_nudge_wakes_the_taker_once_with_nothing() -> None:
    mailbox = mailbox_of()
    mailbox.nudge()
    assert mailbox.take() == []
    mailbox.nudge()
    mailbox.put("a", 1)
    assert mailbox.take() == [("a", 1)]


def test_every_frame_put_from_many_threads_is_taken_or_counted() -> None:
    mailbox: Mailbox[int, int] = Mailbox()
    for key in range(3):
        mailbox.add(key)
    taken = 0

    def produce(key: int) -> None:
        for value in range(2000):
            mailbox.put(key, value)

    producers = [threading.Thread(target=produce, args=(key,)) for key in range(3)]

    def consume() -> None:
        nonlocal taken
        while batch := mailbox.take(limit=2):
            assert len({key for key, _ in batch}) == len(batch)
            taken += len(batch)

    consumer = threading.Thread(target=consume)
    for thread in [consumer, *producers]:
        thread.start()
    for thread in producers:
        thread.join(20)
    mailbox.close()
    consumer.join(20)
    statistics = mailbox.statistics()
    assert statistics.put == 6000
    assert taken == statistics.taken
    assert statistics.taken + statistics.dropped_replaced + statistics.dropped_closed == 6000


def test_an_item_whose_time_has_passed_is_passed_over_and_counted_by_its_successor() -> None:
    mailbox = mailbox_of("ab")
    mailbox.put("a", 1, until_ns=now_ns() - 1)
    mailbox.put("b", 1, until_ns=now_ns() + 60 * NS_PER_S)
    assert mailbox.take(limit=2) == [("b", 1)]
    mailbox.nudge()
    assert mailbox.take() == []
    assert mailbox.put("a", 2) is Left.STALE
    assert mailbox.take() == [("a", 2)]
    statistics = mailbox.statistics()
    assert (statistics.dropped_stale, statistics.dropped_replaced) == (1, 0)


def test_a_newer_item_in_place_of_a_stale_one_wakes_the_taker() -> None:
    mailbox = mailbox_of()
    mailbox.put("a", 1, until_ns=now_ns() - 1)
    taken: list[list[tuple[str, int]] | None] = []
    thread = threading.Thread(target=lambda: taken.append(mailbox.take()), daemon=True)
    thread.start()
    mailbox.put("a", 2)
    thread.join(20)
    assert taken == [[("a", 2)]]
