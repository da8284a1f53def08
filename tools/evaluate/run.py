"""One model in one precision over one data set: what it found, and how long each part took."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from server.clock import now_ns, ns_to_ms
from server.detections import Detected, Detections, EngineReport
from server.pixels import BgrPicture
from tools.evaluate.curves import Curves, curves_of
from tools.evaluate.dataset import DataError, DataSet, read_bgr
from tools.evaluate.matching import FloatArray, Found, judge
from tools.evaluate.names import class_map
from tools.evaluate.scoring import Scores, score

FLOOR = 0.001
MAX_BOXES = 300
CURVE_IOU = 0.5
WARM_UP_PICTURES = 3
STAGES = ("prepare", "infer", "boxes", "total")


class Detector(Protocol):
    """What is needed of a loaded detector."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def detect(self, pictures: Sequence[Any]) -> list[Detected]: ...

    def reports(self) -> tuple[EngineReport, ...]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Everything measured in one go over the pictures."""

    model: str
    precision: str
    """As asked for."""
    engine: EngineReport
    """What really ran."""
    data: str
    pictures: int
    classes: tuple[str, ...]
    """Classes that were scored."""
    scores: Scores
    curves: Curves
    latency_ms: dict[str, FloatArray]
    """By stage of `STAGES`, one value per picture, without the first few."""
    note: str = ""
    """What to know when reading the figures; empty when nothing."""
    timed: bool = True
    """Whether its times say anything about the precision."""

    @property
    def label(self) -> str:
        width, height = self.engine.input_wh
        size = f"{width}" if width == height else f"{width}x{height}"
        return f"{self.model} {size}"

    def latency(self, stage: str, percent: float) -> float:
        """A percentile in ms; nan when the times say nothing."""
        values = self.latency_ms[stage]
        return float(np.percentile(values, percent)) if self.timed and len(values) else math.nan


def evaluate(
    detector: Detector,
    data: DataSet,
    *,
    model: Path,
    precision: str,
    on_picture: Callable[[], None] = lambda: None,
) -> Run:
    """Runs `detector` over all pictures, one at a time, and scores what it found.

    Classes that the model does not know are left out of the score and of `Run.classes`.
    """
    known = set(class_map(detector.names, data.names))
    classes = [name for index, name in enumerate(data.names) if index in known]
    if not classes:
        raise DataError(
            f"{model.name}: knows none of the classes of {data.name}: it finds "
            f"{', '.join(detector.names[:8])}"
        )
    data = data.only(classes)
    of_class = np.array(class_map(detector.names, data.names), np.int64)
    founds: list[Found] = []
    spans: list[tuple[int, int, int, int]] = []
    for picture in data.pictures:
        bgr = BgrPicture(read_bgr(picture.path))
        if not founds:
            for _ in range(WARM_UP_PICTURES):
                detector.detect([bgr])
        begun_at_ns = now_ns()
        detected = detector.detect([bgr])[0]
        spans.append(
            (begun_at_ns, detected.prepared_at_ns, detected.inferred_at_ns, detected.boxed_at_ns)
        )
        founds.append(_found(detected.detections, of_class))
        on_picture()
    judged = judge([picture.truth for picture in data.pictures], founds, len(data.names), CURVE_IOU)
    return Run(
        model=model.stem.removesuffix(".fp16"),
        precision=precision,
        engine=detector.reports()[0],
        data=data.name,
        pictures=len(data.pictures),
        classes=tuple(classes),
        scores=score(data, founds),
        curves=curves_of(judged),
        latency_ms=_latency(spans),
    )


def _found(detections: Detections, of_class: np.ndarray) -> Found:
    class_id = of_class[detections.class_id] if len(of_class) else np.zeros(0, np.int64)
    rows = np.flatnonzero(class_id >= 0)
    return Found(
        xyxy=detections.xyxy[rows].astype(np.float64),
        confidence=detections.confidence[rows].astype(np.float64),
        class_id=class_id[rows],
    )


def _latency(spans: Sequence[tuple[int, int, int, int]]) -> dict[str, FloatArray]:
    instants = np.array(spans, np.int64).reshape(-1, 4)
    steps = np.diff(instants, axis=1)
    steps = np.column_stack([steps, instants[:, 3] - instants[:, 0]])
    return {name: ns_to_ms(1) * steps[:, row] for row, name in enumerate(STAGES)}
