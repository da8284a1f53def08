"""What is said about a frame on the `detections` data channel, as JSON takes it."""

from collections.abc import Mapping
from typing import Any

from server.clock import NS_PER_MS, now_ns, ns_to_ms, unix_ms
from server.detections import Detections
from server.frame import Frame, Stamps


def frame_message(
    stream: str,
    frame: Frame,
    detections: Detections,
    *,
    rtp_timestamp: int,
    stages_ms: Mapping[str, float],
    sent: Stamps,
) -> dict[str, Any]:
    """One detected frame; `sent` are the instants of the last picture that left."""
    age_ns = now_ns() - frame.stamps.received_at_ns
    return {
        "stream": stream,
        "seq": frame.frame_seq,
        "rtp_timestamp": rtp_timestamp,
        "captured_unix_ms": round(unix_ms() - ns_to_ms(age_ns), 1),
        "size": list(detections.size_wh),
        "boxes": detections.to_rows(),
        "stages_ms": {name: round(value, 3) for name, value in stages_ms.items()},
        "server_ms": round(ns_to_ms(sent.sent_at_ns - sent.received_at_ns), 3),
        "received_server_ms": round(frame.stamps.received_at_ns / NS_PER_MS, 3),
        "sent_server_ms": round(sent.sent_at_ns / NS_PER_MS, 3),
    }
