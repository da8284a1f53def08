"""One training example from one or four pictures, made to look like webcams and CCTV.

A pure function of the pictures and a random generator: the same seed gives the same example.
Nothing here needs torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from tools.train.data import Bytes, Floats, Integers, Picture

PAD = 114
SMALLEST_TARGET = 3.0
VISIBLE_TARGET = 0.3
NOISE_DEVIATION = 30.0
NOISE: Bytes = (
    np.random.default_rng(0).normal(128.0, NOISE_DEVIATION, (640, 640, 3)).clip(0, 255)
).astype(np.uint8)
"""Sensor noise made once; a random window of it is added. Making it anew costs more than all the
rest of the augmentation."""


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """Strength of the augmentation. Scales are relative to the stored picture (<= 320 px)."""

    size: int = 256
    mosaic: float = 0.6
    single_scale: tuple[float, float] = (0.7, 1.5)
    mosaic_scale: tuple[float, float] = (0.45, 1.1)
    rotate_degrees: float = 4.0
    stretch: float = 0.1
    colour: float = 1.0
    degrade: float = 0.4
    whole: float = 0.0
    """Chance of a plain letterboxed picture, as the detector sees it when serving."""


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """A square training picture; boxes are `xyxy_input`. Tiles say whose background weights hold
    where: `tiles_xyxy` (T, 4) with `background` (T, C); outside of tiles there is only padding."""

    rgb: Bytes
    boxes_xyxy: Floats
    classes: Integers
    weights: Floats
    ignored_xyxy: Floats
    ignored_classes: Integers
    tiles_xyxy: Floats
    background: Floats


def compose(pictures: Sequence[Picture], recipe: Recipe, rng: np.random.Generator) -> Example:
    """One picture fills the square; four share it around a random centre."""
    size = recipe.size
    if len(pictures) == 1:
        areas = [(0, 0, size, size)]
        scales = recipe.single_scale
    else:
        cx, cy = (int(v) for v in rng.uniform(0.3 * size, 0.7 * size, 2))
        areas = [(0, 0, cx, cy), (cx, 0, size, cy), (0, cy, cx, size), (cx, cy, size, size)]
        scales = recipe.mosaic_scale
    canvas = np.full((size, size, 3), PAD, np.uint8)
    targets, ignored = [], []
    for picture, area in zip(pictures, areas, strict=True):
        whole = len(pictures) == 1 and rng.random() < recipe.whole
        matrix = _placement(picture, area, scales, recipe, rng, whole)
        x1, y1, x2, y2 = area
        canvas[y1:y2, x1:x2] = _warp(picture, matrix, (x2 - x1, y2 - y1))
        boxes, visible = _move(picture.boxes_xyxy, matrix, area)
        sides = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
        good = (visible >= VISIBLE_TARGET) & (sides >= SMALLEST_TARGET)
        there = (visible > 0.0) & ~good
        targets.append((boxes[good], picture.classes[good], picture.weights[good]))
        ignored.append((boxes[there], picture.classes[there]))
        boxes, visible = _move(picture.ignored_xyxy, matrix, area)
        ignored.append((boxes[visible > 0.0], picture.ignored_classes[visible > 0.0]))
    canvas = _recolour(canvas, recipe, rng)
    canvas = _degrade(canvas, recipe, rng)
    return Example(
        rgb=np.asarray(cv2.cvtColor(canvas, cv2.COLOR_BGR2RGB), np.uint8),
        boxes_xyxy=np.concatenate([t[0] for t in targets]),
        classes=np.concatenate([t[1] for t in targets]),
        weights=np.concatenate([t[2] for t in targets]),
        ignored_xyxy=np.concatenate([i[0] for i in ignored]),
        ignored_classes=np.concatenate([i[1] for i in ignored]),
        tiles_xyxy=np.array(areas, np.float32),
        background=np.stack([p.background for p in pictures]),
    )


def _placement(
    picture: Picture,
    area: tuple[int, int, int, int],
    scales: tuple[float, float],
    recipe: Recipe,
    rng: np.random.Generator,
    whole: bool,
) -> npt.NDArray[np.float64]:
    """Affine matrix from picture to area: scale, stretch, small turn, mirror, random window."""
    height, width = picture.bgr.shape[:2]
    area_w, area_h = area[2] - area[0], area[3] - area[1]
    if whole:
        scale = min(area_w / width, area_h / height)
        sx = sy = scale
        angle = 0.0
    else:
        scale = math.exp(rng.uniform(math.log(scales[0]), math.log(scales[1])))
        stretch = math.exp(rng.uniform(-recipe.stretch, recipe.stretch))
        sx, sy = scale * stretch, scale / stretch
        angle = math.radians(rng.normal(0.0, recipe.rotate_degrees / 2))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    cos, sin = math.cos(angle), math.sin(angle)
    linear = np.array([[cos * sx * mirror, -sin * sy], [sin * sx * mirror, cos * sy]])
    corners = linear @ np.array([[0, width, 0, width], [0, 0, height, height]], np.float64)
    low, high = corners.min(1), corners.max(1)
    spare = np.array([area_w, area_h]) - (high - low)
    # Larger than the area: a window at random. Smaller: somewhere inside.
    at = rng.uniform(0.0, 1.0, 2) * spare if not whole else spare / 2
    return np.column_stack((linear, at - low))


def _warp(picture: Picture, matrix: npt.NDArray[np.float64], size_wh: tuple[int, int]) -> Bytes:
    """The picture in the area. warpAffine looks at four pixels only and would alias when it
    shrinks a lot, so it then starts from the copy of half the size."""
    bgr = picture.bgr
    if float(np.hypot(*matrix[:, 0])) < 0.65:
        height, width = bgr.shape[:2]
        bgr = picture.half_bgr
        matrix = matrix @ np.diag([width / bgr.shape[1], height / bgr.shape[0], 1.0])
    # The matrix moves points of the plane; warpAffine counts from the centre of pixel 0.
    matrix = matrix.copy()
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    warped = cv2.warpAffine(
        bgr,
        matrix,
        size_wh,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(PAD, PAD, PAD),
    )
    return np.asarray(warped, np.uint8)


def _move(
    boxes_xyxy: Floats, matrix: npt.NDArray[np.float64], area: tuple[int, int, int, int]
) -> tuple[Floats, Floats]:
    """Boxes in canvas pixels, clipped to the area, and the visible share of each."""
    if not len(boxes_xyxy):
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    x1, y1, x2, y2 = boxes_xyxy.T
    corners = np.stack(
        (np.stack((x1, x2, x1, x2)), np.stack((y1, y1, y2, y2)), np.ones((4, len(x1))))
    )
    moved = np.einsum("ij,jkn->ikn", matrix, corners)
    low, high = moved.min(1).T, moved.max(1).T
    full = np.prod(high - low, 1)
    offset, limit = np.array(area[:2]), np.array([area[2] - area[0], area[3] - area[1]])
    low, high = np.clip(low, 0, limit), np.clip(high, 0, limit)
    visible = np.prod(high - low, 1) / np.maximum(full, 1e-6)
    return (
        np.concatenate((low + offset, high + offset), 1).astype(np.float32),
        visible.astype(np.float32),
    )


def _recolour(bgr: Bytes, recipe: Recipe, rng: np.random.Generator) -> Bytes:
    """Exposure, contrast, white balance and saturation as cameras get them wrong."""
    if recipe.colour <= 0.0:
        return bgr
    strength = recipe.colour
    levels = np.arange(256, dtype=np.float32) / 255.0
    gamma = math.exp(rng.normal(0.0, 0.25 * strength))
    gain = math.exp(rng.normal(0.0, 0.15 * strength)) * np.exp(rng.normal(0, 0.06 * strength, 3))
    lift = rng.normal(0.0, 0.05 * strength)
    table = (levels[:, None] ** gamma) * gain[None, :] + lift
    lookup = (np.clip(table, 0.0, 1.0) * 255).astype(np.uint8).reshape(256, 1, 3)
    bgr = np.asarray(cv2.LUT(bgr, lookup), np.uint8)
    saturation = 0.0 if rng.random() < 0.04 * strength else math.exp(rng.normal(0, 0.3 * strength))
    if abs(saturation - 1.0) > 0.1:
        grey = cv2.cvtColor(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        bgr = np.asarray(cv2.addWeighted(bgr, saturation, grey, 1.0 - saturation, 0.0), np.uint8)
    return bgr


def _degrade(bgr: Bytes, recipe: Recipe, rng: np.random.Generator) -> Bytes:
    """Blur, motion, coarse sensors, noise and compression."""
    if rng.random() >= recipe.degrade:
        return bgr
    size = bgr.shape[0]
    kind = rng.integers(4)
    if kind == 0:
        bgr = np.asarray(cv2.GaussianBlur(bgr, (0, 0), rng.uniform(0.4, 1.3)), np.uint8)
    elif kind == 1:
        length = int(rng.integers(2, 6))
        kernel = np.zeros((length, length), np.float32)
        angle = rng.uniform(0, math.pi)
        for t in np.linspace(-0.5, 0.5, 2 * length):
            x = round((length - 1) / 2 + t * (length - 1) * math.cos(angle))
            y = round((length - 1) / 2 + t * (length - 1) * math.sin(angle))
            kernel[y, x] = 1.0
        bgr = np.asarray(cv2.filter2D(bgr, -1, kernel / kernel.sum()), np.uint8)
    elif kind == 2:
        small = int(size * rng.uniform(0.5, 0.9))
        coarse = cv2.resize(bgr, (small, small), interpolation=cv2.INTER_AREA)
        bgr = np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)
    if rng.random() < 0.4:
        x, y = (int(v) for v in rng.integers(0, len(NOISE) - size + 1, 2))
        window = NOISE[y : y + size, x : x + size]
        strength = rng.uniform(2.0, 12.0) / NOISE_DEVIATION
        noisy = cv2.addWeighted(bgr, 1.0, window, strength, -128.0 * strength)
        bgr = np.asarray(noisy, np.uint8)
    if rng.random() < 0.5:
        quality = int(rng.integers(18, 75))
        ok, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
        if ok:
            bgr = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return bgr
