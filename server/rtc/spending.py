"""How far an outgoing video is ahead of the rate that the receiver's side allows; pure.

Encoders miss their rate, key frames are several pictures large and repairs come on top. On a
wide path nobody notices. On a narrow one what is ahead stands in a queue before the bottleneck,
and beyond that it is lost, which asks for more repairs. So there what was sent is counted, and
pictures and repairs wait for it.
"""

from collections.abc import Callable

from server.clock import NS_PER_S

# Ahead by more than this, pictures are skipped and repairs refused.
AHEAD_AT_MOST_S = 0.25
# A burst of so much of a second's bits leaves at once: three pictures at 30 a second.
BURST_S = 0.1
# What is larger is spread, at this many times the rate.
PACE = 2.5
# IP, UDP and SRTP's tag, which count before a bottleneck but not in a rate.
OVERHEAD_BYTES = 40


class Spending:
    """Bits sent against bits allowed, as a bucket that leaks at the allowed rate. Loop only."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._bits = 0.0
        self._rate_bps = 0
        self._at_ns = clock()

    def allow(self, bits_per_s: int) -> None:
        """The rate from now on; 0 counts nothing."""
        self._leak()
        self._rate_bps = bits_per_s
        if not bits_per_s:
            self._bits = 0.0

    def sent(self, size: int) -> None:
        """A packet of so many bytes left."""
        if self._rate_bps:
            self._leak()
            self._bits += 8 * (size + OVERHEAD_BYTES)

    @property
    def ahead_s(self) -> float:
        """How long nothing would have to leave to be back at the rate."""
        self._leak()
        return self._bits / self._rate_bps if self._rate_bps else 0.0

    @property
    def is_overdrawn(self) -> bool:
        """Whether the next picture or repair should not leave."""
        return self.ahead_s > AHEAD_AT_MOST_S

    def pause_s(self, sent_bytes: int) -> float:
        """How long a picture's next packet waits, `sent_bytes` of it having left just now."""
        if not self._rate_bps or 8 * sent_bytes <= BURST_S * self._rate_bps:
            return 0.0
        return 8 * (1200 + OVERHEAD_BYTES) / (PACE * self._rate_bps)

    def _leak(self) -> None:
        at_ns = self._clock()
        self._bits = max(0.0, self._bits - self._rate_bps * (at_ns - self._at_ns) / NS_PER_S)
        self._at_ns = at_ns
