"""Average precision by pycocotools, the reference that published figures are made with.

It and faster-coco-eval agree to the last digit here; on the few thousand pictures of one run the
reference needs seconds, so speed does not decide, and its figures need no explaining.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tools.evaluate.dataset import DataSet
from tools.evaluate.matching import FloatArray, Found

SIZES = ("small", "medium", "large")


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Average precision and recall, 0..1; nan where nothing was to be found."""

    map_50_95: float
    map_50: float
    map_75: float
    by_size: dict[str, float]
    """Average precision of truths under 32x32, under 96x96, and larger."""
    recall_100: float
    ious: FloatArray
    map_by_iou: FloatArray
    by_class: dict[str, tuple[float, float]]
    """Per class AP50-95 and AP50, of those of which something was to be found."""


def score(data: DataSet, founds: Sequence[Found]) -> Scores:
    """COCO's scores of `founds`, one per picture of `data`, in its order."""
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet):
        truth = COCO()
        truth.dataset = _truth_rows(data)
        truth.createIndex()
        rows = _found_rows(founds)
        answers = truth.loadRes(rows) if len(rows) else COCO()
        if not len(rows):
            answers.dataset = {**truth.dataset, "annotations": []}
            answers.createIndex()
        evaluation = COCOeval(truth, answers, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, :, -1]
    recall = evaluation.eval["recall"][:, :, 0, -1]
    by_class = {}
    for index, name in enumerate(data.names):
        if (precision[:, :, index, 0] > -1).any():
            by_class[name] = (
                _mean(precision[:, :, index, 0]),
                _mean(precision[0, :, index, 0]),
            )
    ious = np.asarray(evaluation.params.iouThrs, np.float64)
    return Scores(
        map_50_95=_mean(precision[:, :, :, 0]),
        map_50=_mean(precision[0, :, :, 0]),
        map_75=_mean(precision[5, :, :, 0]),
        by_size={name: _mean(precision[:, :, :, 1 + row]) for row, name in enumerate(SIZES)},
        recall_100=_mean(recall),
        ious=ious,
        map_by_iou=np.array([_mean(precision[row, :, :, 0]) for row in range(len(ious))]),
        by_class=by_class,
    )


def _mean(values: FloatArray) -> float:
    """Mean of what was measured; pycocotools marks the rest with -1."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else float("nan")


def _truth_rows(data: DataSet) -> dict[str, list[dict[str, object]]]:
    annotations: list[dict[str, object]] = []
    for image_id, picture in enumerate(data.pictures):
        truth = picture.truth
        wh = truth.xyxy[:, 2:] - truth.xyxy[:, :2]
        for row in range(len(truth)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(truth.class_id[row]),
                    "bbox": [*truth.xyxy[row, :2].tolist(), *wh[row].tolist()],
                    "area": float(truth.area[row]),
                    "iscrowd": int(truth.crowd[row]),
                }
            )
    return {
        "images": [{"id": image_id} for image_id in range(len(data.pictures))],
        "categories": [{"id": index, "name": name} for index, name in enumerate(data.names)],
        "annotations": annotations,
    }


def _found_rows(founds: Sequence[Found]) -> FloatArray:
    """Rows `image_id, x, y, w, h, confidence, class_id`, as pycocotools takes them."""
    rows = [
        np.column_stack(
            [
                np.full(len(found.class_id), float(image_id)),
                found.xyxy[:, :2],
                found.xyxy[:, 2:] - found.xyxy[:, :2],
                found.confidence,
                found.class_id,
            ]
        )
        for image_id, found in enumerate(founds)
    ]
    return np.concatenate(rows) if rows else np.zeros((0, 7))
