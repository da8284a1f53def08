"""Of boxes that show the same thing, the best one stays."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from server.geometry import Float32Array, IndexArray, best_first


def suppress(
    xyxy: Float32Array,
    confidence: Float32Array,
    class_id: npt.NDArray[np.int32],
    iou_limit: float,
    max_boxes: int,
    max_candidates: int = 1000,
) -> IndexArray:
    """Rows that survive greedy non-maximum suppression per class, best first.

    The `max_candidates` best are looked at. OpenCV's loop in C++ takes a third of the time of
    overlaps as one numpy table at 400 candidates, and less beyond.
    """
    order = best_first(confidence, max_candidates)
    if len(order) < 2:
        return order[:max_boxes]
    xywh = xyxy[order]
    xywh[:, 2:] -= xywh[:, :2]
    # The stubs of OpenCV know lists alone.
    boxes: Any = xywh
    scores: Any = confidence[order]
    classes: Any = class_id[order]
    kept = cv2.dnn.NMSBoxesBatched(boxes, scores, classes, 0.0, iou_limit)
    return order[np.asarray(kept, np.intp)][:max_boxes]
