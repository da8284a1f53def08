"""Does the engine in use find what the FP32 reference finds on the built-in pictures?

The answer is one figure: the largest difference in confidence over all boxes either side
is reasonably sure of, where a box without a counterpart counts with its whole confidence.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from server.detections import Detections
from server.errors import ModelError, SightlineError
from server.geometry import iou
from server.pixels import BgrPicture

logger = logging.getLogger(__name__)

PICTURE_DIR = Path(__file__).resolve().parents[1] / "pictures"
# Boxes that neither side is surer of are not compared: near the floor they come and go.
SURE = 0.3
SAME_PLACE_IOU = 0.6
MAX_CONFIDENCE_DIFFERENCE = 0.2
CACHE_NAME = "parity.json"
CACHE_LIMIT = 200


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two engines are apart on the built-in pictures."""

    confidence: float
    """Largest difference in confidence; a missing box counts with its whole confidence."""
    least_iou: float
    boxes: int
    """Boxes compared; with none the check says nothing beyond finite outputs."""

    @property
    def acceptable(self) -> bool:
        return self.confidence <= MAX_CONFIDENCE_DIFFERENCE

    def __str__(self) -> str:
        return (
            f"confidence differs by up to {self.confidence:.3f} from the FP32 reference "
            f"(limit {MAX_CONFIDENCE_DIFFERENCE}), least overlap {self.least_iou:.3f}, "
            f"{self.boxes} boxes compared"
        )


def built_in_pictures() -> list[BgrPicture]:
    """The pictures of `server/pictures`, in the order of their names."""
    paths = sorted(PICTURE_DIR.glob("*.jpg"))
    if not paths:
        raise ModelError(f"parity: no pictures in {PICTURE_DIR}; install the package again")
    try:
        return [BgrPicture.from_bytes(path.read_bytes()) for path in paths]
    except (OSError, SightlineError) as error:
        raise ModelError(f"parity: a built-in picture cannot be read: {error}") from error


def cut_to_shape(picture: BgrPicture, shape_wh: tuple[int, int]) -> BgrPicture:
    """The middle of a picture, as large as can be, in the proportions of `shape_wh`."""
    width, height = picture.size_wh
    wide = min(width, height * shape_wh[0] // shape_wh[1])
    high = min(height, width * shape_wh[1] // shape_wh[0])
    left, top = (width - wide) // 2, (height - high) // 2
    return BgrPicture(picture.bgr[top : top + high, left : left + wide])


def compare(reference: Sequence[Detections], found: Sequence[Detections]) -> Difference:
    """Compare picture by picture, both ways, so that extra boxes count like missing ones."""
    pairs = list(zip(reference, found, strict=True))
    parts = [_one_way(ours, theirs) for ours, theirs in pairs]
    parts += [_one_way(theirs, ours) for ours, theirs in pairs]
    return reduce(
        lambda a, b: Difference(
            max(a.confidence, b.confidence), min(a.least_iou, b.least_iou), a.boxes + b.boxes
        ),
        parts,
        Difference(0.0, 1.0, 0),
    )


def _one_way(sure: Detections, other: Detections) -> Difference:
    sure = sure.select(SURE)
    if not len(sure):
        return Difference(0.0, 1.0, 0)
    if not len(other):
        return Difference(float(sure.confidence.max()), 0.0, len(sure))
    overlap = iou(sure.xyxy, other.xyxy)
    same = (overlap >= SAME_PLACE_IOU) & (sure.class_id[:, None] == other.class_id[None, :])
    # Of the boxes in the same place take the one of nearest confidence: heads without NMS may
    # give two.
    apart = np.abs(sure.confidence[:, None] - other.confidence[None, :])
    apart = np.where(same, apart, sure.confidence[:, None])
    matched = np.where(same, overlap, 0).max(axis=1)
    return Difference(
        confidence=float(apart.min(axis=1).max()),
        least_iou=float(matched.min()),
        boxes=len(sure),
    )


class ParityCache:
    """Results of earlier checks by model file, engine and versions, in one small JSON file."""

    def __init__(self, cache_dir: Path | None) -> None:
        self._path = None if cache_dir is None else cache_dir / CACHE_NAME

    def find(self, key: str) -> Difference | None:
        """An earlier result; None when there is none or the file is damaged."""
        entry = self._read().get(key)
        try:
            return Difference(**entry) if isinstance(entry, dict) else None
        except TypeError:
            return None

    def keep(self, key: str, difference: Difference) -> None:
        """Remember a result; a folder that cannot be written costs only the memory."""
        if self._path is None:
            return
        entries = self._read()
        entries[key] = asdict(difference)
        entries = dict(list(entries.items())[-CACHE_LIMIT:])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=CACHE_NAME)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(entries, file)
            Path(name).replace(self._path)
        except OSError as error:
            logger.warning("Parity results are not kept: %s", error)

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            entries = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return entries if isinstance(entries, dict) else {}


def cache_key(paths: Sequence[Path], *parts: object) -> str:
    """Names a comparison: contents of the files, and everything else that decides it."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    digest.update(json.dumps([str(part) for part in parts]).encode())
    return digest.hexdigest()
