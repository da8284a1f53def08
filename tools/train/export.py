"""A checkpoint as the ONNX file the server runs: fused, half precision, finished boxes.

The file takes `images` (N, 3, S, S), float32 RGB 0..1, and gives `detections` (N, 300, 6): x1 y1
x2 y2 in input pixels, score, class. Convolutions are in half precision; from the last convolution
on everything is in single precision, because a half has steps of a quarter pixel at x = 300 (and
BF16 of two pixels).

Duplicates are removed inside the graph without loops or dynamic shapes: of the 400 best cells one
is kept unless a better kept one of its class overlaps it. That rule refers to itself; six rounds
from "all kept" reach its fixed point, which is what sequential suppression gives, on everything
but chains of more than six boxes. What is left out has had its say: a box is the mean of those of
its class that lie nearly where it does, each weighted by its score and its overlap.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tools.train.augment import PAD
from tools.train.model import Detector, architecture_from, cells, decode

ROWS = 300
CELLS = 400
"""Looked at for duplicates; each object is seen by some ten cells, so a crowd takes many."""
ROUNDS = 6
FAMILY = "sightline"
OPSET = 17


@dataclasses.dataclass(frozen=True)
class Deployment:
    """What is fixed at export."""

    size: int = 320
    overlap: float = 0.5
    half: bool = True
    rows: int = ROWS
    agreeing: float = 0.6
    """Overlap from which on boxes of a class are averaged."""


def alike(boxes: Tensor, classes: Tensor) -> Tensor:
    """Overlap (N, K, K) of boxes of one class, 0 between classes."""
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    sides = (high - low).clamp(min=0.0)
    shared = sides[..., 0] * sides[..., 1]
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    union = area[:, :, None] + area[:, None, :] - shared
    return shared / union.clamp(min=1e-6) * (classes[:, :, None] == classes[:, None, :])


def suppress(likeness: Tensor, scores: Tensor, overlap: float) -> Tensor:
    """Scores (N, K), sorted from the best, with those of duplicates set to 0."""
    better = torch.ones(likeness.shape[1:]).triu(1).to(likeness)
    # hits[n, i, j]: i is better than j, of its class, and overlaps it.
    hits = (likeness > overlap).to(scores.dtype) * better
    kept = torch.ones_like(scores)
    for _ in range(ROUNDS):
        kept = 1.0 - (hits * kept[:, :, None]).amax(1)
    return scores * kept


def agreed(boxes: Tensor, likeness: Tensor, scores: Tensor, overlap: float) -> Tensor:
    """Each box (N, K, 4) moved to the weighted mean of those that overlap it this much. The mean
    is taken of distances, which are small: products may be computed in BF16."""
    weights = (likeness * (likeness > overlap)) * scores[:, None, :]
    away = boxes[:, None, :, :] - boxes[:, :, None, :]
    total = weights.sum(2).clamp(min=1e-9)
    return boxes + (weights[..., None] * away).sum(2) / total[..., None]


class Deployed(nn.Module):
    """The fused network with everything up to finished boxes."""

    def __init__(self, network: Detector, deployment: Deployment) -> None:
        super().__init__()
        self.network = network.eval().fuse()
        if deployment.half:
            self.network.half()
        self.deployment = deployment
        centres, strides = cells(deployment.size, deployment.size)
        self.register_buffer("centres", centres)
        self.register_buffer("strides", strides)

    def forward(self, images: Tensor) -> Tensor:
        x = images.half() if self.deployment.half else images
        logits, raw = self.network.head(self.network.features(x))
        centres, strides = self.get_buffer("centres"), self.get_buffer("strides")
        best, classes = logits.float().max(-1)
        best, cell = best.topk(min(CELLS, best.shape[1]), dim=1)
        classes = classes.gather(1, cell).float()
        boxes = decode(raw.float(), centres, strides)
        boxes = boxes.gather(1, cell[:, :, None].expand(-1, -1, 4))
        likeness = alike(boxes, classes)
        sure = best.sigmoid()
        scores = suppress(likeness, sure, self.deployment.overlap)
        boxes = agreed(boxes, likeness, sure, self.deployment.agreeing)
        found = torch.cat((boxes, scores[..., None], classes[..., None]), -1)
        _, row = scores.topk(min(self.deployment.rows, scores.shape[1]), dim=1)
        return found.gather(1, row[:, :, None].expand(-1, -1, 6))


def load_checkpoint(path: Path) -> tuple[Detector, dict[str, Any]]:
    """The averaged network of a checkpoint and the rest of its state."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = Detector(architecture_from(state["architecture"]))
    network.load_state_dict(state["average"])
    return network.eval(), state


def metadata(state: dict[str, Any], deployment: Deployment, version: str) -> dict[str, str]:
    """What the file says of itself; values are strings, structured ones JSON."""
    side = deployment.size
    return {
        "names": json.dumps(dict(enumerate(state["names"]))),
        "sightline.family": FAMILY,
        "sightline.input": json.dumps(
            {
                "size": [side, side],
                "colour": "rgb",
                "scale": 1 / 255,
                "mean": [0, 0, 0],
                "std": [1, 1, 1],
                "placement": "letterbox",
                "pad": PAD,
            }
        ),
        "sightline.output": "detections (N, 300, 6): x1 y1 x2 y2 in input pixels, score, class; "
        "duplicates already removed (score 0)",
        "sightline.version": version,
        "license": "Apache-2.0",
        "description": "Sightline nano: people, faces and everyday objects, trained from scratch",
        "sightline.training": json.dumps(
            {
                "architecture": state["architecture"],
                "plan": state["plan"],
                "knowledge": state["knowledge"],
                "teacher": state["taught_by"],
                "steps": state["step"],
                "data": "COCO, Pascal VOC and a CC0 face-mask set (see models/README.md)",
            }
        ),
    }


def export(
    checkpoint: Path, target: Path, deployment: Deployment = Deployment(), version: str = "1"
) -> str:
    """Write the file; returns its SHA-256."""
    import onnx

    network, state = load_checkpoint(checkpoint)
    deployed = Deployed(network, deployment)
    example = torch.rand(2, 3, deployment.size, deployment.size)
    with warnings.catch_warnings(), torch.no_grad():
        # The tracing exporter needs nothing beside onnx and writes plain operators.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            deployed,
            (example,),
            str(target),
            input_names=["images"],
            output_names=["detections"],
            dynamic_axes={"images": {0: "batch"}, "detections": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(str(target))
    del model.metadata_props[:]
    for key, value in metadata(state, deployment, version).items():
        model.metadata_props.add(key=key, value=value)
    for node in model.graph.node:
        node.doc_string = ""
    model.producer_name = "sightline tools.train"
    model.producer_version = ""
    onnx.checker.check_model(model)
    onnx.save(model, str(target))
    return hashlib.sha256(target.read_bytes()).hexdigest()
