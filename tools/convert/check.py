"""Converts a file and proves that it answers as the original does, on real pictures.

The new file is loaded and run as it is, and compared as hardware with half precision would compute
it (`emulate.py`), because the CPU provider does not. Judged are the boxes, because an end-to-end
head may order equal rows differently; the raw outputs are compared too and shown.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from onnx import ModelProto

from server.detections import Detections
from server.detector.load import load_detector
from server.errors import ModelError
from server.geometry import InputSpec, iou
from server.pixels import BgrPicture
from server.settings import DetectorSettings
from tools.convert.emulate import emulated
from tools.convert.graph import load_plain
from tools.convert.half import Converted, to_half
from tools.convert.ranges import quiet_session, too_large
from tools.convert.trial import try_model

PICTURE_DIR = Path(__file__).resolve().parents[2] / "server" / "pictures"
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
SURE = 0.3
FLOOR = 0.05
RANGE_PICTURES = 2


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far the half-precision file may be from the original."""

    confidence: float = 0.05
    """Largest difference in the confidence of one box."""
    least_iou: float = 0.85
    """Least overlap of a box with its counterpart."""
    missing: float = 0.005
    """Share of sure boxes without a counterpart."""
    relative_error: float = 0.02
    """For models that are no detectors we know: RMS of the difference over RMS of the output."""


@dataclass(frozen=True, slots=True)
class OutputGap:
    """One raw output of both files compared."""

    name: str
    largest: float
    relative_error: float
    finite: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both files on all pictures."""

    pictures: int
    detector: str
    """Family of the model; empty when its boxes cannot be read."""
    boxes: int
    missing: int
    confidence_largest: float
    confidence_mean: float
    iou_least: float
    iou_mean: float
    outputs: tuple[OutputGap, ...]

    def problems(self, limit: Tolerance) -> list[str]:
        """What is over the tolerance, in words; empty when all is well."""
        found = [f"output {gap.name} is not finite" for gap in self.outputs if not gap.finite]
        if not self.detector or not self.boxes:
            return found + [
                f"output {gap.name} is off by {gap.relative_error:.2%}, "
                f"over {limit.relative_error:.2%}"
                for gap in self.outputs
                if gap.relative_error > limit.relative_error
            ]
        if self.missing > limit.missing * self.boxes:
            found.append(f"{self.missing} of {self.boxes} boxes are missing")
        if self.confidence_largest > limit.confidence:
            found.append(
                f"confidence differs by {self.confidence_largest:.3f}, over {limit.confidence:g}"
            )
        if self.iou_least < limit.least_iou:
            found.append(f"a box overlaps only {self.iou_least:.3f}, under {limit.least_iou:g}")
        return found


def convert_file(
    source: Path,
    target: Path,
    *,
    half_io: bool = False,
    pictures: Sequence[BgrPicture] | None = None,
    limit: Tolerance | None = None,
    keep_bad: bool = False,
) -> tuple[Converted, Comparison]:
    """Writes the half-precision file of `source`, checked; ModelError leaves `target` as it was.

    With `keep_bad` a file over the tolerance is written all the same, for a look at it.
    """
    pictures = built_in_pictures() if pictures is None else pictures
    plain = load_plain(source)
    spec = _input_spec(source, plain)
    feeds = [_feed(plain, spec, picture) for picture in pictures[:RANGE_PICTURES]]
    converted = to_half(plain, half_io=half_io, too_large=too_large(plain, feeds))
    try:
        onnx.checker.check_model(converted.model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        line = str(error).strip().splitlines()[0]
        raise ModelError(f"{source.name}: what was made is not valid ONNX: {line}") from None
    with tempfile.TemporaryDirectory(prefix="sightline-convert-") as folder:
        half = Path(folder) / target.name
        half.write_bytes(converted.model.SerializeToString())
        try_model(half, feeds[0])
        emulation = Path(folder) / "emulated" / source.name
        write_emulated(converted.model, source, emulation)
        comparison = compare_files(source, emulation, pictures, spec)
    problems = comparison.problems(limit or Tolerance())
    if problems and not keep_bad:
        raise ModelError(f"{source.name}: half precision changes the answers: {problems[0]}")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    part.write_bytes(converted.model.SerializeToString())
    os.replace(part, target)
    _copy_sidecar(source, target)
    return converted, comparison


def write_emulated(half: ModelProto, source: Path, target: Path) -> None:
    """A float32 file that answers as the half model does on hardware with half precision."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(emulated(half).SerializeToString())
    _copy_sidecar(source, target)


def compare_files(
    original: Path, half: Path, pictures: Sequence[BgrPicture], spec: InputSpec | None
) -> Comparison:
    """Runs both files, which are float32 on the outside, on all pictures."""
    answers: list[list[Detections]] = []
    family = ""
    with contextlib.ExitStack() as stack:
        if spec is not None:
            for path in (original, half):
                detector = load_detector(_settings(path))
                stack.callback(detector.close)
                answers.append([d.detections for d in detector.detect(list(pictures))])
                family = detector.reports()[0].family
    gaps = _output_gaps(original, half, pictures, spec)
    rows = np.array(list(_matches(*answers)) if answers else [], float).reshape(-1, 3)
    partner = rows[:, 2] > 0
    return Comparison(
        pictures=len(pictures),
        detector=family,
        boxes=len(rows),
        missing=int((~partner).sum()),
        confidence_largest=float(rows[partner, 0].max(initial=0)),
        confidence_mean=float(rows[partner, 0].mean()) if partner.any() else 0.0,
        iou_least=float(rows[partner, 1].min(initial=1)),
        iou_mean=float(rows[partner, 1].mean()) if partner.any() else 1.0,
        outputs=gaps,
    )


def built_in_pictures() -> list[BgrPicture]:
    """The pictures that the server compares engines on."""
    return pictures_of(PICTURE_DIR)


def pictures_of(folder: Path, limit: int = 200) -> list[BgrPicture]:
    """Up to `limit` pictures of a folder, by name; ModelError when it has none."""
    paths = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in PICTURE_SUFFIXES][:limit]
    decoded = [cv2.imread(str(path), cv2.IMREAD_COLOR) for path in paths]
    pictures = [BgrPicture(np.asarray(bgr, np.uint8)) for bgr in decoded if bgr is not None]
    if not pictures:
        raise ModelError(f"{folder}: no JPEG or PNG pictures to check on")
    return pictures


def _settings(path: Path) -> DetectorSettings:
    return DetectorSettings(
        model=str(path),
        provider="cpu",
        precision="fp32",
        confidence_floor=FLOOR,
        max_boxes=300,
        fit_shape=False,
        parity=False,
    )


def _input_spec(path: Path, model: ModelProto) -> InputSpec | None:
    """How pictures are fed to a detector we know; None for any other model."""
    try:
        detector = load_detector(_settings(path))
    except ModelError:
        return None
    with contextlib.closing(detector):
        spec = getattr(detector, "input_spec", None)
    return spec if isinstance(spec, InputSpec) and len(model.graph.input) == 1 else None


def _feed(model: ModelProto, spec: InputSpec | None, picture: BgrPicture) -> dict[str, Any]:
    """Inputs for one run: the picture as its family wants it, noise for what is no detector."""
    if spec is not None:
        tensor = np.zeros((1, *spec.shape), np.float32)
        picture.write_tensor(spec, tensor[0])
        return {model.graph.input[0].name: tensor}
    random = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    for value in model.graph.input:
        tensor_type = value.type.tensor_type
        shape = [dim.dim_value or 1 for dim in tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)
        values = random.random(shape) if np.dtype(dtype).kind == "f" else np.ones(shape)
        feed[value.name] = np.asarray(values, dtype)
    return feed


def _output_gaps(
    original: Path, half: Path, pictures: Sequence[BgrPicture], spec: InputSpec | None
) -> tuple[OutputGap, ...]:
    sessions = [quiet_session(path.read_bytes()) for path in (original, half)]
    plain = onnx.load(str(original), load_external_data=False)
    hidden = {tensor.name for tensor in plain.graph.initializer}
    kept = [value for value in plain.graph.input if value.name not in hidden]
    del plain.graph.input[:]
    plain.graph.input.extend(kept)
    names = [output.name for output in sessions[0].get_outputs()]
    sums: dict[str, list[float]] = {name: [0.0, 0.0, 0.0, 1.0] for name in names}
    for picture in pictures if spec is not None else pictures[:1]:
        feed = _feed(plain, spec, picture)
        reference = sessions[0].run(names, feed)
        found = sessions[1].run(names, feed)
        for name, ours, theirs in zip(names, reference, found, strict=True):
            if ours.dtype.kind != "f" or ours.shape != theirs.shape:
                continue
            gap = theirs.astype(np.float64) - ours
            row = sums[name]
            row[0] = max(row[0], float(np.abs(gap).max(initial=0)))
            row[1] += float(np.square(gap).sum())
            row[2] += float(np.square(ours, dtype=np.float64).sum())
            row[3] = min(row[3], float(np.isfinite(theirs).all()))
    return tuple(
        OutputGap(name, row[0], float(np.sqrt(row[1] / max(row[2], 1e-30))), bool(row[3]))
        for name, row in sums.items()
    )


def _matches(
    reference: Sequence[Detections], found: Sequence[Detections]
) -> Iterator[tuple[float, float, float]]:
    """Per sure box of the reference: difference in confidence, overlap, 1 if it has a partner."""
    for ours, theirs in zip(reference, found, strict=True):
        sure = ours.select(SURE)
        if not len(sure):
            continue
        table = iou(sure.xyxy, theirs.xyxy) if len(theirs) else np.zeros((len(sure), 0))
        table = np.where(sure.class_id[:, None] == theirs.class_id[None, :], table, 0)
        for row, overlaps in enumerate(table):
            best = int(np.argmax(overlaps)) if len(overlaps) else -1
            if best < 0 or overlaps[best] < 0.5:
                yield float(sure.confidence[row]), 0.0, 0.0
                continue
            gap = abs(float(sure.confidence[row]) - float(theirs.confidence[best]))
            yield gap, float(overlaps[best]), 1.0


def _copy_sidecar(source: Path, target: Path) -> None:
    """The YAML beside a model says how to read it, and that holds for its half file too."""
    for suffix in (".yaml", ".yml"):
        beside = source.with_suffix(suffix)
        if beside.is_file() and beside != target.with_suffix(suffix):
            shutil.copyfile(beside, target.with_suffix(suffix))
