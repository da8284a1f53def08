import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from server.detections import Detections
from server.overlay import (
    LABEL_LASTS_PICTURES,
    LABELS_KEPT,
    PALETTE_RGB,
    PALETTE_YUV,
    Painter,
    Planes,
    Scale,
)

pytestmark = pytest.mark.unit

GREY = (90, 128, 128)


def grey_planes(width: int, height: int) -> Planes:
    return (
        np.full((height, width), GREY[0], np.uint8),
        np.full((height // 2, width // 2), GREY[1], np.uint8),
        np.full((height // 2, width // 2), GREY[2], np.uint8),
    )


def boxes(size_wh: tuple[int, int], *rows: tuple[float, float, float, float, int]) -> Detections:
    return Detections(
        xyxy=np.array([row[:4] for row in rows], np.float32).reshape(-1, 4),
        confidence=np.full(len(rows), 0.9, np.float32),
        class_id=np.array([row[4] for row in rows], np.int32),
        size_wh=size_wh,
    )


def yuv_at(planes: Planes, x: int, y: int) -> tuple[int, int, int]:
    luma, blue, red = planes
    return int(luma[y, x]), int(blue[y // 2, x // 2]), int(red[y // 2, x // 2])


@pytest.mark.parametrize("size_wh", [(640, 480), (1920, 1080), (322, 242)])
def test_a_box_has_its_class_colour_on_the_edge_and_the_picture_inside(
    size_wh: tuple[int, int],
) -> None:
    width, height = size_wh
    planes = grey_planes(width, height)
    x1, y1, x2, y2 = width // 4, height // 3, width // 2, height * 2 // 3
    Painter().draw(planes, boxes(size_wh, (x1, y1, x2, y2, 3)), ["a", "b", "c", "d"])
    middle = (y1 + y2) // 2
    assert yuv_at(planes, (x1 & ~1), middle) == PALETTE_YUV[3]
    assert yuv_at(planes, ((x1 + x2) // 2) & ~1, y2 - 1) == PALETTE_YUV[3]
    assert yuv_at(planes, (x1 + x2) // 2, middle) == GREY
    assert yuv_at(planes, x1 - 4, middle) == GREY


def test_a_label_carries_dark_and_bright_ink_above_the_box() -> None:
    planes = grey_planes(640, 480)
    Painter().draw(planes, boxes((640, 480), (100, 200, 300, 400, 0)), ["person"])
    label = planes[0][176:200, 100:200]
    assert int(label.max()) - int(label.min()) > 90
    below = planes[0][230:254, 110:200]
    assert int(below.max()) == int(below.min()) == GREY[0]


@pytest.mark.parametrize(
    "row",
    [
        (-50.0, -50.0, 700.0, 500.0, 0),  # larger than the picture
        (600.0, 470.0, 639.0, 479.0, 0),  # label has no room at the right
        (0.0, 0.0, 5.0, 3.0, 0),  # corner, smaller than its lines
        (10.0, 10.0, 10.0, 10.0, 0),  # empty
        (700.0, 500.0, 800.0, 600.0, 0),  # outside
        (10.0, 10.0, 60.0, 60.0, 99),  # a class without a name
    ],
)
def test_boxes_at_and_beyond_the_edges_are_clipped(
    row: tuple[float, float, float, float, int],
) -> None:
    planes = grey_planes(640, 480)
    Painter().draw(planes, boxes((640, 480), row), ["person"])
    assert planes[0].shape == (480, 640)


def test_a_picture_smaller_than_a_label_is_drawn_without_failing() -> None:
    planes = grey_planes(16, 16)
    Painter().draw(planes, boxes((16, 16), (2, 2, 14, 14, 0)), ["a very long class name"])
    assert planes[0].max() > GREY[0]


def test_a_fading_box_is_between_the_picture_and_its_colour() -> None:
    planes = grey_planes(640, 480)
    Painter().draw(planes, boxes((640, 480), (100, 200, 300, 400, 0)), ["person"], opacity=0.5)
    luma = yuv_at(planes, 100, 300)[0]
    assert luma == pytest.approx((GREY[0] + PALETTE_YUV[0][0]) / 2, abs=1)
    assert yuv_at(planes, 110, 190) == GREY, "fading text cannot be read and is not drawn"


def test_rendered_labels_are_kept_within_their_bound() -> None:
    painter = Painter()
    planes = grey_planes(320, 240)
    names = [f"class {index}" for index in range(LABELS_KEPT + 20)]
    for index in range(len(names)):
        painter.draw(planes, boxes((320, 240), (20, 60, 90, 120, index)), names)
    assert len(painter._labels) == LABELS_KEPT


def test_a_label_that_does_not_come_again_makes_room_for_the_next() -> None:
    painter = Painter()
    planes = grey_planes(320, 240)

    def draw(name: str) -> None:
        painter.draw(planes, boxes((320, 240), (20, 60, 90, 120, 0)), [name])

    draw("left")
    for _ in range(LABEL_LASTS_PICTURES):
        draw("stays")
    draw("comes")
    kept = {text for text, _, _ in painter._labels}
    assert {"stays", "comes"} < kept
    assert "left" not in kept
    for _ in range(LABEL_LASTS_PICTURES - 1):
        draw("stays")
    draw("last")
    assert "comes" in {text for text, _, _ in painter._labels}, "it may still come again"


def test_who_it_is_and_how_sure_are_rendered_apart() -> None:
    painter = Painter()
    planes = grey_planes(320, 240)
    for name in ("cat", "dog"):
        for percent in range(50, 60):
            row = boxes((320, 240), (20, 60, 90, 120, 0))
            painter.draw(planes, replace(row, confidence=np.array([percent / 100])), [name])
    assert len(painter._labels) == 2 + 10


def test_lines_and_letters_grow_with_the_picture() -> None:
    assert Scale.of((320, 240)).letter < Scale.of((640, 480)).letter < Scale.of((1920, 1080)).letter
    assert Scale.of((320, 240)).line == 2
    assert Scale.of((1920, 1080)).line == 4


def test_the_page_has_the_colours_of_the_picture() -> None:
    styles = (Path(__file__).parents[1] / "web" / "styles.css").read_text()
    hues = re.findall(r"\.hue-(\d+) \{\s+--hue: rgb\((\d+) (\d+) (\d+)\)", styles)
    assert [(int(hue), (int(r), int(g), int(b))) for hue, r, g, b in hues] == list(
        enumerate(PALETTE_RGB)
    )
