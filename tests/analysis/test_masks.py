"""What a mask covers cannot be seen, and nothing else changes."""

import av
import numpy as np
import pytest

from server.analysis.analyst import Analyst
from server.analysis.masks import Cover
from server.analysis.scene import Scene
from server.analysis.zones import Layout, parse_layout
from server.pixels import plane_views

pytestmark = pytest.mark.unit

SQUARE = [[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]


def noise(width: int, height: int) -> av.VideoFrame:
    pixels = np.random.default_rng(1).integers(16, 235, (height * 3 // 2, width), np.uint8)
    frame = av.VideoFrame.from_ndarray(pixels, format="yuv420p")
    frame.pts = 7
    return frame


def masks(kind: str, points: list[list[float]] | None = None) -> Layout:
    return parse_layout({"masks": [{"id": "m", "points": points or SQUARE, "kind": kind}]})


@pytest.mark.parametrize("size", [(64, 48), (640, 360), (66, 50)])
def test_fill_leaves_nothing_inside_and_everything_outside(size: tuple[int, int]) -> None:
    frame = noise(*size)
    before = [plane.copy() for plane in plane_views(frame)]
    covered = Cover(masks("fill").masks).apply(frame)
    assert covered.pts == 7
    for old, now, own, value in zip(
        before, plane_views(covered), plane_views(frame), (16, 128, 128), strict=True
    ):
        height, width = now.shape
        inner = now[height // 4 + 1 : height * 3 // 4 - 1, width // 4 + 1 : width * 3 // 4 - 1]
        assert (inner == value).all()
        margin = max(height, width) // 4 - 4
        np.testing.assert_array_equal(now[: height // 4 - 3], old[: height // 4 - 3])
        np.testing.assert_array_equal(
            now[:, :margin][: height // 5], old[:, :margin][: height // 5]
        )
        # The decoder may still need its own picture.
        np.testing.assert_array_equal(own, old)


def test_blur_leaves_averages_only() -> None:
    frame = noise(640, 480)
    covered = Cover(masks("blur").masks).apply(frame)
    inner = plane_views(covered)[0][130:350, 170:470].astype(float)
    original = plane_views(frame)[0][130:350, 170:470].astype(float)
    # Noise of neighbouring pixels is gone, the brightness of the place is not.
    assert np.abs(np.diff(inner, axis=1)).mean() < 0.03 * np.abs(np.diff(original, axis=1)).mean()
    assert inner.mean() == pytest.approx(original.mean(), abs=3)
    np.testing.assert_array_equal(plane_views(covered)[0][:110], plane_views(frame)[0][:110])


@pytest.mark.parametrize("kind", ["fill", "blur"])
@pytest.mark.parametrize(
    "points",
    [
        [[0, 0], [1, 0], [1, 1], [0, 1]],
        [[0, 0], [0.05, 0], [0, 0.05]],
        [[0.97, 0.97], [1, 0.97], [1, 1]],
    ],
)
@pytest.mark.parametrize("size", [(2, 2), (16, 16), (321, 241), (1920, 1080)])
def test_masks_at_the_edges_of_any_picture(
    kind: str, points: list[list[float]], size: tuple[int, int]
) -> None:
    width, height = size
    frame = av.VideoFrame(width, height, "yuv420p")
    for plane in plane_views(frame):
        plane[:] = 200
    covered = Cover(masks(kind, points).masks).apply(frame)
    assert (covered.width, covered.height) == (width // 2 * 2, height // 2 * 2)
    if kind == "fill" and points[2] == [1, 1] and points[0] == [0, 0]:
        assert (plane_views(covered)[0] == 16).all()


def test_a_picture_of_another_size_is_covered_too() -> None:
    cover = Cover(masks("fill").masks)
    cover.apply(noise(640, 480))
    covered = cover.apply(noise(320, 240))
    assert plane_views(covered)[0][120, 160] == 16


def test_full_range_pictures_are_covered() -> None:
    frame = noise(64, 48).reformat(format="yuvj420p")
    assert plane_views(Cover(masks("fill").masks).apply(frame))[0][24, 32] == 16


def test_without_masks_the_picture_is_passed_on_untouched() -> None:
    frame = noise(64, 48)
    assert Cover(()).apply(frame) is frame
    assert Analyst(tracking=True).cover(frame) is frame


def test_masks_change_while_pictures_come() -> None:
    scene = Scene("s", Layout(), None)
    analyst = Analyst(tracking=False, scene=scene)
    frame = noise(64, 48)
    assert analyst.cover(frame) is frame
    scene.change(masks("fill"))
    assert plane_views(analyst.cover(frame))[0][24, 32] == 16
    scene.change(Layout())
    assert analyst.cover(frame) is frame
