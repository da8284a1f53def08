"""The outgoing video track: it serves the newest picture with the source's media time.

Nothing here paces by a clock: a picture leaves because one arrived.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from server.clock import now_ns
from server.latest import Latest, LatestClosed, LatestStatistics
from server.overlay import Painter
from server.pixels import copy_yuv420p, plane_views
from server.shot import Shot

if TYPE_CHECKING:
    from av import VideoFrame

    from server.frame import Stamps


@dataclass(slots=True)
class OutgoingPicture:
    """One picture on its way out; made on any thread, rendered once on an encode thread.

    The decoded frame inside is shared and read-only, so boxes go on a copy.
    """

    shot: Shot
    painter: Painter
    on_sent: Callable[["OutgoingPicture", "Stamps"], None]
    handed_out_at_ns: int = 0
    drawn_at_ns: int = 0

    @property
    def captured_at_ns(self) -> int:
        """When its first packet arrived."""
        return self.shot.frame.stamps.received_at_ns

    def render(self) -> "VideoFrame":
        """The picture for the encoder. On an encode thread."""
        self.handed_out_at_ns = now_ns()
        shot = self.shot
        picture = shot.frame.video_frame
        if shot.detections is not None and len(shot.detections):
            picture = copy_yuv420p(picture)
            self.painter.draw(plane_views(picture), shot.detections, shot.names, shot.opacity)
        self.drawn_at_ns = now_ns()
        return picture

    def sent(self, encode_started_at_ns: int, encoded_at_ns: int, sent_at_ns: int) -> None:
        """The last packet has left. On the loop."""
        stamps = replace(
            self.shot.frame.stamps,
            handed_out_at_ns=self.handed_out_at_ns,
            drawn_at_ns=self.drawn_at_ns,
            encoded_at_ns=encoded_at_ns,
            sent_at_ns=sent_at_ns,
        )
        self.on_sent(self, stamps)


class OutgoingVideoTrack(MediaStreamTrack):
    """Serves `offer`ed pictures, newest first, each once. On the loop; `stop` ends it."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self._latest: Latest[OutgoingPicture] = Latest()
        self._newest_seq = -1
        self._dropped_late = 0

    def offer(self, picture: OutgoingPicture) -> None:
        """Hand a picture out. One that is older than what was handed out before is dropped:
        it would make media time run backwards (a call that changes its mode has such)."""
        frame_seq = picture.shot.frame.frame_seq
        if frame_seq <= self._newest_seq:
            self._dropped_late += 1
            return
        self._newest_seq = frame_seq
        self._latest.set(picture)

    async def recv(self) -> OutgoingPicture:  # type: ignore[override]
        """The next picture for our sender, which renders it off the loop."""
        try:
            return await self._latest.wait_next()
        except LatestClosed:
            raise MediaStreamError from None

    def stop(self) -> None:
        self._latest.close()
        super().stop()

    def statistics(self) -> LatestStatistics:
        return self._latest.statistics()

    @property
    def dropped_late(self) -> int:
        return self._dropped_late
