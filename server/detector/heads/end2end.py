"""End-to-end heads (YOLO26, YOLOv10, our own `sightline`): N x 6 finished boxes, no NMS.

Rows are `x1 y1 x2 y2 score class` in input pixels.
"""

from dataclasses import dataclass

import numpy as np

from server.detector.heads.grids import is_grid
from server.detector.spec import Candidates, Facts, Tensors
from server.geometry import InputSpec

FAMILY = "yolo26"
OWN_FAMILY = "sightline"
SHAPE = "N x 6 finished boxes (x1 y1 x2 y2 score class), N up to 1000"
MAX_ROWS = 1000


@dataclass(frozen=True, slots=True)
class EndToEndHead:
    output: str
    class_count: int
    family: str = FAMILY
    overlapping: bool = False

    def input_spec(self, input_wh: tuple[int, int]) -> InputSpec:
        return InputSpec(input_wh)

    def decode(self, outputs: Tensors, item: int, floor: float) -> Candidates:
        rows = outputs[self.output][item]
        few = rows[rows[:, 4] >= floor]
        # A damaged file may name a class that no integer can hold.
        few = few[np.abs(few[:, 5]) < 2**31]
        return Candidates(few[:, :4], few[:, 4], few[:, 5].astype(np.int32))


def recognise(facts: Facts) -> EndToEndHead | None:
    name = "detections" if "detections" in facts.outputs else next(iter(facts.outputs), "")
    output = facts.outputs.get(name)
    if output is None or output.ndim != 3 or output.shape[2] != 6:
        return None
    named = facts.family in (FAMILY, OWN_FAMILY) or (
        facts.metadata.get("end2end", "").lower() == "true"
    )
    count = output.shape[1]
    # One class and six columns is also what YOLOX and YOLOv5 give: their row counts tell.
    if not named and (is_grid(facts.input_wh, count) or count > MAX_ROWS or len(facts.outputs) > 1):
        return None
    class_count = 0 if facts.names is None else len(facts.names)
    return EndToEndHead(name, class_count, facts.family or FAMILY)
