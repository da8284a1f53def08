"""The estimate falls for a queue that stays, and for nothing else."""

import random
from collections.abc import Callable

import pytest

from bench.impairment import Impairment, Link
from server.clock import NS_PER_MS, NS_PER_S
from server.rtc.bitrate import RateFollower
from server.rtc.estimate import (
    BASE_WINDOW_NS,
    LEAST_BPS,
    SEND_TIME_BITS,
    SEND_TIME_PER_S,
    START_BPS,
    RateEstimator,
)

pytestmark = pytest.mark.unit

PACKET = 1000
FRAME_NS = NS_PER_S // 30
START_NS = 12_345 * NS_PER_S


def stamp(at_ns: int) -> int:
    return at_ns * SEND_TIME_PER_S // NS_PER_S % (1 << SEND_TIME_BITS)


class Sender:
    """Frames of packets through a link, as fast as it is told to be, or as it wants."""

    def __init__(self, link: Link, late: Callable[[], int] = lambda: 0) -> None:
        self.link = link
        self.estimator = RateEstimator()
        self.now_ns = START_NS
        self.told: Callable[[int], None] = lambda estimate_bps: None
        self._late = late
        self._owed = 0.0

    def run(self, seconds: float, bits_per_s: Callable[[], float]) -> None:
        end_ns = self.now_ns + int(seconds * NS_PER_S)
        while self.now_ns < end_ns:
            self._owed += bits_per_s() / 8 / 30
            while self._owed >= PACKET:
                self._owed -= PACKET
                sent = stamp(self.now_ns).to_bytes(3, "big")
                self.link.put(sent + bytes(PACKET - 3), self.now_ns)
            self.now_ns += FRAME_NS
            while (due_ns := self.link.next_due_ns) is not None and due_ns <= self.now_ns:
                for datagram in self.link.due(due_ns):
                    send_time = int.from_bytes(datagram[:3], "big")
                    at_ns = due_ns + self._late()
                    estimate_bps = self.estimator.add(at_ns, send_time, len(datagram))
                    if estimate_bps is not None:
                        self.told(estimate_bps)

    @property
    def obedient(self) -> Callable[[], float]:
        return lambda: min(1_500_000, 0.9 * self.estimator.estimate_bps)


def test_a_path_without_queue_is_never_braked() -> None:
    sender = Sender(Link(Impairment(delay_ms=40)))
    sender.run(120, lambda: 1_500_000)  # nearly two wraps of the 64 s of a send time
    assert sender.estimator.estimate_bps == START_BPS
    assert sender.estimator.queue_ns < NS_PER_MS


@pytest.mark.parametrize("jitter_reorders", [False, True])
def test_jitter_and_a_late_receiver_are_no_queue(jitter_reorders: bool) -> None:
    chance = random.Random(4)
    sender = Sender(
        Link(Impairment(delay_ms=60, jitter_ms=30, jitter_reorders=jitter_reorders), seed=4),
        # Now and then this receiver is 150 ms late itself.
        late=lambda: 150 * NS_PER_MS if chance.random() < 0.05 else 0,
    )
    sender.run(60, lambda: 1_500_000)
    assert sender.estimator.estimate_bps == START_BPS


@pytest.mark.parametrize("rate_kbps", [300, 800])
def test_a_bottleneck_is_found_within_3_s_and_its_queue_goes(rate_kbps: int) -> None:
    sender = Sender(Link(Impairment(delay_ms=20)))
    sender.run(5, sender.obedient)
    sender.link.impairment = Impairment(delay_ms=20, rate_kbps=rate_kbps, queue_ms=400)
    sender.run(3, sender.obedient)
    assert sender.estimator.estimate_bps <= 1000 * rate_kbps
    sender.run(12, sender.obedient)
    assert rate_kbps * 1000 * 0.5 <= sender.estimator.incoming_bps <= rate_kbps * 1000
    lost = sender.link.counters.overflowed
    sender.run(10, sender.obedient)
    assert sender.link.counters.overflowed == lost, "the queue never fills again"
    sender.link.impairment = Impairment(delay_ms=20)
    sender.run(30, sender.obedient)
    assert sender.estimator.incoming_bps >= 0.8 * 1_500_000


def test_estimator_and_sender_together_follow_a_path_down_and_up() -> None:
    """N9 on a clock of its own: with real peers it takes a machine with time to spare."""
    wide = Impairment(rate_kbps=2000, queue_ms=400, delay_ms=10)
    sender = Sender(Link(wide))
    follower = RateFollower(30_000, 4_000_000, lambda: sender.now_ns)
    sender.told = follower.remb

    def rate() -> int:
        return follower.allowance().bits_per_s((640, 480), 30.0)

    def seconds_until(holds: Callable[[], bool]) -> float:
        begin_ns = sender.now_ns
        while not holds() and sender.now_ns - begin_ns < 60 * NS_PER_S:
            sender.run(0.1, rate)
        return (sender.now_ns - begin_ns) / NS_PER_S

    sender.run(20, rate)
    before = rate()
    sender.link.impairment = wide.but(rate_kbps=300)
    assert seconds_until(lambda: rate() < 300_000) <= 3
    sender.run(10, rate)
    assert 150_000 < rate() < 300_000
    sender.link.impairment = wide
    assert seconds_until(lambda: rate() >= 0.8 * before) <= 30


def test_a_longer_way_is_a_queue_only_until_it_proves_to_be_none() -> None:
    sender = Sender(Link(Impairment(delay_ms=20)))
    sender.run(5, sender.obedient)
    sender.link.impairment = Impairment(delay_ms=220)
    sender.run(20, sender.obedient)
    assert sender.estimator.queue_ns < 40 * NS_PER_MS
    sender.run(15, sender.obedient)
    assert sender.estimator.incoming_bps >= 0.8 * 1_500_000


def test_clocks_that_drift_are_no_queue() -> None:
    estimator = RateEstimator()
    for number in range(30 * 300):
        at_ns = START_NS + number * FRAME_NS
        # 500 parts per million, five times what crystals do.
        sent = stamp(at_ns - (at_ns - START_NS) // 2000)
        for _ in range(3):
            estimator.add(at_ns, sent, PACKET)
    assert estimator.estimate_bps == START_BPS


def test_a_pause_of_an_hour_costs_nothing() -> None:
    estimator = RateEstimator()
    for pause_ns in (0, 40 * NS_PER_S, 3600 * NS_PER_S):
        for number in range(60):
            at_ns = START_NS + pause_ns + number * FRAME_NS
            for _ in range(3):
                estimator.add(at_ns, stamp(at_ns), PACKET)
    assert estimator.estimate_bps == START_BPS
    assert len(estimator._bytes) <= 3 * 31


def test_whatever_send_times_say_the_estimate_is_a_rate() -> None:
    chance, estimator = random.Random(8), RateEstimator()
    for number in range(20_000):
        estimator.add(START_NS + number * NS_PER_MS, chance.getrandbits(24), chance.randrange(1500))
        assert LEAST_BPS <= estimator.estimate_bps <= START_BPS


def test_it_is_told_twice_a_second_and_at_once_when_it_falls() -> None:
    sender, told = Sender(Link(Impairment(delay_ms=20))), []
    add = sender.estimator.add

    def listening(arrived_at_ns: int, send_time: int, size: int) -> int | None:
        estimate = add(arrived_at_ns, send_time, size)
        if estimate is not None:
            told.append((arrived_at_ns, estimate))
        return estimate

    sender.estimator.add = listening  # type: ignore[method-assign, assignment]
    sender.run(10, lambda: 1_500_000)
    assert 18 <= len(told) <= 22
    assert BASE_WINDOW_NS > 10 * NS_PER_S, "the base of this test lives through it"
    sender.link.impairment = Impairment(delay_ms=20, rate_kbps=300, queue_ms=400)
    sender.run(2, lambda: 1_500_000)
    assert told[-1][1] < 300_000
