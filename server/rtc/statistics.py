"""Reception statistics: of one source (RFC 3550), and the frozen snapshot of one track."""

from collections.abc import Mapping
from dataclasses import dataclass

from server.clock import NS_PER_S

_LOST_MIN, _LOST_MAX = -(1 << 23), (1 << 23) - 1


class SourceStatistics:
    """Packets received and lost, and jitter, by the monotonic clock. Loop only."""

    def __init__(self, clock_rate: int) -> None:
        self._clock_rate = clock_rate
        self._base: int | None = None
        self._highest = 0
        self._expected_prior = 0
        self._received_prior = 0
        self._jitter_q4 = 0
        self._last_transit: int | None = None
        self._last_rtp_timestamp: int | None = None
        self.packets_received = 0
        self.bytes_received = 0
        self._sender_report: tuple[int, int] | None = None

    def packet(
        self, sequence_number: int, rtp_timestamp: int, size: int, received_at_ns: int
    ) -> None:
        """Note a packet as it came off the wire, duplicates included."""
        self.packets_received += 1
        self.bytes_received += size
        if self._base is None:
            self._base = self._highest = sequence_number
        else:
            offset = (sequence_number - self._highest + 0x8000 & 0xFFFF) - 0x8000
            if offset <= 0:
                return
            self._highest += offset
        arrival = received_at_ns * self._clock_rate // NS_PER_S
        transit = arrival - rtp_timestamp & 0xFFFFFFFF
        if self._last_transit is not None and rtp_timestamp != self._last_rtp_timestamp:
            difference = abs((transit - self._last_transit + 0x80000000 & 0xFFFFFFFF) - 0x80000000)
            self._jitter_q4 += difference - (self._jitter_q4 + 8 >> 4)
        self._last_transit = transit
        self._last_rtp_timestamp = rtp_timestamp

    def sender_report(self, ntp_timestamp: int, received_at_ns: int) -> None:
        """Note a sender report, which the next receiver report refers to."""
        self._sender_report = (ntp_timestamp >> 16 & 0xFFFFFFFF, received_at_ns)

    @property
    def jitter(self) -> int:
        """In ticks of the media clock."""
        return self._jitter_q4 >> 4

    @property
    def jitter_ms(self) -> float:
        return self.jitter * 1000 / self._clock_rate

    @property
    def packets_expected(self) -> int:
        return 0 if self._base is None else self._highest - self._base + 1

    @property
    def packets_lost(self) -> int:
        """Never received, less duplicates."""
        return max(_LOST_MIN, min(self.packets_expected - self.packets_received, _LOST_MAX))

    @property
    def highest_sequence(self) -> int:
        """Extended, as a report carries it."""
        return self._highest & 0xFFFFFFFF

    def take_fraction_lost(self) -> int:
        """Loss since the last call, in 1/256."""
        expected = self.packets_expected - self._expected_prior
        received = self.packets_received - self._received_prior
        self._expected_prior = self.packets_expected
        self._received_prior = self.packets_received
        if expected <= 0 or received >= expected:
            return 0
        return min(255, (expected - received << 8) // expected)

    def last_sender_report(self, now_ns: int) -> tuple[int, int]:
        """The last sender report's middle bits, and its age in 1/65536 s; zeros before one."""
        if self._sender_report is None:
            return 0, 0
        stamp, received_at_ns = self._sender_report
        return stamp, min((now_ns - received_at_ns) * 65536 // NS_PER_S, 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class ReceiverStatistics:
    """One incoming video track since its beginning."""

    codec: str
    packets_received: int
    bytes_received: int
    packets_lost: int
    packets_foreign: int
    """Of another source while the picture's own was alive, or of one too many."""
    jitter_ms: float
    packets_requested: int
    """NACKs, repeats included."""
    packets_recovered: int
    plis_sent: int
    frames_assembled: int
    key_frames: int
    frames_decoded: int
    decode_errors: int
    dropped: Mapping[str, int]
    """Frames, by reason: `lost`, `decode_queue`, `corrupt`, `unread`."""
    restarts: int
    sink_errors: int
    decode_queue_frames: int
    last_error: str
