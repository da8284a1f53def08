"""The labelled pictures: read once, kept decoded in memory, with what each picture knows.

A picture knows some classes completely (`complete`: people labelled every one of them), the rest
only through a teacher's boxes. Three things follow for every class of a picture:

- people's boxes are targets of weight 1, and where the class is complete the rest of the picture
  is background of weight 1;
- where it is not complete, confident teacher boxes are soft targets (weight = score), weak ones
  are regions to ignore, and background counts only `unlabelled_weight`: there an object that
  neither people nor the teacher marked may hide;
- crowds are regions to ignore.

Nothing here needs torch.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

REQUIRED = (
    *("person", "face", "bicycle", "car", "motorcycle", "bus", "truck", "bird", "cat", "dog"),
    *("horse", "sheep", "cow", "chair", "couch", "bottle", "tv"),
)
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Knowledge:
    """How far the labels are trusted; part of the training record."""

    confident: float = 0.5
    unlabelled_weight: float = 0.3
    fewest_boxes: int = 60


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """One picture with targets and regions to ignore; arrays are read-only by agreement."""

    bgr: Bytes
    half_bgr: Bytes
    """The same at half the size, to shrink from without aliasing."""
    source: str
    boxes_xyxy: Floats
    classes: Integers
    weights: Floats
    ignored_xyxy: Floats
    ignored_classes: Integers
    background: Floats
    """Weight of the background per class, (C,)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Corpus:
    names: tuple[str, ...]
    left_out: dict[str, int]
    """Name of each class not taught, with how many usable boxes it had."""
    pictures: tuple[Picture, ...]
    knowledge: Knowledge


def choose_classes(labels: dict[str, Any], knowledge: Knowledge) -> tuple[list[int], Counter[int]]:
    """Class ids to teach, required ones first, and the usable boxes of every class."""
    usable: Counter[int] = Counter()
    for image in labels["images"]:
        complete = set(image["complete"])
        usable.update(int(box[4]) for box in image["boxes"] if not box[5])
        usable.update(
            int(box[4])
            for box in image["teacher"]
            if box[5] >= knowledge.confident and int(box[4]) not in complete
        )
    names: list[str] = labels["names"]
    chosen = [names.index(name) for name in REQUIRED if name in names]
    chosen += [
        class_id
        for class_id in range(len(names))
        if class_id not in chosen and usable[class_id] >= knowledge.fewest_boxes
    ]
    return chosen, usable


def understand(image: dict[str, Any], chosen: Sequence[int], knowledge: Knowledge) -> Picture:
    """One entry of `labels.json` as targets, regions to ignore and background weights."""
    place = {class_id: index for index, class_id in enumerate(chosen)}
    complete = set(image["complete"])
    targets: list[tuple[Sequence[float], int, float]] = []
    ignored: list[tuple[Sequence[float], int]] = []
    for *box, class_id, crowd in image["boxes"]:
        if class_id not in place:
            continue
        if crowd:
            ignored.append((box, place[class_id]))
        else:
            targets.append((box, place[class_id], 1.0))
    for *box, class_id, score in image["teacher"]:
        if class_id not in place or class_id in complete:
            continue
        if score >= knowledge.confident:
            targets.append((box, place[class_id], float(score)))
        else:
            ignored.append((box, place[class_id]))
    background = np.full(len(chosen), knowledge.unlabelled_weight, np.float32)
    for class_id in complete:
        if class_id in place:
            background[place[class_id]] = 1.0
    return Picture(
        bgr=np.zeros((0, 0, 3), np.uint8),
        half_bgr=np.zeros((0, 0, 3), np.uint8),
        source=str(image["file"]).split("_", 1)[0],
        boxes_xyxy=np.array([t[0] for t in targets], np.float32).reshape(-1, 4),
        classes=np.array([t[1] for t in targets], np.int64),
        weights=np.array([t[2] for t in targets], np.float32),
        ignored_xyxy=np.array([i[0] for i in ignored], np.float32).reshape(-1, 4),
        ignored_classes=np.array([i[1] for i in ignored], np.int64),
        background=background,
    )


def halve(bgr: Bytes) -> Bytes:
    height, width = bgr.shape[:2]
    half_wh = (max(1, width // 2), max(1, height // 2))
    return np.asarray(cv2.resize(bgr, half_wh, interpolation=cv2.INTER_AREA), np.uint8)


def load(
    folder: Path,
    knowledge: Knowledge = Knowledge(),
    longest_side: int = 320,
    limit: int | None = None,
) -> Corpus:
    """Read `labels.json` and `images/` of a folder; larger pictures are shrunk on the way in."""
    labels = json.loads((folder / "labels.json").read_text())
    chosen, usable = choose_classes(labels, knowledge)
    pictures = []
    for image in labels["images"][:limit]:
        bgr = cv2.imread(str(folder / "images" / image["file"]), cv2.IMREAD_COLOR)
        if bgr is None:
            raise FileNotFoundError(f"cannot read {folder / 'images' / image['file']}")
        picture = understand(image, chosen, knowledge)
        scale = min(1.0, longest_side / max(bgr.shape[:2]))
        if scale < 1.0:
            bgr = cv2.resize(bgr, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        pictures.append(
            dataclasses.replace(
                picture,
                bgr=np.asarray(bgr, np.uint8),
                half_bgr=halve(np.asarray(bgr, np.uint8)),
                boxes_xyxy=picture.boxes_xyxy * np.float32(scale),
                ignored_xyxy=picture.ignored_xyxy * np.float32(scale),
            )
        )
    names: list[str] = labels["names"]
    return Corpus(
        names=tuple(names[class_id] for class_id in chosen),
        left_out={
            name: usable[class_id] for class_id, name in enumerate(names) if class_id not in chosen
        },
        pictures=tuple(pictures),
        knowledge=knowledge,
    )


def sampling_weights(pictures: Sequence[Picture]) -> npt.NDArray[np.float64]:
    """Chance of each picture: rich in people and faces, and rare classes, come more often."""
    counts = np.zeros(len(pictures[0].background))
    for picture in pictures:
        counts[np.unique(picture.classes)] += 1
    # Fourth root of how rare a picture's rarest class is: strong enough to show buses and birds
    # more than chance would, weak enough not to repeat the same few pictures all the time.
    rarity = (len(pictures) / np.maximum(counts, 1.0)) ** 0.25
    chances = np.ones(len(pictures))
    for index, picture in enumerate(pictures):
        if len(picture.classes):
            chances[index] = float(rarity[np.unique(picture.classes)].max())
        if picture.background[0] == 1.0:  # people complete
            chances[index] *= 1.5
    total: npt.NDArray[np.float64] = chances / chances.sum()
    return total
