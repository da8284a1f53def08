"""A picture as it is to be shown: the frame and what to draw on it."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.detections import Detections
from server.frame import Frame

Found = tuple[Frame, Detections]


@dataclass(frozen=True, slots=True)
class Shot:
    """Frozen: made on the decoder or inference thread, drawn on an encode thread."""

    frame: Frame
    detections: Detections | None
    """None: nobody looked at it, or what was found is too old to show."""
    names: Sequence[str]
    opacity: float
    found: Found | None = None
    """The frame that the boxes were found in, and as what, where that is another than this one:
    here they have moved on with their objects."""
