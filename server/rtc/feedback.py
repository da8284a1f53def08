"""What the receiver asks the sender for: lost packets again (NACK), a key frame (PLI).

Pure: the owner brings the time and sends what it is told to.
"""

from dataclasses import dataclass

from server.clock import NS_PER_MS

MIN_REPEAT_NS = 20 * NS_PER_MS

# More than this in one gap is an outage, not loss: the retransmission would be a burst of its
# own, for frames that are late by then.
MAX_GAP_PACKETS = 256
MAX_MISSING_PACKETS = 512
MAX_REQUEST_PACKETS = 128

# A frame without its end and nothing after it for so long: its end may be lost. Longer than the
# interval of 30 frames a second, where the next frame tells as soon, and than senders pause
# within a frame.
OPEN_FRAME_NS = 50 * NS_PER_MS
# How many packets after the newest are asked for then, unknown as they are.
OPEN_FRAME_PACKETS = 3


@dataclass(slots=True)
class _Missing:
    noticed_at_ns: int
    next_request_at_ns: int


class NackTracker:
    """Which packets of one source are missing, and when to ask for them again.

    Asked for when noticed, then each round trip (20 ms at least) until received, forgotten or
    `give_up_ns` old. Bound: `MAX_MISSING_PACKETS`, the oldest are forgotten first.
    """

    def __init__(self, *, give_up_ns: int, repeats: bool = True) -> None:
        self._give_up_ns = give_up_ns
        self._repeats = repeats
        self._highest: int | None = None
        self._missing: dict[int, _Missing] = {}
        """By unwrapped sequence, in rising order."""
        self._beyond_at_ns = 0
        """When packets after the newest were asked for."""
        self.packets_requested = 0
        self.packets_recovered = 0
        self.packets_given_up = 0

    def __len__(self) -> int:
        return len(self._missing)

    def received(self, sequence_number: int, now_ns: int) -> bool:
        """Note a packet; False when the gap before it is too wide to be repaired."""
        if self._highest is None:
            self._highest = sequence_number
            return True
        sequence = self._unwrap(sequence_number)
        if sequence <= self._highest:
            if self._missing.pop(sequence, None) is not None:
                self.packets_recovered += 1
            return True
        gap = sequence - self._highest - 1
        first = self._highest + 1
        self._highest = sequence
        if gap > MAX_GAP_PACKETS:
            self.forget()
            return False
        for missing in range(first, sequence):
            self._missing[missing] = _Missing(now_ns, now_ns)
        while len(self._missing) > MAX_MISSING_PACKETS:
            self._give_up(next(iter(self._missing)))
        return True

    def due(self, now_ns: int, rtt_ns: int) -> list[int]:
        """Sequence numbers to ask for now, sorted as RTCP packs them."""
        expired = [
            sequence
            for sequence, missing in self._missing.items()
            if now_ns - missing.noticed_at_ns >= self._give_up_ns
        ]
        for sequence in expired:
            self._give_up(sequence)
        repeat_ns = max(MIN_REPEAT_NS, rtt_ns) if self._repeats else self._give_up_ns
        numbers: list[int] = []
        for sequence, missing in self._missing.items():
            if missing.next_request_at_ns <= now_ns and len(numbers) < MAX_REQUEST_PACKETS:
                missing.next_request_at_ns = now_ns + repeat_ns
                numbers.append(sequence & 0xFFFF)
        self.packets_requested += len(numbers)
        # Sorted as 16-bit numbers: the packet's bit masks cannot express a wrap.
        return sorted(numbers)

    def beyond(self, open_since_ns: int, now_ns: int, rtt_ns: int) -> list[int]:
        """The packets after the newest, when a frame has been open for long; sorted.

        A sender that has not sent them yet knows nothing of them and does nothing.
        """
        if self._highest is None or now_ns < self.beyond_due_ns(open_since_ns, rtt_ns):
            return []
        self._beyond_at_ns = now_ns
        self.packets_requested += OPEN_FRAME_PACKETS
        first = self._highest + 1
        return sorted(number & 0xFFFF for number in range(first, first + OPEN_FRAME_PACKETS))

    def beyond_due_ns(self, open_since_ns: int, rtt_ns: int) -> int:
        """When `beyond` has something to do."""
        return max(open_since_ns + OPEN_FRAME_NS, self._beyond_at_ns + max(MIN_REPEAT_NS, rtt_ns))

    def next_due_ns(self) -> int | None:
        """When `due` has something to do, or None."""
        return min(
            (
                min(missing.next_request_at_ns, missing.noticed_at_ns + self._give_up_ns)
                for missing in self._missing.values()
            ),
            default=None,
        )

    def forget_before(self, sequence_number: int) -> None:
        """Packets before it are of no use any more."""
        if not self._missing or self._highest is None:
            return
        floor = self._unwrap(sequence_number)
        for sequence in [other for other in self._missing if other < floor]:
            self._give_up(sequence)

    def forget(self) -> None:
        """The sequence began anew."""
        self.packets_given_up += len(self._missing)
        self._missing.clear()

    def restart(self) -> None:
        """Another source: nothing known."""
        self.forget()
        self._highest = None

    def _unwrap(self, sequence_number: int) -> int:
        assert self._highest is not None
        return self._highest + (sequence_number - self._highest + 0x8000 & 0xFFFF) - 0x8000

    def _give_up(self, sequence: int) -> None:
        del self._missing[sequence]
        self.packets_given_up += 1


class PliThrottle:
    """At most one picture loss indication per interval; a wish in between waits."""

    def __init__(self, *, interval_ns: int) -> None:
        self._interval_ns = interval_ns
        self._last_sent_at_ns: int | None = None
        self.sent = 0

    def due_at_ns(self, wanted_at_ns: int) -> int:
        """When a wish that exists from `wanted_at_ns` on may be sent."""
        if self._last_sent_at_ns is None:
            return wanted_at_ns
        return max(wanted_at_ns, self._last_sent_at_ns + self._interval_ns)

    def take(self, wanted_at_ns: int, now_ns: int) -> bool:
        """Whether to send now; if so it counts as sent."""
        if now_ns < self.due_at_ns(wanted_at_ns):
            return False
        self._last_sent_at_ns = now_ns
        self.sent += 1
        return True
