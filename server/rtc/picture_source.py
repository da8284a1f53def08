"""Pictures in RTP payloads that are the same for many viewers, and how these join and leave.

What is made of them differs: `fanout.py` encodes them, `relay.py` passes them on as they came.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from server.clock import NS_PER_MS, now_ns
from server.rtc.bitrate import Allowance
from server.rtc.encoders import EncodeResult

# A viewer that joins so soon after a key frame is given it, and what followed, at once.
REPLAY_NS = 400 * NS_PER_MS
REPLAY_AT_MOST = 48
# Viewers that are served before the loop may look at something else.
VIEWERS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class SharedPicture:
    """One picture in RTP payloads, the same for all viewers."""

    payloads: tuple[bytes, ...]
    keyframe: bool
    rtp_timestamp: int
    captured_at_ns: int
    size: int
    """Payload bytes."""
    result: EncodeResult | None = None
    """Of the encoder; None for a picture that is passed on as it came."""


class Viewer(Protocol):
    """What a source of pictures needs of a viewer's sender. Loop only, must not block or raise."""

    def send_picture(self, picture: SharedPicture) -> None: ...

    def allowance(self) -> Allowance: ...


class RecentPictures:
    """Pictures from the last key frame on, while it is young: what a viewer that joins is given
    at once. Bounds: `REPLAY_NS` and `REPLAY_AT_MOST`; beyond them it is empty."""

    def __init__(self) -> None:
        self._pictures: list[SharedPicture] = []
        self._since_ns = 0

    def add(self, picture: SharedPicture) -> None:
        at_ns = now_ns()
        if picture.keyframe:
            self._pictures = [picture]
            self._since_ns = at_ns
        elif self._pictures:
            self._pictures.append(picture)
            if at_ns - self._since_ns > REPLAY_NS or len(self._pictures) > REPLAY_AT_MOST:
                self._pictures.clear()

    def clear(self) -> None:
        self._pictures.clear()

    def replay(self, viewer: Viewer) -> bool:
        """Send them; False when there is nothing to begin with."""
        if not self._pictures or now_ns() - self._since_ns >= REPLAY_NS:
            return False
        for picture in self._pictures:
            viewer.send_picture(picture)
        return True


class PictureSource(ABC):
    """Who is served, and what a viewer that joins begins with. Loop only."""

    def __init__(self) -> None:
        self._viewers: dict[Viewer, None] = {}
        self._recent = RecentPictures()
        self._replays = 0

    @property
    def watched(self) -> bool:
        return bool(self._viewers)

    def join(self, viewer: Viewer) -> None:
        """Serve this viewer from now on, beginning with a key frame."""
        self._viewers[viewer] = None
        if self._recent.replay(viewer):
            self._replays += 1
        else:
            self.wish_keyframe()

    def leave(self, viewer: Viewer) -> None:
        """Serve it no longer. Idempotent. After the last one nothing is kept for viewers."""
        self._viewers.pop(viewer, None)
        if not self._viewers:
            self._recent.clear()
            self._let_go()

    @abstractmethod
    def wish_keyframe(self) -> None:
        """A viewer cannot go on without one."""

    @abstractmethod
    def _let_go(self) -> None:
        """Nobody watches any more."""
