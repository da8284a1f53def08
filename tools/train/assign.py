"""Which cell answers for which object: task-aligned top-k over a whole batch at once.

Objects of all pictures lie in one flat list, so the cost follows the number of objects and not
the most crowded picture.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

TINY_HALF_SIDE = 6.0
"""Objects smaller than this reach for cells as if they had this half side (pixels): at stride 8 a
tiny box can lie between all centres and would otherwise never be taught."""


@dataclasses.dataclass(frozen=True, slots=True)
class Targets:
    """Objects of a batch, flat: `picture` (T,), `boxes` (T, 4), `classes` (T,), `weights` (T,)."""

    picture: Tensor
    boxes: Tensor
    classes: Tensor
    weights: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Assignment:
    """For P positive cells: where they are, what they answer for, and the score to reach."""

    picture: Tensor
    cell: Tensor
    target: Tensor
    score: Tensor


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU along the last axis of boxes that broadcast."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area_a = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1)
    area_b = (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1)
    iou: Tensor = shared / (area_a + area_b - shared + 1e-6)
    return iou


@torch.no_grad()
def assign(
    scores: Tensor,
    boxes: Tensor,
    centres: Tensor,
    targets: Targets,
    top: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
) -> Assignment:
    """Scores (N, A, C) after sigmoid and boxes (N, A, 4) of the network, FP32.

    Alignment is score^alpha * IoU^beta among cells whose centre lies in the object. The best
    `top` cells of each object are its own; a cell wanted twice goes to the object it overlaps
    most. The best cell of an object is asked for a score equal to its IoU, the others for less in
    proportion.
    """
    count, cell_count = len(targets.boxes), len(centres)
    device = scores.device
    if count == 0:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return Assignment(none, none, none, torch.zeros(0, device=device))
    middle = (targets.boxes[:, :2] + targets.boxes[:, 2:]) / 2
    half = ((targets.boxes[:, 2:] - targets.boxes[:, :2]) / 2).clamp(min=TINY_HALF_SIDE)
    inside = ((centres[None] - middle[:, None]).abs() < half[:, None]).all(-1)
    iou = pairwise_iou(targets.boxes[:, None], boxes[targets.picture])
    score = scores[targets.picture, :, targets.classes]
    alignment = score.clamp(min=1e-6).pow(alpha) * iou.pow(beta)
    # The tiny offset keeps cells of zero overlap in play at the start, nearest centre first.
    distance = ((centres[None] - middle[:, None]) / half[:, None]).square().sum(-1)
    ranking = torch.where(inside, alignment + 1e-9 / (1.0 + distance), alignment.new_tensor(-1.0))
    best, cells_of = ranking.topk(min(top, cell_count), dim=1)
    owner = torch.arange(count, device=device)[:, None].expand_as(cells_of)
    wanted = best > 0
    owner, cell = owner[wanted], cells_of[wanted]
    # One object per cell: write by rising overlap, so the largest is written last.
    overlap = iou[owner, cell]
    order = torch.argsort(overlap, stable=True)
    owner, cell = owner[order], cell[order]
    place = targets.picture[owner] * cell_count + cell
    winner = torch.full((len(scores) * cell_count,), -1, dtype=torch.int64, device=device)
    rank = torch.arange(len(place), device=device)
    winner.scatter_reduce_(0, place, rank, "amax")
    kept = winner[winner >= 0]
    owner, cell = owner[kept], cell[kept]
    aligned, overlap = alignment[owner, cell], iou[owner, cell]
    peak_alignment = torch.zeros(count, device=device).scatter_reduce(0, owner, aligned, "amax")
    peak_overlap = torch.zeros(count, device=device).scatter_reduce(0, owner, overlap, "amax")
    asked = aligned / (peak_alignment[owner] + 1e-9) * peak_overlap[owner]
    return Assignment(targets.picture[owner], cell, owner, asked)
