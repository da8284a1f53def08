"""How often an object's number changes, on clips: with tracking, and from picture to picture alone.

What is one object is found in every picture by a second detector and joined carefully: only boxes
that overlap each other best, no hole longer than three pictures, a second and more in all. A switch
is a change of number within one of them. Beside the tracker stands what a detector gives that looks
at each picture by itself: a box takes the number of the box it overlaps in the picture before, or a
new one. Counts, not times: a busy machine counts the same.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
import numpy.typing as npt

from bench.command import OK, publish, record_begun, show_progress
from bench.errors import ClipError, ServerError, UsageError
from bench.options import add_output
from bench.record import plain
from server.analysis.tracking import NO_TRACK, Tracker
from server.clock import NS_PER_S
from server.detections import Detections
from server.errors import SightlineError
from server.geometry import iou

CONFIDENCE: Final = 0.35
SURE: Final = 0.4
# Overlap that makes two boxes one object: of neighbouring pictures for the truth, of the tracked
# box and the true one, and what the detector alone is content with.
TRUE_IOU, SAME_IOU, ALONE_IOU = 0.4, 0.5, 0.25
HOLE_AT_MOST: Final = 3
LASTS_S: Final = 1.0
KINDS: Final = (".mp4", ".mkv", ".webm", ".mov", ".avi")

IdArray = npt.NDArray[np.int32]
Numbers = Callable[[Detections, int], IdArray]


@dataclass(frozen=True, slots=True)
class Film:
    """What a detector found in each picture of a clip."""

    times_s: tuple[float, ...]
    found: tuple[Detections, ...]


@dataclass(slots=True)
class Tracklet:
    """One object: its class, and its box by picture."""

    class_id: int
    boxes: dict[int, npt.NDArray[np.float32]]

    @property
    def last(self) -> int:
        return max(self.boxes)


@dataclass(frozen=True, slots=True)
class Followed:
    """How one way of giving numbers did on one clip."""

    clip: str
    way: str
    every: int
    """The detector looked at one picture of so many."""
    objects: int
    switches: int
    ids: int
    """Numbers that were given in all."""
    covered: float
    """Share of the objects' pictures in which they had a number."""


def tracklets(film: Film) -> list[Tracklet]:
    """What is surely one object, for a second and more."""
    going: list[Tracklet] = []
    done: list[Tracklet] = []
    for picture, found in enumerate(film.found):
        sure = found.confidence >= SURE
        boxes, classes = found.xyxy[sure], found.class_id[sure]
        before = np.array([each.boxes[each.last] for each in going], np.float32).reshape(-1, 4)
        same = np.array([each.class_id for each in going])[:, None] == classes[None]
        joined = _mutual(iou(before, boxes) * same, TRUE_IOU)
        for old, new in joined.items():
            going[old].boxes[picture] = boxes[new]
        begun = set(range(len(boxes))) - set(joined.values())
        going += [Tracklet(int(classes[n]), {picture: boxes[n]}) for n in sorted(begun)]
        done += [each for each in going if picture - each.last > HOLE_AT_MOST]
        going = [each for each in going if picture - each.last <= HOLE_AT_MOST]
    times = film.times_s
    return [
        each for each in done + going if times[each.last] - times[min(each.boxes)] >= LASTS_S
    ]  # fmt: skip


def _mutual(overlaps: npt.NDArray[Any], least: float) -> dict[int, int]:
    """Rows and columns that are each other's best, and overlap enough."""
    if not overlaps.size:
        return {}
    best_column, best_row = overlaps.argmax(axis=1), overlaps.argmax(axis=0)
    return {
        row: int(column)
        for row, column in enumerate(best_column)
        if best_row[column] == row and overlaps[row, column] >= least
    }


def tracked() -> Numbers:
    """The server's tracker."""
    tracker = Tracker()

    def number(found: Detections, at_ns: int) -> IdArray:
        ids = tracker.update(found, at_ns, CONFIDENCE).track_id
        assert ids is not None, "the tracker numbers every row"
        return ids

    return number


def frame_by_frame() -> Numbers:
    """Nothing but the overlap with the picture before."""
    last: Detections | None = None
    last_ids = np.zeros(0, np.int32)
    newest = 0

    def number(found: Detections, _: int) -> IdArray:
        nonlocal last, last_ids, newest
        ids = np.zeros(len(found), np.int32)
        shown = np.flatnonzero(found.confidence >= CONFIDENCE)
        if last is not None:
            same = last.class_id[:, None] == found.class_id[shown][None]
            overlaps = iou(last.xyxy, found.xyxy[shown]) * same * (last_ids != NO_TRACK)[:, None]
            for old, new in _mutual(overlaps, ALONE_IOU).items():
                ids[shown[new]] = last_ids[old]
        for place in shown[ids[shown] == NO_TRACK]:
            newest += 1
            ids[place] = newest
        last, last_ids = found, ids
        return ids

    return number


WAYS: Final[Mapping[str, Callable[[], Numbers]]] = {
    "tracked": tracked,
    "frame by frame": frame_by_frame,
}


def follow(
    clip: str, film: Film, truth: Sequence[Tracklet], way: str, every: int
) -> Followed:  # fmt: skip
    """Give numbers, and look how they stay with the objects."""
    number, numbered = WAYS[way](), {}
    for picture in range(0, len(film.found), every):
        found = film.found[picture]
        at_ns = NS_PER_S + round(film.times_s[picture] * NS_PER_S)
        shown = found.confidence >= CONFIDENCE
        ids = np.asarray(number(found, at_ns))[shown]
        numbered[picture] = (found.xyxy[shown], found.class_id[shown], ids)
    switches = looked = had = 0
    for each in truth:
        last = NO_TRACK
        for picture, box in each.boxes.items():
            if picture not in numbered:
                continue
            looked += 1
            boxes, classes, ids = numbered[picture]
            if not len(boxes):
                continue
            overlaps = iou(box[None], boxes)[0] * (classes == each.class_id)
            best = int(overlaps.argmax())
            if overlaps[best] < SAME_IOU or ids[best] == NO_TRACK:
                continue
            had += 1
            switches += last not in (NO_TRACK, ids[best])
            last = int(ids[best])
    given = {int(one) for _, _, ids in numbered.values() for one in ids if one != NO_TRACK}
    return Followed(
        clip, way, every, len(truth), switches, len(given), had / looked if looked else 0.0
    )


def watch(path: Path, detector: Any, pictures: int) -> Film:
    """Every picture of the beginning of a clip, looked at."""
    from server.pixels import YuvPicture

    times, found = [], []
    try:
        with av.open(str(path)) as container:
            for video_frame in islice(container.decode(video=0), pictures):
                times.append(float(video_frame.time or 0.0))
                found.append(detector.detect([YuvPicture(video_frame)])[0].detections)
    except (av.FFmpegError, OSError) as error:
        raise ClipError(f"clip: {path.name} cannot be read: {error}") from error
    return Film(tuple(times), tuple(found))


def summarise(results: Sequence[Followed]) -> dict[str, Any]:
    """All clips together."""
    keys = dict.fromkeys((each.way, each.every) for each in results)
    together = {}
    for way, every in keys:
        mine = [each for each in results if (each.way, each.every) == (way, every)]
        together[f"{way}, every {every}"] = {
            "objects": sum(each.objects for each in mine),
            "switches": sum(each.switches for each in mine),
            "ids": sum(each.ids for each in mine),
            "covered": sum(each.covered * each.objects for each in mine)
            / max(1, sum(each.objects for each in mine)),
        }
    return together


def describe(results: Sequence[Followed], summary: Mapping[str, Any]) -> str:
    """For a person."""
    lines = [f"{'':32}{'':28}{'objects':>8}{'switches':>10}{'ids':>6}{'covered':>9}"]
    for each in results:
        what = f"{each.way}, every {each.every}"
        lines.append(
            f"{each.clip[:31]:32}{what:28}{each.objects:>8}{each.switches:>10}{each.ids:>6}"
            f"{each.covered:>9.2f}"
        )
    for what, sums in summary.items():
        lines.append(
            f"{'all':32}{what:28}{sums['objects']:>8}{sums['switches']:>10}{sums['ids']:>6}"
            f"{sums['covered']:>9.2f}"
        )
    return "\n".join(lines)


def _detector(model: str) -> Any:
    from server.detector.load import load_detector
    from server.model_registry import chosen_model
    from server.settings import DetectorSettings

    try:
        return load_detector(DetectorSettings(model=chosen_model(model)), ())
    except SightlineError as error:
        raise ServerError(f"{Path(model).name}: {error}") from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    add = parser.add_argument
    add("--videos", type=Path, required=True, metavar="DIR", help="folder of clips")
    add("--model", default="", metavar="NAME", help="whose boxes get numbers; else the server's")
    add("--reference", default="", metavar="NAME", help="says what is one object (as --model)")
    add("--pictures", type=int, default=300, help="of each clip (300)")
    add("--every", default="1,3", help="the detector looks at one picture of so many (1,3)")
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    try:
        steps = [int(each) for each in options.every.split(",")]
    except ValueError:
        raise UsageError(f"--every: {options.every!r} is no list of whole numbers") from None
    if not all(1 <= step <= 30 for step in steps):
        raise UsageError("--every: 1 to 30")
    if not 10 <= options.pictures <= 100_000:
        raise UsageError(f"--pictures: {options.pictures} is outside 10..100000")
    clips = sorted(path for path in _listed(options.videos) if path.suffix.lower() in KINDS)
    if not clips:
        raise UsageError(f"--videos: no clips in {options.videos.name}")
    make_record = record_begun("switches")
    detector = _detector(options.model)
    reference = _detector(options.reference) if options.reference else detector
    results = []
    for left, path in enumerate(clips):
        show_progress(f"{path.name}, {len(clips) - left} clips to go")
        film = watch(path, detector, options.pictures)
        truth = tracklets(
            film if reference is detector else watch(path, reference, options.pictures)
        )
        results += [follow(path.name, film, truth, way, step) for way in WAYS for step in steps]
    settings = {
        "clips": [path.name for path in clips],
        "model": detector.reports()[0].model,
        "reference": reference.reports()[0].model,
        "pictures": options.pictures,
        "every": steps,
    }
    summary = summarise(results)
    record = make_record(settings, plain(summary), plain(results))
    publish(record, options.out, "clips", describe(results, summary), as_json=options.json)
    return OK


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise UsageError(f"--videos: {error.strerror}: {folder.name}") from None
