"""Small labelled pictures made in the test: bright rectangles on a dark ground."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from tools.train.data import Corpus, Knowledge, Picture, halve

NAMES = ("person", "face", "car")


def picture(
    boxes: list[tuple[float, float, float, float]],
    classes: list[int],
    weights: list[float] | None = None,
    background: tuple[float, ...] = (1.0, 1.0, 1.0),
    ignored: list[tuple[float, float, float, float]] | None = None,
    size_wh: tuple[int, int] = (128, 96),
) -> Picture:
    colours = ((60, 220, 60), (220, 60, 60), (60, 60, 220))
    bgr = np.full((size_wh[1], size_wh[0], 3), 40, np.uint8)
    for (x1, y1, x2, y2), class_id in zip(boxes, classes, strict=True):
        bgr[int(y1) : int(y2), int(x1) : int(x2)] = colours[class_id]
    return Picture(
        bgr=bgr,
        half_bgr=halve(bgr),
        source="made",
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        classes=np.array(classes, np.int64),
        weights=np.array(weights or [1.0] * len(classes), np.float32),
        ignored_xyxy=np.array(ignored or [], np.float32).reshape(-1, 4),
        ignored_classes=np.zeros(len(ignored or []), np.int64),
        background=np.array(background, np.float32),
    )


def corpus() -> Corpus:
    """Eight pictures with one large object each."""
    pictures = []
    rng = np.random.default_rng(7)
    for index in range(8):
        x, y = rng.uniform(4, 50), rng.uniform(4, 30)
        pictures.append(picture([(x, y, x + 50, y + 44)], [index % 3]))
    return Corpus(NAMES, {}, tuple(pictures), Knowledge())


def write_folder(folder: Path) -> None:
    """A data folder as `tools.train.data.load` reads it."""
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "images" / "coco_1.jpg"), np.full((200, 400, 3), 90, np.uint8))
    image = {
        "file": "coco_1.jpg",
        "width": 400,
        "height": 200,
        "complete": [0],
        "boxes": [[10, 20, 110, 120, 0, 0], [200, 0, 400, 100, 0, 1]],
        "teacher": [[40, 40, 80, 80, 1, 0.9], [300, 100, 380, 180, 2, 0.35]],
    }
    (folder / "labels.json").write_text(json.dumps({"names": list(NAMES), "images": [image]}))
