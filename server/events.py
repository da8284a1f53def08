"""What happened: an event as it is told, stored and found again."""

import secrets
from dataclasses import dataclass
from typing import Any

ENTER, LEAVE, DWELL, CROSS, APPEAR = "enter", "leave", "dwell", "cross", "appear"
KINDS = (ENTER, LEAVE, DWELL, CROSS, APPEAR)


@dataclass(frozen=True, slots=True)
class Event:
    """Frozen: a change makes a new one with the same id. Stamps are of the wall clock, but the
    time between them is measured by one that never jumps."""

    id: str
    stream: str
    kind: str
    class_name: str
    track_id: int | None
    zone: str
    """Id of the zone or line; empty for what appears anywhere."""
    started_unix_ms: int
    ended_unix_ms: int | None
    """None while it lasts."""
    score: float
    direction: str = ""
    """`forward` or `backward` over a line, else empty."""
    box: tuple[float, float, float, float] | None = None
    """Where the object was in the picture that is kept, in shares of its sides."""

    def to_json(self) -> dict[str, Any]:
        """The message for those who listen, and the core of what the API answers."""
        message: dict[str, Any] = {
            "id": self.id,
            "stream": self.stream,
            "kind": self.kind,
            "class": self.class_name,
            "track_id": self.track_id,
            "zone": self.zone or None,
            "started_unix_ms": self.started_unix_ms,
            "ended_unix_ms": self.ended_unix_ms,
            "score": round(self.score, 3),
            "box": None if self.box is None else [round(side, 4) for side in self.box],
            "snapshot_url": f"/api/events/{self.id}/snapshot.jpg",
        }
        if self.direction:
            message["direction"] = self.direction
        return message


def new_event_id(unix_ms: int) -> str:
    """Not to be guessed, and in the order of time within one run of the clock."""
    return f"{unix_ms & 0xFFFF_FFFF_FFFF:012x}{secrets.token_hex(10)}"


@dataclass(frozen=True, slots=True)
class Entry:
    """An event as it is to be written, with its picture where there is a (better) one."""

    event: Event
    jpeg: bytes | None = None
