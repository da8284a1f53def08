"""YOLOv8, v9, 11 and their kin: `cx cy w h class...` per cell, no objectness, either way up."""

from dataclasses import dataclass

import numpy as np

from server.detector.heads.grids import strides_for
from server.detector.spec import Candidates, Facts, Tensors
from server.geometry import InputSpec, cxcywh_to_xyxy

FAMILY = "yolov8"
SHAPE = "(4 + classes) x N or N x (4 + classes) with one column per cell"


@dataclass(frozen=True, slots=True)
class Yolov8Head:
    output: str
    class_count: int
    boxes_last: bool
    """Whether the output is (4 + classes) x N, as exported, and not N x (4 + classes)."""
    family: str = FAMILY
    overlapping: bool = True

    def input_spec(self, input_wh: tuple[int, int]) -> InputSpec:
        return InputSpec(input_wh)

    def decode(self, outputs: Tensors, item: int, floor: float) -> Candidates:
        output = outputs[self.output][item]
        columns = output if self.boxes_last else output.T
        # The best score of every cell first: which class it is matters for few of them, and
        # argmax over all cells would cost ten times as much.
        best = columns[4:].max(axis=0)
        kept = np.flatnonzero(best >= floor)
        few = columns[:, kept]
        class_id = few[4:].argmax(axis=0).astype(np.int32)
        return Candidates(cxcywh_to_xyxy(few[:4].T), best[kept], class_id)


def recognise(facts: Facts) -> Yolov8Head | None:
    if len(facts.outputs) != 1:
        return None
    [(name, output)] = facts.outputs.items()
    if output.ndim != 3 or min(output.shape[1:]) < 5:
        return None
    for boxes_last in (True, False):
        rows, count = output.shape[1:] if boxes_last else output.shape[:0:-1]
        # Without names, one row per cell is YOLOX, whose exports are always that way round.
        if not boxes_last and facts.names is None and facts.family != FAMILY:
            continue
        known = strides_for(facts.input_wh, count) is not None
        if not known and not (facts.family == FAMILY and count > rows):
            continue
        if facts.family is None and facts.names is not None and len(facts.names) != rows - 4:
            continue
        return Yolov8Head(name, rows - 4, boxes_last)
    return None
