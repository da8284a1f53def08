"""Boxes and labels drawn straight on the Y, U and V planes of a picture the caller owns.

No colour conversion of the picture happens: a box is eight filled strips a plane, a label is
two times three small arrays laid over the planes: who it is, and how sure. Each is rendered once
and kept, because it comes again in the next frames; the two of them together seldom do.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from server.detections import Detections

Plane = npt.NDArray[np.uint8]
Planes = tuple[Plane, Plane, Plane]

# Distinct on light and dark pictures, and from each other for the commonest neighbours.
PALETTE_RGB: tuple[tuple[int, int, int], ...] = (
    (46, 204, 143), (255, 176, 32), (72, 149, 255), (255, 92, 122), (178, 120, 255),
    (0, 207, 214), (255, 127, 63), (164, 214, 58), (240, 98, 209), (122, 162, 247),
    (255, 214, 82), (222, 228, 240), (232, 121, 80), (140, 140, 255), (120, 200, 90),
    (214, 86, 255),
)  # fmt: skip
# A rendered label comes again within so many pictures, ten seconds at 30 a second, or not at all: a
# track that has left is not drawn again. Bound of those that do.
LABEL_LASTS_PICTURES = 300
LABELS_KEPT = 256
CAPTION_COLOUR = 1
LIGHT, DARK = (235, 128, 128), (22, 128, 128)


def rgb_to_yuv(rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    """BT.601 limited range, what cameras of browsers and our encoders speak."""
    red, green, blue = rgb
    return (
        round(16 + 0.257 * red + 0.504 * green + 0.098 * blue),
        round(128 - 0.148 * red - 0.291 * green + 0.439 * blue),
        round(128 + 0.439 * red - 0.368 * green - 0.071 * blue),
    )


PALETTE_YUV = tuple(rgb_to_yuv(rgb) for rgb in PALETTE_RGB)


@dataclass(frozen=True, slots=True)
class Scale:
    """Line and letter sizes that stay readable at a picture size."""

    line: int
    letter: int

    @classmethod
    def of(cls, size_wh: tuple[int, int]) -> "Scale":
        short = min(size_wh)
        return cls(line=max(2, 2 * round(short / 480)), letter=max(10, round(short / 30)))


@dataclass(slots=True)
class _Label:
    planes: Planes
    drawn_in: int = 0
    """Number of the picture."""


class Painter:
    """Draws for one stream; one thread at a time. Keeps at most LABELS_KEPT rendered labels; one
    more takes the place of those not drawn for LABEL_LASTS_PICTURES."""

    def __init__(self) -> None:
        # The one drawn last comes last.
        self._labels: OrderedDict[tuple[str, int, int], _Label] = OrderedDict()
        self._pictures = 0
        self._font = cv2.FontFace("sans")

    def draw(
        self, planes: Planes, detections: Detections, names: Sequence[str], opacity: float = 1.0
    ) -> None:
        """Lay the boxes over the planes; the picture must have even sides.

        Weak boxes are drawn first, so that a strong one is never hidden. Labels come last and
        only at full opacity: fading text cannot be read anyway.
        """
        height, width = planes[0].shape
        scale = Scale.of((width, height))
        corners = detections.xyxy.round().astype(np.int32)
        class_ids = detections.class_id.tolist()
        for row in range(len(detections) - 1, -1, -1):
            x1, y1, x2, y2 = corners[row].tolist()
            colour = PALETTE_YUV[class_ids[row] % len(PALETTE_YUV)]
            _outline(planes, (x1, y1, x2, y2), scale.line, colour, opacity)
            if detections.landmarks is not None:
                points = detections.landmarks[row]
                # Rows of a model without landmarks hold none.
                points = points[np.isfinite(points).all(axis=1)]
                for x, y in points.round().astype(np.int32).tolist():
                    dot = scale.line
                    _fill(planes, (x - dot, y - dot, x + dot, y + dot), colour, opacity)
        if opacity < 1.0:
            return
        confidence = detections.confidence.tolist()
        track_ids = None if detections.track_id is None else detections.track_id.tolist()
        for row in range(len(detections) - 1, -1, -1):
            class_id = class_ids[row]
            name = names[class_id] if class_id < len(names) else f"class{class_id}"
            mark = f" #{track_ids[row]}" if track_ids is not None and track_ids[row] else ""
            label = (
                self._label(f"{name}{mark}", class_id, scale.letter),
                self._label(f"{confidence[row]:.2f}", class_id, scale.letter),
            )
            x1, y1, _, _ = corners[row].tolist()
            _place(planes, label, x1, y1, scale.line)
        self._pictures += 1

    def caption(self, planes: Planes, text: str) -> None:
        """A line of text in the middle of the lower third."""
        height, width = planes[0].shape
        scale = Scale.of((width, height))
        label = self._label(text, CAPTION_COLOUR, 2 * scale.letter)
        left = (width - label[0].shape[1]) // 2
        _place(planes, (label,), left, height * 3 // 4, 0)

    def _label(self, text: str, class_id: int, letter: int) -> Planes:
        key = (text, class_id, letter)
        label = self._labels.get(key)
        if label is None:
            self._make_room()
            label = self._labels[key] = _Label(self._render(text, class_id, letter))
        label.drawn_in = self._pictures
        self._labels.move_to_end(key)
        return label.planes

    def _make_room(self) -> None:
        """For one more: let go of those not drawn for long, and of the oldest of too many."""
        while self._labels:
            key, oldest = next(iter(self._labels.items()))
            lasts = self._pictures - oldest.drawn_in <= LABEL_LASTS_PICTURES
            if lasts and len(self._labels) < LABELS_KEPT:
                break
            del self._labels[key]

    def _render(self, text: str, class_id: int, letter: int) -> Planes:
        """The label as three small planes of even size: class colour behind, clear text before."""
        left, right = self._text_span(text, letter)
        margin = max(2, letter // 4)
        width = _even(right - left + 2 * margin)
        height = _even(letter + 2 * margin)
        ink = np.zeros((height, width), np.uint8)
        baseline = margin + round(letter * 0.82)
        cv2.putText(ink, text, (margin - left, baseline), 255, self._font, letter, 500)
        behind = PALETTE_YUV[class_id % len(PALETTE_YUV)]
        before = DARK if behind[0] > 120 else LIGHT
        small_ink: Plane = cv2.resize(  # type: ignore[assignment]
            ink, (width // 2, height // 2), interpolation=cv2.INTER_AREA
        )
        return (
            _mix(ink, behind[0], before[0]),
            _mix(small_ink, behind[1], before[1]),
            _mix(small_ink, behind[2], before[2]),
        )

    def _text_span(self, text: str, letter: int) -> tuple[int, int]:
        """Leftmost and rightmost ink of the text drawn at x = 0."""
        x, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), self._font, letter, 500)
        return x, x + width


def _mix(ink: Plane, behind: int, before: int) -> Plane:
    mixed = behind + (before - behind) * (ink.astype(np.float32) / 255)
    return mixed.round().astype(np.uint8)


def _even(length: int) -> int:
    return length + (length & 1)


def _outline(
    planes: Planes, box: tuple[int, int, int, int], line: int, colour: tuple[int, int, int],
    opacity: float,
) -> None:  # fmt: skip
    height, width = planes[0].shape
    x1, y1 = max(0, box[0]) & ~1, max(0, box[1]) & ~1
    x2, y2 = min(width, _even(box[2])), min(height, _even(box[3]))
    if x2 - x1 < 2 or y2 - y1 < 2:
        return
    line = min(line, x2 - x1, y2 - y1)
    _fill(planes, (x1, y1, x2, y1 + line), colour, opacity)
    _fill(planes, (x1, y2 - line, x2, y2), colour, opacity)
    _fill(planes, (x1, y1, x1 + line, y2), colour, opacity)
    _fill(planes, (x2 - line, y1, x2, y2), colour, opacity)


def _fill(
    planes: Planes, box: tuple[int, int, int, int], colour: tuple[int, int, int], opacity: float
) -> None:
    """Fill a rectangle, clipped to the picture, on all planes."""
    x1, y1, x2, y2 = max(0, box[0]), max(0, box[1]), max(0, box[2]), max(0, box[3])
    for plane, value, shift in zip(planes, colour, (0, 1, 1), strict=True):
        strip = plane[y1 >> shift : y2 >> shift, x1 >> shift : x2 >> shift]
        if opacity >= 1.0:
            strip[...] = value
        else:
            strip[...] = (strip * (1.0 - opacity) + value * opacity).astype(np.uint8)


def _place(planes: Planes, label: Sequence[Planes], x: int, y: int, line: int) -> None:
    """Lay the parts of a label side by side above the point if there is room, else below; kept
    inside the picture."""
    height, width = planes[0].shape
    label_height = label[0][0].shape[0]
    label_width = sum(part[0].shape[1] for part in label)
    left = max(0, min(x, width - label_width)) & ~1
    top = y - label_height + line
    if top < 0:
        top = y
    top = max(0, min(top, height - label_height)) & ~1
    for part in label:
        for plane, sprite, shift in zip(planes, part, (0, 1, 1), strict=True):
            rows, columns = sprite.shape
            target = plane[
                top >> shift : (top >> shift) + rows, left >> shift : (left >> shift) + columns
            ]
            target[...] = sprite[: target.shape[0], : target.shape[1]]
        left += part[0].shape[1]
