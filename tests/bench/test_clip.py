"""Source pictures come at the size asked for, without a cut, and without a machine's paths."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from bench.barcode import NEUTRAL_CHROMA
from bench.clip import MAX_BYTES, load_clip, ping_pong
from bench.errors import ClipError
from bench.planes import plane_view

pytestmark = pytest.mark.unit


def write_video(path: Path, width: int, height: int, count: int, fps: int) -> Path:
    """Pictures that brighten from one to the next, with a white left half."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(count):
            video_frame = av.VideoFrame(width, height, "yuv420p")
            luma = plane_view(video_frame, 0)
            luma[:] = 40 + 4 * number
            luma[:, : width // 2] = 235
            for index in (1, 2):
                plane_view(video_frame, index)[:] = 90
            video_frame.pts = number
            video_frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(video_frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("index", "expected"), list(enumerate([0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0]))
)
def test_ping_pong_shows_the_ends_once(index: int, expected: int) -> None:
    assert ping_pong(index, 4) == expected


def test_a_single_picture_repeats() -> None:
    assert [ping_pong(index, 1) for index in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("size_wh", [(640, 480), (320, 240), (480, 640), (642, 362), (1280, 720)])
def test_a_file_is_scaled_to_cover_the_size(tmp_path: Path, size_wh: tuple[int, int]) -> None:
    path = write_video(tmp_path / "a.mp4", 400, 300, 6, 30)
    clip = load_clip(path, size_wh, 30, MAX_BYTES)
    assert clip.size_wh == size_wh
    assert len(clip.video_frames) == 6
    first = clip.video_frames[0]
    assert (first.width, first.height, first.format.name) == (*size_wh, "yuv420p")
    middle = plane_view(first, 0)[size_wh[1] // 2]
    # The white half ends in the middle: the picture was cropped evenly and not stretched apart.
    assert np.all(middle[: size_wh[0] // 2 - 16] > 200)
    assert np.all(middle[size_wh[0] // 2 + 16 :] < 100)


def test_a_fast_file_is_thinned_to_the_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 320, 240, 24, 60)
    assert len(load_clip(path, (320, 240), 30, MAX_BYTES).video_frames) == 12
    assert len(load_clip(path, (320, 240), 60, MAX_BYTES).video_frames) == 24


def test_memory_is_bounded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 320, 240, 24, 30)
    picture_bytes = 320 * 240 * 3 // 2
    assert len(load_clip(path, (320, 240), 30, 5 * picture_bytes).video_frames) == 5


def test_colour_under_the_strips_is_grey(tmp_path: Path) -> None:
    clip = load_clip(write_video(tmp_path / "a.mp4", 320, 240, 2, 30), (320, 240), 30, MAX_BYTES)
    for index in (1, 2):
        plane = plane_view(clip.video_frames[0], index)
        assert np.all(plane[:5] == NEUTRAL_CHROMA)
        assert np.all(plane[-5:] == NEUTRAL_CHROMA)
        assert not np.any(plane[8:-8] == NEUTRAL_CHROMA)


def test_a_copy_has_pictures_of_its_own(tmp_path: Path) -> None:
    clip = load_clip(write_video(tmp_path / "a.mp4", 320, 240, 3, 30), (320, 240), 30, MAX_BYTES)
    twin = clip.copy()
    before = plane_view(clip.picture(1), 0).copy()
    plane_view(twin.picture(1), 0)[:] = 0
    assert np.array_equal(plane_view(clip.picture(1), 0), before)


def test_a_missing_or_unreadable_file_is_one_line_with_its_name(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all" * 50)
    for path in (broken, tmp_path / "missing.mp4"):
        with pytest.raises(ClipError, match=path.name) as raised:
            load_clip(path, (320, 240), 30, MAX_BYTES)
        assert "\n" not in str(raised.value)


def test_without_a_file_the_camera_sways_over_the_photographs() -> None:
    clip = load_clip(None, (320, 240), 10, MAX_BYTES)
    assert (clip.name, len(clip.video_frames)) == ("photographs", 30)
    lumas = [plane_view(video_frame, 0).astype(int) for video_frame in clip.video_frames]
    steps = [np.abs(b - a).mean() for a, b in pairwise(lumas)]
    assert min(steps) > 1, "every picture differs from the one before"
    assert max(steps) < 40, "and there is no cut between them"
