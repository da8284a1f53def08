"""The shipped detector: what the file says of itself, and that it finds what it must."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

from server.detector.load import load_detector
from server.pixels import BgrPicture
from server.settings import DetectorSettings
from tools.train.data import REQUIRED

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "sightline-nano.onnx"
PICTURES = ROOT / "server" / "pictures"


@pytest.fixture(scope="module")
def session():
    return onnxruntime.InferenceSession(str(MODEL), providers=["CPUExecutionProvider"])


def found(picture: str, floor: float = 0.3) -> dict[str, tuple[float, list[float]]]:
    """Best confidence and box of each class the server's own detector code finds."""
    detector = load_detector(DetectorSettings(model=str(MODEL), provider="cpu"))
    try:
        bgr = cv2.imread(str(PICTURES / picture))
        assert bgr is not None
        [detected] = detector.detect([BgrPicture(np.asarray(bgr, np.uint8))])
    finally:
        detector.close()
    best: dict[str, tuple[float, list[float]]] = {}
    boxes = detected.detections
    for xyxy, score, class_id in zip(boxes.xyxy, boxes.confidence, boxes.class_id, strict=True):
        name = detector.names[int(class_id)]
        if score >= max(floor, best.get(name, (0.0, []))[0]):
            best[name] = (float(score), [float(v) for v in xyxy])
    return best


def iou(a: list[float], b: list[float]) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = float(np.prod(np.clip(high - low, 0, None)))
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return shared / (sum(areas) - shared)


def test_the_file_is_the_one_the_card_describes_and_small_enough() -> None:
    card = (ROOT / "models" / "README.md").read_text()
    digest = hashlib.sha256(MODEL.read_bytes()).hexdigest()
    assert re.search(rf"\b{digest}\b", card), "models/README.md names another checksum"
    assert MODEL.stat().st_size <= 3_000_000


def test_it_names_its_classes_input_licence_and_training(session) -> None:
    metadata = session.get_modelmeta().custom_metadata_map
    names = list(json.loads(metadata["names"]).values())
    assert set(names) >= set(REQUIRED)
    given = json.loads(metadata["sightline.input"])
    assert given["size"] == [320, 320]
    assert given["colour"] == "rgb"
    assert given["scale"] == pytest.approx(1 / 255)
    assert metadata["sightline.family"] == "sightline"
    assert metadata["license"] == "Apache-2.0"
    assert json.loads(metadata["sightline.training"])["steps"] > 0


def test_a_batch_gives_what_single_pictures_give(session) -> None:
    rng = np.random.default_rng(0)
    batch = rng.random((3, 3, 320, 320), np.float32)
    together = session.run(None, {"images": batch})[0]
    alone = [session.run(None, {"images": batch[i : i + 1]})[0][0] for i in range(3)]
    assert together.shape == (3, 300, 6)
    assert np.allclose(together[..., 4], np.stack(alone)[..., 4], atol=1e-3)


def test_the_astronauts_person_and_face_are_found() -> None:
    best = found("astronaut.jpg")
    assert iou(best["person"][1], [0, 0, 360, 400]) > 0.6
    assert iou(best["face"][1], [134, 50, 216, 156]) > 0.5


def test_the_cat_is_found_and_no_person_beside_it() -> None:
    best = found("cat.jpg")
    assert "cat" in best
    assert best.get("person", (0.0, []))[0] < best["cat"][0]
