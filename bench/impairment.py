"""What a bad network does to datagrams, one direction at a time; pure, seeded, no sockets.

A `Link` is fed with datagrams and the instant they came, and gives them back when they are due:
later, in another order, twice, or never. The same seed and the same arrivals give the same
result; each kind of damage has its own random numbers, so that more loss does not move the
jitter. `bench/relay.py` puts two of them between real peers.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from bench.errors import UsageError
from server.clock import NS_PER_MS, NS_PER_S

# A packet that was held back to be overtaken goes on after this, though nothing overtook it.
HOLD_AT_MOST_NS: Final = NS_PER_S
# What the wire adds to a datagram: Ethernet's own bytes left out, IP and UDP headers in.
OVERHEAD_BYTES: Final = 28


@dataclass(frozen=True, slots=True)
class Impairment:
    """One direction of a path. Everything at its default is a path that does nothing."""

    loss: float = 0.0
    """The share that is lost in the long run, 0..1; 1 is a black-out."""
    burst_packets: float | None = None
    """Mean length of a run of losses (Gilbert-Elliott); None: each on its own (Bernoulli)."""
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    """The delay varies by up to this, evenly, either way; never below zero."""
    jitter_reorders: bool = False
    """Whether a packet with a shorter delay overtakes; otherwise it waits behind the others."""
    reorder: float = 0.0
    """The share that is held back until `reorder_depth` later ones have passed."""
    reorder_depth: int = 3
    duplicate: float = 0.0
    """The share that arrives twice."""
    rate_kbps: float | None = None
    """The bottleneck; what comes faster waits in its queue."""
    queue_ms: float = 200.0
    """What the bottleneck's queue holds; what comes on top is lost."""

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("loss", self.loss, 0, 1),
            ("burst_packets", self.burst_packets, 1, 10_000),
            ("delay_ms", self.delay_ms, 0, 60_000),
            ("jitter_ms", self.jitter_ms, 0, 60_000),
            ("reorder", self.reorder, 0, 1),
            ("reorder_depth", self.reorder_depth, 1, 10_000),
            ("duplicate", self.duplicate, 0, 1),
            ("rate_kbps", self.rate_kbps, 1, 1e7),
            ("queue_ms", self.queue_ms, 0, 60_000),
        ):
            if value is not None and not low <= value <= high:
                raise UsageError(f"{name}: {value} is outside {low}..{high}")

    def but(self, **changes: float | None) -> "Impairment":
        """The same path with something different about it."""
        return replace(self, **changes)  # type: ignore[arg-type]


BLACK_OUT: Final = Impairment(loss=1.0)
CLEAR: Final = Impairment()


@dataclass(slots=True)
class LinkCounters:
    """Datagrams since the start."""

    entered: int = 0
    lost: int = 0
    """By chance, or because a test's own filter said so."""
    overflowed: int = 0
    """The bottleneck's queue was full."""
    duplicated: int = 0
    held_back: int = 0
    left: int = 0
    bytes_entered: int = 0


class Link:
    """One direction. One owner at a time; `impairment` and `drops` may be set from any thread.

    Bound: none but what its delays and rate hold; the caller feeds it from a bounded socket.
    """

    def __init__(self, impairment: Impairment = CLEAR, seed: int | str = 0) -> None:
        self.impairment = impairment
        self.drops: Callable[[bytes], bool] | None = None
        """A test's own filter: what it says yes to is lost."""
        self.counters = LinkCounters()
        self._chance = {
            kind: random.Random(f"{seed}/{kind}")
            for kind in ("loss", "jitter", "reorder", "duplicate")
        }
        self._in_burst = False
        self._free_at_ns = 0
        """When the bottleneck has sent what waits before it."""
        self._newest_due_ns = 0
        self._held: list[_Held] = []
        self._order = itertools.count()
        self._ways: list[tuple[int, int, bytes]] = []

    def put(self, datagram: bytes, at_ns: int) -> None:
        """One datagram enters."""
        path, counters = self.impairment, self.counters
        counters.entered += 1
        counters.bytes_entered += len(datagram)
        drops = self.drops
        sent_at_ns = self._through_bottleneck(path, len(datagram), at_ns)
        if self._is_lost(path) or (drops is not None and drops(datagram)):
            counters.lost += 1
        elif sent_at_ns is None:
            counters.overflowed += 1
        elif path.reorder and self._chance["reorder"].random() < path.reorder:
            counters.held_back += 1
            self._held.append(_Held(datagram, path.reorder_depth, at_ns + HOLD_AT_MOST_NS))
        else:
            self._deliver(path, datagram, sent_at_ns)
            if path.duplicate and self._chance["duplicate"].random() < path.duplicate:
                counters.duplicated += 1
                self._deliver(path, datagram, sent_at_ns)
            self._overtake(path, sent_at_ns)

    def due(self, at_ns: int) -> list[bytes]:
        """What leaves by now, in order."""
        for held in [held for held in self._held if held.until_ns <= at_ns]:
            self._held.remove(held)
            self._deliver(self.impairment, held.datagram, at_ns)
        datagrams = []
        while self._ways and self._ways[0][0] <= at_ns:
            datagrams.append(heapq.heappop(self._ways)[2])
        self.counters.left += len(datagrams)
        return datagrams

    @property
    def next_due_ns(self) -> int | None:
        """When `due` has something, or None."""
        instants = [held.until_ns for held in self._held]
        if self._ways:
            instants.append(self._ways[0][0])
        return min(instants, default=None)

    def _is_lost(self, path: Impairment) -> bool:
        chance = self._chance["loss"].random()
        if not 0 < path.loss < 1:
            return path.loss == 1
        if path.burst_packets is None:
            return chance < path.loss
        # Two states, good and bad; all is lost in the bad one, which lasts `burst_packets` in
        # the mean and takes `loss` of all packets.
        leave_bad = 1 / path.burst_packets
        enter_bad = min(1.0, leave_bad * path.loss / (1 - path.loss))
        self._in_burst = chance >= leave_bad if self._in_burst else chance < enter_bad
        return self._in_burst

    def _through_bottleneck(self, path: Impairment, size: int, at_ns: int) -> int | None:
        """When the datagram has passed the bottleneck; None when its queue is full."""
        if path.rate_kbps is None:
            return at_ns
        starts_at_ns = max(at_ns, self._free_at_ns)
        if starts_at_ns - at_ns > path.queue_ms * NS_PER_MS:
            return None
        takes_ns = round((size + OVERHEAD_BYTES) * 8 * NS_PER_MS / path.rate_kbps)
        self._free_at_ns = starts_at_ns + takes_ns
        return self._free_at_ns

    def _deliver(self, path: Impairment, datagram: bytes, at_ns: int) -> None:
        delay_ms = path.delay_ms
        if path.jitter_ms:
            delay_ms += self._chance["jitter"].uniform(-path.jitter_ms, path.jitter_ms)
        due_ns = at_ns + max(0, round(delay_ms * NS_PER_MS))
        if not path.jitter_reorders:
            due_ns = max(due_ns, self._newest_due_ns)
        self._newest_due_ns = max(due_ns, self._newest_due_ns)
        heapq.heappush(self._ways, (due_ns, next(self._order), datagram))

    def _overtake(self, path: Impairment, at_ns: int) -> None:
        """One more has passed those that are held back."""
        for held in self._held:
            held.to_pass -= 1
        for held in [held for held in self._held if held.to_pass <= 0]:
            self._held.remove(held)
            self._deliver(path, held.datagram, at_ns)


@dataclass(slots=True)
class _Held:
    datagram: bytes
    to_pass: int
    until_ns: int
