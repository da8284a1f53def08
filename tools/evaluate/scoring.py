"""Average precision by faster-coco-eval.

It is the better kept of the two (a release every few weeks, wheels for each Python) and gives the
figures of pycocotools, with which published ones are made, to the last digit (a test compares
them), ten times as fast: on the 5,000 pictures of COCO that is a minute against ten.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

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
        rows = truth_rows(data)
        truth = COCO(rows)
        found = found_rows(founds)
        answers = truth.loadRes(found) if len(found) else COCO({**rows, "annotations": []})
        evaluation = COCOeval_faster(truth, answers, "bbox")
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
    """Mean of what was measured; the rest is marked with -1."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else float("nan")


def truth_rows(data: DataSet) -> dict[str, list[dict[str, object]]]:
    """The data set as the content of a COCO label file; picture ids are row numbers."""
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


def found_rows(founds: Sequence[Found]) -> FloatArray:
    """Rows `image_id, x, y, w, h, confidence, class_id`, as both COCO libraries take them."""
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
