"""One stream's zones and lines at work: who is inside, who came, went, stayed and crossed.

`look` is called on the inference thread with what is shown of each picture; everything else may
be called on any thread. A scene outlives the sources of its stream, so that counts go on.

An object is inside once it was seen there twice, and outside again when it was seen outside for
SEEN_OUTSIDE_NS or not at all for UNSEEN_NS: boxes tremble, and tracks have holes.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from server.analysis.events import APPEAR, CROSS, DWELL, ENTER, LEAVE, Event, new_event_id
from server.analysis.seen import (
    Box,
    ByClass,
    Float64Array,
    Seen,
    by_class_of,
    crossings,
    distances,
    seen_in,
    worth_of,
)
from server.analysis.zones import Layout, Line, Zone
from server.clock import NS_PER_MS, NS_PER_S, unix_ms
from server.detections import Detections
from server.frame import Frame

LOOKS_TO_ENTER = 2
SEEN_OUTSIDE_NS = NS_PER_S // 2
UNSEEN_NS = 2 * NS_PER_S
APPEAR_GONE_NS = 3 * NS_PER_S
# Nearer to a line than this, in shares of the picture, an object is on neither side of it.
ON_THE_LINE = 0.008
# Tracks whose place is remembered for crossings, and stays that are followed at the same time.
PLACES_AT_MOST = 1024
STAYS_AT_MOST = 2048


@dataclass(frozen=True, slots=True)
class Happening:
    """An event that begins or ends, with the picture that shows it best so far."""

    event: Event
    begins: bool
    frame: Frame | None
    """None where the picture at hand is no better than the one of the beginning."""
    seen_at_ns: int


@dataclass(slots=True)
class _Stay:
    """One object in one zone, or one class in the picture."""

    zone: Zone | None
    class_name: str
    track_id: int
    since_ns: int
    inside_at_ns: int
    looks: int = 0
    outside_at_ns: int = 0
    """Since when it was seen outside; 0 for inside or not seen."""
    entered: Event | None = None
    dwelt: Event | None = None
    best_score: float = 0.0
    best: tuple[Frame, Box, float] | None = None

    def improve(self, seen: Seen, row: int) -> None:
        """Keep this picture if it shows the object clearly better than the best so far."""
        score, box = seen.scores[row], seen.boxes[row]
        worth = worth_of(score, box)
        if worth > 1.3 * self.best_score:
            self.best_score = worth
            self.best = seen.frame, box, score

    def open_events(self) -> list[Event]:
        return [event for event in (self.entered, self.dwelt) if event is not None]


@dataclass(slots=True)
class _Count:
    entered: int = 0
    left: int = 0
    forward: int = 0
    backward: int = 0
    longest_dwell_ns: int = 0


class Scene:
    """See the module. `on_happening` is called on the inference thread, or on the one that changes
    the layout or closes, never under the lock."""

    def __init__(
        self,
        stream: str,
        layout: Layout,
        on_happening: Callable[[Happening], None] | None,
        wall_unix_ms: Callable[[], float] = unix_ms,
    ) -> None:
        self.stream = stream
        self._wall_unix_ms = wall_unix_ms
        self._layout = layout
        self._on_happening = on_happening
        self._lock = threading.Lock()
        self._stays: dict[tuple[int, str], _Stay] = {}
        # Where each track was when it last was clear of each line: (lines, 2) by track.
        self._places: dict[int, Float64Array] = {}
        self._counts: dict[str, _Count] = {}
        self._by_class: ByClass | None = None
        self._refused = 0

    @property
    def layout(self) -> Layout:
        return self._layout

    def change(self, layout: Layout) -> None:
        """Another layout from the next picture on. What goes on in zones that stay as they are
        goes on; the rest ends."""
        happenings: list[Happening] = []
        with self._lock:
            kept = {zone.id: zone for zone in layout.zones if zone in self._layout.zones}
            for key, stay in list(self._stays.items()):
                if stay.zone is None:
                    stays = stay.class_name in layout.appear
                else:
                    stays = stay.zone.id in kept
                if not stays:
                    happenings += self._end(key, stay.inside_at_ns)
            identities = {zone.id for zone in layout.zones} | {line.id for line in layout.lines}
            self._counts = {name: c for name, c in self._counts.items() if name in identities}
            self._places.clear()
            self._by_class = None
            self._layout = layout
        self._tell(happenings)

    def source_left(self) -> None:
        """Nobody is anywhere any more."""
        with self._lock:
            happenings = [
                happening
                for key, stay in list(self._stays.items())
                for happening in self._end(key, stay.inside_at_ns)
            ]
            self._places.clear()
        self._tell(happenings)

    def look(self, frame: Frame, shown: Detections, names: Sequence[str]) -> None:
        """What is shown of one picture. On the inference thread."""
        if not self._layout.watches or shown.track_id is None:
            return
        at_ns = frame.stamps.received_at_ns
        with self._lock:
            layout = self._layout
            by_class = self._by_class
            if by_class is None or by_class.names is not names:
                by_class = self._by_class = by_class_of(layout, names)
            seen = seen_in(frame, shown, names)
            happenings = self._look_at_zones(layout, by_class, seen)
            happenings += self._look_at_lines(layout, by_class, seen)
            happenings += self._look_at_classes(by_class, seen)
            happenings += self._look_for_ends(at_ns)
        self._tell(happenings)

    def counts(self) -> dict[str, Any]:
        """What was counted since the server started, and who is inside now."""
        with self._lock:
            inside: dict[str, list[_Stay]] = {}
            for stay in self._stays.values():
                if stay.zone is not None and stay.looks >= LOOKS_TO_ENTER:
                    inside.setdefault(stay.zone.id, []).append(stay)
            zones = {}
            for zone in self._layout.zones:
                count = self._counts.get(zone.id, _Count())
                by_name: dict[str, int] = {}
                for stay in inside.get(zone.id, ()):
                    by_name[stay.class_name] = by_name.get(stay.class_name, 0) + 1
                zones[zone.id] = {
                    "inside": sum(by_name.values()),
                    "classes": by_name,
                    "entered": count.entered,
                    "left": count.left,
                    "longest_dwell_s": round(count.longest_dwell_ns / NS_PER_S, 1),
                }
            lines = {}
            for line in self._layout.lines:
                count = self._counts.get(line.id, _Count())
                lines[line.id] = {"forward": count.forward, "backward": count.backward}
            return {"zones": zones, "lines": lines, "not_followed": self._refused}

    # --- parts of a look, under the lock ---

    def _look_at_zones(self, layout: Layout, by_class: ByClass, seen: Seen) -> list[Happening]:
        if not layout.zones or not len(seen):
            return []
        by_zone = np.stack([seen.points[zone.anchor] for zone in layout.zones], axis=1)
        inside = layout.inside(by_zone) & by_class.zones[:, seen.class_ids].T
        happenings: list[Happening] = []
        present = set()
        for row, index in np.argwhere(inside).tolist():
            zone = layout.zones[index]
            key = (seen.track_ids[row], zone.id)
            present.add(key)
            stay = self._stay(key, zone, seen, row)
            if stay is not None:
                happenings += self._be_inside(stay, zone, seen, row)
        here = set(seen.track_ids)
        for key, stay in self._stays.items():
            outside = stay.zone is not None and key[0] in here and key not in present
            if not outside:
                stay.outside_at_ns = 0
            elif not stay.outside_at_ns:
                stay.outside_at_ns = seen.at_ns
        return happenings

    def _stay(self, key: tuple[int, str], zone: Zone | None, seen: Seen, row: int) -> _Stay | None:
        stay = self._stays.get(key)
        if stay is None:
            if len(self._stays) >= STAYS_AT_MOST:
                self._refused += 1
                return None
            stay = _Stay(zone, seen.name(row), seen.track_ids[row], seen.at_ns, seen.at_ns)
            self._stays[key] = stay
        return stay

    def _be_inside(self, stay: _Stay, zone: Zone, seen: Seen, row: int) -> list[Happening]:
        happenings = []
        at_ns = seen.at_ns
        stay.looks += 1
        stay.inside_at_ns = at_ns
        score, box = seen.scores[row], seen.boxes[row]
        count = self._count(zone.id)
        if stay.looks == LOOKS_TO_ENTER:
            count.entered += 1
            if ENTER in zone.events:
                stay.entered = self._event(ENTER, stay, at_ns, score, box, stay.since_ns)
                happenings.append(Happening(stay.entered, True, seen.frame, at_ns))
                stay.best_score = worth_of(score, box)
        stayed_ns = at_ns - stay.since_ns
        count.longest_dwell_ns = max(count.longest_dwell_ns, stayed_ns)
        due = zone.dwell_s is not None and stayed_ns >= zone.dwell_s * NS_PER_S
        if due and stay.dwelt is None and stay.looks >= LOOKS_TO_ENTER and DWELL in zone.events:
            stay.dwelt = self._event(DWELL, stay, at_ns, score, box, stay.since_ns)
            happenings.append(Happening(stay.dwelt, True, seen.frame, at_ns))
            stay.best_score = max(stay.best_score, worth_of(score, box))
        if stay.entered is not None or stay.dwelt is not None:
            stay.improve(seen, row)
        return happenings

    def _look_at_lines(self, layout: Layout, by_class: ByClass, seen: Seen) -> list[Happening]:
        if not layout.lines or not len(seen):
            return []
        segments, owners = layout.segments
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        after = np.stack([seen.points[line.anchor] for line in layout.lines], axis=1)
        distance = np.minimum.reduceat(distances(after[:, owners], segments), starts, axis=1)
        unknown = np.full((len(layout.lines), 2), np.nan)
        before = np.stack([self._places.get(track, unknown) for track in seen.track_ids])
        wanted = (distance > ON_THE_LINE) & by_class.lines[:, seen.class_ids].T
        now = np.where(wanted[:, :, None], after, before)
        for row, track in enumerate(seen.track_ids):
            # Newest last: the oldest give way when there are too many.
            self._places.pop(track, None)
            self._places[track] = now[row]
        while len(self._places) > PLACES_AT_MOST:
            del self._places[next(iter(self._places))]
        crossed, to_right = crossings(before[:, owners], now[:, owners], segments)
        # There and back over the same line is none.
        odd = np.add.reduceat(crossed, starts, axis=1, dtype=np.intp) % 2 == 1
        happenings: list[Happening] = []
        for row, index in np.argwhere(odd).tolist():
            first = np.flatnonzero(crossed[row] & (owners == index))[0]
            forward = bool(to_right[row, first])
            happenings.append(self._crossed(layout.lines[index], forward, seen, row))
        return happenings

    def _crossed(self, line: Line, forward: bool, seen: Seen, row: int) -> Happening:
        count = self._count(line.id)
        if forward:
            count.forward += 1
        else:
            count.backward += 1
        now_unix_ms = round(self._wall_unix_ms())
        event = Event(
            id=new_event_id(now_unix_ms),
            stream=self.stream,
            kind=CROSS,
            class_name=seen.name(row),
            track_id=seen.track_ids[row],
            zone=line.id,
            started_unix_ms=now_unix_ms,
            ended_unix_ms=now_unix_ms,
            score=seen.scores[row],
            direction="forward" if forward else "backward",
            box=seen.boxes[row],
        )
        return Happening(event, True, seen.frame, seen.at_ns)

    def _look_at_classes(self, by_class: ByClass, seen: Seen) -> list[Happening]:
        happenings: list[Happening] = []
        if not by_class.appear:
            return happenings
        looked_at = set()
        for row, class_id in enumerate(seen.class_ids):
            # Rows are sorted by falling confidence: the first of a class is its best.
            if class_id in looked_at or class_id not in by_class.appear:
                continue
            looked_at.add(class_id)
            stay = self._stay((-1 - class_id, ""), None, seen, row)
            if stay is None:
                continue
            stay.looks += 1
            stay.inside_at_ns = seen.at_ns
            if stay.looks == LOOKS_TO_ENTER:
                score, box = seen.scores[row], seen.boxes[row]
                stay.track_id = seen.track_ids[row]
                stay.entered = self._event(APPEAR, stay, seen.at_ns, score, box, stay.since_ns)
                stay.best_score = worth_of(score, box)
                happenings.append(Happening(stay.entered, True, seen.frame, seen.at_ns))
            elif stay.entered is not None:
                stay.improve(seen, row)
        return happenings

    def _look_for_ends(self, at_ns: int) -> list[Happening]:
        happenings: list[Happening] = []
        for key, stay in list(self._stays.items()):
            limit_ns = APPEAR_GONE_NS if stay.zone is None else UNSEEN_NS
            gone = at_ns - stay.inside_at_ns > limit_ns
            if stay.outside_at_ns and at_ns - stay.outside_at_ns >= SEEN_OUTSIDE_NS:
                gone = True
            if gone:
                happenings += self._end(key, at_ns)
        return happenings

    def _end(self, key: tuple[int, str], at_ns: int) -> list[Happening]:
        """The stay is over, as of when it was last seen inside."""
        stay = self._stays.pop(key)
        happenings = []
        entered = stay.looks >= LOOKS_TO_ENTER
        if stay.zone is not None and entered:
            self._count(stay.zone.id).left += 1
        lasted_ms = (stay.inside_at_ns - stay.since_ns) // NS_PER_MS
        for event in stay.open_events():
            ended = replace(event, ended_unix_ms=event.started_unix_ms + lasted_ms)
            frame = None
            if stay.best is not None:
                frame, box, score = stay.best
                ended = replace(ended, box=box, score=score)
            happenings.append(Happening(ended, False, frame, at_ns))
        if stay.zone is not None and entered and LEAVE in stay.zone.events:
            left = self._event(LEAVE, stay, at_ns, 0.0, None, stay.inside_at_ns)
            left = replace(left, ended_unix_ms=left.started_unix_ms)
            happenings.append(Happening(left, True, None, at_ns))
        return happenings

    def _event(
        self,
        kind: str,
        stay: _Stay,
        at_ns: int,
        score: float,
        box: Box | None,
        started_at_ns: int,
    ) -> Event:
        # The wall clock is read once an event; what was before it is measured.
        started_unix_ms = round(self._wall_unix_ms()) - max(0, at_ns - started_at_ns) // NS_PER_MS
        return Event(
            id=new_event_id(started_unix_ms),
            stream=self.stream,
            kind=kind,
            class_name=stay.class_name,
            track_id=stay.track_id,
            zone=stay.zone.id if stay.zone is not None else "",
            started_unix_ms=started_unix_ms,
            ended_unix_ms=None,
            score=score,
            box=box,
        )

    def _count(self, identity: str) -> _Count:
        return self._counts.setdefault(identity, _Count())

    def _tell(self, happenings: list[Happening]) -> None:
        if self._on_happening is not None:
            for happening in happenings:
                self._on_happening(happening)
