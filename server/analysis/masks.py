"""Parts of a picture that nobody may see, covered before anybody looks at it.

Covering happens on the decoder thread, on a copy of the picture; what cannot be covered is not
let through. A blur cannot be undone: what is left of the place is a few averages.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from server.analysis.zones import Mask
from server.pixels import copy_yuv420p, plane_views

if TYPE_CHECKING:
    from av import VideoFrame

Plane = npt.NDArray[np.uint8]

BLACK = (16, 128, 128)
# Sides of what is averaged into one value, as a share of the picture's shorter side.
BLOCK_SHARE = 1 / 16
BLOCK_AT_LEAST = 8


class Cover:
    """The masks of one stream; used by one thread at a time. What it needs for a size of picture
    is made once, when such a picture first comes."""

    def __init__(self, masks: Sequence[Mask]) -> None:
        self.masks = masks
        self._size_wh = (0, 0)
        self._patches: list[_Patch] = []

    def apply(self, video_frame: "VideoFrame") -> "VideoFrame":
        """The picture with its masks; the same one if there are none."""
        if not self.masks:
            return video_frame
        covered = copy_yuv420p(video_frame)
        size_wh = covered.width, covered.height
        if size_wh != self._size_wh:
            self._patches = [
                patch for mask in self.masks for patch in _patches(mask, size_wh) if patch.any
            ]
            self._size_wh = size_wh
        planes = plane_views(covered)
        for patch in self._patches:
            patch.lay(planes[patch.plane])
        return covered


class _Patch:
    """One mask on one plane."""

    def __init__(self, plane: int, left: int, top: int, covered: Plane, block: int) -> None:
        self.plane = plane
        self.any = bool(covered.any())
        height, width = covered.shape
        self._place = slice(top, top + height), slice(left, left + width)
        self._covered = covered
        # Columns and rows of averages; none for a mask that is filled.
        self._averages = (max(1, width // block), max(1, height // block)) if block else None

    def lay(self, plane: Plane) -> None:
        part = plane[self._place]
        if self._averages is None:
            part[self._covered > 0] = BLACK[self.plane]
            return
        small = cv2.resize(part, self._averages, interpolation=cv2.INTER_AREA)
        height, width = part.shape
        smooth = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
        cv2.copyTo(smooth, self._covered, part)


def _patches(mask: Mask, size_wh: tuple[int, int]) -> list[_Patch]:
    width, height = size_wh
    corners = np.array(mask.points) * (width, height)
    block = max(BLOCK_AT_LEAST, round(min(size_wh) * BLOCK_SHARE)) if mask.kind == "blur" else 0
    patches = []
    for plane, shift in enumerate((0, 1, 1)):
        # Outwards to whole pixels of the coarser planes, and one more for what a codec smears.
        left, top = (np.floor(corners.min(axis=0)).astype(int) // 2 * 2 - 2).clip(0)
        right, bottom = np.ceil(corners.max(axis=0)).astype(int) // 2 * 2 + 4
        right, bottom = min(right, width), min(bottom, height)
        left, top, right, bottom = (int(side) >> shift for side in (left, top, right, bottom))
        covered = np.zeros((max(bottom - top, 0), max(right - left, 0)), np.uint8)
        if not covered.size:
            continue
        local = (corners / (1 << shift) - (left, top)).round().astype(np.int32)
        cv2.fillPoly(covered, [local], 255)
        covered = cv2.dilate(covered, np.ones((3, 3), np.uint8)).astype(np.uint8)
        patches.append(_Patch(plane, left, top, covered, block >> shift if block else 0))
    return patches
