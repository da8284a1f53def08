"""Packets of a made-up camera, as they would come off the wire, for the assembler's tests."""

from dataclasses import dataclass, replace

from server.clock import NS_PER_MS
from server.rtc.assembly import AssemblyPacket, EncodedFrame, FrameAssembler
from server.rtc.payload import parse_payload

DEADLINE_NS = 200 * NS_PER_MS
FREEZE_LIMIT_NS = 2000 * NS_PER_MS
FRAME_NS = 33 * NS_PER_MS
FRAME_TICKS = 3000


def vp8_payload(*, start: bool, key: bool, body: bytes, picture_id: int | None = None) -> bytes:
    """One VP8 packet's payload; `key` matters only where a frame starts."""
    first = (0x10 if start else 0) | (0x80 if picture_id is not None else 0)
    descriptor = bytes([first])
    if picture_id is not None:
        descriptor += bytes([0x80, 0x80 | picture_id >> 8, picture_id & 0xFF])
    return descriptor + (bytes([0 if key else 1]) if start else b"") + body


def h264_payloads(*, key: bool, packets: int, body: bytes) -> list[bytes]:
    """One H264 frame: SPS and PPS in an aggregate before a key frame, then fragments."""
    payloads = []
    if key:
        sps, pps = b"\x67\x42\xc0\x1f", b"\x68\xce\x3c\x80"
        payloads.append(b"\x78" + b"".join(len(nal).to_bytes(2, "big") + nal for nal in (sps, pps)))
    nal_type = 5 if key else 1
    count = max(packets - len(payloads), 1)
    if count == 1:
        return [*payloads, bytes([0x60 | nal_type, 0x88]) + body]
    for index in range(count):
        header = nal_type | (0x80 if index == 0 else 0) | (0x40 if index == count - 1 else 0)
        payloads.append(bytes([0x7C, header, 0x88, index]) + body)
    return payloads


@dataclass
class Camera:
    """Makes frames packet by packet; sequence numbers and timestamps wrap as they do."""

    codec: str = "VP8"
    sequence: int = 1000
    timestamp: int = 90_000
    now_ns: int = 10**12
    marker: bool = True
    picture_id: int | None = None

    def frame(self, *, packets: int = 3, key: bool = False) -> list[AssemblyPacket]:
        """The next frame; all its packets arrive at the same instant."""
        if self.codec == "VP8":
            payloads = [
                vp8_payload(
                    start=index == 0,
                    key=key,
                    body=b"%d/%d" % (self.timestamp, index),
                    picture_id=self.picture_id,
                )
                for index in range(packets)
            ]
        else:
            payloads = h264_payloads(key=key, packets=packets, body=b"%d" % self.timestamp)
        made = [
            self._packet(payload, marker=self.marker and index == len(payloads) - 1)
            for index, payload in enumerate(payloads)
        ]
        self.timestamp = (self.timestamp + FRAME_TICKS) & 0xFFFFFFFF
        self.now_ns += FRAME_NS
        if self.picture_id is not None:
            self.picture_id = (self.picture_id + 1) & 0x7FFF
        return made

    def padding(self) -> AssemblyPacket:
        """As Chromium sends it: empty, after the marker, with the timestamp before."""
        before = (self.timestamp - FRAME_TICKS) & 0xFFFFFFFF
        return replace(self._packet(b"", marker=False), rtp_timestamp=before)

    def skip(self, packets: int) -> None:
        """These are lost, with the frame they would have been."""
        self.sequence = (self.sequence + packets) & 0xFFFF
        self.timestamp = (self.timestamp + FRAME_TICKS) & 0xFFFFFFFF

    def _packet(self, payload: bytes, *, marker: bool) -> AssemblyPacket:
        packet = AssemblyPacket(
            sequence_number=self.sequence,
            rtp_timestamp=self.timestamp,
            marker=marker,
            codec_name=self.codec,
            payload=parse_payload(self.codec, payload) if payload else None,
            received_at_ns=self.now_ns,
        )
        self.sequence = (self.sequence + 1) & 0xFFFF
        return packet


def make_assembler(max_packets: int = 2048) -> FrameAssembler:
    """With the deadlines that the tests know."""
    return FrameAssembler(
        deadline_ns=DEADLINE_NS, freeze_limit_ns=FREEZE_LIMIT_NS, max_packets=max_packets
    )


def feed(assembler: FrameAssembler, packets: list[AssemblyPacket]) -> list[EncodedFrame]:
    """Add packets, each at the instant it carries."""
    frames: list[EncodedFrame] = []
    for packet in packets:
        frames += assembler.add(packet, packet.received_at_ns)
    return frames


def stamps(frames: list[EncodedFrame]) -> list[int]:
    """Which frames they are."""
    return [frame.rtp_timestamp for frame in frames]


def data_of(packets: list[AssemblyPacket]) -> bytes:
    """What a decoder should get for one frame."""
    return b"".join(packet.payload.data for packet in packets if packet.payload is not None)
