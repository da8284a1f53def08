"""The network: plain convolutions, three strides, one head shared by all of them.

Everything is convolution, batch norm and activation, so each triple fuses into one convolution for
export. Boxes are regressed as four distances from the cell's centre (no distributions), classes
are independent sigmoids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

STRIDES = (8, 16, 32)


@dataclasses.dataclass(frozen=True, slots=True)
class Architecture:
    """Widths and depths; everything needed to build the network again from a checkpoint."""

    classes: int
    stem: int = 32
    widths: tuple[int, int, int] = (80, 144, 224)
    depths: tuple[int, int, int] = (2, 2, 2)
    neck: int = 64
    head: int = 64
    activation: str = "relu"
    branched: bool = False
    """While training every 3x3 convolution of backbone and neck has a 1x1 and, where the shape
    stays, a plain copy beside it, each with its own norm. Fused it is the same network."""


def architecture_from(fields: dict[str, Any]) -> Architecture:
    """From a checkpoint or a training record, where tuples may have become lists."""
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return Architecture(**plain)


def _activation(name: str) -> nn.Module:
    if name == "relu":
        return nn.ReLU(inplace=True)
    if name == "silu":
        return nn.SiLU(inplace=True)
    raise ValueError(f"activation must be relu or silu, not {name!r}")


class ConvBlock(nn.Module):
    """Convolution, batch norm, activation; `fuse()` folds the norm into the convolution.

    With `branched`, a 3x3 convolution has branches beside it while training (see `Architecture`),
    and `fuse()` adds them into the one convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        activation: str = "relu",
        branched: bool = False,
    ) -> None:
        super().__init__()
        padding = (kernel - 1) // 2 if kernel % 2 else (kernel - stride) // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.norm: nn.Module = _norm(outputs)
        self.point: nn.Sequential | None = None
        self.same: nn.BatchNorm2d | None = None
        if branched and kernel == 3:
            point = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.point = nn.Sequential(point, _norm(outputs))
            if inputs == outputs and stride == 1:
                self.same = _norm(outputs)
        self.act = _activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        if self.point is not None:
            y = y + self.point(x)
        if self.same is not None:
            y = y + self.same(x)
        z: Tensor = self.act(y)
        return z

    def fuse(self) -> None:
        if not isinstance(self.norm, nn.BatchNorm2d):
            return
        self.conv, self.norm = fold(self.conv, self.norm), nn.Identity()
        branches = []
        if self.point is not None:
            branches.append(fold(*self.point))
        if self.same is not None:
            copy = nn.Conv2d(self.conv.in_channels, self.conv.out_channels, 1, bias=False)
            nn.init.dirac_(copy.weight)
            branches.append(fold(copy, self.same))
        with torch.no_grad():
            for branch in branches:
                self.conv.weight[:, :, 1:2, 1:2] += branch.weight
                self.conv.bias += branch.bias
        self.point = self.same = None


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.03)


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution that computes `norm(conv(x))` with the norm's running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    fused = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (conv.kernel_size[0], conv.kernel_size[1]),
        (conv.stride[0], conv.stride[1]),
        (int(conv.padding[0]), int(conv.padding[1])),
        bias=True,
    )
    assert fused.bias is not None
    with torch.no_grad():
        fused.weight.copy_(conv.weight * factor.reshape(-1, 1, 1, 1))
        fused.bias.copy_(norm.bias - norm.running_mean * factor)
    return fused


class Residual(nn.Module):
    """Two 3x3 convolutions through half the width, added to the input."""

    def __init__(self, width: int, activation: str, branched: bool) -> None:
        super().__init__()
        self.narrow = ConvBlock(width, width // 2, 3, 1, activation, branched)
        self.widen = ConvBlock(width // 2, width, 3, 1, activation, branched)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.widen(self.narrow(x))
        return y


class Context(nn.Module):
    """Three chained 5x5 max pools beside the input: sees the whole picture for almost nothing."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.narrow = ConvBlock(width, width // 2, 1, 1, activation)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.widen = ConvBlock(width * 2, width, 1, 1, activation)

    def forward(self, x: Tensor) -> Tensor:
        pools = [self.narrow(x)]
        for _ in range(3):
            pools.append(self.pool(pools[-1]))
        y: Tensor = self.widen(torch.cat(pools, 1))
        return y


class Head(nn.Module):
    """Class and box towers whose convolutions all strides share, each stride with its own norms.

    Sharing lets an object learnt at one size be known at the others; own norms absorb that the
    strides' features differ in strength.
    """

    def __init__(self, inputs: int, width: int, classes: int, activation: str) -> None:
        super().__init__()
        self.class_conv = nn.Conv2d(inputs, width, 3, 1, 1, bias=False)
        self.box_conv = nn.Conv2d(inputs, width, 3, 1, 1, bias=False)
        self.class_norms = nn.ModuleList(_norm(width) for _ in STRIDES)
        self.box_norms = nn.ModuleList(_norm(width) for _ in STRIDES)
        self.fused_class: nn.ModuleList | None = None
        self.fused_box: nn.ModuleList | None = None
        self.act = _activation(activation)
        self.class_out = nn.Conv2d(width, classes, 1)
        self.box_out = nn.Conv2d(width, 4, 1)
        assert self.class_out.bias is not None
        assert self.box_out.bias is not None
        nn.init.normal_(self.class_out.weight, std=0.01)
        nn.init.normal_(self.box_out.weight, std=0.01)
        nn.init.constant_(self.class_out.bias, -5.0)
        nn.init.constant_(self.box_out.bias, 1.0)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        logits, distances = [], []
        for level, x in enumerate(features):
            if self.fused_class is not None and self.fused_box is not None:
                c = self.act(self.fused_class[level](x))
                b = self.act(self.fused_box[level](x))
            else:
                c = self.act(self.class_norms[level](self.class_conv(x)))
                b = self.act(self.box_norms[level](self.box_conv(x)))
            logits.append(self.class_out(c).flatten(2))
            distances.append(self.box_out(b).flatten(2))
        return torch.cat(logits, 2).transpose(1, 2), torch.cat(distances, 2).transpose(1, 2)

    def fuse(self) -> None:
        self.fused_class = nn.ModuleList(
            fold(self.class_conv, norm)
            for norm in self.class_norms
            if isinstance(norm, nn.BatchNorm2d)
        )
        self.fused_box = nn.ModuleList(
            fold(self.box_conv, norm) for norm in self.box_norms if isinstance(norm, nn.BatchNorm2d)
        )
        del self.class_conv, self.box_conv, self.class_norms, self.box_norms


class Detector(nn.Module):
    """Pictures (N, 3, H, W), RGB 0..1, to class logits (N, A, C) and boxes (N, A, 4).

    H and W are multiples of 32. Boxes are `xyxy_input`; the A cells run over stride 8, 16, 32,
    row by row.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.architecture = a
        act, more = a.activation, a.branched
        self.stem = nn.Sequential(
            ConvBlock(3, a.stem, 6, 4, act), ConvBlock(a.stem, a.stem, 3, 1, act, more)
        )
        stages, laterals = [], []
        before = a.stem
        for level, (width, depth) in enumerate(zip(a.widths, a.depths, strict=True)):
            blocks: list[nn.Module] = [ConvBlock(before, width, 3, 2, act, more)]
            blocks += [Residual(width, act, more) for _ in range(depth)]
            if level == len(a.widths) - 1:
                blocks.append(Context(width, act))
            stages.append(nn.Sequential(*blocks))
            laterals.append(ConvBlock(width, a.neck, 1, 1, act))
            before = width
        self.stages = nn.ModuleList(stages)
        self.laterals = nn.ModuleList(laterals)
        self.down_fuse = nn.ModuleList(ConvBlock(a.neck, a.neck, 3, 1, act, more) for _ in range(2))
        self.up_step = nn.ModuleList(ConvBlock(a.neck, a.neck, 3, 2, act, more) for _ in range(2))
        self.up_fuse = nn.ModuleList(ConvBlock(a.neck, a.neck, 3, 1, act, more) for _ in range(2))
        self.head = Head(a.neck, a.head, a.classes, act)

    def features(self, pictures: Tensor) -> list[Tensor]:
        """The neck's outputs at strides 8, 16 and 32."""
        x = self.stem(pictures)
        c = []
        for stage, lateral in zip(self.stages, self.laterals, strict=True):
            x = stage(x)
            c.append(lateral(x))
        p5 = c[2]
        p4 = self.down_fuse[0](c[1] + functional.interpolate(p5, scale_factor=2.0, mode="nearest"))
        p3 = self.down_fuse[1](c[0] + functional.interpolate(p4, scale_factor=2.0, mode="nearest"))
        n4 = self.up_fuse[0](p4 + self.up_step[0](p3))
        n5 = self.up_fuse[1](p5 + self.up_step[1](n4))
        return [p3, n4, n5]

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(pictures)
        logits, raw = self.head(features)
        height, width = int(pictures.shape[2]), int(pictures.shape[3])
        centres, strides = cells(height, width, pictures.device)
        return logits, decode(raw, centres, strides)

    def fuse(self) -> Detector:
        """Fold every norm in place, for evaluation and export only."""
        for module in self.modules():
            if isinstance(module, (ConvBlock, Head)):
                module.fuse()
        return self


def cells(height: int, width: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Centres (A, 2) in input pixels and strides (A, 1) of all cells, in output order."""
    centres, strides = [], []
    for stride in STRIDES:
        ys = (torch.arange(height // stride, device=device) + 0.5) * stride
        xs = (torch.arange(width // stride, device=device) + 0.5) * stride
        grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
        centres.append(torch.stack((grid_x.reshape(-1), grid_y.reshape(-1)), 1))
        strides.append(torch.full((len(centres[-1]), 1), float(stride), device=device))
    return torch.cat(centres), torch.cat(strides)


def decode(raw: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Raw distances to boxes; softplus keeps them positive without overflowing half precision."""
    distances = functional.softplus(raw.to(centres.dtype)) * strides
    left_top, right_bottom = distances.chunk(2, dim=-1)
    return torch.cat((centres - left_top, centres + right_bottom), -1)


def parameters_of(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
