"""Our envelope around one decoded picture, and the instants it passed.

Both are frozen: they cross threads. The decoded picture inside is read-only for everybody,
because a decoder may still refer to it; who draws, draws on a copy (`pixels.py`).
"""

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from server.clock import ns_to_ms

if TYPE_CHECKING:
    from av import VideoFrame


@dataclass(frozen=True, slots=True)
class Stamps:
    """Monotonic instants of one frame's way through the server; 0 means not reached."""

    received_at_ns: int = 0
    assembled_at_ns: int = 0
    decoded_at_ns: int = 0
    taken_at_ns: int = 0
    prepared_at_ns: int = 0
    inferred_at_ns: int = 0
    boxed_at_ns: int = 0
    handed_out_at_ns: int = 0
    drawn_at_ns: int = 0
    encoded_at_ns: int = 0
    sent_at_ns: int = 0

    def stages_ms(self) -> dict[str, float]:
        """Durations between neighbouring instants that were both reached, by stage name."""
        stages = {}
        for name, begin, end in STAGES:
            begin_ns, end_ns = getattr(self, begin), getattr(self, end)
            if begin_ns and end_ns:
                stages[name] = ns_to_ms(end_ns - begin_ns)
        return stages


class FrameSink(Protocol):
    """Takes the instants of every frame that left."""

    def record(self, stamps: Stamps) -> None: ...


# Stage name, instant it begins, instant it ends. The names are those of /metrics, /api/stats,
# the data channel, the page and the bench.
STAGES: tuple[tuple[str, str, str], ...] = (
    ("assemble", "received_at_ns", "assembled_at_ns"),
    ("decode", "assembled_at_ns", "decoded_at_ns"),
    ("wait", "decoded_at_ns", "taken_at_ns"),
    ("prepare", "taken_at_ns", "prepared_at_ns"),
    ("infer", "prepared_at_ns", "inferred_at_ns"),
    ("boxes", "inferred_at_ns", "boxed_at_ns"),
    ("handoff", "boxed_at_ns", "handed_out_at_ns"),
    ("draw", "handed_out_at_ns", "drawn_at_ns"),
    ("encode", "drawn_at_ns", "encoded_at_ns"),
    ("send", "encoded_at_ns", "sent_at_ns"),
)
STAGE_NAMES = tuple(name for name, _, _ in STAGES)


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded picture. `frame_seq` counts per session at arrival, before any drop."""

    video_frame: "VideoFrame"
    frame_seq: int
    rtp_timestamp: int
    stamps: Stamps

    @property
    def size_wh(self) -> tuple[int, int]:
        return self.video_frame.width, self.video_frame.height


class Submission(enum.Enum):
    """What became of a frame left for the detector."""

    WAITING = "waiting"
    REPLACED = "replaced"
    """It waits, in place of an older one of its session that was never looked at."""
    STALE = "stale"
    """It waits, in place of one that had waited for too long to be looked at."""
    REFUSED = "refused"
    """No detector will look at it: there is none, it hangs or it keeps failing."""
