"""Are the boxes really there? Looks at returned pictures for lines where objects were sent.

A server that hands pictures through unseen would win every comparison. So each compared server's
pictures are looked at: the detector runs on the picture as it was sent, and along the edges of each
clear object the returned picture must have taken the colour that the server draws with. The same
edges at half their size, where nobody draws, are the control.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from bench.planes import plane_view
from server.overlay import PALETTE_YUV, rgb_to_yuv

if TYPE_CHECKING:
    from av import VideoFrame

    from bench.peer_servers.finder import Finder, Found

Yuv = tuple[int, int, int]
ColourOf = Callable[[int], Yuv]
"""The colour that a class is drawn in."""

# Objects that any server sees again in its own, once coded, picture.
CLEAR: Final = 0.5
# Pixels on both sides of an edge within which the line may lie, in chroma samples.
REACH: Final = 3
# How far towards the drawn colour a point must have moved to count as drawn on: a line of two
# pixels is one chroma sample or two halves, before the codec has smoothed it.
MOVED: Final = 0.25
# The share of an edge's points that must have; labels and other boxes may cover some.
OF_EDGE: Final = 0.5
# A box nobody could tell from its picture's frame.
SMALLEST_SIDE: Final = 24
REAL: Final = 0.7
CHANCE: Final = 0.3


@dataclass(frozen=True, slots=True)
class Seen:
    """What was looked for in the pictures of one server, and found."""

    pictures: int
    expected: int
    """Clear objects in the pictures as they were sent."""
    found: int
    """Of them, those with a box around them in the returned picture, or in the answer."""
    control: int
    """Of as many places where no box belongs, those that look like one."""

    @property
    def real(self) -> bool | None:
        """None when there was nothing to see in these pictures."""
        if not self.expected:
            return None
        return self.found >= REAL * self.expected and self.control <= CHANCE * self.expected


def palette(class_id: int) -> Yuv:
    """What the product draws with."""
    return PALETTE_YUV[class_id % len(PALETTE_YUV)]


def always(bgr: tuple[int, int, int]) -> ColourOf:
    """A server that draws everything in one colour."""
    blue, green, red = bgr
    colour = rgb_to_yuv((red, green, blue))
    return lambda _class_id: colour


def look_at(
    pairs: Sequence[tuple["VideoFrame", "VideoFrame"]], finder: "Finder", colour_of: ColourOf
) -> Seen:
    """Compare pictures as sent and as returned. Runs the detector: after the measurement."""
    expected = found = control = 0
    for sent, returned in pairs:
        for box in clear_boxes(finder.find(sent.to_ndarray(format="bgr24").astype(np.uint8))):
            expected += 1
            colour = colour_of(box.class_id)
            found += _is_drawn(sent, returned, box.xyxy, colour)
            control += _is_drawn(sent, returned, halved(box.xyxy), colour)
    return Seen(len(pairs), expected, found, control)


def clear_boxes(found: Sequence["Found"]) -> list["Found"]:
    """Those that are sure and large enough to look for."""
    return [
        box
        for box in found
        if box.confidence >= CLEAR
        and min(box.xyxy[2] - box.xyxy[0], box.xyxy[3] - box.xyxy[1]) >= SMALLEST_SIDE
    ]


def overlap(
    first: tuple[float, float, float, float], second: tuple[float, float, float, float]
) -> float:
    """Intersection over union."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return both / (sum(areas) - both)


def halved(
    xyxy: tuple[float, float, float, float],
) -> tuple[float, float, float, float]:
    """Half as wide and high about the same middle: inside, where no line belongs."""
    x1, y1, x2, y2 = xyxy
    return ((3 * x1 + x2) / 4, (3 * y1 + y2) / 4, (x1 + 3 * x2) / 4, (y1 + 3 * y2) / 4)


def _is_drawn(
    sent: "VideoFrame",
    returned: "VideoFrame",
    xyxy: tuple[float, float, float, float],
    colour: Yuv,
) -> bool:
    """Whether most points of the box's edges have moved towards the colour."""
    before, after = _chroma(sent), _chroma(returned)
    if before.shape != after.shape:
        return False
    height, width = before.shape[:2]
    x1, y1, x2, y2 = (side / 2 for side in xyxy)
    marks: list[bool] = []
    for y in (y1, y2):
        if REACH <= round(y) < height - REACH:
            rows = np.arange(round(y) - REACH, round(y) + REACH + 1)
            columns = np.arange(max(0, round(x1) + REACH), min(width, round(x2) - REACH))
            marks += _moved(before, after, colour, rows[:, None], columns[None, :], axis=0)
    for x in (x1, x2):
        if REACH <= round(x) < width - REACH:
            columns = np.arange(round(x) - REACH, round(x) + REACH + 1)
            rows = np.arange(max(0, round(y1) + REACH), min(height, round(y2) - REACH))
            marks += _moved(before, after, colour, rows[:, None], columns[None, :], axis=1)
    return bool(marks) and sum(marks) >= OF_EDGE * len(marks)


def _moved(
    before: npt.NDArray[np.float32],
    after: npt.NDArray[np.float32],
    colour: Yuv,
    rows: npt.NDArray[np.intp],
    columns: npt.NDArray[np.intp],
    axis: int,
) -> list[bool]:
    """For each point along an edge, whether somewhere across it the colour was drawn."""
    if not rows.size or not columns.size:
        return []
    was, now = before[rows, columns], after[rows, columns]
    wanted = np.array(colour[1:], np.float32) - was
    towards = ((now - was) * wanted).sum(-1) / np.maximum((wanted**2).sum(-1), 400.0)
    moved: list[bool] = (towards.max(axis=axis) >= MOVED).tolist()
    return moved


def _chroma(video_frame: "VideoFrame") -> npt.NDArray[np.float32]:
    """U and V as (height / 2, width / 2, 2)."""
    planes = [plane_view(video_frame, index) for index in (1, 2)]
    return np.stack(planes, axis=-1).astype(np.float32)
