"""What `python -m bench switches` counts, on films made by hand, and on a real clip."""

from pathlib import Path

import numpy as np
import pytest

from bench.__main__ import OK, WRONG_USAGE, main
from bench.record import Record
from bench.switches import Film, follow, summarise, tracklets
from server.detections import Detections
from server.model_registry import DEFAULT_MODEL
from tests.page.making import write_detector, write_video_file

FPS = 10
SIDE = 40.0


def pictured(*left: float) -> Detections:
    """People that stand beside each other, by the left sides of their boxes."""
    boxes = [[x, 100.0, x + SIDE, 180.0] for x in left]
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.full(len(left), 0.9, np.float32),
        np.zeros(len(left), np.int32),
        (640, 360),
    )


def film(*pictures: Detections) -> Film:
    return Film(tuple(number / FPS for number in range(len(pictures))), pictures)


@pytest.mark.unit
def test_an_object_is_one_over_short_holes_and_nothing_when_it_is_short() -> None:
    walks = [pictured(100 + 2 * n, 400) if n not in (7, 8) else pictured(400) for n in range(20)]
    walks[15] = pictured(100 + 30, 400, 600)
    first, second = sorted(tracklets(film(*walks)), key=lambda each: each.boxes[0][0])
    assert (len(first.boxes), len(second.boxes)) == (18, 20)
    # Longer than is careful: two objects, each shorter than a second.
    holes = [pictured(100) if n < 8 or n > 13 else pictured() for n in range(20)]
    assert tracklets(film(*holes)) == []


@pytest.mark.unit
def test_a_picture_without_its_box_switches_numbers_without_tracking_only() -> None:
    whole = film(*(pictured(100 + 2 * n) for n in range(30)))
    blinks = film(*(pictured(100 + 2 * n) if n % 10 else pictured() for n in range(30)))
    truth = tracklets(whole)
    alone = follow("clip", blinks, truth, "frame by frame", 1)
    assert (alone.objects, alone.switches, alone.ids) == (1, 2, 3)
    ours = follow("clip", blinks, truth, "tracked", 1)
    assert (ours.switches, ours.ids) == (0, 1)
    # It has its number from its second picture on, and none while it is not found.
    assert ours.covered == pytest.approx(26 / 30)
    total = summarise([alone, ours, ours])
    assert total["tracked, every 1"]["objects"] == 2
    assert total["frame by frame, every 1"]["switches"] == 2


@pytest.mark.unit
def test_steps_without_overlap_keep_their_number_only_when_they_are_foreseen() -> None:
    walk = film(*(pictured(50 + 9 * n) for n in range(30)))
    truth = tracklets(walk)
    assert follow("clip", walk, truth, "frame by frame", 1).switches == 0
    # 45 pixels from look to look are more than the box is wide.
    alone = follow("clip", walk, truth, "frame by frame", 5)
    assert alone.switches == 5


@pytest.mark.unit
def test_a_folder_without_clips_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["switches", "--videos", str(tmp_path)]) == WRONG_USAGE
    assert "--videos" in capsys.readouterr().err


@pytest.mark.loopback
def test_a_clip_is_watched_by_a_real_detector(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video_file(videos / "window.webm")
    model = write_detector(tmp_path / "always.onnx")
    arguments = ["switches", "--videos", str(videos), "--model", str(model), "--pictures", "45"]
    assert main([*arguments, "--out", str(tmp_path), "--json"]) == OK
    record = Record.from_json(capsys.readouterr().out.splitlines()[-1])
    # It finds the same two in every picture.
    for run in record.runs:
        assert (run["objects"], run["switches"], run["ids"]) == (2, 0, 2)
    assert str(tmp_path) not in record.to_json()


@pytest.mark.loopback
def test_without_a_model_it_is_the_one_that_comes_with_sightline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video_file(tmp_path / "window.webm")
    arguments = ["switches", "--videos", str(tmp_path), "--pictures", "10", "--every", "1"]
    assert main([*arguments, "--out", str(tmp_path), "--json"]) == OK
    settings = Record.from_json(capsys.readouterr().out.splitlines()[-1]).settings
    assert settings["model"] == settings["reference"] == DEFAULT_MODEL.stem
