"""Precision, recall and F1 over the confidence threshold, averaged over classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tools.evaluate.matching import FloatArray, Judged

GRID = np.linspace(0, 1, 1001)
RECALL_GRID = np.linspace(0, 1, 101)


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """Means over the classes of which something was to be found."""

    confidence: FloatArray
    precision: FloatArray
    recall: FloatArray
    f1: FloatArray
    recall_grid: FloatArray
    precision_at_recall: FloatArray
    """Interpolated as COCO does: the best precision at this recall or a higher one."""

    def best_f1(self) -> tuple[float, float]:
        """The highest mean F1 and the confidence that gives it."""
        row = int(np.argmax(self.f1))
        return float(self.f1[row]), float(self.confidence[row])


def curves_of(judged: Sequence[Judged]) -> Curves:
    """The curves of one run; all zero when nothing was to be found."""
    present = [item for item in judged if item.truths]
    if not present:
        zero = np.zeros_like(GRID)
        return Curves(GRID, zero, zero, zero, RECALL_GRID, np.zeros_like(RECALL_GRID))
    rows = [_over_confidence(item) for item in present]
    precision = np.mean([row[0] for row in rows], axis=0)
    recall = np.mean([row[1] for row in rows], axis=0)
    f1 = np.mean([row[2] for row in rows], axis=0)
    at_recall = np.mean([_over_recall(item) for item in present], axis=0)
    return Curves(GRID, precision, recall, f1, RECALL_GRID, at_recall)


def _over_confidence(judged: Judged) -> tuple[FloatArray, FloatArray, FloatArray]:
    """At each threshold of the grid, over the boxes at or above it. No boxes: precision 1."""
    right = np.concatenate([[0], np.cumsum(judged.right)]).astype(float)
    # Confidence falls, so counting those at or above a threshold is one binary search. Half a
    # millionth of slack keeps a float32 0.3 at the threshold 0.3.
    kept = np.searchsorted(-judged.confidence, -(GRID - 5e-7), side="right")
    hits = right[kept]
    precision = np.where(kept > 0, hits / np.maximum(kept, 1), 1.0)
    recall = hits / judged.truths
    return precision, recall, 2 * hits / (kept + judged.truths)


def _over_recall(judged: Judged) -> FloatArray:
    hits = np.cumsum(judged.right)
    precision = hits / np.arange(1, len(hits) + 1)
    best_after: npt.NDArray[np.float64] = np.maximum.accumulate(precision[::-1])[::-1]
    rows = np.searchsorted(hits / judged.truths, RECALL_GRID, side="left")
    padded = np.append(best_after, 0.0)
    return np.asarray(padded[np.minimum(rows, len(best_after))], np.float64)
