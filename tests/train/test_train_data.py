"""Pictures, what is known of them, and how they are augmented; all without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.train.pictures import corpus, picture, write_folder
from tools.train.augment import PAD, Recipe, compose
from tools.train.curves import read_progress, series
from tools.train.data import Knowledge, load, sampling_weights, understand

pytestmark = pytest.mark.unit

PLAIN = Recipe(
    size=128,
    mosaic=0.0,
    single_scale=(1.0, 1.0),
    rotate_degrees=0.0,
    stretch=0.0,
    colour=0.0,
    degrade=0.0,
)


def entry(**changes: object) -> dict[str, object]:
    base: dict[str, object] = {"file": "coco_1.jpg", "complete": [], "boxes": [], "teacher": []}
    return {**base, **changes}


def test_a_complete_class_has_full_background_and_another_has_little() -> None:
    known = understand(entry(complete=[0]), [0, 1], Knowledge(unlabelled_weight=0.2))
    assert known.background.tolist() == pytest.approx([1.0, 0.2])


def test_a_confident_teacher_box_is_a_soft_target_and_a_weak_one_is_ignored() -> None:
    boxes = [[1, 1, 9, 9, 1, 0.8], [20, 20, 40, 40, 1, 0.4]]
    known = understand(entry(teacher=boxes), [0, 1], Knowledge(confident=0.5))
    assert known.weights.tolist() == pytest.approx([0.8])
    assert known.ignored_xyxy.tolist() == [[20, 20, 40, 40]]


def test_the_teacher_is_not_asked_where_people_labelled_everything() -> None:
    boxes = [[1, 1, 9, 9, 0, 0.9], [1, 1, 9, 9, 0, 0.4]]
    known = understand(entry(complete=[0], teacher=boxes), [0], Knowledge())
    assert len(known.boxes_xyxy) == 0
    assert len(known.ignored_xyxy) == 0


def test_a_crowd_is_ignored_and_a_class_that_is_not_taught_is_dropped() -> None:
    boxes = [[1, 1, 9, 9, 0, 1], [1, 1, 9, 9, 7, 0]]
    known = understand(entry(complete=[0], boxes=boxes), [0], Knowledge())
    assert len(known.boxes_xyxy) == 0
    assert known.ignored_xyxy.tolist() == [[1, 1, 9, 9]]


def test_a_folder_is_read_shrunk_and_its_boxes_with_it(tmp_path: Path) -> None:
    write_folder(tmp_path)
    read = load(tmp_path, Knowledge(fewest_boxes=1), longest_side=200)
    assert read.names == ("person", "face", "car")
    [only] = read.pictures
    assert only.bgr.shape == (100, 200, 3)
    assert only.half_bgr.shape == (50, 100, 3)
    assert only.boxes_xyxy[0].tolist() == [5, 10, 55, 60]
    assert only.weights.tolist() == pytest.approx([1.0, 0.9])
    assert only.ignored_xyxy.tolist() == [[100, 0, 200, 50], [150, 50, 190, 90]]


def test_classes_with_too_few_boxes_are_left_out_and_counted(tmp_path: Path) -> None:
    write_folder(tmp_path)
    labels = (tmp_path / "labels.json").read_text().replace('"car"', '"zebra"')
    (tmp_path / "labels.json").write_text(labels)
    read = load(tmp_path, Knowledge(fewest_boxes=5))
    assert read.names == ("person", "face")
    assert read.left_out == {"zebra": 0}


def test_chances_add_up_to_one_and_rare_classes_come_more_often() -> None:
    many = [picture([(4, 4, 60, 60)], [0]) for _ in range(9)]
    rare = picture([(4, 4, 60, 60)], [2])
    chances = sampling_weights([*many, rare])
    assert chances.sum() == pytest.approx(1.0)
    assert chances[-1] > chances[0]


def test_the_same_seed_gives_the_same_example_and_another_a_different_one() -> None:
    four = corpus().pictures[:4]
    first, same, other = (
        compose(four, Recipe(size=96), np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert np.array_equal(first.rgb, same.rgb)
    assert np.array_equal(first.boxes_xyxy, same.boxes_xyxy)
    assert not np.array_equal(first.rgb, other.rgb)


@pytest.mark.parametrize("seed", range(12))
def test_a_moved_box_still_frames_its_object(seed: int) -> None:
    red = picture([(30, 20, 90, 70)], [2], size_wh=(128, 96))
    example = compose([red], PLAIN, np.random.default_rng(seed))
    if not len(example.boxes_xyxy):
        pytest.fail("at full size the object fits and must be kept")
    x1, y1, x2, y2 = example.boxes_xyxy[0].round().astype(int)
    assert example.classes.tolist() == [2]
    inside = example.rgb[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
    assert (inside == (220, 60, 60)).all(), "the object is red everywhere inside its box"
    outside = example.rgb.astype(int).copy()
    outside[max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2] = 0
    assert not (outside == (220, 60, 60)).all(-1).any(), "and nowhere else"


def test_a_mosaic_keeps_each_pictures_knowledge_in_its_own_tile() -> None:
    four = [picture([], [], background=(float(i), 1.0, 1.0)) for i in range(4)]
    example = compose(four, Recipe(size=96, colour=0, degrade=0), np.random.default_rng(0))
    assert example.background[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    areas = (example.tiles_xyxy[:, 2:] - example.tiles_xyxy[:, :2]).prod(1)
    assert areas.sum() == 96 * 96


def test_boxes_stay_inside_and_mostly_hidden_ones_are_ignored() -> None:
    one = picture([(0, 0, 128, 96)], [0])
    recipe = Recipe(size=64, single_scale=(6.0, 6.0), degrade=0.0)
    example = compose([one], recipe, np.random.default_rng(1))
    assert len(example.boxes_xyxy) == 0, "a thirtieth of the object is visible"
    assert len(example.ignored_xyxy) == 1
    assert example.ignored_xyxy.min() >= 0
    assert example.ignored_xyxy.max() <= 64


def test_a_whole_picture_lies_in_the_middle_on_grey() -> None:
    recipe = Recipe(size=128, whole=1.0, colour=0.0, degrade=0.0)
    example = compose([picture([], [])], recipe, np.random.default_rng(0))
    assert (example.rgb[:15] == PAD).all()
    assert (example.rgb[17:111] == 40).all()
    assert (example.rgb[113:] == PAD).all()


def test_curves_drop_what_a_resumed_run_repeats(tmp_path: Path) -> None:
    log = tmp_path / "progress.jsonl"
    lines = ['{"step": 50, "loss": 3}', '{"step": 100, "loss": 2}', '{"step": 100, "ap50": 9}']
    log.write_text("\n".join([*lines, '{"step": 100, "loss": 1}']) + "\n")
    assert series(read_progress(log), "loss") == ([50, 100], [3, 1])
    assert series(read_progress(log), "ap50") == ([100], [9])
