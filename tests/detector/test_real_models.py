"""Real files find what people labelled; skipped where the shared folder is absent.

Expectations are COCO's annotations: large labelled persons must be found with IoU >= 0.5.
Faces have no labels there, so one built-in picture was marked by hand.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from server.detections import Detections
from server.detector.load import load_detector
from server.detector.parity import PICTURE_DIR, compare
from server.errors import ModelError
from server.geometry import iou
from server.pixels import BgrPicture, Picture, YuvPicture
from tests.detector.graphs import AnyArray, settings_for

pytestmark = pytest.mark.unit

SHARED = Path(__file__).parents[3] / "shared"
MODELS = SHARED / "models"
COCO = SHARED / "data" / "coco-val-person"
PERSON_ID = 1
# Large enough for the smallest model, and few enough for a quick test.
MIN_SIDE_SHARE = 0.3
PICTURES = 6

OBJECT_MODELS = {
    "yolo26n.onnx": "yolo26",
    "yolo26n_320.onnx": "yolo26",
    "yolo11n_int8.onnx": "yolov8",
    "yolox_nano.onnx": "yolox",
    "nanodet_m.onnx": "nanodet",
}
FACE_MODELS = {"yunet_2026may.onnx": "yunet", "ultralight-face-version-RFB-320.onnx": "ssd"}


def model_path(name: str) -> Path:
    path = MODELS / name
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    return path


@cache
def labelled() -> tuple[tuple[Path, AnyArray], ...]:
    """Pictures with one or two persons, all of them large, and their corners."""
    content = json.loads((COCO / "instances.json").read_text())
    images = {image["id"]: image for image in content["images"]}
    by_image: dict[int, list[list[float]]] = {}
    for annotation in content["annotations"]:
        if annotation["category_id"] == PERSON_ID:
            by_image.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    chosen = []
    for image_id, boxes in sorted(by_image.items()):
        image = images[image_id]
        least = MIN_SIDE_SHARE * min(image["width"], image["height"])
        if len(boxes) <= 2 and all(min(wide, high) > least for _, _, wide, high in boxes):
            corners = np.array([[x, y, x + w, y + h] for x, y, w, h in boxes], np.float32)
            chosen.append((COCO / "images" / image["file_name"], corners))
    return tuple(chosen[:PICTURES])


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def read_bgr(path: Path) -> npt.NDArray[np.uint8]:
    return BgrPicture.from_bytes(path.read_bytes()).bgr


def find(name: str, pictures: list[Picture], cache_dir: Path, **changes: Any) -> list[Detections]:
    options: dict[str, Any] = {"provider": "auto", "parity": True, **changes}
    detector = load_detector(settings_for(model_path(name), cache_dir, **options))
    found = [detected.detections for picture in pictures for detected in detector.detect([picture])]
    detector.close()
    return found


@pytest.mark.parametrize("name", OBJECT_MODELS)
def test_labelled_persons_are_found(name: str, cache_dir: Path) -> None:
    model_path(name)
    assert len(labelled()) == PICTURES
    pictures: list[Picture] = [BgrPicture(read_bgr(path)) for path, _ in labelled()]
    missed = 0
    for (_, corners), found in zip(
        labelled(), find(name, pictures, cache_dir, confidence_floor=0.3), strict=True
    ):
        persons = found.select(0.3, [0])
        overlap = iou(corners, persons.xyxy)
        missed += int((overlap.max(axis=1, initial=0) < 0.5).sum())
    # In one of the pictures only a torso is to be seen, which small models may doubt.
    assert missed <= 1


@pytest.mark.parametrize(("name", "family"), [*OBJECT_MODELS.items(), *FACE_MODELS.items()])
def test_family_and_classes_of_the_file(name: str, family: str, cache_dir: Path) -> None:
    settings = settings_for(model_path(name), cache_dir, parity=False)
    detector = load_detector(settings)
    assert detector.reports()[0].family == family
    assert len(detector.names) == (80 if name in OBJECT_MODELS else 1)
    assert detector.names[0] == ("person" if name in OBJECT_MODELS else "face")


@pytest.mark.parametrize("name", FACE_MODELS)
def test_the_face_is_found_where_it_is(name: str, cache_dir: Path) -> None:
    portrait = BgrPicture(read_bgr(PICTURE_DIR / "astronaut.jpg"))
    [found] = find(name, [portrait], cache_dir, confidence_floor=0.7)
    assert len(found) == 1
    # Marked by hand in the picture: from hairline to chin, ear to ear.
    by_hand = np.array([[135, 50, 218, 152]], np.float32)
    assert iou(found.xyxy, by_hand)[0, 0] > 0.5
    if found.landmarks is not None:
        right_eye, left_eye, nose, _, _ = found.landmarks[0]
        assert right_eye[0] < nose[0] < left_eye[0]
        assert max(right_eye[1], left_eye[1]) < nose[1]


@pytest.mark.parametrize("name", [*OBJECT_MODELS, *FACE_MODELS])
def test_a_video_frame_gives_the_boxes_of_the_image(name: str, cache_dir: Path) -> None:
    model_path(name)
    for path, _ in labelled()[:2]:
        image = read_bgr(path)
        frame = av.VideoFrame.from_ndarray(image, format="bgr24").reformat(format="yuv420p")
        pictures: list[Picture] = [BgrPicture(image), YuvPicture(frame)]
        as_image, as_video = find(name, pictures, cache_dir, parity=False)
        sure = as_image.select(0.6)
        if len(sure):
            assert iou(sure.xyxy, as_video.xyxy).max(axis=1).min() > 0.75


@pytest.mark.parametrize("name", ["yolo26n_320.onnx", "yolox_nano.onnx"])
def test_half_precision_agrees_with_full(name: str, cache_dir: Path) -> None:
    model_path(name)
    pictures: list[Picture] = [BgrPicture(read_bgr(path)) for path, _ in labelled()]
    half = find(name, pictures, cache_dir)
    full = find(name, pictures, cache_dir, provider="cpu", precision="fp32")
    difference = compare(full, half)
    assert difference.boxes > PICTURES
    assert difference.confidence < 0.25


def test_cut_off_real_file_is_refused(tmp_path: Path) -> None:
    whole = model_path("yolox_nano.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    for share in (0.1, 0.5, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ModelError, match=r"cut\.onnx"):
            load_detector(settings_for(path, tmp_path / "cache"))
