"""Quick AP of a network on a folder with `instances.json`, the way COCO counts it."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tools.train.augment import PAD
from tools.train.data import Bytes, Floats, Integers

Run = Callable[[Bytes], tuple[Floats, Floats]]
"""uint8 RGB pictures (N, S, S, 3) to scores (N, A, C) and boxes (N, A, 4) in `xyxy_input`."""


def letterbox(bgr: Bytes, size: int) -> tuple[Bytes, float, tuple[int, int]]:
    """RGB square with the picture centred, the scale, and the offset (x, y)."""
    height, width = bgr.shape[:2]
    scale = size / max(height, width)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    x, y = (size - w) // 2, (size - h) // 2
    square = np.full((size, size, 3), PAD, np.uint8)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    square[y : y + h, x : x + w] = cv2.resize(bgr, (w, h), interpolation=how)[:, :, ::-1]
    return square, scale, (x, y)


def select(
    scores: Floats,
    boxes: Floats,
    floor: float = 0.01,
    overlap: float = 0.5,
    candidates: int = 1000,
    most: int = 100,
) -> tuple[Floats, Floats, Integers]:
    """Boxes, scores and classes of one picture after per-class suppression, best first."""
    cell, class_id = np.nonzero(scores > floor)
    score = scores[cell, class_id]
    order = np.argsort(-score)[:candidates]
    cell, class_id, score = cell[order], class_id[order], score[order]
    xyxy = boxes[cell]
    if not len(xyxy):
        return xyxy, score, class_id
    xywh = np.concatenate((xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]), 1)
    kept = cv2.dnn.NMSBoxesBatched(
        xywh.tolist(), score.tolist(), class_id.tolist(), float(floor), overlap
    )
    keep = np.asarray(kept, np.int64).reshape(-1)[:most]
    return xyxy[keep], score[keep], class_id[keep]


def average_precision(
    run: Run, folder: Path, names: Sequence[str], size: int = 320, batch: int = 16
) -> dict[str, tuple[float, float]]:
    """(AP50, AP50-95) in percent per class named in both, and under "all" their mean."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth_file = folder / "instances.json"
    truth = json.loads(truth_file.read_text())
    categories = {c["name"]: int(c["id"]) for c in truth["categories"]}
    category_of = {i: categories[name] for i, name in enumerate(names) if name in categories}
    results: list[dict[str, Any]] = []
    images = truth["images"]
    for start in range(0, len(images), batch):
        squares, places = [], []
        for image in images[start : start + batch]:
            bgr = cv2.imread(str(folder / "images" / image["file_name"]), cv2.IMREAD_COLOR)
            if bgr is None:
                raise FileNotFoundError(image["file_name"])
            square, scale, offset = letterbox(np.asarray(bgr, np.uint8), size)
            squares.append(square)
            places.append((image["id"], scale, offset, bgr.shape))
        scores, boxes = run(np.stack(squares))
        for (image_id, scale, offset, shape), s, b in zip(places, scores, boxes, strict=True):
            xyxy, confidence, class_id = select(s, b)
            xyxy = (xyxy - np.array([*offset, *offset], np.float32)) / scale
            xyxy[:, 0::2] = xyxy[:, 0::2].clip(0, shape[1])
            xyxy[:, 1::2] = xyxy[:, 1::2].clip(0, shape[0])
            results += [
                {
                    "image_id": image_id,
                    "category_id": category_of[int(c)],
                    "bbox": [float(v) for v in (x[0], x[1], x[2] - x[0], x[3] - x[1])],
                    "score": float(p),
                }
                for x, p, c in zip(xyxy, confidence, class_id, strict=True)
                if int(c) in category_of
            ]
    labelled = {int(a["category_id"]) for a in truth["annotations"]}
    table: dict[str, tuple[float, float]] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth_file))
        if results:
            judge = COCOeval(coco, coco.loadRes(results), "bbox")
            judge.params.catIds = sorted(set(category_of.values()) & labelled)
            judge.evaluate()
            judge.accumulate()
            precision = judge.eval["precision"]  # IoU, recall, class, area, detections
            for index, category in enumerate(judge.params.catIds):
                curve = precision[:, :, index, 0, 2]
                valid = curve[curve > -1].size > 0
                name = next(n for n, i in categories.items() if i == category)
                if valid:
                    table[name] = (100 * float(curve[0].mean()), 100 * float(curve.mean()))
    if table:
        mean = np.mean(list(table.values()), 0)
        table["all"] = (float(mean[0]), float(mean[1]))
    else:
        table["all"] = (0.0, 0.0)
    return table
