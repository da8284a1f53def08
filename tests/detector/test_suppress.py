import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.detector.suppress import suppress
from server.geometry import iou

pytestmark = pytest.mark.unit


def test_no_boxes_stay_no_boxes() -> None:
    none = np.zeros((0, 4), np.float32)
    assert len(suppress(none, np.zeros(0, np.float32), np.zeros(0, np.int32), 0.5, 10)) == 0


def test_weaker_of_two_overlapping_boxes_goes_unless_its_class_differs() -> None:
    xyxy = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10]], np.float32)
    confidence = np.array([0.6, 0.9, 0.8], np.float32)
    assert suppress(xyxy, confidence, np.array([0, 0, 1], np.int32), 0.5, 10).tolist() == [1, 2]


def test_box_suppressed_only_by_a_suppressed_box_stays() -> None:
    # A chain: the second overlaps both neighbours, first and third do not touch.
    xyxy = np.array([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]], np.float32)
    confidence = np.array([0.9, 0.8, 0.7], np.float32)
    assert suppress(xyxy, confidence, np.zeros(3, np.int32), 0.3, 10).tolist() == [0, 2]


@given(st.integers(0, 60), st.integers(0, 10_000), st.floats(0.1, 0.9))
def test_suppression_is_the_greedy_one(count: int, seed: int, limit: float) -> None:
    rng = np.random.default_rng(seed)
    xyxy = rng.random((count, 4), dtype=np.float32) * 40
    xyxy[:, 2:] += xyxy[:, :2]
    confidence = rng.random(count, dtype=np.float32)
    class_id = rng.integers(0, 2, count, dtype=np.int32)
    overlap = iou(xyxy, xyxy)
    expected: list[int] = []
    for row in np.argsort(-confidence, kind="stable"):
        if all(overlap[row, k] <= limit or class_id[row] != class_id[k] for k in expected):
            expected.append(int(row))
    assert suppress(xyxy, confidence, class_id, limit, 1000).tolist() == expected
    assert suppress(xyxy, confidence, class_id, limit, 3).tolist() == expected[:3]
