"""YuNet faces: per stride `cls`, `obj`, `bbox` and `kps` outputs; five landmarks each."""

from dataclasses import dataclass

import numpy as np

from server.detector.heads.grids import cells
from server.detector.spec import Candidates, Facts, Tensors
from server.geometry import Float32Array, InputSpec, cxcywh_to_xyxy

FAMILY = "yunet"
SHAPE = "outputs cls_8 obj_8 bbox_8 kps_8 and the same for 16 and 32"
STRIDES = (8, 16, 32)
LANDMARKS = 5


@dataclass(frozen=True, slots=True, eq=False)
class YuNetHead:
    cells: Float32Array
    strides: Float32Array
    family: str = FAMILY
    class_count: int = 1
    overlapping: bool = True

    def input_spec(self, input_wh: tuple[int, int]) -> InputSpec:
        return InputSpec(input_wh, colour="bgr", scale=1.0, placement="top-left", pad=0)

    def decode(self, outputs: Tensors, item: int, floor: float) -> Candidates:
        def joined(kind: str) -> Float32Array:
            return np.concatenate([outputs[f"{kind}_{stride}"][item] for stride in STRIDES])

        product = np.clip(joined("cls")[:, 0], 0, 1) * np.clip(joined("obj")[:, 0], 0, 1)
        kept = np.flatnonzero(product >= floor * floor)
        place, stride = self.cells[kept], self.strides[kept]
        box = joined("bbox")[kept]
        size = np.exp(np.minimum(box[:, 2:], 20)) * stride
        cxcywh = np.concatenate(((box[:, :2] + place) * stride, size), axis=1)
        points = joined("kps")[kept].reshape(-1, LANDMARKS, 2)
        return Candidates(
            cxcywh_to_xyxy(cxcywh),
            np.sqrt(product[kept]),
            np.zeros(len(kept), np.int32),
            (points + place[:, None]) * stride[:, None],
        )


def recognise(facts: Facts) -> YuNetHead | None:
    wanted = {f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in STRIDES}
    if not wanted <= facts.outputs.keys():
        return None
    places, sizes = cells(facts.input_wh, STRIDES)
    if sum(facts.outputs[f"cls_{stride}"].shape[1] for stride in STRIDES) != len(places):
        return None
    return YuNetHead(places, sizes)
