"""What is drawn on a stream's picture: zones, lines and masks, in shares of its sides (0 to 1).

`parse_layout` reads them from JSON and refuses by key, value and limit; a `Layout` answers for
many points at once which zones they lie in. Nothing here knows a stream or a clock.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from server.errors import UnprocessableError

Points = tuple[tuple[float, float], ...]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

SHAPES_AT_MOST = 32
POLYGON_POINTS = (3, 64)
LINE_POINTS = (2, 16)
LABEL_LENGTH = 80
CLASSES_AT_MOST = 400
DWELL_S = (0.5, 86_400.0)
# A polygon smaller than this share of the picture is a slip of the hand.
LEAST_AREA = 1e-4
IDENTITY = re.compile(r"[A-Za-z0-9_-]{1,32}")
MASK_KINDS = ("fill", "blur")
ANCHORS = ("bottom", "centre")
ZONE_EVENTS = ("enter", "leave", "dwell")


@dataclass(frozen=True, slots=True)
class Zone:
    """A polygon that objects enter and leave."""

    id: str
    label: str
    points: Points
    classes: tuple[str, ...] | None = None
    """Names of the classes that count; None counts all."""
    events: tuple[str, ...] = ("enter", "dwell")
    dwell_s: float | None = None
    """Who stays for so long makes an event."""
    anchor: str = "bottom"
    """The point of a box that has to be inside: where something stands, or its centre."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line that objects cross. Forward is from the left to the right of who walks along it."""

    id: str
    label: str
    points: Points
    classes: tuple[str, ...] | None = None
    anchor: str = "bottom"


@dataclass(frozen=True, slots=True)
class Mask:
    """A part of the picture that nobody may see."""

    id: str
    points: Points
    kind: str = "fill"


@dataclass(frozen=True)
class Layout:
    """Everything drawn on one stream's picture; frozen, so that threads read one state."""

    zones: tuple[Zone, ...] = ()
    lines: tuple[Line, ...] = ()
    masks: tuple[Mask, ...] = ()
    appear: tuple[str, ...] = field(default=())
    """Classes that make an event when one is in the picture, wherever."""

    @property
    def watches(self) -> bool:
        """Whether boxes have to be looked at."""
        return bool(self.zones or self.lines or self.appear)

    @cached_property
    def _edges(self) -> tuple[Float64Array, npt.NDArray[np.intp]]:
        """Begin and end of all edges of all zones, and where each zone's begin."""
        edges: list[tuple[tuple[float, float], tuple[float, float]]] = []
        starts = []
        for zone in self.zones:
            starts.append(len(edges))
            edges += list(zip(zone.points, zone.points[1:] + zone.points[:1], strict=True))
        return np.array(edges, np.float64).reshape(-1, 2, 2), np.array(starts, np.intp)

    @cached_property
    def segments(self) -> tuple[Float64Array, npt.NDArray[np.intp]]:
        """Begin and end of all parts of all lines, and the line that each belongs to."""
        parts, owners = [], []
        for index, line in enumerate(self.lines):
            parts += list(zip(line.points[:-1], line.points[1:], strict=True))
            owners += [index] * (len(line.points) - 1)
        return np.array(parts, np.float64).reshape(-1, 2, 2), np.array(owners, np.intp)

    def inside(self, points_by_zone: Float64Array) -> BoolArray:
        """Which of N points lie in which zone, (N, zones), by the parity of edges crossed.

        `points_by_zone` is (N, zones, 2): zones may look at different points of a box.
        """
        edges, starts = self._edges
        if not len(self.zones) or not len(points_by_zone):
            return np.zeros((len(points_by_zone), len(self.zones)), bool)
        zone_of_edge = np.repeat(
            np.arange(len(starts)), np.diff(starts, append=np.intp(len(edges)))
        )
        x, y = np.moveaxis(points_by_zone[:, zone_of_edge], 2, 0)
        (x1, y1), (x2, y2) = edges[:, 0].T, edges[:, 1].T
        spans = (y1 > y) != (y2 > y)
        rise = np.where(y2 == y1, 1.0, y2 - y1)
        crossed = spans & (x < x1 + (y - y1) * (x2 - x1) / rise)
        return np.bitwise_xor.reduceat(crossed, starts, axis=1)

    def to_json(self) -> dict[str, Any]:
        return {
            "zones": [
                {
                    "id": zone.id,
                    "label": zone.label,
                    "points": [list(point) for point in zone.points],
                    "classes": None if zone.classes is None else list(zone.classes),
                    "events": list(zone.events),
                    "dwell_s": zone.dwell_s,
                    "anchor": zone.anchor,
                }
                for zone in self.zones
            ],
            "lines": [
                {
                    "id": line.id,
                    "label": line.label,
                    "points": [list(point) for point in line.points],
                    "classes": None if line.classes is None else list(line.classes),
                    "anchor": line.anchor,
                }
                for line in self.lines
            ],
            "masks": [
                {"id": mask.id, "points": [list(point) for point in mask.points], "kind": mask.kind}
                for mask in self.masks
            ],
            "appear": list(self.appear),
        }


def parse_layout(body: object) -> Layout:
    """The layout a JSON body describes; refuses the whole by the first part that is wrong."""
    parts = _object(body, "body", ("zones", "lines", "masks", "appear"))
    layout = Layout(
        zones=tuple(_zone(item, where) for item, where in _items(parts, "zones")),
        lines=tuple(_line(item, where) for item, where in _items(parts, "lines")),
        masks=tuple(_mask(item, where) for item, where in _items(parts, "masks")),
        appear=_classes(parts.get("appear", []), "appear") or (),
    )
    shapes: list[Zone | Line | Mask] = [*layout.zones, *layout.lines, *layout.masks]
    if len(shapes) > SHAPES_AT_MOST:
        raise UnprocessableError(
            f"zones, lines and masks: {len(shapes)} is over the limit of {SHAPES_AT_MOST} a stream"
        )
    seen = set()
    for shape in shapes:
        if shape.id in seen:
            raise UnprocessableError(f"id: {shape.id} is there twice")
        seen.add(shape.id)
    return layout


def _zone(item: object, where: str) -> Zone:
    known = ("id", "label", "points", "classes", "events", "dwell_s", "anchor")
    parts = _object(item, where, known)
    dwell_s = parts.get("dwell_s")
    if dwell_s is not None:
        dwell_s = _number(dwell_s, f"{where}.dwell_s", *DWELL_S)
    events = parts.get("events", ["enter", "dwell"])
    if not isinstance(events, list) or not all(event in ZONE_EVENTS for event in events):
        raise UnprocessableError(f"{where}.events: not a list of {', '.join(ZONE_EVENTS)}")
    identity = _identity(parts, where)
    return Zone(
        id=identity,
        label=_label(parts, where, identity),
        points=_polygon(parts, where),
        classes=_classes(parts.get("classes"), f"{where}.classes"),
        events=tuple(dict.fromkeys(events)),
        dwell_s=dwell_s,
        anchor=_choice(parts, "anchor", where, ANCHORS),
    )


def _line(item: object, where: str) -> Line:
    parts = _object(item, where, ("id", "label", "points", "classes", "anchor"))
    points = _points(parts, where, LINE_POINTS)
    _check_simple(points, where, closed=False)
    identity = _identity(parts, where)
    return Line(
        id=identity,
        label=_label(parts, where, identity),
        points=points,
        classes=_classes(parts.get("classes"), f"{where}.classes"),
        anchor=_choice(parts, "anchor", where, ANCHORS),
    )


def _mask(item: object, where: str) -> Mask:
    parts = _object(item, where, ("id", "points", "kind"))
    return Mask(
        id=_identity(parts, where),
        points=_polygon(parts, where),
        kind=_choice(parts, "kind", where, MASK_KINDS),
    )


# --- small parts ---


def _object(item: object, where: str, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise UnprocessableError(f"{where}: not a JSON object")
    for name in item:
        if name not in known:
            raise UnprocessableError(
                f"{where}.{str(name)[:40]}: unknown; known are {', '.join(known)}"
            )
    return item


def _items(parts: dict[str, Any], name: str) -> list[tuple[object, str]]:
    items = parts.get(name, [])
    if not isinstance(items, list):
        raise UnprocessableError(f"{name}: not a list")
    if len(items) > SHAPES_AT_MOST:
        raise UnprocessableError(f"{name}: {len(items)} is over the limit of {SHAPES_AT_MOST}")
    return [(item, f"{name}[{index}]") for index, item in enumerate(items)]


def _identity(parts: dict[str, Any], where: str) -> str:
    value = parts.get("id")
    if not isinstance(value, str) or not IDENTITY.fullmatch(value):
        raise UnprocessableError(f"{where}.id: wanted, 1 to 32 of A-Z, a-z, 0-9, _ and -")
    return value


def _label(parts: dict[str, Any], where: str, otherwise: str) -> str:
    value = parts.get("label", otherwise)
    if not isinstance(value, str) or len(value) > LABEL_LENGTH or not value.isprintable():
        raise UnprocessableError(f"{where}.label: not text of up to {LABEL_LENGTH} characters")
    return value


def _choice(parts: dict[str, Any], name: str, where: str, choices: Sequence[str]) -> str:
    value = parts.get(name, choices[0])
    if value not in choices:
        raise UnprocessableError(f"{where}.{name}: not one of {', '.join(choices)}")
    return str(value)


def _classes(value: object, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) > CLASSES_AT_MOST
        or not all(isinstance(name, str) and 0 < len(name) <= LABEL_LENGTH for name in value)
    ):
        raise UnprocessableError(f"{where}: not a list of at most {CLASSES_AT_MOST} class names")
    return tuple(dict.fromkeys(value))


def _number(value: object, where: str, low: float, high: float) -> float:
    wrong = isinstance(value, bool) or not isinstance(value, int | float)
    if wrong or not low <= value <= high:  # type: ignore[operator]
        raise UnprocessableError(f"{where}: {str(value)[:20]} is not within {low:g} to {high:g}")
    return float(value)  # type: ignore[arg-type]


def _points(parts: dict[str, Any], where: str, limits: tuple[int, int]) -> Points:
    value = parts.get("points")
    low, high = limits
    if not isinstance(value, list) or not low <= len(value) <= high:
        found = len(value) if isinstance(value, list) else "none"
        raise UnprocessableError(f"{where}.points: {low} to {high} are wanted, found {found}")
    points = []
    for index, point in enumerate(value):
        place = f"{where}.points[{index}]"
        if not isinstance(point, list) or len(point) != 2:
            raise UnprocessableError(f"{place}: not [x, y]")
        points.append((_number(point[0], place, 0, 1), _number(point[1], place, 0, 1)))
    return tuple(points)


def _polygon(parts: dict[str, Any], where: str) -> Points:
    points = _points(parts, where, POLYGON_POINTS)
    _check_simple(points, where, closed=True)
    following = points[1:] + points[:1]
    doubled = sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(points, following, strict=True))
    if abs(doubled) / 2 < LEAST_AREA:
        raise UnprocessableError(f"{where}.points: they enclose next to nothing")
    return points


def _check_simple(points: Points, where: str, *, closed: bool) -> None:
    """Refuse a point that is there twice in a row, and parts that cross or touch each other."""
    ends = points[1:] + points[:1] if closed else points[1:]
    parts = list(zip(points, ends, strict=False))
    for index, (begin, end) in enumerate(parts):
        if math.dist(begin, end) < 1e-6:
            raise UnprocessableError(f"{where}.points: point {index + 1} is there twice in a row")
    for first in range(len(parts)):
        for second in range(first + 1, len(parts)):
            neighbours = second == first + 1 or (closed and first == 0 and second == len(parts) - 1)
            if neighbours:
                if _folds_back(parts[first], parts[second]):
                    raise UnprocessableError(f"{where}.points: it runs back over itself")
            elif _meet(*parts[first], *parts[second]):
                raise UnprocessableError(
                    f"{where}.points: it crosses itself: the side from point {first + 1} meets "
                    f"the one from point {second + 1}"
                )


Point = tuple[float, float]


def _turn(a: Point, b: Point, c: Point) -> float:
    """Above zero where c is to one side of the way from a to b, below where to the other."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _meet(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Whether the ways from a to b and from c to d share a point."""
    turns = _turn(a, b, c), _turn(a, b, d), _turn(c, d, a), _turn(c, d, b)
    if turns[0] * turns[1] < 0 and turns[2] * turns[3] < 0:
        return True
    on = ((turns[0], a, b, c), (turns[1], a, b, d), (turns[2], c, d, a), (turns[3], c, d, b))
    return any(turn == 0 and _between(begin, end, point) for turn, begin, end, point in on)


def _between(begin: Point, end: Point, point: Point) -> bool:
    return all(
        min(begin[axis], end[axis]) <= point[axis] <= max(begin[axis], end[axis]) for axis in (0, 1)
    )


def _folds_back(first: tuple[Point, Point], second: tuple[Point, Point]) -> bool:
    """Whether two parts with a common end lie on each other."""
    corner, one, other = (
        (first[1], first[0], second[1])
        if first[1] == second[0]
        else (first[0], first[1], second[0])
    )
    if _turn(corner, one, other) != 0:
        return False
    ahead = [(one[axis] - corner[axis]) * (other[axis] - corner[axis]) for axis in (0, 1)]
    return sum(ahead) > 0
