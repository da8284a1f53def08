"""Objects keep their numbers from picture to picture, whatever the detector misses."""

from collections.abc import Sequence

import numpy as np
import pytest

from server.analysis.tracking import TRACKS_AT_MOST, Tracker
from server.clock import NS_PER_S
from server.detections import Detections

pytestmark = pytest.mark.unit

STEP_NS = NS_PER_S // 15
CONFIDENCE = 0.35


def seen(*rows: Sequence[float], size_wh: tuple[int, int] = (640, 480)) -> Detections:
    """Boxes given as centre x, y, side, confidence, class."""
    values = np.array(rows, np.float32).reshape(-1, 5)
    half = values[:, 2:3] / 2
    return Detections(
        xyxy=np.concatenate((values[:, :2] - half, values[:, :2] + half), axis=1),
        confidence=values[:, 3],
        class_id=values[:, 4].astype(np.int32),
        size_wh=size_wh,
    )


class Film:
    """A tracker that is shown one picture after the other."""

    def __init__(self) -> None:
        self.tracker = Tracker()
        self.at_ns = NS_PER_S

    def show(self, *rows: Sequence[float], after_ns: int = STEP_NS) -> Detections:
        self.at_ns += after_ns
        return self.tracker.update(seen(*rows), self.at_ns, CONFIDENCE)

    def ids(self, *rows: Sequence[float], after_ns: int = STEP_NS) -> list[int]:
        track_id = self.show(*rows, after_ns=after_ns).track_id
        assert track_id is not None
        return track_id.tolist()


def test_an_object_has_a_number_from_its_second_picture_on() -> None:
    film = Film()
    assert film.ids((100, 100, 50, 0.9, 0)) == [0]
    assert film.ids((103, 100, 50, 0.9, 0)) == [1]
    assert film.ids((106, 100, 50, 0.9, 0)) == [1]


def test_numbers_follow_the_objects_and_not_the_order_of_rows() -> None:
    film = Film()
    left, right = (100, 100, 50, 0.9, 0), (400, 100, 50, 0.8, 0)
    film.ids(left, right)
    first = film.ids(left, right)
    assert sorted(first) == [1, 2]
    assert film.ids(right, left) == first[::-1]


def test_two_that_pass_each_other_keep_their_numbers() -> None:
    film = Film()
    found = []
    for step in range(31):
        # Past each other on two lines that overlap by a third.
        a, b = (100 + 10 * step, 100, 60, 0.9, 0), (400 - 10 * step, 140, 60, 0.8, 0)
        found.append(film.ids(a, b))
    assert {tuple(ids) for ids in found[1:]} == {(1, 2)}


def test_what_moves_farther_than_its_size_between_pictures_is_found_by_its_velocity() -> None:
    film = Film()
    # Slow at first, so that its velocity can be learnt; then half its size and more a picture.
    x, ids = 40.0, []
    for step in range(14):
        x += min(3.0 * step, 30)
        ids += film.ids((x, 200, 40, 0.9, 0))
    assert set(ids[1:]) == {1}


@pytest.mark.parametrize("missed", [1, 5, 15])
def test_an_object_that_is_missed_for_a_second_comes_back_under_its_number(missed: int) -> None:
    film = Film()
    for step in range(10):
        film.ids((100 + 4 * step, 100, 50, 0.9, 0))
    for _ in range(missed):
        assert film.ids() == []
    assert film.ids((100 + 4 * (10 + missed), 100, 50, 0.9, 0)) == [1]


def test_an_object_that_was_away_for_long_gets_a_new_number() -> None:
    film = Film()
    for _ in range(3):
        film.ids((100, 100, 50, 0.9, 0))
    film.ids(after_ns=2 * NS_PER_S)
    film.ids((100, 100, 50, 0.9, 0))
    assert film.ids((100, 100, 50, 0.9, 0)) == [2]


def test_weak_boxes_keep_a_track_and_never_begin_one() -> None:
    film = Film()
    for _ in range(3):
        assert film.ids((400, 300, 50, 0.2, 0)) == [0]
    for _ in range(3):
        film.ids((100, 100, 50, 0.9, 0))
    assert film.ids((102, 100, 50, 0.15, 0)) == [1]
    assert film.ids((104, 100, 50, 0.9, 0)) == [1]


def test_classes_are_never_mixed() -> None:
    film = Film()
    for _ in range(3):
        film.ids((100, 100, 50, 0.9, 0))
    assert film.ids((100, 100, 50, 0.9, 1)) == [0]
    assert film.ids((100, 100, 50, 0.9, 1)) == [2]
    both = film.ids((100, 100, 50, 0.9, 0), (100, 100, 50, 0.8, 1))
    assert both == [1, 2]


def test_noise_of_one_picture_gets_no_number_and_uses_none_up() -> None:
    film = Film()
    for step in range(20):
        assert film.ids((30 * step, 17 * (step % 20), 20, 0.9, 0)) == [0]
    film.ids((600, 440, 20, 0.9, 0))
    assert film.ids((600, 440, 20, 0.9, 0)) == [1]


def test_velocity_is_in_pixels_a_second_and_moves_boxes_on() -> None:
    film = Film()
    for step in range(30):
        found = film.show((100 + 10 * step, 200, 60, 0.9, 0))
    assert found.velocity is not None
    np.testing.assert_allclose(found.velocity[0], [150, 0, 150, 0], atol=8)
    later = found.moved(0.2)
    np.testing.assert_allclose(later.xyxy - found.xyxy, [[30, 0, 30, 0]], atol=2)
    assert later.track_id is found.track_id


def test_boxes_do_not_move_out_of_the_picture_or_inside_out() -> None:
    film = Film()
    for step in range(20):
        found = film.show((500 + 6 * step, 200, 80 - 3 * step, 0.9, 0))
    later = found.moved(5)
    assert (later.xyxy[:, 2:] >= later.xyxy[:, :2]).all()
    assert (later.xyxy >= 0).all()
    assert (later.xyxy <= [640, 480, 640, 480]).all()


def test_boxes_without_velocity_stay_where_they_are() -> None:
    still = seen((100, 100, 50, 0.9, 0))
    assert still.moved(1.0) is still


def test_a_pause_of_the_source_begins_anew() -> None:
    film = Film()
    for _ in range(3):
        film.ids((100, 100, 50, 0.9, 0))
    assert film.ids((100, 100, 50, 0.9, 0), after_ns=3600 * NS_PER_S) == [0]
    assert film.tracker.statistics().live == 1


def test_the_same_instant_twice_breaks_nothing() -> None:
    film = Film()
    film.ids((100, 100, 50, 0.9, 0))
    assert film.ids((100, 100, 50, 0.9, 0), after_ns=0) == [1]
    assert film.ids((100, 100, 50, 0.9, 0), after_ns=-STEP_NS) == [1]


def test_there_is_a_bound_and_what_is_beyond_it_is_counted() -> None:
    film = Film()
    many = [(8.0 * (n % 80), 8.0 * (n // 80), 7, 0.9, n % 7) for n in range(TRACKS_AT_MOST + 10)]
    film.ids(*many)
    film.ids(*many)
    statistics = film.tracker.statistics()
    assert statistics.live == TRACKS_AT_MOST
    assert statistics.dropped_full == 20


def test_nothing_seen_is_nothing_found() -> None:
    film = Film()
    empty = film.show()
    assert len(empty) == 0
    assert empty.to_rows() == []


def test_rows_carry_the_number_or_null() -> None:
    film = Film()
    assert film.show((100, 100, 50, 0.9, 0)).to_rows()[0][6] is None
    assert film.show((100, 100, 50, 0.9, 0)).to_rows()[0][6] == 1


def test_selected_rows_keep_number_and_velocity() -> None:
    film = Film()
    for _ in range(2):
        found = film.show((100, 100, 50, 0.9, 0), (300, 100, 50, 0.6, 1))
    chosen = found.select(0.5, [1])
    assert chosen.track_id is not None
    assert found.track_id is not None
    assert chosen.track_id.tolist() == found.track_id.tolist()[1:]
    assert chosen.velocity is not None
    assert chosen.velocity.shape == (1, 4)
