"""Labelled pictures on disk, read into one shape whatever their layout.

Known layouts: a COCO folder (`instances.json` + `images/`), COCO as it is distributed
(`annotations/instances_val2017.json` + `val2017/`), and YOLO text labels (`images/`, `labels/`,
names in `data.yaml` or `classes.txt`).
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import yaml

from server.errors import SightlineError

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class DataError(SightlineError):
    """The folder holds no data set that we can read; the message says what was missing."""


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What people marked in one picture: parallel arrays, boxes in its pixels."""

    xyxy: npt.NDArray[np.float64]
    class_id: npt.NDArray[np.int64]
    """Index into the data set's names."""
    crowd: npt.NDArray[np.bool_]
    """Regions full of one class, which neither count as missed nor as found."""
    area: npt.NDArray[np.float64]
    """Square pixels; of the outline where that is known, which COCO's size classes go by."""

    def __len__(self) -> int:
        return len(self.class_id)

    def take(self, rows: npt.NDArray[np.bool_]) -> "Truth":
        return Truth(self.xyxy[rows], self.class_id[rows], self.crowd[rows], self.area[rows])


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """One picture and its truth."""

    path: Path
    truth: Truth


@dataclass(frozen=True, slots=True)
class DataSet:
    """Pictures with the names their class ids index."""

    name: str
    names: tuple[str, ...]
    pictures: tuple[LabelledPicture, ...]

    def limited(self, limit: int) -> "DataSet":
        """At most `limit` pictures, spread evenly; all for 0."""
        if not 0 < limit < len(self.pictures):
            return self
        rows = np.linspace(0, len(self.pictures) - 1, limit).round().astype(int)
        return replace(self, pictures=tuple(self.pictures[row] for row in rows))

    def only(self, names: Sequence[str]) -> "DataSet":
        """With nothing but these classes, in this order; DataError for a name it does not have."""
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise DataError(
                f"{self.name}: no class {', '.join(unknown)}; it has {_listed(self.names)}"
            )
        renumbered = np.full(len(self.names), -1, np.int64)
        for index, name in enumerate(names):
            renumbered[self.names.index(name)] = index
        pictures = []
        for picture in self.pictures:
            class_id = renumbered[picture.truth.class_id]
            truth = replace(picture.truth, class_id=class_id).take(class_id >= 0)
            pictures.append(replace(picture, truth=truth))
        return replace(self, names=tuple(names), pictures=tuple(pictures))

    def present(self) -> tuple[str, ...]:
        """Names of which at least one box is marked."""
        seen: set[int] = set()
        for picture in self.pictures:
            seen.update(picture.truth.class_id[~picture.truth.crowd].tolist())
        return tuple(name for index, name in enumerate(self.names) if index in seen)


def load_data(folder: Path) -> DataSet:
    """The data set in `folder`, whichever known layout it has."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    for labels, pictures in (
        (folder / "instances.json", folder / "images"),
        (folder / "annotations" / "instances_val2017.json", folder / "val2017"),
        (folder / "annotations" / "instances_val2017.json", folder / "images" / "val2017"),
        (folder / "annotations" / "instances.json", folder / "images"),
    ):
        if labels.is_file() and pictures.is_dir():
            return _load_coco(folder.name, labels, pictures)
    if (folder / "labels").is_dir() and (folder / "images").is_dir():
        return _load_yolo(folder)
    raise DataError(
        f"{folder}: no data set found; wanted instances.json and images/, or "
        "annotations/instances_val2017.json and val2017/, or images/ and labels/ with data.yaml"
    )


def read_bgr(path: Path) -> npt.NDArray[np.uint8]:
    """The picture as bgr (H, W, 3); DataError when it cannot be decoded."""
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise DataError(f"{path}: not a picture that can be decoded")
    return np.asarray(bgr, np.uint8)


def _load_coco(name: str, labels: Path, folder: Path) -> DataSet:
    try:
        content = json.loads(labels.read_text(encoding="utf-8"))
        categories = sorted(content["categories"], key=lambda row: row["id"])
        index_of = {row["id"]: index for index, row in enumerate(categories)}
        rows_of: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in content["annotations"]:
            rows_of[row["image_id"]].append(row)
        pictures = []
        for image in content["images"]:
            path = folder / image["file_name"]
            pictures.append(LabelledPicture(path, _coco_truth(rows_of[image["id"]], index_of)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{labels}: not COCO labels: {type(error).__name__} {error}") from None
    present = tuple(picture for picture in pictures if picture.path.is_file())
    if not present:
        raise DataError(f"{folder}: none of the {len(pictures)} pictures of {labels.name} is there")
    return DataSet(name, tuple(row["name"] for row in categories), present)


def _coco_truth(rows: Sequence[dict[str, Any]], index_of: dict[int, int]) -> Truth:
    xywh = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    return Truth(
        xyxy=xyxy,
        class_id=np.array([index_of[row["category_id"]] for row in rows], np.int64),
        crowd=np.array([bool(row.get("iscrowd", 0)) for row in rows], np.bool_),
        area=np.array([row.get("area", row["bbox"][2] * row["bbox"][3]) for row in rows], float),
    )


def _load_yolo(folder: Path) -> DataSet:
    names = _yolo_names(folder)
    pictures = []
    paths = sorted(
        path for path in (folder / "images").rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES
    )
    for path in paths:
        relative = path.relative_to(folder / "images").with_suffix(".txt")
        label = folder / "labels" / relative
        rows = _yolo_rows(label, len(names)) if label.is_file() else np.zeros((0, 5))
        height, width = read_bgr(path).shape[:2]
        half = rows[:, 3:5] / 2
        xyxy = np.concatenate([rows[:, 1:3] - half, rows[:, 1:3] + half], axis=1)
        xyxy *= np.array([width, height, width, height], float)
        pictures.append(
            LabelledPicture(
                path,
                Truth(
                    xyxy=xyxy,
                    class_id=rows[:, 0].astype(np.int64),
                    crowd=np.zeros(len(rows), np.bool_),
                    area=(xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1]),
                ),
            )
        )
    if not pictures:
        raise DataError(f"{folder / 'images'}: no pictures")
    return DataSet(folder.name, names, tuple(pictures))


def _yolo_rows(label: Path, classes: int) -> npt.NDArray[np.float64]:
    rows = []
    for number, line in enumerate(label.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = [float(part) for part in line.split()]
        except ValueError:
            row = []
        if len(row) != 5 or not 0 <= row[0] < classes:
            raise DataError(
                f"{label}:{number}: wanted `class cx cy w h` with class 0-{classes - 1}"
            )
        rows.append(row)
    return np.array(rows, np.float64).reshape(-1, 5)


def _yolo_names(folder: Path) -> tuple[str, ...]:
    for path in (folder / "data.yaml", folder / "dataset.yaml"):
        if path.is_file():
            try:
                names = yaml.safe_load(path.read_text(encoding="utf-8"))["names"]
            except (yaml.YAMLError, KeyError, TypeError):
                raise DataError(f"{path}: holds no `names`") from None
            return tuple(names.values() if isinstance(names, dict) else names)
    for path in (folder / "classes.txt", folder / "labels" / "classes.txt"):
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            return tuple(line.strip() for line in lines if line.strip())
    raise DataError(f"{folder}: wanted data.yaml with `names`, or classes.txt")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"
