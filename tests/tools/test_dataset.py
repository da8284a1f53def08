"""Every layout of labelled pictures gives the same truth; a bad folder says what was wanted."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tools.evaluate.dataset import DataError, DataSet, load_data, read_bgr
from tools.evaluate.names import class_map

pytestmark = pytest.mark.unit


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((50, 100, 3), np.uint8))


def _coco(labels: Path) -> None:
    labels.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": 9, "file_name": "a.png"}, {"id": 4, "file_name": "missing.png"}],
        # ids with gaps and out of order, as in COCO
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
        "annotations": [
            {"image_id": 9, "category_id": 18, "bbox": [10, 5, 20, 30], "area": 400, "iscrowd": 0},
            {"image_id": 9, "category_id": 1, "bbox": [0, 0, 50, 50], "iscrowd": 1},
        ],
    }
    labels.write_text(json.dumps(content))


def _coco_folder(root: Path) -> None:
    _coco(root / "instances.json")
    _picture(root / "images" / "a.png")


def _coco_as_distributed(root: Path) -> None:
    _coco(root / "annotations" / "instances_val2017.json")
    _picture(root / "val2017" / "a.png")


@pytest.mark.parametrize("lay_out", [_coco_folder, _coco_as_distributed])
def test_coco_is_read_whatever_its_layout(lay_out, tmp_path: Path) -> None:
    lay_out(tmp_path)
    data = load_data(tmp_path)
    assert data.names == ("person", "dog")
    (picture,) = data.pictures  # the one whose file is there
    truth = picture.truth
    assert truth.xyxy.tolist() == [[10, 5, 30, 35], [0, 0, 50, 50]]
    assert truth.class_id.tolist() == [1, 0]
    assert truth.crowd.tolist() == [False, True]
    assert truth.area.tolist() == [400, 2500]
    assert data.present() == ("dog",)


def _yolo_folder(root: Path, line: str = "1 0.2 0.4 0.2 0.6") -> None:
    _picture(root / "images" / "val" / "a.png")
    (root / "labels" / "val").mkdir(parents=True)
    (root / "labels" / "val" / "a.txt").write_text(line + "\n\n")
    (root / "data.yaml").write_text("names: {0: person, 1: dog}\n")
    _picture(root / "images" / "val" / "empty.png")


def test_yolo_text_is_read_in_pixels(tmp_path: Path) -> None:
    _yolo_folder(tmp_path)
    data = load_data(tmp_path)
    assert data.names == ("person", "dog")
    assert [len(picture.truth) for picture in data.pictures] == [1, 0]
    assert data.pictures[0].truth.xyxy == pytest.approx(np.array([[10, 5, 30, 35]]))


@pytest.mark.parametrize("line", ["1 0.2 0.4 0.2", "2 0.2 0.4 0.2 0.6", "dog 0.2 0.4 0.2 0.6"])
def test_bad_yolo_line_is_named(line: str, tmp_path: Path) -> None:
    _yolo_folder(tmp_path, line)
    with pytest.raises(DataError, match=r"a\.txt:1: wanted"):
        load_data(tmp_path)


def test_folder_that_is_no_data_set_says_what_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"wanted instances\.json"):
        load_data(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        load_data(tmp_path / "none")
    (tmp_path / "images").mkdir()
    (tmp_path / "instances.json").write_text("[]")
    with pytest.raises(DataError, match="not COCO labels"):
        load_data(tmp_path)
    _coco(tmp_path / "instances.json")
    with pytest.raises(DataError, match="none of the 2 pictures"):
        load_data(tmp_path)


def test_classes_are_chosen_and_renumbered(tmp_path: Path) -> None:
    _coco_folder(tmp_path)
    data = load_data(tmp_path).only(["dog"])
    assert data.names == ("dog",)
    assert data.pictures[0].truth.class_id.tolist() == [0]
    with pytest.raises(DataError, match="no class cat; it has person, dog"):
        load_data(tmp_path).only(["cat"])


def test_limit_spreads_over_the_whole_set(tmp_path: Path) -> None:
    _coco_folder(tmp_path)
    one = load_data(tmp_path).pictures[0]
    data = DataSet("many", ("a",), tuple(one for _ in range(10)))
    assert len(data.limited(4).pictures) == 4
    assert data.limited(0) is data
    assert data.limited(99) is data


def test_broken_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"x\.jpg"):
        read_bgr(tmp_path / "x.jpg")


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        (("person", "dog"), ("dog", "person"), (1, 0)),
        # VOC writes names differently and knows fewer
        (("aeroplane", "tvmonitor"), ("airplane", "tv", "bus"), (0, 1)),
        (("Traffic_Light", "unknown"), ("traffic light",), (0, -1)),
        # a model without names, as many classes as the data
        (("class 0", "class 1"), ("dog", "person"), (0, 1)),
        ((), ("dog",), ()),
    ],
)
def test_classes_are_matched_by_name(model, data, expected) -> None:
    assert class_map(model, data) == expected
