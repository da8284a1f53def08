"""What peer connections sent, lost and asked for, summed over many of them; pure."""

from collections import Counter
from collections.abc import Iterable, Mapping

from server.rtc.peer import PeerStatistics

# What each count of a peer's incoming and outgoing video is called in a sum.
INCOMING: Mapping[str, str] = {
    "packets_received": "packets_in",
    "bytes_received": "bytes_in",
    "packets_lost": "packets_lost",
    "packets_requested": "packets_requested",
    "packets_recovered": "packets_recovered",
    "plis_sent": "keyframes_requested",
    "decode_errors": "decode_errors",
    "restarts": "restarts",
}
OUTGOING: Mapping[str, str] = {
    "packets_sent": "packets_out",
    "bytes_sent": "bytes_out",
    "resent_packets": "packets_resent",
    "resend_unknown": "resends_unknown",
    "resend_repeated": "resends_repeated",
    "resend_refused": "resends_refused",
    "frames_sent": "frames_out",
    "frames_forwarded": "frames_forwarded",
    "keyframes_sent": "keyframes_sent",
    "keyframe_requests": "keyframe_requests",
    "encode_failures": "encode_failures",
    "send_errors": "send_errors",
}
REJECTED = "rejected "


def link_counts(peers: Iterable[PeerStatistics]) -> Counter[str]:
    """The sum; datagrams that were rejected are counted by kind, as `rejected <kind>`."""
    counts: Counter[str] = Counter()
    for peer in peers:
        for names, videos in ((INCOMING, peer.incoming), (OUTGOING, peer.outgoing)):
            for video in videos:
                for field, name in names.items():
                    counts[name] += getattr(video, field)
        for kind, count in peer.rejected_datagrams.items():
            counts[REJECTED + kind] += count
    return counts
