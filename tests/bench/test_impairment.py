"""The impairment does what it says, in the share it says, and the same for the same seed."""

from itertools import groupby, pairwise

import pytest

from bench.errors import UsageError
from bench.impairment import BLACK_OUT, HOLD_AT_MOST_NS, OVERHEAD_BYTES, Impairment, Link
from server.clock import NS_PER_MS, NS_PER_S

pytestmark = pytest.mark.unit

COUNT = 20_000
MANY = [number.to_bytes(4, "big") for number in range(COUNT)]
EVERY_NS = NS_PER_MS


def journey(
    path: Impairment,
    *,
    seed: int | str = 1,
    datagrams: list[bytes] = MANY,
    every_ns: int = EVERY_NS,
) -> tuple[list[tuple[int, bytes]], Link]:
    """What leaves a link and when, in the order it leaves, one datagram put in each interval."""
    link, left = Link(path, seed), []
    for index, datagram in enumerate(datagrams):
        at_ns = index * every_ns
        while (due_ns := link.next_due_ns) is not None and due_ns <= at_ns:
            left += [(due_ns, out) for out in link.due(due_ns)]
        link.put(datagram, at_ns)
    while (due_ns := link.next_due_ns) is not None:
        left += [(due_ns, out) for out in link.due(due_ns)]
    return left, link


def numbers(left: list[tuple[int, bytes]]) -> list[int]:
    return [int.from_bytes(datagram[:4], "big") for _, datagram in left]


def test_a_clear_path_changes_nothing() -> None:
    left, link = journey(Impairment())
    assert left == [(index * EVERY_NS, datagram) for index, datagram in enumerate(MANY)]
    assert (link.counters.entered, link.counters.left, link.counters.lost) == (COUNT, COUNT, 0)


@pytest.mark.parametrize("loss", [0.01, 0.05, 0.2])
def test_independent_losses_are_the_share_that_was_asked_for(loss: float) -> None:
    left, link = journey(Impairment(loss=loss))
    share = 1 - len(left) / COUNT
    # Four standard deviations of a binomial.
    assert abs(share - loss) < 4 * (loss * (1 - loss) / COUNT) ** 0.5
    assert link.counters.lost == COUNT - len(left)


def test_losses_in_bursts_keep_share_and_mean_length() -> None:
    left, _ = journey(Impairment(loss=0.05, burst_packets=8))
    here = set(numbers(left))
    runs = [len(list(run)) for lost, run in groupby(range(COUNT), lambda n: n not in here) if lost]
    assert abs(sum(runs) / COUNT - 0.05) < 0.02
    assert abs(sum(runs) / len(runs) - 8) < 2
    single, _ = journey(Impairment(loss=0.05))
    here = set(numbers(single))
    runs = [len(list(run)) for lost, run in groupby(range(COUNT), lambda n: n not in here) if lost]
    assert sum(runs) / len(runs) < 1.2


def test_a_black_out_lets_nothing_through_and_ends() -> None:
    link = Link(BLACK_OUT)
    for datagram in MANY[:100]:
        link.put(datagram, 0)
    assert link.next_due_ns is None
    link.impairment = Impairment()
    link.put(b"after", 1)
    assert link.due(1) == [b"after"]


def test_delay_and_jitter_stay_within_their_bounds_and_use_them() -> None:
    left, _ = journey(Impairment(delay_ms=50, jitter_ms=30, jitter_reorders=True))
    delays_ms = [
        (at_ns - int.from_bytes(datagram, "big") * EVERY_NS) / NS_PER_MS for at_ns, datagram in left
    ]
    assert min(delays_ms) >= 20
    assert max(delays_ms) <= 80
    assert abs(sum(delays_ms) / COUNT - 50) < 1
    assert max(delays_ms) - min(delays_ms) > 55
    assert any(later < earlier for earlier, later in pairwise(numbers(left)))


def test_jitter_alone_keeps_the_order_unless_told_otherwise() -> None:
    left, _ = journey(Impairment(delay_ms=50, jitter_ms=30))
    assert numbers(left) == list(range(COUNT))


def test_held_back_packets_are_overtaken_by_as_many_as_said() -> None:
    left, link = journey(Impairment(reorder=0.05, reorder_depth=7))
    order = numbers(left)
    assert sorted(order) == list(range(COUNT))
    highest, overtaken = -1, []
    for place, number in enumerate(order):
        if number < highest:
            overtaken.append(sum(other > number for other in order[max(0, place - 40) : place]))
        highest = max(highest, number)
    assert abs(link.counters.held_back / COUNT - 0.05) < 0.01
    assert link.counters.held_back - len(overtaken) <= 2, "only at the very end is none overtaken"
    # Packets that are held back together do not overtake each other.
    assert 7 <= sum(overtaken) / len(overtaken) < 9


def test_a_held_back_packet_that_nothing_overtakes_goes_on_by_itself() -> None:
    link = Link(Impairment(reorder=1.0))
    link.put(b"alone", 5)
    assert link.next_due_ns == 5 + HOLD_AT_MOST_NS
    assert link.due(5 + HOLD_AT_MOST_NS) == [b"alone"]
    assert link.next_due_ns is None


def test_duplicates_are_the_share_that_was_asked_for() -> None:
    left, link = journey(Impairment(duplicate=0.1))
    assert abs((len(left) - COUNT) / COUNT - 0.1) < 0.01
    assert link.counters.duplicated == len(left) - COUNT


def test_the_bottleneck_passes_its_rate_and_its_queue_what_it_holds() -> None:
    size = 1000 - OVERHEAD_BYTES
    # 8 Mbit/s come, 2 pass.
    left, link = journey(
        Impairment(rate_kbps=2000, queue_ms=300), datagrams=[bytes(size)] * 4000, every_ns=NS_PER_MS
    )
    seconds = left[-1][0] / NS_PER_S
    assert abs(len(left) * 8000 / seconds / 2e6 - 1) < 0.01
    assert link.counters.overflowed == 4000 - len(left)
    assert abs(left[-1][0] - 4 * NS_PER_S) < 310 * NS_PER_MS, "the queue is never longer"


def test_a_path_below_its_rate_is_not_queued() -> None:
    left, link = journey(Impairment(rate_kbps=2000), datagrams=MANY[:500], every_ns=10 * NS_PER_MS)
    assert link.counters.overflowed == 0
    assert all(at_ns - i * 10 * NS_PER_MS < NS_PER_MS for i, (at_ns, _) in enumerate(left))


def test_a_filter_of_the_test_s_own_takes_what_it_wants() -> None:
    link = Link()
    link.drops = lambda datagram: datagram[:1] == b"\x16"
    for datagram in (b"\x16handshake", b"\x80media", b"\x16again"):
        link.put(datagram, 0)
    assert link.due(0) == [b"\x80media"]
    assert link.counters.lost == 2


def test_one_seed_is_one_result_and_another_another() -> None:
    path = Impairment(
        loss=0.1, burst_packets=3, delay_ms=20, jitter_ms=10, reorder=0.1, duplicate=0.1,
        rate_kbps=5000,
    )  # fmt: skip
    assert journey(path, seed="a/up")[0] == journey(path, seed="a/up")[0]
    assert journey(path, seed="a/up")[0] != journey(path, seed="a/down")[0]


def test_one_damage_does_not_move_another() -> None:
    lost = set(numbers(journey(Impairment(loss=0.1))[0]))
    shaken = set(numbers(journey(Impairment(loss=0.1, jitter_ms=5, duplicate=0.3))[0]))
    assert lost == shaken


@pytest.mark.parametrize(
    "wrong", [{"loss": 1.1}, {"loss": -0.1}, {"burst_packets": 0.5}, {"rate_kbps": 0}]
)
def test_what_cannot_be_is_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Impairment(**wrong)  # type: ignore[arg-type]
