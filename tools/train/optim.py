"""Muon for the convolutions' weights, AdamW for the rest.

Muon steps along the nearest orthogonal matrix to the momentum instead of the momentum itself, so
that all directions of a weight learn at the same pace. It costs a few small matrix products per
step and reaches a given accuracy in fewer steps, which is what counts on two cores.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalise(gradients: Tensor, rounds: int = 5) -> Tensor:
    """Newton-Schulz iteration of matrices (..., R, C) towards their nearest semi-orthogonal ones.

    On CUDA and CPUs with BF16 the products run in BF16; the iteration forgives its rounding.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = gradients.bfloat16()
    turned = x.shape[-2] > x.shape[-1]
    if turned:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if turned else x).to(gradients.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for weights of two or more axes (flattened to a matrix)."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        assert closure is None
        for group in self.param_groups:
            # Weights of one shape go through the iteration together: many small products cost
            # more in calls than in arithmetic.
            alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"]
                buffer.lerp_(p.grad, 1.0 - group["momentum"])
                look_ahead = p.grad.lerp(buffer, group["momentum"]).reshape(len(p), -1)
                alike.setdefault(tuple(look_ahead.shape), []).append((p, look_ahead))
            for (rows, columns), members in alike.items():
                steps = orthogonalise(torch.stack([matrix for _, matrix in members]))
                scale = max(1.0, rows / columns) ** 0.5
                for (p, _), step in zip(members, steps, strict=True):
                    p.mul_(1.0 - group["lr"] * group["weight_decay"])
                    p.add_(step.reshape(p.shape), alpha=-group["lr"] * scale)


def optimisers(
    network: nn.Module,
    extra: nn.Module | None,
    matrix_rate: float,
    rate: float,
    weight_decay: float,
) -> list[torch.optim.Optimizer]:
    """Muon on hidden convolutions; AdamW on first and last layers, norms and biases."""
    matrices, plain, bare = [], [], []
    for name, p in network.named_parameters():
        if p.ndim < 2:
            bare.append(p)
        elif "_out." in name or name.startswith("stem.0."):
            plain.append(p)
        else:
            matrices.append(p)
    if extra is not None:
        plain += [p for p in extra.parameters() if p.ndim >= 2]
        bare += [p for p in extra.parameters() if p.ndim < 2]
    adam = torch.optim.AdamW(
        [
            {"params": plain, "weight_decay": weight_decay},
            {"params": bare, "weight_decay": 0.0},
        ],
        lr=rate,
        betas=(0.9, 0.99),
    )
    return [Muon(matrices, lr=matrix_rate, weight_decay=weight_decay), adam]
