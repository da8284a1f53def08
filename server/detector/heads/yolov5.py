"""YOLOv5 and YOLOv7: three decoded boxes per cell, `cx cy w h objectness class...`."""

from dataclasses import dataclass

import numpy as np

from server.detector.heads.grids import strides_for
from server.detector.heads.yolox import boxes_of_rows
from server.detector.spec import Candidates, Facts, Tensors
from server.geometry import InputSpec

FAMILY = "yolov5"
SHAPE = "N x (5 + classes) with three rows per cell"
ANCHORS_PER_CELL = 3


@dataclass(frozen=True, slots=True)
class Yolov5Head:
    output: str
    class_count: int
    family: str = FAMILY
    overlapping: bool = True

    def input_spec(self, input_wh: tuple[int, int]) -> InputSpec:
        return InputSpec(input_wh)

    def decode(self, outputs: Tensors, item: int, floor: float) -> Candidates:
        rows = outputs[self.output][item]
        return boxes_of_rows(rows, np.flatnonzero(rows[:, 4] >= floor), floor)


def recognise(facts: Facts) -> Yolov5Head | None:
    # Exports with the raw levels beside the decoded output have several outputs.
    for name, output in facts.outputs.items():
        if output.ndim == 3 and output.shape[2] >= 6:
            known = strides_for(facts.input_wh, output.shape[1], ANCHORS_PER_CELL)
            if known or facts.family == FAMILY:
                return Yolov5Head(name, output.shape[2] - 5)
    return None
