"""How fast a peer may send to us, from when its packets left and when they came; pure.

The answer travels as REMB. What tells of a bottleneck is a queue before it that stays: the
*least* delay of a quarter of a second, above the least there has been. One late packet, or a
thread of ours that was late itself, leaves the least delay as it is, where an estimator that
looks at each step (aiortc's, libwebrtc's before transport-wide feedback) takes it for a queue.
"""

from collections import deque

from server.clock import NS_PER_MS, NS_PER_S

# abs-send-time: 24 bits, 6 of them seconds.
SEND_TIME_BITS = 24
SEND_TIME_PER_S = 1 << 18
WRAP_NS = (1 << SEND_TIME_BITS) // SEND_TIME_PER_S * NS_PER_S

WINDOW_NS = NS_PER_S // 4
WINDOW_PACKETS = 3
"""Fewer in a window say nothing."""
RATE_WINDOW_NS = NS_PER_S
# The least delay is that of the last half minute: clocks drift, and ways change.
BASE_WINDOW_NS = 15 * NS_PER_S

# A queue of so long is one; below the lower mark there is none.
QUEUE_NS = 80 * NS_PER_MS
NO_QUEUE_NS = 40 * NS_PER_MS
# What a sender may have while a queue stands: what comes through, less what drains the queue.
DOWN_SHARE = 0.85
# Between two steps down the first one is given the time to show.
DOWN_EVERY_NS = NS_PER_S // 2
UP_PER_S = 1.10
# Of what comes, at most this is allowed: an allowance that nobody used proves nothing.
OF_INCOMING = 2.0
BEYOND_INCOMING_BPS = 100_000
START_BPS = 30_000_000
LEAST_BPS = 30_000
# A queue that stays though half of the packets are gone is none: the way became longer.
OTHER_WAY_SHARE = 0.5
# By then what comes is what the bottleneck lets through.
QUEUE_SETTLED_NS = 3 * NS_PER_S // 2

TELL_EVERY_NS = NS_PER_S // 2


class RateEstimator:
    """Fed with every packet of one peer, in order of arrival."""

    def __init__(self) -> None:
        self.estimate_bps = START_BPS
        self.queue_ns = 0
        """As of the last window."""
        self._bytes: deque[tuple[int, int]] = deque()
        self._bytes_sum = 0
        self._began_at_ns: int | None = None
        self._delay_ns = 0
        self._window_from_ns = 0
        self._window_least_ns: int | None = None
        self._window_packets = 0
        # Least delays of this stretch of time and the one before.
        self._base_from_ns = 0
        self._base_ns: int | None = None
        self._base_before_ns: int | None = None
        self._down_at_ns = 0
        self._grown_at_ns = 0
        self._queue_since_ns: int | None = None
        self._queue_rate_bps: int | None = None
        """What came through when the queue had stood for a while."""
        self._told_at_ns = 0
        self._told_bps = 0

    def add(self, arrived_at_ns: int, abs_send_time: int, size: int) -> int | None:
        """Note a packet; the estimate when it should be told now."""
        delay_ns = self._delay(arrived_at_ns, abs_send_time)
        self._count(arrived_at_ns, size)
        least = self._window_least_ns
        self._window_least_ns = delay_ns if least is None else min(least, delay_ns)
        self._window_packets += 1
        if arrived_at_ns - self._window_from_ns >= WINDOW_NS:
            if self._window_packets >= WINDOW_PACKETS:
                self._look(arrived_at_ns, self._window_least_ns)
            self._window_from_ns = arrived_at_ns
            self._window_least_ns, self._window_packets = None, 0
        return self._due(arrived_at_ns)

    @property
    def incoming_bps(self) -> int:
        """What came in the last second."""
        return 8 * self._bytes_sum

    def _delay(self, arrived_at_ns: int, abs_send_time: int) -> int:
        """On its way, up to a constant that nobody knows."""
        if self._began_at_ns is None:
            self._began_at_ns = self._window_from_ns = self._base_from_ns = arrived_at_ns
            self._grown_at_ns = arrived_at_ns
            self._delay_ns = arrived_at_ns - abs_send_time * NS_PER_S // SEND_TIME_PER_S
        # Send times wrap each 64 s; delays do not differ by half of that.
        sent_ns = abs_send_time * NS_PER_S // SEND_TIME_PER_S
        step_ns = arrived_at_ns - sent_ns - self._delay_ns
        self._delay_ns += (step_ns + WRAP_NS // 2) % WRAP_NS - WRAP_NS // 2
        return self._delay_ns

    def _count(self, arrived_at_ns: int, size: int) -> None:
        self._bytes.append((arrived_at_ns, size))
        self._bytes_sum += size
        while self._bytes[0][0] <= arrived_at_ns - RATE_WINDOW_NS:
            self._bytes_sum -= self._bytes.popleft()[1]

    def _look(self, at_ns: int, least_ns: int) -> None:
        """One window is over."""
        if at_ns - self._base_from_ns > BASE_WINDOW_NS:
            self._base_from_ns = at_ns
            self._base_before_ns, self._base_ns = self._base_ns, None
        self._base_ns = least_ns if self._base_ns is None else min(self._base_ns, least_ns)
        base_ns = self._base_ns
        if self._base_before_ns is not None:
            base_ns = min(base_ns, self._base_before_ns)
        self.queue_ns = least_ns - base_ns
        elapsed_s = (at_ns - self._grown_at_ns) / NS_PER_S
        self._grown_at_ns = at_ns
        if self.queue_ns > QUEUE_NS:
            self._down(at_ns, least_ns)
        elif self.queue_ns < NO_QUEUE_NS:
            self._queue_since_ns = self._queue_rate_bps = None
            grown_bps = self.estimate_bps * UP_PER_S ** min(elapsed_s, 1.0)
            most_bps = OF_INCOMING * self.incoming_bps + BEYOND_INCOMING_BPS
            if grown_bps > self.estimate_bps and self.estimate_bps < most_bps:
                self.estimate_bps = int(min(grown_bps, most_bps))

    def _down(self, at_ns: int, least_ns: int) -> None:
        incoming_bps = self.incoming_bps
        if self._queue_since_ns is None:
            self._queue_since_ns = at_ns
        if self._queue_rate_bps is None:
            if at_ns - self._queue_since_ns >= QUEUE_SETTLED_NS:
                self._queue_rate_bps = incoming_bps
        elif incoming_bps < OTHER_WAY_SHARE * self._queue_rate_bps:
            self._base_ns, self._base_before_ns = least_ns, None
            self._queue_since_ns = self._queue_rate_bps = None
            return
        if at_ns - self._down_at_ns < DOWN_EVERY_NS:
            return
        self._down_at_ns = at_ns
        wanted_bps = max(LEAST_BPS, int(DOWN_SHARE * incoming_bps))
        self.estimate_bps = min(self.estimate_bps, wanted_bps)

    def _due(self, at_ns: int) -> int | None:
        lower = self.estimate_bps < 0.97 * self._told_bps
        if not lower and at_ns - self._told_at_ns < TELL_EVERY_NS:
            return None
        self._told_at_ns, self._told_bps = at_ns, self.estimate_bps
        return self.estimate_bps
