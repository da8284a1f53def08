"""Who comes, goes, stays and crosses is told once, with its times, whatever the clock does."""

import threading
from typing import Any

import numpy as np
import pytest

from server.analysis.scene import PLACES_AT_MOST, STAYS_AT_MOST, Happening, Scene
from server.analysis.zones import Layout, parse_layout
from server.clock import NS_PER_MS, NS_PER_S
from server.detections import Detections
from server.frame import Frame, Stamps
from tests.fakes import grey_video_frame

pytestmark = pytest.mark.unit

NAMES = ("person", "car")
# The right half of the picture.
ROOM: dict[str, Any] = {"id": "room", "points": [[0.5, 0], [1, 0], [1, 1], [0.5, 1]]}
# From top to bottom in the middle: forward is towards the left of the picture.
GATE: dict[str, Any] = {"id": "gate", "points": [[0.5, 0], [0.5, 1]]}


class Film:
    """A scene that is shown pictures of 100 ms each."""

    def __init__(self, **parts: Any) -> None:
        self.happenings: list[Happening] = []
        self.scene = Scene("yard", parse_layout(parts), self.happenings.append)
        self.at_ns = 5 * NS_PER_S

    def show(self, *objects: tuple[int, float], class_id: int = 0, score: float = 0.9) -> None:
        """Objects by track id and x of their middle, in the middle of the height."""
        boxes = [[640 * x - 20, 200, 640 * x + 20, 240] for _, x in objects]
        count = len(objects)
        shown = Detections(
            np.array(boxes, np.float32).reshape(-1, 4),
            np.full(count, score, np.float32),
            np.full(count, class_id, np.int32),
            (640, 480),
            track_id=np.array([track for track, _ in objects], np.int32),
        )
        self.at_ns += 100 * NS_PER_MS
        frame = Frame(grey_video_frame(), 0, 0, Stamps(received_at_ns=self.at_ns))
        self.scene.look(frame, shown, NAMES)

    def told(self) -> list[tuple[str, bool]]:
        return [(happening.event.kind, happening.begins) for happening in self.happenings]

    def count(self, zone: str = "room") -> dict[str, Any]:
        counted: dict[str, Any] = self.scene.counts()["zones"][zone]
        return counted


def test_who_comes_and_goes_is_one_event_with_both_times() -> None:
    film = Film(zones=[ROOM])
    film.show((1, 0.3))
    for _ in range(11):
        film.show((1, 0.7))
    for _ in range(10):
        film.show((1, 0.3))
    assert film.told() == [("enter", True), ("enter", False)]
    begun, ended = (happening.event for happening in film.happenings)
    assert begun.id == ended.id
    assert (begun.stream, begun.class_name, begun.track_id, begun.zone) == (
        "yard", "person", 1, "room",
    )  # fmt: skip
    assert begun.ended_unix_ms is None
    assert ended.ended_unix_ms == ended.started_unix_ms + 1000
    assert film.happenings[0].frame is not None
    count = film.count()
    assert (count["inside"], count["entered"], count["left"]) == (0, 1, 1)
    assert count["longest_dwell_s"] == 1.0


def test_one_look_is_not_enough_and_trembling_at_the_edge_is_one_stay() -> None:
    film = Film(zones=[ROOM])
    film.show((1, 0.7))
    for _ in range(20):
        film.show((1, 0.3))
    assert film.told() == []
    for _ in range(20):
        film.show((1, 0.49))
        film.show((1, 0.51))
    assert film.told() == [("enter", True)]
    assert film.count()["inside"] == 1


def test_a_hole_in_the_track_is_no_leaving_and_vanishing_is() -> None:
    film = Film(zones=[ROOM])
    for _ in range(3):
        film.show((1, 0.7))
    for _ in range(15):
        film.show()
    film.show((1, 0.7))
    assert film.told() == [("enter", True)]
    for _ in range(25):
        film.show()
    assert film.told() == [("enter", True), ("enter", False)]
    ended = film.happenings[-1].event
    # As of when it was last seen, not of when it was given up.
    assert ended.ended_unix_ms == ended.started_unix_ms + 1800


def test_who_stays_long_enough_dwells_once() -> None:
    film = Film(zones=[{**ROOM, "dwell_s": 1.0, "events": ["enter", "dwell", "leave"]}])
    for _ in range(30):
        film.show((1, 0.7))
    assert film.told() == [("enter", True), ("dwell", True)]
    for _ in range(30):
        film.show()
    assert film.told()[2:] == [("enter", False), ("dwell", False), ("leave", True)]
    for happening in film.happenings[2:4]:
        event = happening.event
        assert event.ended_unix_ms == event.started_unix_ms + 2900


def test_only_what_is_asked_for_is_told() -> None:
    film = Film(zones=[{**ROOM, "events": [], "dwell_s": 1.0}])
    for _ in range(30):
        film.show((1, 0.7))
    assert film.told() == []
    assert film.count()["inside"] == 1


def test_zones_take_the_classes_they_are_given() -> None:
    film = Film(zones=[{**ROOM, "classes": ["car"]}])
    for _ in range(3):
        film.show((1, 0.7))
    assert film.told() == []
    for _ in range(3):
        film.show((2, 0.7), class_id=1)
    assert film.count()["classes"] == {"car": 1}


def test_a_class_without_a_name_is_no_way_to_break_it() -> None:
    film = Film(zones=[ROOM], lines=[GATE])
    for x in (0.3, 0.7, 0.7):
        film.show((1, x), class_id=7)
    assert film.happenings[-1].event.class_name == "class7"


def test_crossing_has_a_direction_and_is_counted() -> None:
    film = Film(lines=[GATE])
    for x in (0.3, 0.45, 0.499, 0.501, 0.499, 0.505, 0.55, 0.7, 0.6, 0.4):
        film.show((1, x))
    events = [happening.event for happening in film.happenings]
    assert [(event.kind, event.direction, event.zone) for event in events] == [
        ("cross", "backward", "gate"),
        ("cross", "forward", "gate"),
    ]
    assert film.scene.counts()["lines"] == {"gate": {"forward": 1, "backward": 1}}


def test_going_around_the_end_of_a_line_is_no_crossing() -> None:
    film = Film(lines=[{"id": "gate", "points": [[0.5, 0.8], [0.5, 1]]}])
    for x in (0.3, 0.7, 0.3):
        film.show((1, x))
    assert film.told() == []


def test_there_and_back_between_two_pictures_over_a_bent_line_is_no_crossing() -> None:
    film = Film(lines=[{"id": "v", "points": [[0.4, 0], [0.5, 1], [0.6, 0]]}])
    for x in (0.2, 0.8):
        film.show((1, x))
    assert film.told() == []


def test_a_class_appears_once_until_it_has_been_gone() -> None:
    film = Film(appear=["car"])
    for _ in range(5):
        film.show((1, 0.3))
    assert film.told() == []
    for _ in range(5):
        film.show((2, 0.3), (3, 0.6), class_id=1)
    assert film.told() == [("appear", True)]
    for _ in range(35):
        film.show()
    assert film.told() == [("appear", True), ("appear", False)]
    for _ in range(3):
        film.show((9, 0.3), class_id=1)
    assert film.told()[2:] == [("appear", True)]


def test_a_better_picture_comes_with_the_end() -> None:
    film = Film(zones=[ROOM])
    for score in (0.4, 0.4, 0.5, 0.9, 0.6):
        film.show((1, 0.7), score=score)
    film.scene.source_left()
    begun, ended = film.happenings
    assert ended.frame is not None
    assert ended.frame is not begun.frame
    assert ended.event.score == pytest.approx(0.9)


def test_when_the_source_leaves_everybody_has_left() -> None:
    film = Film(zones=[ROOM], appear=["person"])
    for _ in range(3):
        film.show((1, 0.7), (2, 0.8))
    film.scene.source_left()
    film.scene.source_left()
    assert sorted(film.told()[3:]) == [("appear", False), ("enter", False), ("enter", False)]
    assert film.count()["inside"] == 0


def test_another_layout_ends_only_what_is_not_in_it() -> None:
    other = {"id": "other", "points": [[0.6, 0], [1, 0], [1, 1], [0.6, 1]]}
    film = Film(zones=[ROOM, other])
    for _ in range(3):
        film.show((1, 0.7))
    film.scene.change(parse_layout({"zones": [ROOM]}))
    assert [h.event.zone for h in film.happenings if not h.begins] == ["other"]
    film.show((1, 0.7))
    assert film.count()["inside"] == 1
    film.scene.change(Layout())
    assert film.scene.counts()["zones"] == {}
    assert len(film.told()) == 4


def test_clocks_that_jump_make_no_negative_times() -> None:
    wall = [1_800_000_000_000.0]
    film = Film(zones=[ROOM])
    layout = parse_layout({"zones": [ROOM]})
    film.scene = Scene("yard", layout, film.happenings.append, lambda: wall[0])
    for _ in range(3):
        film.show((1, 0.7))
    wall[0] -= 3_600_000
    for _ in range(10):
        film.show((1, 0.7))
    film.scene.source_left()
    ended = film.happenings[-1].event
    assert ended.ended_unix_ms is not None
    assert ended.ended_unix_ms - ended.started_unix_ms == 1200


def test_rows_without_a_number_are_not_looked_at() -> None:
    film = Film(zones=[ROOM], lines=[GATE], appear=["person"])
    for _ in range(3):
        film.show((0, 0.7))
    assert film.told() == []


def test_what_is_remembered_has_a_bound() -> None:
    film = Film(zones=[ROOM], lines=[GATE])
    for start in range(1, STAYS_AT_MOST + 200, 100):
        film.at_ns -= 99 * NS_PER_MS
        film.show(*((track, 0.7) for track in range(start, start + 100)))
    assert len(film.scene._stays) <= STAYS_AT_MOST
    assert len(film.scene._places) <= PLACES_AT_MOST
    assert film.scene.counts()["not_followed"] > 0


def test_whoever_is_told_may_ask_back() -> None:
    counted = []
    scene = Scene("yard", parse_layout({"zones": [ROOM]}), lambda _: counted.append(scene.counts()))
    film = Film(zones=[ROOM])
    film.scene = scene

    def show() -> None:
        for _ in range(3):
            film.show((1, 0.7))

    done = threading.Thread(target=show, daemon=True)
    done.start()
    done.join(10)
    assert not done.is_alive(), "a happening is told under the lock"
    assert counted[0]["zones"]["room"]["inside"] == 1
