"""The DETR family: RT-DETR, D-FINE, RF-DETR and DETR itself; a fixed set of boxes, no NMS.

Three layouts are around: finished `labels`, `boxes`, `scores` (RT-DETR and D-FINE exports,
torchvision too); two outputs, normalised `cx cy w h` and class logits (RF-DETR,
transformers); and one output with both side by side (Ultralytics RT-DETR).
"""

from dataclasses import dataclass

import numpy as np

from server.detector.heads.grids import is_grid
from server.detector.spec import AnyArray, Candidates, Facts, Tensors
from server.geometry import InputSpec, cxcywh_to_xyxy

FAMILY = "detr"
SHAPE = (
    "labels N, boxes N x 4 and scores N; or boxes N x 4 and logits N x C; or N x (4 + classes), "
    "N up to 1000"
)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_QUERIES = 1000


@dataclass(frozen=True, slots=True)
class FinishedDetrHead:
    """Labels, boxes in input pixels (the model is told the input's size) and scores."""

    labels: str
    boxes: str
    scores: str
    class_count: int
    overlapping: bool
    normalised: bool
    input_wh: tuple[int, int]
    family: str = FAMILY

    def input_spec(self, input_wh: tuple[int, int]) -> InputSpec:
        return InputSpec(input_wh, placement="stretch")

    def decode(self, outputs: Tensors, item: int, floor: float) -> Candidates:
        scores = _of_picture(outputs[self.scores], 1, item)
        kept = np.flatnonzero(scores >= floor)
        xyxy_input = _of_picture(outputs[self.boxes], 2, item)[kept]
        if self.normalised:
            xyxy_input = xyxy_input * _whwh(self.input_wh)
        class_id = _of_picture(outputs[self.labels], 1, item)[kept].astype(np.int32)
        return Candidates(xyxy_input, scores[kept], class_id)


@dataclass(frozen=True, slots=True)
class RawDetrHead:
    """Normalised `cx cy w h` and class logits or scores, in one output or two."""

    boxes: str
    logits: str
    """The same name as `boxes` when both lie side by side in one output."""
    class_count: int
    activation: str
    """"sigmoid", "softmax" (the last class is "nothing") or "" for finished scores."""
    imagenet: bool
    input_wh: tuple[int, int]
    family: str = FAMILY
    overlapping: bool = False

    def input_spec(self, input_wh: tuple[int, int]) -> InputSpec:
        if self.imagenet:
            return InputSpec(input_wh, mean=IMAGENET_MEAN, std=IMAGENET_STD, placement="stretch")
        return InputSpec(input_wh, placement="stretch")

    def decode(self, outputs: Tensors, item: int, floor: float) -> Candidates:
        rows, scores = outputs[self.boxes][item], outputs[self.logits][item]
        if self.boxes == self.logits:
            scores = scores[:, 4:]
        if self.activation == "softmax":
            weight = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores = (weight / weight.sum(axis=1, keepdims=True))[:, :-1]
        best = scores.max(axis=1)
        if self.activation == "sigmoid":
            best = 1 / (1 + np.exp(-np.clip(best, -30, 30)))
        kept = np.flatnonzero(best >= floor)
        class_id = scores[kept].argmax(axis=1).astype(np.int32)
        xyxy_input = cxcywh_to_xyxy(rows[kept, :4]) * _whwh(self.input_wh)
        return Candidates(xyxy_input, best[kept], class_id)


def recognise(facts: Facts) -> FinishedDetrHead | RawDetrHead | None:
    if len(facts.outputs) == 1:
        return _joined(facts)
    if {"labels", "boxes", "scores"} <= facts.outputs.keys():
        return _finished(facts)
    return _two_outputs(facts)


def _finished(facts: Facts) -> FinishedDetrHead | None:
    boxes = facts.outputs["boxes"]
    if boxes.shape[-1] != 4 or facts.outputs["labels"].dtype.kind not in "iu":
        return None
    # Told the picture's size, RT-DETR and D-FINE answer in pixels; torchvision knows it.
    told = any("size" in info.name for info in facts.inputs[1:])
    normalised = not told and bool(boxes.size) and float(np.abs(boxes).max()) <= 2.0
    return FinishedDetrHead(
        labels="labels",
        boxes="boxes",
        scores="scores",
        class_count=0 if facts.names is None else len(facts.names),
        overlapping=False,
        normalised=normalised,
        input_wh=facts.input_wh,
    )


def _two_outputs(facts: Facts) -> RawDetrHead | None:
    if len(facts.outputs) < 2:
        return None
    boxes = logits = ""
    for name, array in facts.outputs.items():
        if array.ndim != 3 or not 0 < array.shape[1] <= MAX_QUERIES:
            continue
        if array.shape[2] == 4 and not boxes and ("box" in name or name == "dets"):
            boxes = name
        elif not logits and ("logit" in name or name == "labels"):
            logits = name
    if not boxes or not logits:
        return None
    if facts.outputs[boxes].shape[1] != facts.outputs[logits].shape[1]:
        return None
    columns = facts.outputs[logits].shape[2]
    # DETR proper has a last class for "nothing"; RF-DETR's and RT-DETR's scores are apart.
    softmax = columns == 92 or (facts.names is not None and len(facts.names) == columns - 1)
    return RawDetrHead(
        boxes=boxes,
        logits=logits,
        class_count=columns - 1 if softmax else columns,
        activation="softmax" if softmax else "sigmoid",
        # RF-DETR calls its boxes "dets"; transformers feeds DETR alone with ImageNet values.
        imagenet=boxes == "dets" or softmax,
        input_wh=facts.input_wh,
    )


def _joined(facts: Facts) -> RawDetrHead | None:
    [(name, output)] = facts.outputs.items()
    if output.ndim != 3 or output.shape[2] < 5:
        return None
    count, columns = output.shape[1:]
    if facts.family != FAMILY and (
        count > MAX_QUERIES
        or count <= columns
        or is_grid(facts.input_wh, count)
        # A YOLOv8 with more classes than cells, either way up.
        or is_grid(facts.input_wh, columns)
        or (facts.names is not None and len(facts.names) != columns - 4)
    ):
        return None
    return RawDetrHead(name, name, columns - 4, "", False, facts.input_wh)


def _of_picture(array: AnyArray, picture_ndim: int, item: int) -> AnyArray:
    """The item's part; exports without a batch axis hold one picture."""
    part: AnyArray = array[item] if array.ndim > picture_ndim else array
    return part


def _whwh(input_wh: tuple[int, int]) -> AnyArray:
    return np.array((*input_wh, *input_wh), np.float32)
