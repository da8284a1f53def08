"""Picture files become frames, or are refused before they cost anything."""

import cv2
import numpy as np
import pytest

from server.errors import MalformedError, TooLargeError
from server.images import check_image, decode_image, encode_jpeg
from server.pixels import picture_of
from tests.doors.files import (
    bomb_png,
    cmyk_jpeg,
    jpeg,
    many_scans,
    photograph,
    png,
    truncated_jpeg,
    turned_jpeg,
    wide_jpeg,
)

pytestmark = pytest.mark.unit

LIMIT = 50_000_000


def decoded(data: bytes) -> "np.ndarray":
    frame = decode_image(data, check_image(data, LIMIT))
    return frame.to_ndarray(format="bgr24")


@pytest.mark.parametrize("name", ["astronaut", "cat", "coffee"])
def test_photographs_have_the_pixels_that_opencv_finds(name: str) -> None:
    data = photograph(name)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert expected is not None
    difference = np.abs(decoded(data).astype(int) - expected)
    # Two releases of the same decoder may round differently.
    assert difference.max() <= 2


@pytest.mark.parametrize(
    "data",
    [
        jpeg(41, 31),
        jpeg(41, 31, grey=True),
        jpeg(41, 31, progressive=True),
        cmyk_jpeg(41, 31),
        png(41, 31),
        png(41, 31, channels=1),
        png(41, 31, channels=4),
        png(41, 31, bits=16),
        jpeg(41, 31) + b"what a camera leaves behind the end",
    ],
)
def test_every_kind_of_file_becomes_a_frame_of_its_size(data: bytes) -> None:
    frame = decode_image(data, check_image(data, LIMIT))
    assert (frame.format.name, frame.width, frame.height) == ("bgr24", 41, 31)
    assert picture_of(frame).size_wh == (41, 31)


def test_a_picture_taken_on_its_side_is_turned_upright() -> None:
    assert decoded(turned_jpeg(40, 30)).shape == (40, 30, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a" + bytes(100),
        b"\xff\xd8" + b"\xff" * 1_000_000,
        b"\xff\xd8" + b"\xff\xe0\x00\x02" * 1_000_000,
        wide_jpeg(0, 48),
    ],
)
def test_what_is_no_picture_is_refused_by_its_head(data: bytes) -> None:
    with pytest.raises(MalformedError):
        check_image(data, LIMIT)


@pytest.mark.parametrize("data", [wide_jpeg(10_000, 10_000), bomb_png(65_535, 65_535)])
def test_a_hundred_megapixels_are_refused_before_a_pixel_is_decoded(data: bytes) -> None:
    with pytest.raises(TooLargeError, match="max_image_megapixels"):
        check_image(data, LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        truncated_jpeg(),
        many_scans(200),
        png(64, 48)[:60],
        png(64, 48)[:33] + b"\0\0\0\x48IEND" + png(64, 48)[41:],
        # A part of 2 GiB that is not there, and more parts than any writer makes.
        png(64, 48)[:33] + b"\x7f\xff\xff\xff" + png(64, 48)[37:],
        png(64, 48)[:33] + b"\0\0\0\0tEXt\0\0\0\0" * 30_000 + png(64, 48)[33:],
        png(64, 48)[:-20],
        jpeg(64, 48)[:-2] + b"\x00" * 100,
        jpeg(64, 48)[: jpeg(64, 48).index(b"\xff\xda")] + b"\xff\xd9",
        # Says its size, but not in what colours.
        jpeg(64, 48)[: jpeg(64, 48).index(b"\xff\xc0") + 10] + b"\xff\xda\xff\xd9",
    ],
)
def test_what_cannot_be_decoded_whole_is_refused(data: bytes) -> None:
    size_wh = check_image(data, LIMIT)
    with pytest.raises(MalformedError):
        decode_image(data, size_wh)


def test_many_scans_of_a_large_picture_are_refused_where_few_are_not() -> None:
    small, large = many_scans(20), many_scans(30, 7000, 5000)
    decode_image(small, check_image(small, LIMIT))
    with pytest.raises(MalformedError, match="scans"):
        decode_image(large, check_image(large, LIMIT))


@pytest.mark.parametrize("data", [photograph(), png(41, 31), jpeg(1, 1)])
def test_a_frame_written_as_jpeg_reads_as_the_same_picture(data: bytes) -> None:
    frame = decode_image(data, check_image(data, LIMIT))
    again = decoded(encode_jpeg(frame, quality=95))
    expected = frame.to_ndarray(format="bgr24")[: again.shape[0], : again.shape[1]]
    difference = np.abs(again[: expected.shape[0], : expected.shape[1]].astype(int) - expected)
    assert difference.mean() < 3
