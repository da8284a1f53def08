"""Each family is recognised by its outputs, and a known box comes out where it was put in.

Every model here answers one box: 16..48 x 8..40 in a 64 x 64 input, class 1 (or a face),
confidence 0.8. The picture is 128 x 128, so the box must come out twice as large. The raw
outputs are written down from the family's definition, not by our decoder's inverse.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from server.detector.load import load_detector
from server.detector.model import ModelDetector
from server.pixels import BgrPicture
from tests.detector.graphs import AnyArray, settings_for, write_model

pytestmark = pytest.mark.unit

CELLS = 64 + 16 + 4  # 64 px at strides 8, 16, 32
XYXY = (16, 8, 48, 40)
CXCYWH = (32, 24, 32, 32)
FOUND = (32, 16, 96, 80)


def rows(count: int, columns: int, row: int, values: tuple[float, ...]) -> AnyArray:
    output = np.zeros((1, count, columns), np.float32)
    output[0, row, : len(values)] = values
    return output


def yolo26() -> dict[str, AnyArray]:
    return {"output0": rows(30, 6, 0, (*XYXY, 0.8, 1))}


def yolov8() -> dict[str, AnyArray]:
    return {"output0": rows(CELLS, 7, 5, (*CXCYWH, 0.1, 0.8, 0.2)).transpose(0, 2, 1)}


def yolov5() -> dict[str, AnyArray]:
    return {"output0": rows(CELLS * 3, 8, 100, (*CXCYWH, 0.9, 0, 0.8 / 0.9, 0.1))}


def yolox() -> dict[str, AnyArray]:
    # Row 64 + 2 is column 2, row 0 of the 4 x 4 grid of stride 16.
    raw = (32 / 16 - 2, 24 / 16 - 0, math.log(2), math.log(2), 0.9, 0, 0.8 / 0.9, 0.1)
    return {"output": rows(CELLS, 8, 66, raw)}


def yolox_decoded() -> dict[str, AnyArray]:
    output = rows(CELLS, 8, 66, (*CXCYWH, 0.9, 0, 0.8 / 0.9, 0.1))
    # Decoded centres of the other cells spread over the picture, as they do in real files.
    output[0, :, :2] += 24 * (output[0, :, :2] == 0)
    return {"output": output}


def bins_of(distance: float, bins: int = 8) -> AnyArray:
    """Logits whose softmax has its mean at the distance."""
    weight = np.full(bins, 1e-9)
    low = math.floor(distance)
    weight[low] += 1 - (distance - low)
    weight[min(low + 1, bins - 1)] += distance - low
    return np.log(weight)


def nanodet() -> dict[str, AnyArray]:
    # Stride 16, column 1, row 1: centre (24, 24).
    outputs = {}
    for stride, name in ((8, "a"), (16, "b"), (32, "c")):
        count = (64 // stride) ** 2
        outputs[f"cls_{name}"] = np.zeros((1, count, 3), np.float32)
        outputs[f"dis_{name}"] = np.zeros((1, count, 32), np.float32)
    outputs["cls_b"][0, 5, 1] = 0.8
    reach = ((24 - 16) / 16, (24 - 8) / 16, (48 - 24) / 16, (40 - 24) / 16)
    outputs["dis_b"][0, 5] = np.concatenate([bins_of(part) for part in reach])
    return outputs


def nanodet_plus() -> dict[str, AnyArray]:
    # Four levels; row 64 + 5 is column 1, row 1 of stride 16, whose centre is (16, 16).
    output = np.zeros((1, 64 + 16 + 4 + 1, 3 + 32), np.float32)
    output[0, 69, 1] = 0.8
    reach = (0, (16 - 8) / 16, (48 - 16) / 16, (40 - 16) / 16)
    output[0, 69, 3:] = np.concatenate([bins_of(part) for part in reach])
    return {"output": output}


def detr_logits() -> dict[str, AnyArray]:
    logits = np.full((1, 20, 3), -9, np.float32)
    logits[0, 4, 1] = math.log(0.8 / 0.2)
    boxes = rows(20, 4, 4, tuple(value / 64 for value in CXCYWH))
    return {"logits": logits, "pred_boxes": boxes}


def rf_detr() -> dict[str, AnyArray]:
    outputs = detr_logits()
    return {"dets": outputs["pred_boxes"], "labels": outputs["logits"]}


def detr_softmax() -> dict[str, AnyArray]:
    outputs = detr_logits()
    logits = np.zeros((1, 20, 4), np.float32)
    logits[0, :, 3] = 20
    logits[0, 4] = (-50, math.log(0.8), -50, math.log(0.2))
    return {"logits": logits, "pred_boxes": outputs["pred_boxes"]}


def detr_joined() -> dict[str, AnyArray]:
    values = (*(value / 64 for value in CXCYWH), 0.1, 0.8, 0)
    return {"output0": rows(30, 7, 4, values)}


def detr_finished() -> dict[str, AnyArray]:
    scores = np.zeros((1, 30), np.float32)
    scores[0, 7] = 0.8
    return {
        "labels": np.ones((1, 30), np.int64),
        "boxes": rows(30, 4, 7, XYXY),
        "scores": scores,
    }


def ssd() -> dict[str, AnyArray]:
    scores = np.zeros((1, 50, 4), np.float32)
    scores[0, :, 0] = 1
    scores[0, 3] = (0.1, 0.1, 0.8, 0)
    return {"scores": scores, "boxes": rows(50, 4, 3, tuple(value / 64 for value in XYXY))}


def ultraface() -> dict[str, AnyArray]:
    outputs = ssd()
    outputs["scores"] = outputs["scores"][:, :, [0, 2]]
    return outputs


def yunet() -> dict[str, AnyArray]:
    outputs = {}
    for stride in (8, 16, 32):
        count = (64 // stride) ** 2
        for kind, columns in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            outputs[f"{kind}_{stride}"] = np.zeros((1, count, columns), np.float32)
    # Stride 16, column 1, row 1.
    outputs["cls_16"][0, 5] = 1.0
    outputs["obj_16"][0, 5] = 0.64
    outputs["bbox_16"][0, 5] = (32 / 16 - 1, 24 / 16 - 1, math.log(2), math.log(2))
    outputs["kps_16"][0, 5] = [(20 + 2 * k) / 16 - 1 for k in range(10)]
    return outputs


NAMES = {"names": "{0: 'zero', 1: 'one', 2: 'two'}"}
SIZE_INPUT = {"orig_target_sizes": ((1, 2), np.int64)}
CASES: tuple[tuple[str, Any, dict[str, Any], str], ...] = (
    ("yolo26", yolo26, {"metadata": NAMES}, "one"),
    ("sightline", yolo26, {"metadata": {**NAMES, "sightline.family": "sightline"}}, "one"),
    ("yolov8", yolov8, {"metadata": NAMES}, "one"),
    ("yolov8", yolov8, {}, "class1"),
    ("yolov5", yolov5, {"metadata": NAMES}, "one"),
    ("yolov5", yolov5, {}, "class1"),
    ("yolox", yolox, {}, "class1"),
    ("yolox", yolox_decoded, {}, "class1"),
    ("nanodet", nanodet, {}, "class1"),
    ("nanodet", nanodet_plus, {"metadata": NAMES}, "one"),
    ("detr", detr_logits, {}, "class1"),
    ("detr", rf_detr, {"metadata": NAMES}, "one"),
    ("detr", detr_softmax, {"metadata": NAMES}, "one"),
    ("detr", detr_joined, {"metadata": NAMES}, "one"),
    ("detr", detr_finished, {"more_inputs": SIZE_INPUT, "metadata": NAMES}, "one"),
    ("ssd", ssd, {"metadata": NAMES}, "one"),
    ("ssd", ultraface, {}, "face"),
    ("yunet", yunet, {}, "face"),
)


def load(path: Path, **changes: Any) -> ModelDetector:
    detector = load_detector(settings_for(path, path.parent / "cache", **changes))
    assert isinstance(detector, ModelDetector)
    return detector


def even_picture(side: int = 128) -> BgrPicture:
    return BgrPicture(np.full((side, side, 3), 90, np.uint8))


@pytest.mark.parametrize(
    ("family", "outputs", "options", "name"),
    CASES,
    ids=[f"{outputs.__name__}-{name}" for _, outputs, _, name in CASES],
)
def test_family_is_recognised_and_its_box_comes_out(
    tmp_path: Path, family: str, outputs: Any, options: dict[str, Any], name: str
) -> None:
    path = write_model(tmp_path / "model.onnx", outputs(), **options)
    detector = load(path)
    [report] = detector.reports()
    assert (report.family, report.input_wh) == (family, (64, 64))
    [found] = detector.detect([even_picture()])
    assert len(found.detections) == 1
    np.testing.assert_allclose(found.detections.xyxy[0], FOUND, atol=0.02)
    assert found.detections.confidence[0] == pytest.approx(0.8, abs=1e-3)
    assert detector.names[found.detections.class_id[0]] == name
    assert found.prepared_at_ns <= found.inferred_at_ns <= found.boxed_at_ns


def test_yolov8_the_other_way_up_is_known_by_its_names(tmp_path: Path) -> None:
    outputs = {"output0": np.ascontiguousarray(yolov8()["output0"].transpose(0, 2, 1))}
    detector = load(write_model(tmp_path / "model.onnx", outputs, metadata=NAMES))
    assert detector.reports()[0].family == "yolov8"
    [found] = detector.detect([even_picture()])
    np.testing.assert_allclose(found.detections.xyxy, [FOUND], atol=0.02)


def test_yunet_gives_five_landmarks_in_source_pixels(tmp_path: Path) -> None:
    detector = load(write_model(tmp_path / "model.onnx", yunet()))
    [found] = detector.detect([even_picture()])
    assert found.detections.landmarks is not None
    expected = 2 * np.arange(20, 40, 2).reshape(1, 5, 2)
    np.testing.assert_allclose(found.detections.landmarks, expected, atol=0.01)


@pytest.mark.parametrize(
    "outputs", [yolo26, yolov8, yolov5, yolox, nanodet, detr_logits, ssd, yunet]
)
def test_every_family_keeps_what_is_above_the_floor_and_drops_what_is_below(
    tmp_path: Path, outputs: Any
) -> None:
    path = write_model(tmp_path / "model.onnx", outputs())
    for floor, expected in ((0.79, 1), (0.81, 0)):
        [found] = load(path, confidence_floor=floor).detect([even_picture()])
        assert len(found.detections) == expected


@pytest.mark.parametrize("class_count", [1, 365])
def test_one_class_and_365_classes_are_decoded(tmp_path: Path, class_count: int) -> None:
    scores = np.zeros(class_count)
    scores[-1] = 0.8
    outputs = {"output0": rows(CELLS, 4 + class_count, 5, (*CXCYWH, *scores)).transpose(0, 2, 1)}
    detector = load(write_model(tmp_path / "model.onnx", outputs))
    assert len(detector.names) == class_count
    [found] = detector.detect([even_picture()])
    assert found.detections.class_id.tolist() == [class_count - 1]
    assert detector.names[class_count - 1] == f"class{class_count - 1}"


def test_80_classes_without_names_are_taken_for_those_of_coco(tmp_path: Path) -> None:
    outputs = {"output0": np.zeros((1, 84, CELLS), np.float32)}
    detector = load(write_model(tmp_path / "model.onnx", outputs))
    assert (detector.names[0], detector.names[79], len(detector.names)) == (
        "person",
        "toothbrush",
        80,
    )


def test_91_coco_numbers_are_closed_up_to_80_classes(tmp_path: Path) -> None:
    logits = np.full((1, 20, 91), -9, np.float32)
    logits[0, 4, 90] = 5  # toothbrush
    logits[0, 5, 12] = 5  # a number that COCO leaves out
    boxes = np.full((1, 20, 4), 0.5, np.float32)
    path = write_model(tmp_path / "model.onnx", {"dets": boxes, "labels": logits})
    detector = load(path)
    [found] = detector.detect([even_picture()])
    assert [detector.names[k] for k in found.detections.class_id] == ["toothbrush"]


def test_overlapping_boxes_of_a_class_become_one(tmp_path: Path) -> None:
    output = np.zeros((1, CELLS, 7), np.float32)
    output[0, 3] = (*CXCYWH, 0, 0.7, 0)
    output[0, 9] = (33, 24, 32, 32, 0, 0.8, 0)
    output[0, 20] = (32, 24, 32, 32, 0.6, 0, 0)
    detector = load(write_model(tmp_path / "model.onnx", {"output0": output.transpose(0, 2, 1)}))
    [found] = detector.detect([even_picture()])
    np.testing.assert_allclose(found.detections.confidence, [0.8, 0.6], atol=1e-6)


def test_boxes_below_the_floor_and_beyond_the_limit_go(tmp_path: Path) -> None:
    output = np.zeros((1, 30, 6), np.float32)
    for row in range(20):
        output[0, row] = (row, row, row + 8, row + 8, 0.9 - row * 0.04, 0)
    path = write_model(tmp_path / "model.onnx", {"output0": output}, metadata=NAMES)
    [found] = load(path, confidence_floor=0.5).detect([even_picture()])
    assert found.detections.confidence.min() >= 0.5
    assert len(found.detections) == 11
    [found] = load(path, max_boxes=3).detect([even_picture()])
    np.testing.assert_allclose(found.detections.confidence, [0.9, 0.86, 0.82], atol=1e-6)


def test_boxes_in_the_padding_are_dropped_and_others_clipped(tmp_path: Path) -> None:
    output = np.zeros((1, 30, 6), np.float32)
    output[0, 0] = (0, 0, 64, 10, 0.9, 0)  # wholly above a 2:1 picture
    output[0, 1] = (-10, 0, 64, 40, 0.8, 0)
    path = write_model(tmp_path / "model.onnx", {"output0": output}, metadata=NAMES)
    wide = BgrPicture(np.zeros((64, 128, 3), np.uint8))
    [found] = load(path).detect([wide])
    np.testing.assert_allclose(found.detections.xyxy, [[0, 0, 128, 48]], atol=1e-3)


def test_classes_that_have_no_name_are_dropped(tmp_path: Path) -> None:
    output = np.zeros((1, 30, 6), np.float32)
    output[0, :3] = [(0, 0, 9, 9, 0.9, 3), (0, 0, 9, 9, 0.8, -1), (0, 0, 9, 9, 0.7, 2)]
    path = write_model(tmp_path / "model.onnx", {"output0": output}, metadata=NAMES)
    [found] = load(path).detect([even_picture()])
    assert found.detections.class_id.tolist() == [2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("outputs", [yolo26, yolov8, yolox, nanodet, detr_logits, ssd, yunet])
def test_outputs_that_are_no_numbers_are_counted_and_give_no_boxes(
    tmp_path: Path, outputs: Any, bad: float
) -> None:
    values = outputs()
    first = next(iter(values))
    path = write_model(
        tmp_path / "model.onnx", values, metadata=NAMES if outputs is yolo26 else None
    )
    good = load(path)
    spoiled: dict[str, npt.NDArray[Any]] = {name: array.copy() for name, array in values.items()}
    spoiled[first][0, -1, -1] = bad
    engine = good._chain  # the head chosen on good outputs meets bad ones at run time
    assert engine is not None
    engine.run = lambda count: spoiled  # type: ignore[method-assign]
    [found] = good.detect([even_picture()])
    assert len(found.detections) == 0
    assert found.detections.size_wh == (128, 128)
    assert good.statistics().not_finite == 1
