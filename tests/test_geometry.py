"""Boxes go to the model's input and back without moving, and NMS is the greedy one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.geometry import (
    PLACEMENTS,
    Placement,
    best_first,
    cxcywh_to_xyxy,
    fit,
    input_to_source,
    iou,
)

pytestmark = pytest.mark.unit

SIDE = st.integers(1, 8000)


@pytest.mark.parametrize(
    ("source_wh", "placement", "content_wh", "offset_xy"),
    [
        ((640, 480), "letterbox", (416, 312), (0, 52)),  # a camera, grey above and below
        ((480, 640), "letterbox", (312, 416), (52, 0)),  # a phone held upright
        ((640, 480), "top-left", (416, 312), (0, 0)),  # YOLOX
        ((640, 480), "stretch", (416, 416), (0, 0)),  # DETR
        ((16, 16), "letterbox", (416, 416), (0, 0)),  # enlarged
        ((7680, 4320), "letterbox", (416, 234), (0, 91)),  # 8K
        ((10_000, 3), "letterbox", (416, 1), (0, 207)),  # a strip keeps a row
    ],
)
def test_picture_is_laid_into_the_input(
    source_wh: tuple[int, int],
    placement: Placement,
    content_wh: tuple[int, int],
    offset_xy: tuple[int, int],
) -> None:
    letterbox = fit(source_wh, (416, 416), placement)
    assert (letterbox.content_wh, letterbox.offset_xy) == (content_wh, offset_xy)


def test_offsets_can_be_even_for_chroma() -> None:
    assert fit((7680, 4320), (416, 416), "letterbox", multiple_of=2).offset_xy == (0, 90)


@pytest.mark.parametrize("source_wh", [(0, 480), (640, 0)])
def test_picture_without_area_fits_nowhere(source_wh: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        fit(source_wh, (416, 416))


@given(SIDE, SIDE, st.sampled_from(PLACEMENTS), st.integers(1, 2))
def test_content_stays_inside_and_corners_come_back(
    width: int, height: int, placement: Placement, multiple_of: int
) -> None:
    letterbox = fit((width, height), (320, 240), placement, multiple_of)
    (left, top), (wide, high) = letterbox.offset_xy, letterbox.content_wh
    assert left >= 0
    assert top >= 0
    assert left + wide <= 320
    assert top + high <= 240
    content = np.array([[left, top, left + wide, top + high]], np.float32)
    back = input_to_source(content, letterbox)
    np.testing.assert_allclose(back, [[0, 0, width, height]], rtol=1e-5, atol=1e-3)


def test_boxes_are_clipped_to_the_picture() -> None:
    letterbox = fit((640, 480), (320, 320))
    boxes = np.array([[-50, 0, 400, 400], [0, 300, 10, 310]], np.float32)
    np.testing.assert_array_equal(
        input_to_source(boxes, letterbox), [[0, 0, 640, 480], [0, 480, 20, 480]]
    )


def test_no_boxes_stay_no_boxes() -> None:
    none = np.zeros((0, 4), np.float32)
    assert input_to_source(none, fit((640, 480), (320, 320))).shape == (0, 4)
    assert iou(none, none).shape == (0, 0)


def test_overlap_is_shared_area_over_joint_area() -> None:
    a = np.array([[0, 0, 10, 10], [5, 5, 5, 5]], np.float32)
    b = np.array([[5, 0, 15, 10], [0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    np.testing.assert_allclose(iou(a, b), [[1 / 3, 1.0, 0.0], [0.0, 0.0, 0.0]], rtol=1e-6)


def test_centre_and_size_become_corners() -> None:
    np.testing.assert_array_equal(
        cxcywh_to_xyxy(np.array([[10, 20, 4, 6]], np.float32)), [[8, 17, 12, 23]]
    )


def test_only_the_best_candidates_are_looked_at() -> None:
    confidence = np.array([0.1, 0.9, 0.5, 0.7], np.float32)
    assert best_first(confidence, 2).tolist() == [1, 3]
    assert best_first(confidence, 9).tolist() == [1, 3, 2, 0]
