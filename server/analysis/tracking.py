"""Who is who from one picture to the next: small whole numbers that stay with an object.

The method is ByteTrack's: boxes that are sure go to the track whose expected place they overlap
best, weak ones may only keep alive a track that would otherwise be lost. Between pictures a
track moves on at constant velocity (a Kalman filter per coordinate, in seconds and not in
frames, because pictures are dropped whenever the detector is busy). Objects of different class
are never one track. One picture costs a few dozen small array operations, whatever the number
of objects; why no library: `server/README.md`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.clock import NS_PER_S
from server.detections import Detections
from server.geometry import iou

Float64Array = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]

NO_TRACK = 0
# Overlap of a box with where its track is expected: sure boxes, boxes grown by GROWTH for what
# moves far between two pictures, and weak boxes.
SURE_IOU, GROWN_IOU, WEAK_IOU = 0.25, 0.15, 0.5
GROWTH = 0.35
# A track begins with a box this much above the least confidence that is shown, seen twice.
START_ABOVE = 0.05
HITS_TO_CONFIRM = 2
# A track without boxes is kept for so long; one that was never confirmed is not kept at all.
LOST_AFTER_S = 1.5
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


class Tracker:
    """One stream's tracks; used by one thread at a time. Ids begin at 1 and are not used again."""

    def __init__(self) -> None:
        # Rows of all arrays are tracks. `place` and `velocity` are cx, cy, w, h in pixels and
        # pixels a second; `spread` holds the filter's variances: place, both, velocity.
        self._place: Float64Array = np.zeros((0, 4))
        self._velocity: Float64Array = np.zeros((0, 4))
        self._spread: Float64Array = np.zeros((3, 0, 4))
        self._class_id: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        self._track_id: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        self._hits: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        self._seen_at_ns: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._at_ns = 0
        self._last_id = 0
        self._dropped_full = 0

    def update(self, detections: Detections, at_ns: int, confidence: float) -> Detections:
        """The same rows with track ids, NO_TRACK where there is none yet, and velocities.

        `at_ns` is when the picture was taken, monotonic; `confidence` the least that is shown.
        """
        self._predict(at_ns)
        boxes = _to_cxcywh(detections.xyxy)
        sure = np.flatnonzero(detections.confidence >= confidence)
        track_of = np.full(len(detections), -1, np.intp)
        if len(self._track_id):
            weak = np.flatnonzero(detections.confidence < confidence)
            free = np.arange(len(self._track_id))
            free, sure_left = self._match(detections, free, sure, SURE_IOU, 0.0, track_of)
            free, sure_left = self._match(detections, free, sure_left, GROWN_IOU, GROWTH, track_of)
            # Weak boxes keep alive what was there in the last picture; they find nothing again.
            recent = free[self._seen_at_ns[free] == self._at_ns]
            self._match(detections, recent, weak, WEAK_IOU, 0.0, track_of)
            found = np.flatnonzero(track_of >= 0)
            self._correct(track_of[found], boxes[found], at_ns)
        else:
            sure_left = sure
        starts = detections.confidence[sure_left] >= min(confidence + START_ABOVE, 1.0)
        begun = self._begin(detections, boxes, sure_left[starts], at_ns)
        track_of[sure_left[starts][: len(begun)]] = begun
        self._at_ns = at_ns
        labelled = self._label(detections, track_of)
        self._forget(at_ns)
        return labelled

    def statistics(self) -> TrackingStatistics:
        return TrackingStatistics(self._last_id, len(self._track_id), self._dropped_full)

    # --- the steps of an update, in order ---

    def _predict(self, at_ns: int) -> None:
        """Move all tracks on to this instant."""
        elapsed_s = (at_ns - self._at_ns) / NS_PER_S
        if not len(self._track_id) or elapsed_s <= 0:
            return
        if elapsed_s > PAUSE_S:
            self._keep(np.zeros(len(self._track_id), bool))
            return
        self._place += self._velocity * elapsed_s
        np.maximum(self._place[:, 2:], 1.0, out=self._place[:, 2:])
        variance = self._side()[:, None] ** 2
        place, both, velocity = self._spread
        place += elapsed_s * (2 * both + elapsed_s * velocity + DRIFT**2 * variance)
        both += elapsed_s * velocity
        velocity += elapsed_s * JERK**2 * variance

    def _match(
        self,
        detections: Detections,
        tracks: IndexArray,
        rows: IndexArray,
        least_iou: float,
        growth: float,
        track_of: IndexArray,
    ) -> tuple[IndexArray, IndexArray]:
        """Pair tracks with boxes, best overlap first; returns the tracks and rows left over."""
        if not len(tracks) or not len(rows):
            return tracks, rows
        overlap = iou(_to_xyxy(self._place[tracks], growth), _grown(detections.xyxy[rows], growth))
        overlap[self._class_id[tracks][:, None] != detections.class_id[rows][None, :]] = 0.0
        pairs = np.flatnonzero(overlap >= least_iou)
        if not len(pairs):
            return tracks, rows
        values = overlap.ravel()[pairs]
        taken_tracks, taken_rows = set[int](), set[int]()
        for pair in pairs[np.argsort(-values, kind="stable")].tolist():
            track, row = divmod(pair, len(rows))
            if track not in taken_tracks and row not in taken_rows:
                taken_tracks.add(track)
                taken_rows.add(row)
                track_of[rows[row]] = tracks[track]
        return (
            np.delete(tracks, np.fromiter(taken_tracks, np.intp)),
            np.delete(rows, np.fromiter(taken_rows, np.intp)),
        )

    def _correct(self, tracks: IndexArray, boxes: Float64Array, at_ns: int) -> None:
        """What was seen corrects what was expected."""
        if not len(tracks):
            return
        noise = (MEASURED * self._side()[tracks, None]) ** 2
        place, both, velocity = self._spread[:, tracks]
        gain_place, gain_velocity = place / (place + noise), both / (place + noise)
        surprise = boxes - self._place[tracks]
        self._place[tracks] += gain_place * surprise
        self._velocity[tracks] += gain_velocity * surprise
        self._spread[:, tracks] = (
            place - gain_place * place,
            both - gain_place * both,
            velocity - gain_velocity * both,
        )
        self._hits[tracks] += 1
        self._seen_at_ns[tracks] = at_ns
        confirmed = tracks[(self._hits[tracks] >= HITS_TO_CONFIRM) & (self._track_id[tracks] == 0)]
        self._track_id[confirmed] = self._last_id + 1 + np.arange(len(confirmed))
        self._last_id += len(confirmed)

    def _begin(
        self, detections: Detections, boxes: Float64Array, rows: IndexArray, at_ns: int
    ) -> IndexArray:
        """New tracks for these rows, strongest first as far as there is room."""
        before = len(self._track_id)
        room = TRACKS_AT_MOST - before
        if len(rows) > room:
            self._dropped_full += len(rows) - room
            rows = rows[:room]
        count = len(rows)
        if not count:
            return np.zeros(0, np.intp)
        begun = boxes[rows]
        variance = ((begun[:, 2] + begun[:, 3]) / 2)[:, None] ** 2 * np.ones(4)
        spread = np.stack(
            (MEASURED**2 * variance, np.zeros_like(variance), FIRST_VELOCITY**2 * variance)
        )
        self._place = np.concatenate((self._place, begun))
        self._velocity = np.concatenate((self._velocity, np.zeros((count, 4))))
        self._spread = np.concatenate((self._spread, spread), axis=1)
        self._class_id = np.concatenate((self._class_id, detections.class_id[rows]))
        self._track_id = np.concatenate((self._track_id, np.zeros(count, np.int32)))
        self._hits = np.concatenate((self._hits, np.ones(count, np.int32)))
        self._seen_at_ns = np.concatenate((self._seen_at_ns, np.full(count, at_ns)))
        return np.arange(before, before + count)

    def _label(self, detections: Detections, track_of: IndexArray) -> Detections:
        count = len(detections)
        track_id = np.zeros(count, np.int32)
        velocity = np.zeros((count, 4), np.float32)
        found = np.flatnonzero(track_of >= 0)
        if len(found):
            tracks = track_of[found]
            track_id[found] = self._track_id[tracks]
            velocity[found] = _velocity_xyxy(self._velocity[tracks])
        return Detections(
            xyxy=detections.xyxy,
            confidence=detections.confidence,
            class_id=detections.class_id,
            size_wh=detections.size_wh,
            track_id=track_id,
            landmarks=detections.landmarks,
            velocity=velocity,
        )

    def _forget(self, at_ns: int) -> None:
        unseen_ns = at_ns - self._seen_at_ns
        kept_ns = np.where(self._track_id == NO_TRACK, 0, LOST_AFTER_S * NS_PER_S)
        kept = unseen_ns <= kept_ns
        if not kept.all():
            self._keep(kept)

    def _keep(self, kept: npt.NDArray[np.bool_]) -> None:
        self._place = self._place[kept]
        self._velocity = self._velocity[kept]
        self._spread = self._spread[:, kept]
        self._class_id = self._class_id[kept]
        self._track_id = self._track_id[kept]
        self._hits = self._hits[kept]
        self._seen_at_ns = self._seen_at_ns[kept]

    def _side(self) -> Float64Array:
        side: Float64Array = (self._place[:, 2] + self._place[:, 3]) / 2
        return side


def _to_cxcywh(xyxy: npt.NDArray[np.float32]) -> Float64Array:
    corners = xyxy.astype(np.float64)
    return np.concatenate(
        ((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]), axis=1
    )


def _to_xyxy(cxcywh: Float64Array, growth: float) -> npt.NDArray[np.float32]:
    half = cxcywh[:, 2:] * (0.5 + growth)
    corners = np.concatenate((cxcywh[:, :2] - half, cxcywh[:, :2] + half), axis=1)
    return corners.astype(np.float32)


def _grown(xyxy: npt.NDArray[np.float32], growth: float) -> npt.NDArray[np.float32]:
    if not growth:
        return xyxy
    margin = (xyxy[:, 2:] - xyxy[:, :2]) * np.float32(growth)
    return np.concatenate((xyxy[:, :2] - margin, xyxy[:, 2:] + margin), axis=1)


def _velocity_xyxy(velocity: Float64Array) -> Float64Array:
    """Of the corners, from that of centre and size."""
    half = velocity[:, 2:] / 2
    return np.concatenate((velocity[:, :2] - half, velocity[:, :2] + half), axis=1)
