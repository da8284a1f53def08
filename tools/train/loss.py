"""What the network is punished for, and what it is not.

Class loss: binary cross-entropy towards the score the assignment asks for. Its weight is a map
(N, A, C): the background weight of the tile a cell lies in (1 where the class is complete, less
where it is not, 0 inside regions to ignore) and the target's own weight where a cell has one.
Box loss: 1 - GIoU of positive cells, weighted by the score asked for.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as functional
from torch import Tensor

from tools.train.assign import Assignment, Targets, assign

SURE = 0.1
"""A teacher's box counts where its best score is above this."""


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """A batch on the device. `tile_of_cell` (N, A) indexes `background` (N, T + 1, C), whose last
    row is 1: padding is background for sure. Ignored regions are flat like targets."""

    pictures: Tensor
    targets: Targets
    ignored_picture: Tensor
    ignored_boxes: Tensor
    ignored_classes: Tensor
    tile_of_cell: Tensor
    background: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Losses:
    total: Tensor
    classes: Tensor
    boxes: Tensor
    positives: int


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU of boxes row by row."""
    shared = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    shared_area = shared.prod(-1)
    area_a = (a[:, 2:] - a[:, :2]).clamp(min=0).prod(-1)
    area_b = (b[:, 2:] - b[:, :2]).clamp(min=0).prod(-1)
    union = area_a + area_b - shared_area + 1e-6
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(-1) + 1e-6
    giou: Tensor = shared_area / union - (hull - union) / hull
    return giou


def class_weights(batch: Batch, assignment: Assignment, centres: Tensor) -> Tensor:
    """The weight map (N, A, C) described above."""
    classes = batch.background.shape[-1]
    index = batch.tile_of_cell[:, :, None].expand(-1, -1, classes)
    weights = torch.gather(batch.background, 1, index)
    if len(batch.ignored_boxes):
        low = batch.ignored_boxes[:, None, :2] <= centres[None]
        high = centres[None] < batch.ignored_boxes[:, None, 2:]
        region, cell = (low & high).all(-1).nonzero(as_tuple=True)
        weights[batch.ignored_picture[region], cell, batch.ignored_classes[region]] = 0.0
    target = assignment.target
    weights[assignment.picture, assignment.cell, batch.targets.classes[target]] = (
        batch.targets.weights[target]
    )
    return weights


def losses(
    logits: Tensor,
    boxes: Tensor,
    batch: Batch,
    centres: Tensor,
    box_gain: float = 4.0,
    top: int = 10,
) -> Losses:
    """Losses of a batch, normalised by the sum of the scores asked for."""
    logits = logits.float()
    found = assign(logits.detach().sigmoid(), boxes.detach(), centres, batch.targets, top=top)
    weights = class_weights(batch, found, centres)
    asked = torch.zeros_like(logits)
    asked[found.picture, found.cell, batch.targets.classes[found.target]] = found.score
    trust = batch.targets.weights[found.target]
    norm = (found.score * trust).sum().clamp(min=1.0)
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, asked, reduction="none")
    class_loss = (cross_entropy * weights).sum() / norm
    giou = generalised_iou(boxes[found.picture, found.cell], batch.targets.boxes[found.target])
    box_loss = ((1.0 - giou) * found.score * trust).sum() / norm
    return Losses(
        class_loss + box_gain * box_loss, class_loss.detach(), box_loss.detach(), len(found.cell)
    )


def agreement(
    logits: Tensor,
    boxes: Tensor,
    scores: Tensor,
    theirs: Tensor,
    known: Tensor,
    box_gain: float = 4.0,
) -> Tensor:
    """How far our answers are from a teacher's at every cell.

    Scores (N, A, C) and boxes `theirs` (N, A, 4) are the teacher's; `known` (C,) is 0 for classes
    it was never taught. Classes: the divergence of its score from ours. Boxes: 1 - GIoU,
    weighted by the score of its best class. Both normalised like `losses`. Unlike labels this says
    something new of every augmented picture: how sure one may be with the object cut, small or
    blurred like this, and which cells see it.
    """
    logits = logits.float()
    asked = scores.clamp(1e-6, 1.0 - 1e-6)
    entropy = functional.binary_cross_entropy(asked, asked, reduction="none")
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, asked, reduction="none")
    best = scores.amax(-1)
    class_loss = ((cross_entropy - entropy) * known).sum() / scores.sum().clamp(min=1.0)
    sure = best > SURE
    giou = generalised_iou(boxes[sure], theirs[sure])
    box_loss = ((1.0 - giou) * best[sure]).sum() / best[sure].sum().clamp(min=1.0)
    return class_loss + box_gain * box_loss
