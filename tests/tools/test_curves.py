"""Matching and curves give the values worked out by hand, and agree with both COCO libraries."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest

from tools.evaluate.curves import GRID, curves_of
from tools.evaluate.dataset import DataSet, LabelledPicture, Truth
from tools.evaluate.matching import Found, Judged, judge, overlaps
from tools.evaluate.scoring import found_rows, score, truth_rows

pytestmark = pytest.mark.unit


def _truth(*rows: tuple[float, float, float, float, int, bool]) -> Truth:
    table = np.array([row[:4] for row in rows], np.float64).reshape(-1, 4)
    return Truth(
        xyxy=table,
        class_id=np.array([row[4] for row in rows], np.int64),
        crowd=np.array([row[5] for row in rows], np.bool_),
        area=(table[:, 2] - table[:, 0]) * (table[:, 3] - table[:, 1]),
    )


def _found(*rows: tuple[float, float, float, float, int, float]) -> Found:
    ordered = sorted(rows, key=lambda row: -row[5])
    return Found(
        xyxy=np.array([row[:4] for row in ordered], np.float64).reshape(-1, 4),
        confidence=np.array([row[5] for row in ordered], np.float64),
        class_id=np.array([row[4] for row in ordered], np.int64),
    )


def _at(confidence: float) -> int:
    return int(np.argmin(np.abs(GRID - confidence)))


# Two objects of class 0. Found: the first well (0.9), the second not, something wrong (0.6).
TRUTH = _truth((0, 0, 10, 10, 0, False), (20, 20, 40, 40, 0, False))
FOUND = _found((0, 0, 10, 9, 0, 0.9), (60, 60, 70, 70, 0, 0.6))


def test_overlap_of_a_crowd_is_the_share_of_the_found_box() -> None:
    truth = np.array([[0, 0, 10, 10], [0, 0, 100, 100]], float)
    table = overlaps(np.array([[0, 0, 10, 5]], float), truth, np.array([False, True]))
    assert table.tolist() == [[0.5, 1.0]]


def test_judged_boxes_are_right_once_and_in_order_of_confidence() -> None:
    (judged,) = judge([TRUTH], [FOUND], 1, 0.5)
    assert judged.confidence.tolist() == [0.9, 0.6]
    assert judged.right.tolist() == [True, False]
    assert judged.truths == 2


def test_second_box_on_the_same_object_is_wrong() -> None:
    found = _found((0, 0, 10, 10, 0, 0.9), (0, 0, 10, 10, 0, 0.8))
    (judged,) = judge([TRUTH], [found], 1, 0.5)
    assert judged.right.tolist() == [True, False]


def test_boxes_on_a_crowd_do_not_count() -> None:
    truth = _truth((0, 0, 10, 10, 0, False), (50, 50, 90, 90, 0, True))
    found = _found((0, 0, 10, 10, 0, 0.9), (55, 55, 60, 60, 0, 0.8), (60, 60, 70, 70, 0, 0.7))
    (judged,) = judge([truth], [found], 1, 0.5)
    assert judged.confidence.tolist() == [0.9]
    assert judged.truths == 1


def test_curves_equal_the_values_worked_out_by_hand() -> None:
    curves = curves_of(judge([TRUTH], [FOUND], 1, 0.5))
    # threshold, boxes kept, right: precision, recall, F1 = 2 right / (kept + 2)
    for confidence, precision, recall, f1 in (
        (0.5, 1 / 2, 1 / 2, 2 / 4),
        (0.6, 1 / 2, 1 / 2, 2 / 4),
        (0.7, 1.0, 1 / 2, 2 / 3),
        (0.9, 1.0, 1 / 2, 2 / 3),
        (0.95, 1.0, 0.0, 0.0),  # nothing kept: nothing wrong, nothing found
    ):
        row = _at(confidence)
        assert curves.precision[row] == pytest.approx(precision), confidence
        assert curves.recall[row] == pytest.approx(recall), confidence
        assert curves.f1[row] == pytest.approx(f1), confidence
    # Precision 1 up to recall 0.5, nothing after it.
    assert curves.precision_at_recall[:51].tolist() == [1.0] * 51
    assert curves.precision_at_recall[51:].tolist() == [0.0] * 50
    f1, confidence = curves.best_f1()
    assert f1 == pytest.approx(2 / 3)
    assert confidence == pytest.approx(0.601)


def test_classes_weigh_the_same_and_absent_ones_do_not_count() -> None:
    truth = _truth((0, 0, 10, 10, 0, False), (20, 20, 40, 40, 1, False))
    found = _found((0, 0, 10, 10, 0, 0.9), (0, 0, 5, 5, 2, 0.9))
    curves = curves_of(judge([truth], [found], 3, 0.5))
    row = _at(0.5)
    assert curves.recall[row] == 0.5
    assert curves.precision[row] == 1.0  # class 1 has no box that could be wrong


def test_nothing_to_find_gives_flat_curves() -> None:
    assert not curves_of([Judged(np.zeros(0), np.zeros(0, np.bool_), 0)]).f1.any()


def _data(*truths: Truth) -> DataSet:
    pictures = tuple(LabelledPicture(Path(f"{i}.jpg"), truth) for i, truth in enumerate(truths))
    return DataSet("made", ("a", "b"), pictures)


def test_average_precision_of_a_known_answer() -> None:
    scores = score(_data(TRUTH), [FOUND])
    # IoU of the right box is 0.9, so it counts up to 0.9; 51 of 101 recall steps are reached.
    assert scores.map_by_iou[:9] == pytest.approx([51 / 101] * 9)
    assert scores.map_by_iou[9] == 0
    assert scores.map_50 == pytest.approx(51 / 101)
    assert scores.map_50_95 == pytest.approx(0.9 * 51 / 101)
    assert scores.by_size["small"] == pytest.approx(0.9 * 51 / 101)
    assert np.isnan(scores.by_size["large"])
    assert list(scores.by_class) == ["a"]


def test_nothing_found_scores_zero() -> None:
    scores = score(_data(TRUTH), [_found()])
    assert (scores.map_50, scores.recall_100) == (0.0, 0.0)


def _random_answers() -> tuple[list[Truth], list[Found]]:
    random = np.random.default_rng(7)
    truths, founds = [], []
    for _ in range(30):
        corners = random.uniform(0, 80, (6, 2))
        boxes = np.concatenate([corners, corners + random.uniform(5, 40, (6, 2))], axis=1)
        classes = random.integers(0, 2, 6)
        crowd = random.random(6) < 0.15
        marked = zip(boxes, classes, crowd, strict=True)
        truths.append(_truth(*[(*box, int(c), bool(k)) for box, c, k in marked]))
        guesses = np.concatenate([boxes + random.uniform(-2, 2, boxes.shape), boxes[::-1]])
        scored = [(*box, int(random.integers(0, 2)), float(random.random())) for box in guesses]
        founds.append(_found(*scored))
    return truths, founds


def test_our_curve_agrees_with_the_library_on_random_boxes() -> None:
    truths, founds = _random_answers()
    scores = score(_data(*truths), founds)
    for row, iou in enumerate(scores.ious):
        curves = curves_of(judge(truths, founds, 2, float(iou)))
        assert curves.precision_at_recall.mean() == pytest.approx(scores.map_by_iou[row], abs=1e-9)


def test_scores_are_those_of_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.coco")
    evaluator = pytest.importorskip("pycocotools.cocoeval")
    truths, founds = _random_answers()
    data = _data(*truths)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = coco.COCO()
        reference.dataset = truth_rows(data)
        reference.createIndex()
        evaluation = evaluator.COCOeval(reference, reference.loadRes(found_rows(founds)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    scores = score(data, founds)
    ours = [scores.map_50_95, scores.map_50, scores.map_75, *scores.by_size.values()]
    wanted = [value if value > -1 else np.nan for value in evaluation.stats[:6]]
    assert ours == pytest.approx(wanted, abs=1e-12, nan_ok=True)
    assert scores.recall_100 == pytest.approx(evaluation.stats[8], abs=1e-12)
