"""Where a source picture lies in a model's input, and the way of boxes back.

Two spaces meet here: pixels of the source frame (`xyxy`) and pixels of the model's input
(`xyxy_input`). Boxes are float32 (N, 4), origin top-left, right and bottom exclusive.
Pure functions on numpy arrays: any thread, nothing owned, nothing changed in place.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.intp]

Placement = Literal["letterbox", "top-left", "stretch"]
PLACEMENTS: tuple[Placement, ...] = ("letterbox", "top-left", "stretch")
Colour = Literal["rgb", "bgr"]
Layout = Literal["nchw", "nhwc"]
ElementType = Literal["float32", "float16", "uint8"]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How a model wants its picture: size, place, order and range of values.

    A pixel value p of 0..255 becomes `(p * scale - mean) / std`; mean and std are in the
    order of `colour`. `pad` is the grey 0..255 around the picture.
    """

    size_wh: tuple[int, int]
    colour: Colour = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    placement: Placement = "letterbox"
    pad: int = 114
    layout: Layout = "nchw"
    dtype: ElementType = "float32"

    @property
    def shape(self) -> tuple[int, int, int]:
        """The tensor of one picture, without the batch axis."""
        width, height = self.size_wh
        return (3, height, width) if self.layout == "nchw" else (height, width, 3)


@dataclass(frozen=True, slots=True)
class Letterbox:
    """The rectangle of the model's input that shows the whole source picture."""

    source_wh: tuple[int, int]
    input_wh: tuple[int, int]
    content_wh: tuple[int, int]
    offset_xy: tuple[int, int]

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Input pixels per source pixel."""
        return (
            self.content_wh[0] / self.source_wh[0],
            self.content_wh[1] / self.source_wh[1],
        )


def fit(
    source_wh: tuple[int, int],
    input_wh: tuple[int, int],
    placement: Placement = "letterbox",
    multiple_of: int = 1,
) -> Letterbox:
    """Lay a source picture into a model's input.

    `multiple_of` rounds the offset down, so that chroma planes of half size can be placed
    on the same rectangle as luma.
    """
    if min(*source_wh, *input_wh) <= 0:
        raise ValueError(f"a picture of {source_wh} does not fit an input of {input_wh}")
    if placement == "stretch":
        return Letterbox(source_wh, input_wh, input_wh, (0, 0))
    gain = min(input_wh[0] / source_wh[0], input_wh[1] / source_wh[1])
    # At least one pixel: a 10000 x 3 strip must not vanish.
    content_wh = (
        min(input_wh[0], max(1, round(source_wh[0] * gain))),
        min(input_wh[1], max(1, round(source_wh[1] * gain))),
    )
    if placement == "top-left":
        return Letterbox(source_wh, input_wh, content_wh, (0, 0))
    left, top = ((input_wh[axis] - content_wh[axis]) // 2 for axis in (0, 1))
    offset_xy = (left - left % multiple_of, top - top % multiple_of)
    return Letterbox(source_wh, input_wh, content_wh, offset_xy)


def input_to_source(xyxy_input: Float32Array, letterbox: Letterbox) -> Float32Array:
    """Boxes in input pixels as boxes in source pixels, clipped to the picture."""
    xyxy = points_to_source(xyxy_input.reshape(-1, 2, 2), letterbox)
    np.clip(xyxy, 0, np.array(letterbox.source_wh, np.float32), out=xyxy)
    return xyxy.reshape(-1, 4)


def points_to_source(points_input: Float32Array, letterbox: Letterbox) -> Float32Array:
    """Points (..., 2) in input pixels as points in source pixels, not clipped."""
    offset = np.array(letterbox.offset_xy, np.float32)
    scale = np.array(letterbox.scale_xy, np.float32)
    points: Float32Array = (points_input - offset) / scale
    return points


def cxcywh_to_xyxy(cxcywh: Float32Array) -> Float32Array:
    """Centre and size as corners."""
    half = cxcywh[:, 2:] * np.float32(0.5)
    return np.concatenate((cxcywh[:, :2] - half, cxcywh[:, :2] + half), axis=1)


def iou(xyxy_a: Float32Array, xyxy_b: Float32Array) -> Float32Array:
    """Intersection over union of every box of A (rows) with every box of B (columns)."""
    a, b = xyxy_a.T[:, :, None], xyxy_b.T[:, None, :]
    shared = np.maximum(np.minimum(a[2], b[2]) - np.maximum(a[0], b[0]), 0)
    shared *= np.maximum(np.minimum(a[3], b[3]) - np.maximum(a[1], b[1]), 0)
    union = area(xyxy_a)[:, None] + area(xyxy_b)[None, :]
    union -= shared
    # Boxes without area overlap nothing; the floor only keeps 0/0 away.
    overlap: Float32Array = shared / np.maximum(union, np.float32(1e-9))
    return overlap


def area(xyxy: Float32Array) -> Float32Array:
    """Areas (N,); a box turned inside out has none."""
    sides = np.maximum(xyxy[:, 2:] - xyxy[:, :2], 0)
    product: Float32Array = sides[:, 0] * sides[:, 1]
    return product


def best_first(confidence: Float32Array, count: int) -> IndexArray:
    """Rows by falling confidence, at most `count`; equal ones keep their order."""
    if len(confidence) > count:
        # Partition first: sorting thousands of weak candidates would cost more than NMS.
        rows = np.sort(np.argpartition(-confidence, count - 1)[:count])
        return rows[np.argsort(-confidence[rows], kind="stable")]
    return np.argsort(-confidence, kind="stable")
