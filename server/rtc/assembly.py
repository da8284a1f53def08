"""Video frames from RTP packets: released at the marker bit, never held for the next frame.

Pure: no asyncio, no clock of its own, one owner. The owner adds packets as they arrive, calls
`expire` at `next_deadline_ns`, and asks the sender for a key frame from `key_frame_wanted_at_ns`
on.

After a loss nothing is released until a key frame is complete: the picture freezes for about
one round trip. The other choice, decoding on, shows (and detects in) a picture that is wrong
until the next key frame anyway. A sender that answers no request does not freeze it for ever:
after `freeze_limit_ns` frames are released again, marked `follows_loss`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from server.rtc.payload import Payload

# A packet this far behind what was released is late. Further away, in either direction, it
# belongs to a new sequence, if the packet after it says so too (RFC 3550, appendix A.1).
MAX_LATE_PACKETS = 512


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """One complete frame, as the decoder takes it."""

    codec_name: str
    data: bytes
    rtp_timestamp: int
    is_key: bool
    follows_loss: bool
    """Released without its reference, because no key frame came for too long."""
    received_at_ns: int
    """The earliest of its packets."""
    assembled_at_ns: int
    payloads: tuple[bytes, ...] = ()
    """Of its packets as they came, in order; for whoever forwards them."""


@dataclass(frozen=True, slots=True)
class AssemblyPacket:
    """One RTP packet; `payload` is None for padding only."""

    sequence_number: int
    rtp_timestamp: int
    marker: bool
    codec_name: str
    payload: Payload | None
    received_at_ns: int
    retransmitted: bool = False
    wire_payload: bytes = b""
    """As it came; `payload` is what a decoder takes of it."""

    @property
    def begins_key_frame(self) -> bool:
        payload = self.payload
        return payload is not None and payload.starts_frame and payload.is_key


@dataclass(slots=True)
class AssemblyCounters:
    """What became of packets and frames, since the beginning."""

    frames_released: int = 0
    key_frames_released: int = 0
    frames_dropped: int = 0
    """Seen, at least in part, and given up."""
    losses: int = 0
    """Times that a frame had to be given up."""
    packets_late: int = 0
    packets_duplicate: int = 0
    packets_padding: int = 0
    restarts: int = 0


@dataclass(slots=True)
class _Head:
    """The frame being put together; the walk over its packets resumes where it stopped."""

    first: int
    scan: int
    packets: list[AssemblyPacket] = field(default_factory=list)


class FrameAssembler:
    """Packets of one source in any order -> frames in order.

    Sequences inside are unwrapped and only grow. Bound: `max_packets`; when it is passed, the
    frame that blocks is given up.
    """

    def __init__(self, *, deadline_ns: int, freeze_limit_ns: int, max_packets: int) -> None:
        self._deadline_ns = deadline_ns
        self._freeze_limit_ns = freeze_limit_ns
        self._max_packets = max_packets
        self._packets: dict[int, AssemblyPacket] = {}
        self._highest: int | None = None
        self._floor = 0
        """Sequences below it are done with."""
        self._head: _Head | None = None
        """None while the beginning of a key frame is sought."""
        self._frozen_since_ns: int | None = None
        """None while every released frame has its reference."""
        self._key_frame_wanted_at_ns: int | None = None
        self._blocked_since_ns: int | None = None
        self._restart_candidate: AssemblyPacket | None = None
        self._last_picture_id: int | None = None
        self._last_key_rtp_timestamp: int | None = None
        self._last_dropped_rtp_timestamp: int | None = None
        self._newest_at_ns = 0
        self._marker_seen = False
        """A sender that never sets it leaves every frame open until the next."""
        self.counters = AssemblyCounters()

    @property
    def key_frame_wanted_at_ns(self) -> int | None:
        """From then on only a key frame helps; None once one is complete."""
        return self._key_frame_wanted_at_ns

    @property
    def next_deadline_ns(self) -> int | None:
        """When `expire` has something to do, unless packets come before."""
        since_ns = self._blocked_since_ns
        if since_ns is None:
            since_ns = self.open_since_ns
        return None if since_ns is None else since_ns + self._deadline_ns

    @property
    def open_since_ns(self) -> int | None:
        """Since when a frame waits for its end without a packet behind it, or None.

        Nothing that follows tells of the loss, when the end of a frame before a pause is lost.
        """
        head = self._head
        if head is None or not head.packets or self._blocked_since_ns is not None:
            return None
        return self._newest_at_ns if self._marker_seen else None

    @property
    def floor_sequence_number(self) -> int:
        """Packets before it no longer matter to anyone."""
        return self._floor & 0xFFFF

    def add(self, packet: AssemblyPacket, now_ns: int) -> list[EncodedFrame]:
        """Take a packet; returns the frames it completed, in order."""
        sequence = self._accept(packet, now_ns)
        if sequence is None:
            return []
        self._packets[sequence] = packet
        self._newest_at_ns = max(self._newest_at_ns, packet.received_at_ns)
        self._marker_seen |= packet.marker
        if packet.payload is None:
            self.counters.packets_padding += 1
        if self._head is None and not self._seek_with(sequence, packet, now_ns):
            return []
        frames = self._advance(sequence, now_ns)
        while len(self._packets) > self._max_packets:
            frames += self._give_up(now_ns)
        return frames

    def expire(self, now_ns: int) -> list[EncodedFrame]:
        """Give up what was waited for too long; returns frames that were behind it."""
        frames: list[EncodedFrame] = []
        while (deadline_ns := self.next_deadline_ns) is not None and deadline_ns <= now_ns:
            if self._head is None:
                # What may be before this key frame has not come: go on without.
                self._seek(now_ns, surely=False)
                frames += self._release_complete(now_ns)
            else:
                frames += self._give_up(now_ns)
        return frames

    def abandon_hole(self, now_ns: int) -> list[EncodedFrame]:
        """What is missing will not be repaired: as `expire`, without waiting."""
        if self._head is None or self._blocked_since_ns is None:
            return []
        return self._give_up(now_ns)

    def reference_lost(self, rtp_timestamp: int, now_ns: int) -> list[EncodedFrame]:
        """A released frame did not reach its picture: hold until a key frame after it."""
        last_key = self._last_key_rtp_timestamp
        if last_key is not None and 0 < (last_key - rtp_timestamp & 0xFFFFFFFF) < 0x80000000:
            return []
        if self._head is None:
            return []
        self._freeze(now_ns, wanted_at_ns=now_ns)
        self._seek(now_ns)
        return self._release_complete(now_ns)

    # Sequence numbers.

    def _accept(self, packet: AssemblyPacket, now_ns: int) -> int | None:
        """The unwrapped sequence of a packet that is new and within reach, else None."""
        if self._highest is None:
            self._begin_at(packet.sequence_number)
            # A stream begins with a key frame; ask only if it turns out that this one did not.
            self._freeze(now_ns, wanted_at_ns=now_ns + self._deadline_ns)
            return packet.sequence_number
        offset = (packet.sequence_number - self._highest + 0x8000 & 0xFFFF) - 0x8000
        sequence = self._highest + offset
        reach = sequence - self._floor
        if reach >= 2 * self._max_packets or reach < -MAX_LATE_PACKETS:
            return self._accept_restart(packet, now_ns)
        if reach < 0:
            self.counters.packets_late += 1
            return None
        if sequence in self._packets:
            self.counters.packets_duplicate += 1
            return None
        self._restart_candidate = None
        self._highest = max(self._highest, sequence)
        return sequence

    def _accept_restart(self, packet: AssemblyPacket, now_ns: int) -> int | None:
        """Two neighbours out of reach are a new sequence; one alone is a stray.

        Retransmissions never are: senders probe the path with very old packets.
        """
        before = self._restart_candidate
        if packet.retransmitted:
            self.counters.packets_late += 1
            return None
        if before is None or packet.sequence_number != (before.sequence_number + 1) & 0xFFFF:
            self._restart_candidate = packet
            self.counters.packets_late += 1
            return None
        self.counters.restarts += 1
        self.counters.packets_late -= 1
        self._count_dropped(self._packets.values())
        self._packets.clear()
        self._begin_at(before.sequence_number)
        self._freeze(now_ns, wanted_at_ns=now_ns)
        self._packets[before.sequence_number] = before
        self._seek(now_ns)
        # Unwrapped from here on: the two may lie on either side of a wrap.
        self._highest = before.sequence_number + 1
        return self._highest

    def _begin_at(self, sequence: int) -> None:
        # The first packet to arrive need not be the first that was sent.
        self._floor = sequence - min(MAX_LATE_PACKETS, self._max_packets)
        self._highest = sequence
        self._restart_candidate = None
        self._last_key_rtp_timestamp = None

    # Putting frames together.

    def _advance(self, sequence: int, now_ns: int) -> list[EncodedFrame]:
        """Release what the packet just added completes."""
        head = self._head
        if head is None or sequence < head.scan:
            return []
        packet = self._packets[sequence]
        if head.scan not in self._packets:
            # There is a hole before it; only a picture that needs nothing from it may go on.
            frozen = self._frozen_since_ns is not None
            if not (
                (frozen and self._is_later_key(head, packet))
                or self._follows_last_picture(head, packet)
            ):
                if self._blocked_since_ns is None:
                    self._blocked_since_ns = packet.received_at_ns
                return []
            self._set_head(sequence)
        return self._release_complete(now_ns)

    def _release_complete(self, now_ns: int) -> list[EncodedFrame]:
        frames = []
        while (frame := self._take_frame(now_ns)) is not None:
            frames.append(frame)
        self._note_hole()
        return frames

    def _take_frame(self, now_ns: int) -> EncodedFrame | None:
        head = self._head
        if head is None:
            return None
        while (packet := self._packets.get(head.scan)) is not None:
            if packet.payload is None:
                head.scan += 1
                if not head.packets:
                    # Between frames. Padding carries the timestamp of the frame before it and
                    # must not begin the next one.
                    del self._packets[head.first]
                    head.first = self._floor = head.scan
                continue
            if head.packets and packet.rtp_timestamp != head.packets[0].rtp_timestamp:
                return self._release(head, now_ns)  # a sender without marker
            head.packets.append(packet)
            head.scan += 1
            if packet.marker:
                return self._release(head, now_ns)
        return None

    def _release(self, head: _Head, now_ns: int) -> EncodedFrame:
        for sequence in range(head.first, head.scan):
            del self._packets[sequence]
        self._floor = head.scan
        self._head = _Head(head.scan, head.scan)
        self._blocked_since_ns = None
        payloads = [packet.payload for packet in head.packets if packet.payload is not None]
        first = head.packets[0]
        is_key = any(payload.is_key for payload in payloads)
        self._last_picture_id = payloads[0].picture_id
        self.counters.frames_released += 1
        if is_key:
            self.counters.key_frames_released += 1
            self._last_key_rtp_timestamp = first.rtp_timestamp
            self._frozen_since_ns = None
            self._key_frame_wanted_at_ns = None
        return EncodedFrame(
            codec_name=first.codec_name,
            data=b"".join([payload.data for payload in payloads]),
            rtp_timestamp=first.rtp_timestamp,
            is_key=is_key,
            follows_loss=self._frozen_since_ns is not None,
            received_at_ns=min([packet.received_at_ns for packet in head.packets]),
            assembled_at_ns=now_ns,
            payloads=tuple([packet.wire_payload for packet in head.packets]),
        )

    def _note_hole(self) -> None:
        """Since when there is evidence that the head lacks a packet."""
        head = self._head
        if head is None:
            return
        if len(self._packets) == head.scan - head.first:
            self._blocked_since_ns = None
            return
        self._blocked_since_ns = min(
            packet.received_at_ns
            for sequence, packet in self._packets.items()
            if sequence > head.scan
        )

    def _follows_last_picture(self, head: _Head, packet: AssemblyPacket) -> bool:
        """Whether VP8 picture ids prove that only padding is missing before this packet."""
        payload, last = packet.payload, self._last_picture_id
        if head.packets or payload is None or not payload.starts_frame or last is None:
            return False
        mask = (1 << payload.picture_id_bits) - 1
        return payload.picture_id == (last + 1) & mask

    # After a loss.

    def _freeze(self, now_ns: int, *, wanted_at_ns: int) -> None:
        """Seek a key frame; a freeze that lasts keeps its beginning."""
        self._head = None
        self._blocked_since_ns = None
        self._last_picture_id = None
        if self._frozen_since_ns is None:
            self._frozen_since_ns = now_ns
        wanted = self._key_frame_wanted_at_ns
        self._key_frame_wanted_at_ns = wanted_at_ns if wanted is None else min(wanted, wanted_at_ns)

    def _give_up(self, now_ns: int) -> list[EncodedFrame]:
        """Drop the frame that blocks, and all that need it."""
        head = self._head
        if head is None:
            # Seeking, and full.
            self._drop_below(min(self._packets) + self._max_packets // 4 + 1)
            return []
        self.counters.losses += 1
        # Behind a frame that is merely open comes the next one, perhaps: it is kept.
        self._drop_below(head.scan + (self._blocked_since_ns is not None))
        self._freeze(now_ns, wanted_at_ns=now_ns)
        self._seek(now_ns)
        return self._release_complete(now_ns)

    def _seek_with(self, sequence: int, packet: AssemblyPacket, now_ns: int) -> bool:
        """While seeking: whether there is a frame to go on from, now that this packet is here."""
        candidate_waits = self._blocked_since_ns is not None
        if candidate_waits or packet.begins_key_frame or self._limit_passed(now_ns):
            self._seek(now_ns)
        elif sequence - self._floor >= self._max_packets:
            self._drop_below(sequence - self._max_packets // 2)
        return self._head is not None

    def _seek(self, now_ns: int, *, surely: bool = True) -> None:
        """Set the head to the first key frame there is; past the limit, to the newest frame.

        An H264 key frame may begin before its first slice, with parameter sets that come late.
        It is taken when its beginning is certain, or when its deadline has passed (not `surely`).
        """
        self._blocked_since_ns = None
        keys = [s for s, packet in self._packets.items() if packet.begins_key_frame]
        for sequence in sorted(keys):
            start = self._frame_start(sequence)
            if not surely or self._starts_surely(start):
                self._set_head(start)
                return
            if self._blocked_since_ns is None:
                self._blocked_since_ns = self._packets[sequence].received_at_ns
        if self._limit_passed(now_ns):
            for sequence in sorted(self._packets, reverse=True):
                if self._starts_frame(sequence):
                    self._set_head(sequence)
                    return

    def _frame_start(self, sequence: int) -> int:
        """The first packet of this one's frame, as far as it is known."""
        timestamp = self._packets[sequence].rtp_timestamp
        while (before := self._packets.get(sequence - 1)) is not None:
            if before.payload is None or before.marker or before.rtp_timestamp != timestamp:
                break
            sequence -= 1
        return sequence

    def _starts_surely(self, start: int) -> bool:
        payload = self._packets[start].payload
        return start - 1 in self._packets or (payload is not None and payload.starts_surely)

    def _set_head(self, start: int) -> None:
        """Go on from this frame; what is before it is dropped."""
        self._drop_below(start)
        self._head = _Head(start, start)
        self._blocked_since_ns = None

    def _limit_passed(self, now_ns: int) -> bool:
        since_ns = self._frozen_since_ns
        return since_ns is not None and now_ns - since_ns >= self._freeze_limit_ns

    def _is_later_key(self, head: _Head, packet: AssemblyPacket) -> bool:
        """Whether a key frame begins here that is not the one at the head."""
        payload = packet.payload
        if payload is None or not payload.starts_surely or not payload.is_key:
            return False
        first = self._packets.get(head.first)
        return first is None or first.rtp_timestamp != packet.rtp_timestamp

    def _starts_frame(self, sequence: int) -> bool:
        packet, before = self._packets[sequence], self._packets.get(sequence - 1)
        if packet.payload is None:
            return False
        if before is None:
            return packet.payload.starts_frame
        return before.marker or before.rtp_timestamp != packet.rtp_timestamp

    def _drop_below(self, sequence: int) -> None:
        gone = [other for other in self._packets if other < sequence]
        self._count_dropped([self._packets.pop(other) for other in sorted(gone)])
        self._floor = max(self._floor, sequence)

    def _count_dropped(self, packets: Iterable[AssemblyPacket]) -> None:
        """Count frames, each once though it be dropped in parts."""
        for packet in packets:
            if packet.payload is not None:
                if packet.rtp_timestamp != self._last_dropped_rtp_timestamp:
                    self.counters.frames_dropped += 1
                self._last_dropped_rtp_timestamp = packet.rtp_timestamp
