"""Who is who from one picture to the next: small whole numbers that stay with an object.

The method is ByteTrack's: boxes that are sure go to the track whose expected place they overlap
best, weak ones may only keep alive a track that would otherwise be lost. Between pictures a
track moves on at constant velocity (a Kalman filter, in seconds and not in frames, because
pictures are dropped whenever the detector is busy). Objects of different class are never one
track. Overlaps are computed on arrays, all pairs at once; the rest is arithmetic on a handful of
numbers, for which arrays cost more than they save. Why no library: `server/README.md`.
"""

from dataclasses import dataclass, field

import numpy as np

from server.clock import NS_PER_S
from server.detections import Detections, Float32Array
from server.geometry import iou

NO_TRACK = 0
NO_VELOCITY = (0.0, 0.0, 0.0, 0.0)
# Overlap of a box with where its track is expected: sure boxes, boxes grown by GROWTH for what
# moves far between two pictures, and weak boxes.
SURE_IOU, GROWN_IOU, WEAK_IOU = 0.25, 0.15, 0.5
GROWTH = 0.35
# A track begins with a box this much above the least confidence that is shown, seen twice.
START_ABOVE = 0.05
HITS_TO_CONFIRM = 2
# A track without boxes is kept for so long; one that was never confirmed is not kept at all.
LOST_AFTER_NS = 3 * NS_PER_S // 2
TRACKS_AT_MOST = 512
# A pause of the source: older velocities say nothing.
PAUSE_S = 5.0
# How far off things are, as shares of a box's mean side: what the detector gets wrong in one
# picture, and how much place and velocity change by themselves in one second.
MEASURED, DRIFT, JERK = 0.05, 0.25, 1.6
FIRST_VELOCITY = 2.0


@dataclass(frozen=True, slots=True)
class TrackingStatistics:
    """Counts since the tracker was made."""

    started: int
    live: int
    dropped_full: int
    """Objects that got no track because there were too many."""


@dataclass(slots=True, eq=False)
class _Track:
    """One object: where it is expected, in pixels, and how that changes a second. The filter's
    variances (of a place, of both, of a velocity) hold for each of the four numbers."""

    class_id: int
    seen_at_ns: int
    cx: float
    cy: float
    width: float
    height: float
    place_variance: float = field(init=False)
    velocity_variance: float = field(init=False)
    covariance: float = 0.0
    vx: float = 0.0
    vy: float = 0.0
    wider: float = 0.0
    higher: float = 0.0
    hits: int = 1
    track_id: int = NO_TRACK

    def __post_init__(self) -> None:
        variance = self._side_squared()
        self.place_variance = MEASURED**2 * variance
        self.velocity_variance = FIRST_VELOCITY**2 * variance

    def predict(self, elapsed_s: float) -> None:
        """Move on by so much."""
        self.cx += elapsed_s * self.vx
        self.cy += elapsed_s * self.vy
        self.width = max(1.0, self.width + elapsed_s * self.wider)
        self.height = max(1.0, self.height + elapsed_s * self.higher)
        variance = self._side_squared()
        self.place_variance += elapsed_s * (
            2 * self.covariance + elapsed_s * self.velocity_variance + DRIFT**2 * variance
        )
        self.covariance += elapsed_s * self.velocity_variance
        self.velocity_variance += elapsed_s * JERK**2 * variance

    def correct(self, xyxy: list[float], at_ns: int) -> None:
        """What was seen corrects what was expected."""
        left, top, right, bottom = xyxy
        total = self.place_variance + MEASURED**2 * self._side_squared()
        gain, velocity_gain = self.place_variance / total, self.covariance / total
        x_off, y_off = (left + right) / 2 - self.cx, (top + bottom) / 2 - self.cy
        width_off, height_off = right - left - self.width, bottom - top - self.height
        self.cx += gain * x_off
        self.cy += gain * y_off
        self.width += gain * width_off
        self.height += gain * height_off
        self.vx += velocity_gain * x_off
        self.vy += velocity_gain * y_off
        self.wider += velocity_gain * width_off
        self.higher += velocity_gain * height_off
        self.velocity_variance -= velocity_gain * self.covariance
        self.covariance -= gain * self.covariance
        self.place_variance -= gain * self.place_variance
        self.hits += 1
        self.seen_at_ns = at_ns

    def xyxy(self, growth: float) -> tuple[float, float, float, float]:
        """Where it is expected, grown by this share of its sides on each side."""
        across, down = self.width * (0.5 + growth), self.height * (0.5 + growth)
        return self.cx - across, self.cy - down, self.cx + across, self.cy + down

    def velocity_xyxy(self) -> tuple[float, float, float, float]:
        """Of the corners, in pixels a second."""
        across, down = self.wider / 2, self.higher / 2
        return self.vx - across, self.vy - down, self.vx + across, self.vy + down

    def is_kept(self, at_ns: int) -> bool:
        """Whether it may yet be seen again."""
        unseen_ns = at_ns - self.seen_at_ns
        return unseen_ns <= (0 if self.track_id == NO_TRACK else LOST_AFTER_NS)

    def _side_squared(self) -> float:
        side = (self.width + self.height) / 2
        return side * side


class Tracker:
    """One stream's tracks; used by one thread at a time. Ids begin at 1 and are not used again."""

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self._at_ns = 0
        self._last_id = 0
        self._dropped_full = 0

    def update(self, detections: Detections, at_ns: int, confidence: float) -> Detections:
        """The same rows with track ids, NO_TRACK where there is none yet, and velocities.

        `at_ns` is when the picture was taken, monotonic; `confidence` the least that is shown.
        """
        self._predict(at_ns)
        boxes = detections.xyxy.tolist()
        is_sure = (detections.confidence >= confidence).tolist()
        left = [row for row, sure in enumerate(is_sure) if sure]
        track_of: dict[int, _Track] = {}
        if self._tracks:
            weak = [row for row, sure in enumerate(is_sure) if not sure]
            free, left = _match(detections, self._tracks, left, SURE_IOU, 0.0, track_of)
            free, left = _match(detections, free, left, GROWN_IOU, GROWTH, track_of)
            # Weak boxes keep alive what was there in the last picture; they find nothing again.
            recent = [track for track in free if track.seen_at_ns == self._at_ns]
            _match(detections, recent, weak, WEAK_IOU, 0.0, track_of)
            for row in sorted(track_of):
                self._correct(track_of[row], boxes[row], at_ns)
        if left:
            starts = detections.confidence >= min(confidence + START_ABOVE, 1.0)
            self._begin(detections, [row for row in left if starts[row]], at_ns, track_of)
        self._at_ns = at_ns
        self._tracks = [track for track in self._tracks if track.is_kept(at_ns)]
        return _labelled(detections, track_of)

    def statistics(self) -> TrackingStatistics:
        return TrackingStatistics(self._last_id, len(self._tracks), self._dropped_full)

    # --- the steps of an update ---

    def _predict(self, at_ns: int) -> None:
        """Move all tracks on to this instant."""
        elapsed_s = (at_ns - self._at_ns) / NS_PER_S
        if elapsed_s > PAUSE_S:
            self._tracks = []
        elif elapsed_s > 0:
            for track in self._tracks:
                track.predict(elapsed_s)

    def _correct(self, track: _Track, xyxy: list[float], at_ns: int) -> None:
        track.correct(xyxy, at_ns)
        if track.track_id == NO_TRACK and track.hits >= HITS_TO_CONFIRM:
            self._last_id += 1
            track.track_id = self._last_id

    def _begin(
        self, detections: Detections, rows: list[int], at_ns: int, track_of: dict[int, _Track]
    ) -> None:
        """New tracks for these rows, strongest first as far as there is room."""
        room = TRACKS_AT_MOST - len(self._tracks)
        self._dropped_full += max(0, len(rows) - room)
        for row in rows[:room]:
            left, top, right, bottom = detections.xyxy[row].tolist()
            centre = (left + right) / 2, (top + bottom) / 2
            class_id = int(detections.class_id[row])
            track = _Track(class_id, at_ns, *centre, right - left, bottom - top)
            track_of[row] = track
            self._tracks.append(track)


def _match(
    detections: Detections,
    tracks: list[_Track],
    rows: list[int],
    least_iou: float,
    growth: float,
    track_of: dict[int, _Track],
) -> tuple[list[_Track], list[int]]:
    """Pair tracks with rows, best overlap first, into `track_of`; returns those left over."""
    if not tracks or not rows:
        return tracks, rows
    expected = np.array([track.xyxy(growth) for track in tracks], np.float32)
    overlap = iou(expected, _grown(detections.xyxy[rows], growth)).ravel()
    pairs = np.flatnonzero(overlap >= least_iou)
    class_ids = detections.class_id.tolist()
    free = dict(enumerate(tracks))
    for pair in pairs[np.argsort(-overlap[pairs], kind="stable")].tolist():
        number, column = divmod(pair, len(rows))
        row, track = rows[column], free.get(number)
        if track is None or row in track_of or track.class_id != class_ids[row]:
            continue
        track_of[row] = free.pop(number)
    return list(free.values()), [row for row in rows if row not in track_of]


def _labelled(detections: Detections, track_of: dict[int, _Track]) -> Detections:
    """The same rows with what is known of their tracks."""
    track_id = [NO_TRACK] * len(detections)
    velocity = [NO_VELOCITY] * len(detections)
    for row, track in track_of.items():
        track_id[row] = track.track_id
        velocity[row] = track.velocity_xyxy()
    return Detections(
        xyxy=detections.xyxy,
        confidence=detections.confidence,
        class_id=detections.class_id,
        size_wh=detections.size_wh,
        track_id=np.array(track_id, np.int32),
        landmarks=detections.landmarks,
        velocity=np.array(velocity, np.float32).reshape(-1, 4),
    )


def _grown(xyxy: Float32Array, growth: float) -> Float32Array:
    if not growth:
        return xyxy
    margin = (xyxy[:, 2:] - xyxy[:, :2]) * np.float32(growth)
    return np.concatenate((xyxy[:, :2] - margin, xyxy[:, 2:] + margin), axis=1)
