"""What a receiver may make a sender do, and how often; pure, with the clock handed in.

A receiver asks for key frames and for packets again. Both cost many times what the asking
costs, so both are bounded here, whoever asks.
"""

from collections.abc import Callable
from dataclasses import dataclass

from server.clock import NS_PER_S


class KeyframeThrottle:
    """Grants key frames at most once an interval; a wish that comes too early waits."""

    def __init__(self, interval_ns: int, clock: Callable[[], int]) -> None:
        self._interval_ns = interval_ns
        self._clock = clock
        self._wished = False
        self._made_at_ns: int | None = None

    def wish(self) -> None:
        """Somebody asks for a key frame."""
        self._wished = True

    def grant(self) -> bool:
        """Whether the picture about to be encoded shall be a key frame."""
        return self._wished and (
            self._made_at_ns is None or self._clock() - self._made_at_ns >= self._interval_ns
        )

    def made(self) -> None:
        """A key frame was made, for whatever reason: whoever wished for one has it."""
        self._wished = False
        self._made_at_ns = self._clock()


@dataclass(slots=True)
class SentPacket:
    """One packet as it left, before encryption, and when it was last sent again.

    In two parts, because many viewers may share a payload.
    """

    sequence_number: int
    header: bytes
    """With its extensions."""
    payload: bytes
    resent_at_ns: int = 0

    @property
    def size(self) -> int:
        return len(self.header) + len(self.payload)


class PacketHistory:
    """The newest packets by sequence number. Bound: a power of two, the oldest goes first."""

    def __init__(self, capacity: int) -> None:
        assert capacity & (capacity - 1) == 0, "sequence numbers wrap at 65536"
        self._mask = capacity - 1
        self._packets: list[SentPacket | None] = [None] * capacity

    def put(self, sent: SentPacket) -> None:
        self._packets[sent.sequence_number & self._mask] = sent

    def get(self, sequence_number: int) -> SentPacket | None:
        sent = self._packets[sequence_number & self._mask]
        return sent if sent is not None and sent.sequence_number == sequence_number else None


def history_capacity(max_bps: int, payload_size: int) -> int:
    """Packets of at least one second at the highest rate, as a power of two in 512..8192."""
    packets = max_bps // (8 * payload_size)
    return int(min(8192, max(512, 1 << packets.bit_length())))


# Numbers looked up a second, and at once: three times what the highest rate sends. A request
# of one datagram can name thousands, each of which costs time though nothing is sent.
REQUESTS_PER_S = 2048
REQUESTS_AT_ONCE = 1024


class ResendGuard:
    """Decides which requests for lost packets are answered.

    Bytes sent again are paid from a credit that media earns, byte for byte: however many
    requests come, what leaves is at most twice the media, plus one burst. No clock can be
    gamed, and a silent sender owes nothing.
    """

    def __init__(self, burst_bytes: int) -> None:
        self._burst_bytes = burst_bytes
        self._credit_bytes = burst_bytes
        self._requests = float(REQUESTS_AT_ONCE)
        self._requests_at_ns = 0
        self.resent_packets = 0
        self.resent_bytes = 0
        self.unknown = 0
        self.repeated = 0
        self.refused = 0

    def media_sent(self, size: int) -> None:
        """Media of this many bytes left."""
        self._credit_bytes = min(self._burst_bytes, self._credit_bytes + size)

    def admit(self, count: int, at_ns: int) -> int:
        """How many of so many numbers in a request are looked at; the others count as refused."""
        earned = (at_ns - self._requests_at_ns) * REQUESTS_PER_S / NS_PER_S
        self._requests = min(REQUESTS_AT_ONCE, self._requests + earned)
        self._requests_at_ns = at_ns
        admitted = min(count, int(self._requests))
        self._requests -= admitted
        self.refused += count - admitted
        return admitted

    def allow(self, sent: SentPacket | None, at_ns: int, round_trip_ns: int) -> bool:
        """Whether to send this packet again; counts the outcome either way.

        A packet sent again less than a round trip ago is still on its way: asking twice is
        what receivers do, answering twice helps nobody.
        """
        if sent is None:
            self.unknown += 1
            return False
        if sent.resent_at_ns and at_ns - sent.resent_at_ns < round_trip_ns:
            self.repeated += 1
            return False
        size = sent.size
        if size > self._credit_bytes:
            self.refused += 1
            return False
        self._credit_bytes -= size
        sent.resent_at_ns = at_ns
        self.resent_packets += 1
        self.resent_bytes += size
        return True


class RtpTimeline:
    """Media time to RTP timestamps: always forward, also when a track or its clock changes."""

    def __init__(self, origin: int) -> None:
        self._offset = origin
        self._last_ticks: int | None = None

    def timestamp(self, ticks: int) -> int:
        """The 32-bit timestamp for a picture of this media time in 1/90000 s."""
        last = self._last_ticks
        if last is not None and ticks <= last:
            # Two pictures of one time would be taken for one, and a later picture of an
            # earlier time for an old one. One tick is enough, and adds no delay.
            self._offset += last + 1 - ticks
        self._last_ticks = ticks
        return (self._offset + ticks) & 0xFFFFFFFF
