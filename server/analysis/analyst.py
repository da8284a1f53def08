"""What looks at one feed's pictures and boxes on their way: masks, who is who, zones and lines."""

from typing import TYPE_CHECKING

from server.analysis.masks import Cover
from server.analysis.tracking import Tracker
from server.detections import Detections

if TYPE_CHECKING:
    from collections.abc import Sequence

    from av import VideoFrame

    from server.analysis.scene import Scene
    from server.frame import Frame


class Analyst:
    """Made for one feed and used by its two threads, as the methods say. `scene` is that of its
    stream; None for a call that is no stream."""

    def __init__(self, *, tracking: bool, scene: "Scene | None" = None) -> None:
        self._tracker = Tracker() if tracking else None
        self._scene = scene
        self._cover = Cover(())

    @property
    def covers(self) -> bool:
        """Whether `cover` hides anything: then nobody may see packets as they came."""
        return self._scene is not None and bool(self._scene.layout.masks)

    def cover(self, video_frame: "VideoFrame") -> "VideoFrame":
        """On the decoder thread: the picture without what nobody may see."""
        if self._scene is None:
            return video_frame
        masks = self._scene.layout.masks
        if masks is not self._cover.masks:
            self._cover = Cover(masks)
        return self._cover.apply(video_frame)

    def track(self, detections: Detections, at_ns: int, confidence: float) -> Detections:
        """On the inference thread: the same rows with the numbers of their tracks."""
        if self._tracker is None:
            return detections
        return self._tracker.update(detections, at_ns, confidence)

    def look(self, frame: "Frame", shown: Detections, names: "Sequence[str]") -> None:
        """On the inference thread."""
        if self._scene is not None:
            self._scene.look(frame, shown, names)

    def close(self) -> None:
        """No more pictures; nobody is anywhere any more. On any thread."""
        if self._scene is not None:
            self._scene.source_left()
