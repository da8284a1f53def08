"""What a model is fed is the picture, whatever its format, and copies are ours to draw on."""

from fractions import Fraction

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest
from av.video.reformatter import ColorRange

from server.errors import MalformedError, TooLargeError, UnprocessableError
from server.geometry import InputSpec
from server.pixels import (
    BgrPicture,
    Scratch,
    YuvPicture,
    copy_yuv420p,
    image_size,
    is_full_range,
    plane_views,
)

pytestmark = pytest.mark.unit

FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "nv12", "rgb24", "gray")
SIZES = ((640, 480), (641, 361), (361, 641), (16, 16), (1920, 1080), (1, 1))


def smooth_bgr(width: int, height: int) -> npt.NDArray[np.uint8]:
    """Slow changes of all three colours, so that scaling methods agree."""
    column = np.linspace(30, 220, width)[None, :]
    row = np.linspace(220, 30, height)[:, None]
    return np.stack(
        (
            np.broadcast_to(column, (height, width)),
            np.broadcast_to(row, (height, width)),
            (column + row) / 2,
        ),
        axis=-1,
    ).astype(np.uint8)


def frame_of(bgr: npt.NDArray[np.uint8], pixel_format: str) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(bgr, format="bgr24").reformat(format=pixel_format)


@pytest.mark.parametrize("pixel_format", FORMATS)
@pytest.mark.parametrize("size_wh", SIZES)
def test_every_format_and_size_gives_the_tensor_of_the_decoded_image(
    size_wh: tuple[int, int], pixel_format: str
) -> None:
    spec = InputSpec((96, 64), colour="bgr", scale=1.0)
    bgr = smooth_bgr(*size_wh)
    if pixel_format == "gray":
        bgr[:] = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)[:, :, None]
    expected, found = (np.empty(spec.shape, np.float32) for _ in range(2))
    BgrPicture(bgr).write_tensor(spec, expected)
    letterbox = YuvPicture(frame_of(bgr, pixel_format)).write_tensor(spec, found)
    (left, top), (wide, high) = letterbox.offset_xy, letterbox.content_wh
    # Chroma shares pixels at the edge, and offsets may differ by one: compare the inside.
    inside = np.s_[:, top + 2 : top + high - 2, left + 2 : left + wide - 2]
    assert np.abs(expected[inside] - found[inside]).mean() < 3
    # The padding is the same grey on both ways.
    assert abs(float(found[0, 0, 0]) - float(expected[0, 0, 0])) < 12 or top == left == 0


def test_values_follow_scale_mean_std_and_colour_order() -> None:
    bgr = np.zeros((8, 8, 3), np.uint8)
    bgr[:] = (10, 20, 30)
    spec = InputSpec((8, 8), scale=0.5, mean=(1, 2, 3), std=(2, 4, 8))
    out = np.empty(spec.shape, np.float32)
    BgrPicture(bgr).write_tensor(spec, out)
    np.testing.assert_allclose(out[:, 3, 3], [(15 - 1) / 2, (10 - 2) / 4, (5 - 3) / 8])


@pytest.mark.parametrize(
    ("dtype", "scale", "expected"),
    [("uint8", 1 / 255, 200), ("float16", 1 / 255, 200 / 255), ("float32", 1.0, 200.0)],
)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_layouts_and_number_types_hold_the_same_picture(
    dtype: str, scale: float, expected: float, layout: str
) -> None:
    bgr = np.zeros((8, 8, 3), np.uint8)
    bgr[:, :, 2] = 200
    spec = InputSpec((8, 8), scale=scale, layout=layout, dtype=dtype)  # type: ignore[arg-type]
    out = np.empty(spec.shape, dtype)
    BgrPicture(bgr).write_tensor(spec, out)
    red = out[0] if layout == "nchw" else out[:, :, 0]
    np.testing.assert_allclose(red.astype(float), expected, rtol=1e-3)
    assert float(out.astype(float).sum()) == pytest.approx(64 * expected, rel=1e-3)


def test_full_range_frame_is_read_as_full_range() -> None:
    frame = av.VideoFrame(64, 64, "yuvj420p")
    for plane, value in zip(plane_views(frame), (255, 128, 128), strict=True):
        plane[:] = value
    spec = InputSpec((64, 64), scale=1.0)
    out = np.empty(spec.shape, np.float32)
    YuvPicture(frame).write_tensor(spec, out)
    assert np.abs(out - 255).max() <= 2
    for plane, value in zip(plane_views(frame), (16, 128, 128), strict=True):
        plane[:] = value
    YuvPicture(frame).write_tensor(spec, out)
    assert np.abs(out - 16).max() <= 2


def test_scratch_of_another_picture_leaves_no_trace() -> None:
    scratch = Scratch(limit=4)
    spec = InputSpec((64, 64), scale=1.0)
    shared, fresh = (np.empty(spec.shape, np.float32) for _ in range(2))
    for width, height in ((64, 32), (32, 64), (64, 32), (50, 50), (20, 64)):
        picture = YuvPicture(frame_of(smooth_bgr(width, height), "yuv420p"))
        picture.write_tensor(spec, shared, scratch)
        picture.write_tensor(spec, fresh, Scratch())
        np.testing.assert_array_equal(shared, fresh)


def test_scratch_forgets_the_least_recently_used() -> None:
    scratch = Scratch(limit=2)
    a = scratch.get(("a",), lambda: np.zeros(1))
    scratch.get(("b",), lambda: np.zeros(1))
    assert scratch.get(("a",), lambda: np.zeros(1)) is a
    scratch.get(("c",), lambda: np.zeros(1))
    assert scratch.get(("a",), lambda: np.zeros(1)) is a
    assert scratch.get(("b",), lambda: np.ones(1))[0] == 1


def test_tensor_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        BgrPicture(smooth_bgr(8, 8)).write_tensor(InputSpec((8, 8)), np.empty((3, 9, 9)))


@pytest.mark.parametrize(
    ("pixels", "bgr"),
    [
        (np.full((4, 4), 7, np.uint8), (7, 7, 7)),  # grey
        (np.full((4, 4, 1), 7, np.uint8), (7, 7, 7)),  # grey with an axis
        (np.full((4, 4, 4), 9, np.uint8), (9, 9, 9)),  # transparency dropped
        (np.full((4, 4, 3), 0x1234, np.uint16), (0x12, 0x12, 0x12)),  # 16 bits
    ],
)
def test_grey_alpha_and_deep_images_become_bgr(
    pixels: npt.NDArray[np.generic], bgr: tuple[int, int, int]
) -> None:
    picture = BgrPicture.from_array(pixels)
    assert picture.size_wh == (4, 4)
    assert tuple(picture.bgr[2, 2]) == bgr


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0), (4, 4, 2), (4,)])
def test_images_without_pixels_or_of_odd_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnprocessableError):
        BgrPicture.from_array(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_files_are_decoded_and_their_header_tells_the_size(suffix: str, channels: int) -> None:
    if suffix == ".jpg" and channels == 4:
        pytest.skip("JPEG has no transparency")
    pixels = np.full((20, 30, channels), 90, np.uint8)
    data = cv2.imencode(suffix, pixels)[1].tobytes()
    assert image_size(data) == (30, 20)
    picture = BgrPicture.from_bytes(data)
    assert picture.size_wh == (30, 20)
    assert abs(int(picture.bgr[10, 10, 0]) - 90) < 3


def test_image_bomb_is_refused_by_its_header() -> None:
    bomb = cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()
    bomb = bomb[:16] + (60_000).to_bytes(4, "big") * 2 + bomb[24:]
    with pytest.raises(TooLargeError, match="60000x60000"):
        BgrPicture.from_bytes(bomb)


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"\xff\xd8", b"\xff\xd8\xff\xe0\xff\xff", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_image_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        BgrPicture.from_bytes(data)


@pytest.mark.parametrize("keep", [30, 100, 150])
def test_cut_off_image_is_malformed_or_partly_decoded_but_never_an_accident(keep: int) -> None:
    data = cv2.imencode(".png", smooth_bgr(64, 64))[1].tobytes()[:keep]
    with pytest.raises(MalformedError):
        BgrPicture.from_bytes(data)


@pytest.mark.parametrize("pixel_format", FORMATS)
@pytest.mark.parametrize("size_wh", [(640, 480), (641, 361), (2, 2), (1, 3)])
def test_copy_is_even_and_keeps_picture_and_media_time(
    size_wh: tuple[int, int], pixel_format: str
) -> None:
    source = frame_of(smooth_bgr(*size_wh), pixel_format)
    source.pts, source.time_base = 1234, Fraction(1, 90_000)
    copy = copy_yuv420p(source)
    assert copy.format.name == "yuv420p"
    assert (copy.width % 2, copy.height % 2) == (0, 0)
    assert (copy.pts, copy.time_base) == (1234, Fraction(1, 90_000))
    if min(size_wh) > 2:
        expected = source.reformat(format="yuv420p").to_ndarray(format="bgr24")
        expected = expected[: copy.height, : copy.width]
        difference = np.abs(copy.to_ndarray(format="bgr24").astype(int) - expected)
        assert difference.mean() < 3


def test_drawing_on_the_copy_leaves_the_source_alone() -> None:
    source = frame_of(smooth_bgr(64, 48), "yuv420p")
    before = source.to_ndarray().copy()
    for plane in plane_views(copy_yuv420p(source)):
        plane[:] = 0
    np.testing.assert_array_equal(source.to_ndarray(), before)


def test_plane_views_write_through_and_skip_line_padding() -> None:
    frame = av.VideoFrame(642, 362, "yuv420p")
    luma, u, v = plane_views(frame)
    assert (luma.shape, u.shape, v.shape) == ((362, 642), (181, 321), (181, 321))
    luma[:], u[:], v[:] = 77, 88, 99
    values = frame.to_ndarray()
    assert set(np.unique(values)) == {77, 88, 99}


def test_colour_range_may_be_told_by_the_frame() -> None:
    frame = av.VideoFrame(16, 16, "yuv420p")
    assert not is_full_range(frame)
    frame.color_range = ColorRange.JPEG
    assert is_full_range(frame)
