"""How faces are judged for the model card."""

from __future__ import annotations

import numpy as np
import pytest

from tools.train.card import judge_faces, recall_at

pytestmark = pytest.mark.unit

FACE = [10.0, 10.0, 50.0, 50.0]


def judge(ours: list[list[float]], theirs: list[list[float]], certain: list[float]):
    scores = np.linspace(0.9, 0.5, len(ours)).astype(np.float32)
    return judge_faces(
        np.array(ours, np.float32).reshape(-1, 4),
        scores,
        np.array(theirs, np.float32).reshape(-1, 4),
        np.array(certain, np.float32),
        24.0,
    )


def test_a_face_counts_once_and_a_second_box_on_it_is_wrong() -> None:
    verdicts, wanted = judge([FACE, FACE, [200, 200, 240, 240]], [FACE], [0.9])
    assert wanted == 1
    assert [right for _, right in verdicts] == [True, False, False]


def test_a_box_on_a_doubtful_or_small_face_is_neither_right_nor_wrong() -> None:
    assert judge([FACE], [FACE], [0.6]) == ([], 0)
    assert judge([[0, 0, 12, 12]], [[0, 0, 12, 12]], [0.9]) == ([], 0)


def test_recall_is_read_where_precision_still_holds() -> None:
    verdicts = [(0.9, True), (0.8, True), (0.7, False), (0.6, True), (0.5, True), (0.4, False)]
    recall, precision, threshold = recall_at(verdicts, 8, 0.8)
    assert (recall, precision, threshold) == (0.5, 0.8, 0.5)


def test_nothing_found_is_no_recall() -> None:
    assert recall_at([], 5, 0.8)[0] == 0.0
