"""What looks at one feed's pictures and boxes on their way: who is who."""

from typing import TYPE_CHECKING

from server.detections import Detections
from server.tracking import Tracker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from av import VideoFrame

    from server.frame import Frame


class Analyst:
    """Made for one feed and used by its two threads, as the methods say."""

    def __init__(self, *, tracking: bool) -> None:
        self._tracker = Tracker() if tracking else None

    def cover(self, video_frame: "VideoFrame") -> "VideoFrame":
        """On the decoder thread."""
        return video_frame

    def track(self, detections: Detections, at_ns: int, confidence: float) -> Detections:
        """On the inference thread: the same rows with the numbers of their tracks."""
        if self._tracker is None:
            return detections
        return self._tracker.update(detections, at_ns, confidence)

    def look(self, frame: "Frame", shown: Detections, names: "Sequence[str]") -> None:
        """On the inference thread."""
