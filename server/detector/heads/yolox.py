"""YOLOX: one row per grid cell, `cx cy w h objectness class...`, decoded or not.

The standard export leaves the grid undecoded: centres are offsets in cells, sizes are
logarithms. `--decode_in_inference` exports (and YOLOv6, whose objectness is 1) give pixels.
"""

from dataclasses import dataclass

import numpy as np

from server.detector.heads.grids import cells, strides_for
from server.detector.spec import AnyArray, Candidates, Facts, Tensors
from server.geometry import Float32Array, InputSpec, cxcywh_to_xyxy

FAMILY = "yolox"
SHAPE = "N x (5 + classes) with one row per cell of strides 8, 16, 32"
# NanoDet-Plus, with four levels, would look like a YOLOX of odd classes.
USUAL_STRIDES = ((8, 16, 32),)
# Undecoded centres stay within a few cells of zero; decoded ones spread over the picture.
UNDECODED_CENTRE_LIMIT = 8.0


@dataclass(frozen=True, slots=True, eq=False)
class YoloxHead:
    output: str
    class_count: int
    cells: Float32Array | None
    strides: Float32Array | None
    family: str = FAMILY
    overlapping: bool = True

    def input_spec(self, input_wh: tuple[int, int]) -> InputSpec:
        return InputSpec(input_wh, colour="bgr", scale=1.0, placement="top-left")

    def decode(self, outputs: Tensors, item: int, floor: float) -> Candidates:
        rows = outputs[self.output][item]
        # A class score never lifts a box above its objectness: most rows go at once.
        kept = np.flatnonzero(rows[:, 4] >= floor)
        return boxes_of_rows(rows, kept, floor, self.cells, self.strides)


def boxes_of_rows(
    rows: AnyArray,
    kept: AnyArray,
    floor: float,
    places: Float32Array | None = None,
    strides: Float32Array | None = None,
) -> Candidates:
    """Boxes of the kept rows `cx cy w h objectness class...`, above the floor."""
    few = rows[kept]
    class_id = few[:, 5:].argmax(axis=1).astype(np.int32)
    confidence = few[:, 4] * np.take_along_axis(few[:, 5:], class_id[:, None], 1)[:, 0]
    strong = confidence >= floor
    few, class_id, confidence = few[strong], class_id[strong], confidence[strong]
    cxcywh = few[:, :4]
    if places is not None and strides is not None:
        place, stride = places[kept[strong]], strides[kept[strong]]
        # Beyond e^20 a size is nonsense anyway; the limit keeps it finite.
        size = np.exp(np.minimum(cxcywh[:, 2:], 20)) * stride
        cxcywh = np.concatenate(((cxcywh[:, :2] + place) * stride, size), axis=1)
    return Candidates(cxcywh_to_xyxy(cxcywh), confidence, class_id)


def recognise(facts: Facts) -> YoloxHead | None:
    if len(facts.outputs) != 1:
        return None
    [(name, output)] = facts.outputs.items()
    if output.ndim != 3 or output.shape[2] < 6:
        return None
    strides = strides_for(facts.input_wh, output.shape[1])
    if strides is None or (facts.family is None and strides not in USUAL_STRIDES):
        return None
    class_count = output.shape[2] - 5
    if facts.family is None and facts.names is not None and len(facts.names) != class_count:
        return None
    decoded = facts.sidecar.decoded
    if decoded is None:
        centres = np.abs(output[0, :, :2].astype(np.float32))
        decoded = bool(np.median(centres) > UNDECODED_CENTRE_LIMIT)
    if decoded:
        return YoloxHead(name, class_count, None, None)
    return YoloxHead(name, class_count, *cells(facts.input_wh, strides))
