"""The measured part of the model card: `python -m tools.train card MODEL --data DIR DIR`.

Runs `tools.evaluate` on every folder, in the precision the server takes by itself and in FP32,
compares faces with a face detector's, and writes checksum and tables between two marks of
`models/README.md`. So the card can always be made again from the file it describes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from server.detector.load import load_detector
from server.detector.parity import built_in_pictures
from server.overlay import Painter
from server.pixels import BgrPicture, YuvPicture, plane_views
from server.settings import DetectorSettings
from tools.evaluate.__main__ import main as evaluate
from tools.evaluate.dataset import read_bgr
from tools.train.data import Floats

BEGIN = "<!-- made by python -m tools.train card: begin -->"
END = "<!-- made by python -m tools.train card: end -->"
FACE_SCORE = 0.8
FACE_DOUBT = 0.5
FACE_SIDE = 24.0
FACE_OVERLAP = 0.5


def measured(model: Path, folder: Path) -> list[dict[str, Any]]:
    """What `tools.evaluate` writes of BF16 (where the machine has it) and FP32."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        words = ["--model", str(model), "--data", str(folder), "--precision", "bf16,fp32"]
        if evaluate([*words, "--out", out]) != 0:
            raise SystemExit(f"tools.evaluate failed on {folder}")
        runs: list[dict[str, Any]] = json.loads((Path(out) / "runs.json").read_text())["runs"]
    return runs


def overlaps(a: Floats, b: Floats) -> Floats:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [(x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    return np.asarray(shared / np.maximum(union, 1e-6), np.float32)


def judge_faces(
    ours: Floats, scores: Floats, theirs: Floats, certain: Floats, side: float
) -> tuple[list[tuple[float, bool]], int]:
    """Of one picture: (score, right) of each of our boxes that counts, and the faces to find.

    A face to find is sure (`certain` >= 0.8) and large enough. One of our boxes that meets only a
    doubtful or small face is neither right nor wrong; the same for our own small boxes.
    """
    sides = np.minimum(theirs[:, 2] - theirs[:, 0], theirs[:, 3] - theirs[:, 1])
    wanted = (certain >= FACE_SCORE) & (sides >= side)
    taken = np.zeros(len(theirs), bool)
    verdicts = []
    table = overlaps(ours, theirs)
    for row in np.argsort(-scores):
        free = np.where(wanted & ~taken, table[row], 0.0)
        best = int(free.argmax()) if len(free) else -1
        if best >= 0 and free[best] >= FACE_OVERLAP:
            taken[best] = True
            verdicts.append((float(scores[row]), True))
            continue
        box = ours[row]
        small = min(box[2] - box[0], box[3] - box[1]) < side
        doubtful = bool((~wanted & (table[row] >= 0.3)).any())
        if not small and not doubtful:
            verdicts.append((float(scores[row]), False))
    return verdicts, int(wanted.sum())


def recall_at(verdicts: Sequence[tuple[float, bool]], total: int, precision: float) -> Any:
    """Best (recall, precision, threshold) whose precision is at least the given one."""
    ordered = sorted(verdicts, reverse=True)
    right = np.cumsum([ok for _, ok in ordered])
    counts = np.arange(1, len(ordered) + 1)
    good = np.nonzero(right / counts >= precision)[0] if len(ordered) else np.zeros(0, np.int64)
    if not len(good) or not total:
        return 0.0, 0.0, 1.0
    last = int(good[-1])
    return float(right[last] / total), float(right[last] / counts[last]), ordered[last][0]


def faces(model: Path, teacher: Path, folder: Path) -> tuple[Any, int]:
    """Our faces against a face detector's, over all pictures of a folder."""
    detectors = [
        load_detector(DetectorSettings(model=str(path), confidence_floor=floor))
        for path, floor in ((model, 0.05), (teacher, FACE_DOUBT))
    ]
    verdicts: list[tuple[float, bool]] = []
    total = 0
    try:
        face = detectors[0].names.index("face")
        for path in sorted((folder / "images").iterdir()):
            bgr = read_bgr(path)
            [ours], [theirs] = (d.detect([BgrPicture(bgr)]) for d in detectors)
            mine = ours.detections.take(ours.detections.class_id == face)
            side = FACE_SIDE * max(bgr.shape[:2]) / 320.0
            found, wanted = judge_faces(
                mine.xyxy,
                mine.confidence,
                theirs.detections.xyxy,
                theirs.detections.confidence,
                side,
            )
            verdicts += found
            total += wanted
    finally:
        for detector in detectors:
            detector.close()
    return recall_at(verdicts, total, 0.8), total


def text(model: Path, folders: Sequence[Path], teacher: Path | None) -> str:
    """The measured part of the card, Markdown."""
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    lines = [f"`{model.name}`: {model.stat().st_size:,} bytes, SHA-256 `{digest}`", ""]
    rows, classes = [], []
    for folder in folders:
        runs = measured(model, folder)
        rows += [
            f"| {folder.name} | {run['pictures']} | {run['classes']} | {run['ran_precision']} "
            f"| {run['mAP50']} | {run['mAP50-95']} | {run['AP_small']} | {run['AP_medium']} "
            f"| {run['AP_large']} |"
            for run in runs
        ]
        classes.append((folder.name, runs[0]["by_class"]))
    lines += [
        "| Pictures | Number | Classes | Computed in | AP50 | AP50-95 | small | medium | large |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]
    if teacher is not None:
        (recall, precision, threshold), total = faces(model, teacher, folders[0])
        lines += [
            f"Faces on {folders[0].name}, against {total} boxes of a face detector (score >= "
            f"{FACE_SCORE}, side >= {FACE_SIDE:g} px at 320): recall {recall:.2f} at precision "
            f"{precision:.2f} (confidence {threshold:.2f}).",
            "",
        ]
    for name, table in classes:
        if len(table) < 2:
            continue
        lines += [f"Per class on {name}:", "", "| Class | AP50 | AP50-95 |", "|---|---|---|"]
        ordered = sorted(table.items(), key=lambda item: -(item[1]["AP50"] or 0.0))
        lines += [f"| {key} | {both['AP50']} | {both['AP50-95']} |" for key, both in ordered]
        lines.append("")
    return "\n".join(lines)


def shown(model: Path, height: int = 300, confidence: float = 0.35) -> bytes:
    """The built-in pictures side by side with the model's boxes, as JPEG."""
    detector = load_detector(DetectorSettings(model=str(model)))
    painter, parts = Painter(), []
    for picture in built_in_pictures():
        wide = round(picture.size_wh[0] * height / picture.size_wh[1] / 2) * 2
        small = np.asarray(cv2.resize(picture.bgr, (wide, height)), np.uint8)
        frame = av.VideoFrame.from_ndarray(small, "bgr24").reformat(format="yuv420p")
        [found] = detector.detect([YuvPicture(frame)])
        painter.draw(plane_views(frame), found.detections.select(confidence), detector.names)
        parts.append(frame.to_ndarray(format="bgr24"))
    detector.close()
    return cv2.imencode(".jpg", np.hstack(parts), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def write(
    model: Path, folders: Sequence[Path], teacher: Path | None, card: Path | None = None
) -> None:
    """Replace what stands between the marks of the card beside the model, and its picture."""
    card = card or model.parent / "README.md"
    before, _, rest = card.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    card.write_text(f"{before}{BEGIN}\n{text(model, folders, teacher)}\n{END}{after}")
    card.with_name(f"{model.stem}.jpg").write_bytes(shown(model))
