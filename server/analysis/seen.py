"""What is seen in one picture, and where that lies beside zones and lines: plain values, pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from server.analysis.tracking import NO_TRACK
from server.analysis.zones import Layout, Line, Zone
from server.detections import Detections
from server.frame import Frame

Float64Array = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Seen:
    """What is seen in one picture, as plain values: one conversion instead of one a row."""

    frame: Frame
    at_ns: int
    names: Sequence[str]
    track_ids: list[int]
    class_ids: list[int]
    scores: list[float]
    boxes: list[Box]
    """In shares of the picture."""
    points: dict[str, Float64Array]
    """(N, 2) by the name of the anchor, in shares of the picture."""

    def __len__(self) -> int:
        return len(self.track_ids)

    def name(self, row: int) -> str:
        class_id = self.class_ids[row]
        return self.names[class_id] if class_id < len(self.names) else f"class{class_id}"


@dataclass(frozen=True, slots=True)
class ByClass:
    """A layout seen with one detector's names: which classes each zone and line takes."""

    names: Sequence[str]
    zones: npt.NDArray[np.bool_]
    lines: npt.NDArray[np.bool_]
    appear: frozenset[int] = field(default_factory=frozenset)


def by_class_of(layout: Layout, names: Sequence[str]) -> ByClass:
    """More columns than names: a model may find classes that it has no name for."""
    columns = max(len(names), 1) + 1024

    def allowed(shapes: Sequence[Zone | Line]) -> npt.NDArray[np.bool_]:
        table = np.ones((len(shapes), columns), bool)
        for row, shape in enumerate(shapes):
            if shape.classes is not None:
                wanted = set(shape.classes)
                table[row] = False
                table[row, : len(names)] = [name in wanted for name in names]
        return table

    appear = frozenset(index for index, name in enumerate(names) if name in layout.appear)
    return ByClass(names, allowed(layout.zones), allowed(layout.lines), appear)


def seen_in(frame: Frame, shown: Detections, names: Sequence[str]) -> Seen:
    """Rows that have a number."""
    assert shown.track_id is not None
    rows = np.flatnonzero(shown.track_id != NO_TRACK)
    width, height = shown.size_wh
    xyxy = shown.xyxy[rows].astype(np.float64) / (width, height, width, height)
    x = (xyxy[:, 0] + xyxy[:, 2]) / 2
    # Just inside the picture, so that what stands at its edge is in a zone that ends there.
    bottom = np.stack((x, xyxy[:, 3]), axis=1).clip(1e-4, 1 - 1e-4)
    centre = np.stack((x, (xyxy[:, 1] + xyxy[:, 3]) / 2), axis=1).clip(1e-4, 1 - 1e-4)
    return Seen(
        frame=frame,
        at_ns=frame.stamps.received_at_ns,
        names=names,
        track_ids=shown.track_id[rows].tolist(),
        class_ids=shown.class_id[rows].tolist(),
        scores=shown.confidence[rows].tolist(),
        boxes=[(x1, y1, x2, y2) for x1, y1, x2, y2 in xyxy.tolist()],
        points={"bottom": bottom, "centre": centre},
    )


def worth_of(score: float, box: Box) -> float:
    """How good a picture of the object this is: sure and large."""
    area = max(1e-6, (box[2] - box[0]) * (box[3] - box[1]))
    return score * math.sqrt(area)


def distances(points: Float64Array, segments: Float64Array) -> Float64Array:
    """Of points (N, S, 2) from the S parts of lines, each from its own."""
    begin, way = segments[:, 0], segments[:, 1] - segments[:, 0]
    offset = points - begin
    share = (offset * way).sum(axis=2) / (way * way).sum(axis=1)
    nearest = offset - share.clip(0, 1)[:, :, None] * way
    distance: Float64Array = np.sqrt((nearest * nearest).sum(axis=2))
    return distance


def crossings(
    before: Float64Array, after: Float64Array, segments: Float64Array
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which ways (N, S) lead over which of the S parts, and whether to its right. A place that is
    not known (NaN) crosses nothing."""
    (ax, ay), (bx, by) = np.moveaxis(before, 2, 0), np.moveaxis(after, 2, 0)
    (x1, y1), (x2, y2) = segments[:, 0].T, segments[:, 1].T
    # Which side of the line both ends of the way are on, and which side of the way the line's.
    side_before = (x2 - x1) * (ay - y1) - (y2 - y1) * (ax - x1)
    side_after = (x2 - x1) * (by - y1) - (y2 - y1) * (bx - x1)
    side_begin = (bx - ax) * (y1 - ay) - (by - ay) * (x1 - ax)
    side_end = (bx - ax) * (y2 - ay) - (by - ay) * (x2 - ax)
    crossed = ((side_before > 0) != (side_after > 0)) & ((side_begin > 0) != (side_end > 0))
    # y runs down: above zero is to the right of who walks along the line.
    return crossed & ~np.isnan(side_before), side_after > 0
