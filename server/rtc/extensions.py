"""What an outgoing RTP header says besides the numbers: a block of header extensions.

aiortc writes what it knows (mid, abs-send-time). Two more are for the viewer's sake:

- abs-capture-time: when the picture reached us, in our own clock, so that a page reads the true
  age of what it shows. With the clock offset of zero that says so: Chromium does not believe
  the short form;
- playout-delay 0: a browser otherwise holds pictures back to smooth their pace.

Each is sent only to a peer that offers it. The block is laid out once per sender; a picture
costs two patched fields.
"""

import struct
from collections.abc import Iterable

from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters

MID = "urn:ietf:params:rtp-hdrext:sdes:mid"
ABS_SEND_TIME = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
ABS_CAPTURE_TIME = "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time"
PLAYOUT_DELAY = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"
OURS = (ABS_CAPTURE_TIME, PLAYOUT_DELAY)

ONE_BYTE_PROFILE = 0xBEDE
ONE_BYTE_IDS = range(1, 15)
ONE_BYTE_LENGTHS = range(1, 17)
NTP_FRACTION = 1 << 32
NS_PER_S = 1_000_000_000


def also_common(
    offered: Iterable[RTCRtpHeaderExtensionParameters],
) -> list[RTCRtpHeaderExtensionParameters]:
    """Those of a peer's extensions that we send beyond what aiortc knows."""
    return [
        RTCRtpHeaderExtensionParameters(id=extension.id, uri=extension.uri)
        for extension in offered
        if extension.uri in OURS and extension.id in ONE_BYTE_IDS
    ]


class HeaderBlock:
    """The extension block of one outgoing track, extension header included."""

    def __init__(
        self, agreed: Iterable[RTCRtpHeaderExtensionParameters], mid: str | None = None
    ) -> None:
        ids = {extension.uri: extension.id or 0 for extension in agreed}
        body = bytearray()
        self._capture_at = self._send_at = 0
        values = (
            (MID, (mid or "").encode()),
            (PLAYOUT_DELAY, bytes(3)),
            (ABS_CAPTURE_TIME, bytes(16)),
            (ABS_SEND_TIME, bytes(3)),
        )
        for uri, value in values:
            extension_id = ids.get(uri, 0)
            if extension_id not in ONE_BYTE_IDS or len(value) not in ONE_BYTE_LENGTHS:
                continue
            body.append(extension_id << 4 | (len(value) - 1))
            if uri == ABS_CAPTURE_TIME:
                self._capture_at = 4 + len(body)
            elif uri == ABS_SEND_TIME:
                self._send_at = 4 + len(body)
            body += value
        body += bytes(-len(body) % 4)
        self._block = struct.pack("!HH", ONE_BYTE_PROFILE, len(body) >> 2) + body if body else b""

    def __len__(self) -> int:
        return len(self._block)

    def at(self, sent_ntp: int, age_ns: int | None) -> bytes:
        """The block for a picture that leaves now and was captured `age_ns` ago, if that is
        known; empty when nothing was agreed. Times are NTP, 32.32 bits."""
        if not self._capture_at and not self._send_at:
            return self._block
        block = bytearray(self._block)
        if self._capture_at:
            captured_ntp = sent_ntp - (age_ns or 0) * NTP_FRACTION // NS_PER_S
            struct.pack_into("!Q", block, self._capture_at, captured_ntp & 0xFFFFFFFFFFFFFFFF)
        if self._send_at:
            at = self._send_at
            block[at : at + 3] = ((sent_ntp >> 14) & 0xFFFFFF).to_bytes(3, "big")
        return bytes(block)
