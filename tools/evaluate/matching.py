"""Which found boxes are right, at one overlap, by the rules of COCO."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tools.evaluate.dataset import Truth

FloatArray = npt.NDArray[np.float64]

MAX_PER_CLASS = 100
"""COCO looks at so many boxes of a class per picture, best first."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A detector's boxes in one picture, by falling confidence, class ids of the data set."""

    xyxy: FloatArray
    confidence: FloatArray
    class_id: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """All boxes of one class over all pictures, by falling confidence."""

    confidence: FloatArray
    right: npt.NDArray[np.bool_]
    truths: int
    """Boxes there were to find."""


def overlaps(found: FloatArray, truth: FloatArray, crowd: npt.NDArray[np.bool_]) -> FloatArray:
    """(found, truth): shared area over that of both; over the found box alone for a crowd."""
    top_left = np.maximum(found[:, None, :2], truth[None, :, :2])
    bottom_right = np.minimum(found[:, None, 2:], truth[None, :, 2:])
    shared = np.clip(bottom_right - top_left, 0, None).prod(axis=2)
    found_area = (found[:, 2:] - found[:, :2]).prod(axis=1)[:, None]
    truth_area = (truth[:, 2:] - truth[:, :2]).prod(axis=1)[None, :]
    whole = np.where(crowd[None, :], found_area, found_area + truth_area - shared)
    return np.asarray(shared / np.maximum(whole, 1e-12), np.float64)


def judge(
    truths: Sequence[Truth], founds: Sequence[Found], classes: int, iou: float
) -> tuple[Judged, ...]:
    """Per class. Boxes that fell on a crowd region are left out, neither right nor wrong."""
    judged = []
    for class_id in range(classes):
        confidences, rights, count = [], [], 0
        for truth, found in zip(truths, founds, strict=True):
            wanted = truth.take(truth.class_id == class_id)
            rows = np.flatnonzero(found.class_id == class_id)[:MAX_PER_CLASS]
            count += int((~wanted.crowd).sum())
            right, counts = _match(found.xyxy[rows], wanted, iou)
            confidences.append(found.confidence[rows][counts])
            rights.append(right[counts])
        confidence = np.concatenate(confidences) if confidences else np.zeros(0)
        order = np.argsort(-confidence, kind="stable")
        right_all = np.concatenate(rights) if rights else np.zeros(0, np.bool_)
        judged.append(Judged(confidence[order], right_all[order], count))
    return tuple(judged)


def _match(
    xyxy: FloatArray, truth: Truth, iou: float
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Per found box: is it right, and does it count. Best first; each truth is given once."""
    right = np.zeros(len(xyxy), np.bool_)
    counts = np.ones(len(xyxy), np.bool_)
    if not len(xyxy) or not len(truth):
        return right, counts
    table = overlaps(xyxy, truth.xyxy, truth.crowd)
    free = ~truth.crowd
    for row, overlap in enumerate(table):
        candidates = np.where(free, overlap, -1.0)
        # COCO gives equal overlaps to the later truth.
        best = len(candidates) - 1 - int(np.argmax(candidates[::-1]))
        if candidates[best] >= iou:
            right[row] = True
            free[best] = False
        elif bool((truth.crowd & (overlap >= iou)).any()):
            counts[row] = False
    return right, counts
