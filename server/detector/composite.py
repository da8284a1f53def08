"""Several models on one stream, for example objects and faces, as one detector.

Class ids of the second model follow those of the first, and so on; every model keeps its
own floor. Same thread rules as a single model.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from server.clock import now_ns
from server.detections import Detected, Detections, EngineReport
from server.detector.lanes import OnDone
from server.detector.model import BegunPicture, ModelStatistics
from server.geometry import Float32Array
from server.pixels import Picture


class Part(Protocol):
    """One model, in whatever shapes it runs."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def max_batch(self) -> int: ...

    def detect(self, pictures: Sequence[Picture]) -> list[Detected]: ...

    def begin(self, picture: Picture, on_done: OnDone) -> BegunPicture | None: ...

    def reports(self) -> tuple[EngineReport, ...]: ...

    def statistics(self) -> ModelStatistics: ...

    def close(self) -> None: ...


class CompositeDetector:
    """Runs its models one after the other on the same pictures."""

    def __init__(self, parts: Sequence[Part], max_boxes: int) -> None:
        self._parts = tuple(parts)
        self._max_boxes = max_boxes

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for part in self._parts for name in part.names)

    @property
    def max_batch(self) -> int:
        return min(part.max_batch for part in self._parts)

    def detect(self, pictures: Sequence[Picture]) -> list[Detected]:
        """Merged boxes; the stage instants add up each stage over the models."""
        started_at_ns = now_ns()
        answers: list[list[Detected]] = []
        prepare_ns = infer_ns = 0
        begun_at_ns = started_at_ns
        for part in self._parts:
            answer = part.detect(pictures)
            answers.append(answer)
            prepare_ns += answer[0].prepared_at_ns - begun_at_ns if answer else 0
            infer_ns += answer[0].inferred_at_ns - answer[0].prepared_at_ns if answer else 0
            begun_at_ns = now_ns()
        prepared_at_ns = started_at_ns + prepare_ns
        found = []
        for index in range(len(pictures)):
            merged = self._merge([answer[index].detections for answer in answers])
            found.append(Detected(merged, prepared_at_ns, prepared_at_ns + infer_ns, now_ns()))
        return found

    def begin(self, picture: Picture, on_done: OnDone) -> None:
        """Never beside another: each picture keeps its models busy one after the other."""

    def reports(self) -> tuple[EngineReport, ...]:
        return tuple(report for part in self._parts for report in part.reports())

    def statistics(self) -> tuple[ModelStatistics, ...]:
        return tuple(part.statistics() for part in self._parts)

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def _merge(self, found: Sequence[Detections]) -> Detections:
        class_ids, first_id = [], 0
        for part, detections in zip(self._parts, found, strict=True):
            class_ids.append(detections.class_id + np.int32(first_id))
            first_id += len(part.names)
        merged = Detections(
            xyxy=np.concatenate([detections.xyxy for detections in found]),
            confidence=np.concatenate([detections.confidence for detections in found]),
            class_id=np.concatenate(class_ids),
            size_wh=found[0].size_wh,
            landmarks=_merge_landmarks(found),
        )
        order = np.argsort(-merged.confidence, kind="stable")[: self._max_boxes]
        return merged.take(order)


def _merge_landmarks(found: Sequence[Detections]) -> Float32Array | None:
    """Landmarks of all rows; NaN where a model gives none or fewer."""
    most = max((part.landmarks.shape[1] for part in found if part.landmarks is not None), default=0)
    if most == 0:
        return None
    merged = np.full((sum(map(len, found)), most, 2), np.nan, np.float32)
    row = 0
    for part in found:
        if part.landmarks is not None:
            merged[row : row + len(part), : part.landmarks.shape[1]] = part.landmarks
        row += len(part)
    return merged
