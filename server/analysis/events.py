"""What happened: an event as it is told, stored and found again."""

import secrets
from dataclasses import dataclass, field
from typing import Any

ENTER, LEAVE, DWELL, CROSS, APPEAR = "enter", "leave", "dwell", "cross", "appear"
# Something about the stream itself: its recording stopped.
SIGNAL = "signal"
KINDS = (ENTER, LEAVE, DWELL, CROSS, APPEAR, SIGNAL)


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


@dataclass(frozen=True, slots=True)
class Clip:
    """A piece of a stream's picture, in a file of its own."""

    id: str
    stream: str
    started_unix_ms: int
    duration_ms: int
    size_bytes: int
    size_wh: tuple[int, int]
    event_id: str | None = None
    thumbnail: bytes | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "stream": self.stream,
            "event_id": self.event_id,
            "started_unix_ms": self.started_unix_ms,
            "duration_ms": self.duration_ms,
            "bytes": self.size_bytes,
            "size": list(self.size_wh),
            "url": f"/api/clips/{self.id}.mp4",
            "thumbnail_url": f"/api/clips/{self.id}.jpg",
        }


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as it was found."""

    event: Event
    interrupted: bool
    acknowledged_unix_ms: int | None
    acknowledged_by: str | None
    has_snapshot: bool

    def to_json(self) -> dict[str, Any]:
        message = self.event.to_json()
        if not self.has_snapshot:
            message["snapshot_url"] = None
        return {
            **message,
            "interrupted": self.interrupted,
            "acknowledged_unix_ms": self.acknowledged_unix_ms,
            "acknowledged_by": self.acknowledged_by,
        }


@dataclass(frozen=True, slots=True)
class Search:
    """What is looked for, newest first; None or empty takes everything."""

    patterns: tuple[str, ...] = ("*",)
    """Streams the caller may see: names, or beginnings with a star behind them."""
    stream: str | None = None
    class_name: str | None = None
    zone: str | None = None
    kind: str | None = None
    since_unix_ms: int | None = None
    until_unix_ms: int | None = None
    acknowledged: bool | None = None
    after: tuple[int, str] | None = None
    """Start and id of the last one of the page before."""
    limit: int = 50
