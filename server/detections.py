"""What a detector found in one picture: parallel arrays, frozen, checked when made."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """N boxes in pixels of the source frame; every array is read-only to all but its maker.

    `xyxy` is (N, 4) with right and bottom exclusive, `confidence` (N,) in 0..1, `class_id`
    (N,) an index into the detector's names, `track_id` (N,) or None, `landmarks` (N, K, 2)
    or None. Rows are sorted by falling confidence. `track_id` 0 means none yet; `velocity` (N, 4)
    is that of the corners in pixels a second, or None.
    """

    xyxy: Float32Array
    confidence: Float32Array
    class_id: Int32Array
    size_wh: tuple[int, int]
    track_id: Int32Array | None = None
    landmarks: Float32Array | None = None
    velocity: Float32Array | None = None

    def __post_init__(self) -> None:
        count = len(self.confidence)
        if self.xyxy.shape != (count, 4) or self.class_id.shape != (count,):
            raise ValueError(
                f"detections want xyxy (N, 4), confidence (N,), class_id (N,); found "
                f"{self.xyxy.shape}, {self.confidence.shape}, {self.class_id.shape}"
            )

    def __len__(self) -> int:
        return len(self.confidence)

    @classmethod
    def empty(cls, size_wh: tuple[int, int]) -> "Detections":
        """Nothing found."""
        return cls(
            xyxy=np.zeros((0, 4), np.float32),
            confidence=np.zeros(0, np.float32),
            class_id=np.zeros(0, np.int32),
            size_wh=size_wh,
        )

    def take(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> "Detections":
        """The given rows, by index or mask."""
        return Detections(
            xyxy=self.xyxy[rows],
            confidence=self.confidence[rows],
            class_id=self.class_id[rows],
            size_wh=self.size_wh,
            track_id=None if self.track_id is None else self.track_id[rows],
            landmarks=None if self.landmarks is None else self.landmarks[rows],
            velocity=None if self.velocity is None else self.velocity[rows],
        )

    def moved(self, elapsed_s: float) -> "Detections":
        """Where the boxes are expected so much later, as far as their velocity is known."""
        if self.velocity is None or not len(self):
            return self
        width, height = self.size_wh
        shift = self.velocity * np.float32(elapsed_s)
        sides = np.array((width, height, width, height), np.float32)
        xyxy = np.clip(self.xyxy + shift, 0, sides)
        # What moves apart or away may turn a box inside out.
        np.maximum(xyxy[:, 2:], xyxy[:, :2], out=xyxy[:, 2:])
        landmarks = self.landmarks
        if landmarks is not None:
            centre_shift = (shift[:, :2] + shift[:, 2:]) * np.float32(0.5)
            landmarks = (landmarks + centre_shift[:, None, :]).astype(np.float32)
        return replace(self, xyxy=xyxy, landmarks=landmarks)

    def select(
        self, min_confidence: float, class_ids: Collection[int] | None = None
    ) -> "Detections":
        """Rows at or above the confidence and, if given, of the classes."""
        keep = self.confidence >= min_confidence
        if class_ids is not None:
            keep &= np.isin(self.class_id, np.fromiter(class_ids, np.int32))
        return self if bool(keep.all()) else self.take(keep)

    def to_rows(self) -> list[list[float | int | None]]:
        """Rows `[x1, y1, x2, y2, class_id, confidence, track_id]` for JSON."""
        # In double precision, so that 1.4 is written as 1.4 and not as 1.399999976158142.
        xyxy = np.round(self.xyxy.astype(np.float64), 1).tolist()
        confidence = np.round(self.confidence.astype(np.float64), 3).tolist()
        class_ids: Sequence[int] = self.class_id.tolist()
        track_ids = [None] * len(self) if self.track_id is None else self.track_id.tolist()
        return [
            [*box, class_id, score, track_id or None]
            for box, class_id, score, track_id in zip(
                xyxy, class_ids, confidence, track_ids, strict=True
            )
        ]


@dataclass(frozen=True, slots=True)
class Detected:
    """A detector's answer for one picture, with the instants its stages ended."""

    detections: Detections
    prepared_at_ns: int
    inferred_at_ns: int
    boxed_at_ns: int


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What really runs one model: for doctor, the page and /api/stats."""

    model: str
    provider: str
    precision: str
    input_wh: tuple[int, int]
    threads: int
    family: str
    fallback: str = ""
    """Why it is not the provider or precision asked for; empty when it is."""
