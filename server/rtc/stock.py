"""aiortc's own jitter buffer behind our assembler's interface: the "before" of a comparison."""

from dataclasses import dataclass

from aiortc.jitterbuffer import JitterBuffer

from server.rtc.assembly import AssemblyCounters, AssemblyPacket, EncodedFrame

_CAPACITY_PACKETS = 512
_MAX_OPEN_FRAMES = 64


@dataclass(slots=True)
class _StockPacket:
    sequence_number: int
    timestamp: int
    _data: bytes


@dataclass(slots=True)
class _OpenFrame:
    received_at_ns: int
    is_key: bool


class StockAssembler:
    """Releases a frame when the next one begins, at most one per packet, with no deadline."""

    next_deadline_ns = None
    open_since_ns = None

    def __init__(self) -> None:
        self._buffer = JitterBuffer(capacity=_CAPACITY_PACKETS, is_video=True)
        self._open: dict[int, _OpenFrame] = {}
        self._floor_sequence_number = 0
        self.key_frame_wanted_at_ns: int | None = None
        self.counters = AssemblyCounters()

    @property
    def floor_sequence_number(self) -> int:
        """A window before the newest packet: this buffer does not tell."""
        return self._floor_sequence_number

    def add(self, packet: AssemblyPacket, now_ns: int) -> list[EncodedFrame]:
        """Take a packet; returns at most one frame."""
        payload = packet.payload
        self._floor_sequence_number = packet.sequence_number - 128 & 0xFFFF
        if payload is not None:
            self._note(packet, payload.is_key)
        pli, frame = self._buffer.add(
            _StockPacket(  # type: ignore[arg-type]
                packet.sequence_number, packet.rtp_timestamp, payload.data if payload else b""
            )
        )
        if pli:
            self.key_frame_wanted_at_ns = now_ns
            self.counters.losses += 1
        if frame is None:
            return []
        opened = self._open.pop(frame.timestamp, _OpenFrame(now_ns, False))
        self.counters.frames_released += 1
        if opened.is_key:
            self.counters.key_frames_released += 1
            self.key_frame_wanted_at_ns = None
        return [
            EncodedFrame(
                codec_name=packet.codec_name,
                data=frame.data,
                rtp_timestamp=frame.timestamp,
                is_key=opened.is_key,
                follows_loss=True,
                received_at_ns=opened.received_at_ns,
                assembled_at_ns=now_ns,
            )
        ]

    def _note(self, packet: AssemblyPacket, is_key: bool) -> None:
        opened = self._open.setdefault(
            packet.rtp_timestamp, _OpenFrame(packet.received_at_ns, False)
        )
        opened.is_key |= is_key
        while len(self._open) > _MAX_OPEN_FRAMES:
            del self._open[next(iter(self._open))]

    def expire(self, now_ns: int) -> list[EncodedFrame]:
        """No deadline here."""
        return []

    def abandon_hole(self, now_ns: int) -> list[EncodedFrame]:
        """It waits until it is full."""
        return []

    def reference_lost(self, rtp_timestamp: int, now_ns: int) -> list[EncodedFrame]:
        """Ask, and decode on."""
        self.key_frame_wanted_at_ns = now_ns
        return []
