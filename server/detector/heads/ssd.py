"""SSD and the ultra-light face detector: scores with a background class, normalised corners."""

from dataclasses import dataclass

import numpy as np

from server.detector.spec import Candidates, Facts, Tensors
from server.geometry import InputSpec

FAMILY = "ssd"
SHAPE = "scores N x (1 + classes), background first, and boxes N x 4 normalised corners"
# Corners of boxes over the picture's edge go a little beyond 0..1.
NORMALISED_LIMIT = 4.0


@dataclass(frozen=True, slots=True)
class SsdHead:
    scores: str
    boxes: str
    class_count: int
    input_wh: tuple[int, int]
    family: str = FAMILY
    overlapping: bool = True

    def input_spec(self, input_wh: tuple[int, int]) -> InputSpec:
        return InputSpec(
            input_wh, scale=1.0, mean=(127.0,) * 3, std=(128.0,) * 3, placement="stretch"
        )

    def decode(self, outputs: Tensors, item: int, floor: float) -> Candidates:
        scores = outputs[self.scores][item][:, 1:]
        best = scores[:, 0] if self.class_count == 1 else scores.max(axis=1)
        kept = np.flatnonzero(best >= floor)
        class_id = scores[kept].argmax(axis=1).astype(np.int32)
        width, height = self.input_wh
        whwh = np.array((width, height, width, height), np.float32)
        return Candidates(outputs[self.boxes][item][kept] * whwh, best[kept], class_id)


def recognise(facts: Facts) -> SsdHead | None:
    if len(facts.outputs) != 2:
        return None
    boxes = scores = ""
    for name, array in facts.outputs.items():
        if array.ndim != 3:
            return None
        if array.shape[2] == 4 and (not boxes or "box" in name):
            scores, boxes = boxes or scores, name
        else:
            scores = name
    if not boxes or not scores:
        return None
    if facts.outputs[scores].shape[1] != facts.outputs[boxes].shape[1]:
        return None
    # Corners in pixels belong to heads without a background class (YOLO-NAS).
    if float(np.abs(facts.outputs[boxes]).max(initial=0)) > NORMALISED_LIMIT:
        return None
    columns = facts.outputs[scores].shape[2]
    return SsdHead(scores, boxes, columns - 1, facts.input_wh) if columns >= 2 else None
