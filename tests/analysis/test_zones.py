"""What is drawn on a picture is read strictly, and tells for many points where they lie."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.analysis.zones import POLYGON_POINTS, SHAPES_AT_MOST, Layout, parse_layout
from server.errors import UnprocessableError

pytestmark = pytest.mark.unit

SQUARE = [[0.2, 0.2], [0.8, 0.2], [0.8, 0.8], [0.2, 0.8]]


def zone(**changes: object) -> dict[str, Any]:
    return {"zones": [{"id": "a", "points": SQUARE, **changes}]}


def circle(count: int) -> list[list[float]]:
    turns = [2 * math.pi * index / count for index in range(count)]
    return [[0.5 + 0.4 * math.cos(turn), 0.5 + 0.4 * math.sin(turn)] for turn in turns]


@pytest.mark.parametrize(
    "body",
    [
        {},
        zone(),
        zone(label="Haustür <b>&amp;", dwell_s=10, events=["leave"], classes=["person"]),
        zone(points=circle(POLYGON_POINTS[1])),
        # a polygon with a dent
        zone(points=[[0, 0], [1, 0], [0.5, 0.5], [1, 1], [0, 1]]),
        {"lines": [{"id": "gate", "points": [[0, 0.5], [1, 0.5]]}]},
        {"lines": [{"id": "gate", "points": [[0, 0.5], [0.5, 0.2], [1, 0.5]]}]},
        {"masks": [{"id": "m", "points": SQUARE, "kind": "blur"}], "appear": ["person"]},
    ],
)
def test_what_is_right_comes_back_as_it_was(body: dict[str, Any]) -> None:
    layout = parse_layout(body)
    assert parse_layout(layout.to_json()) == layout
    for name, shapes in body.items():
        if name != "appear":
            for shape, told in zip(shapes, layout.to_json()[name], strict=True):
                assert {**told, **shape} == told


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ([], "not a JSON object"),
        ({"zone": []}, "unknown"),
        ({"zones": {}}, "not a list"),
        ({"zones": [None]}, "not a JSON object"),
        ({"zones": [{"points": SQUARE}]}, "id: wanted"),
        (zone(id="<script>"), "id: wanted"),
        (zone(id="x" * 33), "id: wanted"),
        (zone(label="x" * 81), "up to 80"),
        (zone(label="a\nb"), "up to 80"),
        (zone(points=SQUARE[:2]), "3 to 64 are wanted, found 2"),
        (zone(points=circle(65)), "found 65"),
        (zone(points=[[0, 0], [1, 0], [1, "1"]]), "not within 0 to 1"),
        (zone(points=[[0, 0], [1, 0], [1, 1.01]]), "not within 0 to 1"),
        (zone(points=[[0, 0], [1, 0], [1, float("nan")]]), "not within 0 to 1"),
        (zone(points=[[0, 0], [1, 0], [True, 1]]), "not within 0 to 1"),
        (zone(points=[[0, 0], [1, 0], [1]]), r"not \[x, y\]"),
        # a bow tie
        (zone(points=[[0, 0], [1, 1], [1, 0], [0, 1]]), "crosses itself"),
        # a corner that touches another side
        (zone(points=[[0, 0], [1, 0], [1, 1], [0.5, 0], [0, 1]]), "crosses itself"),
        (zone(points=[[0, 0], [1, 0], [0.5, 0]]), "runs back|crosses itself"),
        (zone(points=[[0, 0], [0, 0], [1, 0], [1, 1]]), "twice in a row"),
        (zone(points=[[0.1, 0.1], [0.101, 0.1], [0.1, 0.101]]), "next to nothing"),
        (zone(dwell_s=0), "not within"),
        (zone(dwell_s=True), "not within"),
        (zone(events=["vanish"]), "not a list of"),
        (zone(anchor="top"), "not one of"),
        (zone(classes=["x" * 81]), "class names"),
        (zone(colour="red"), "unknown"),
        ({"lines": [{"id": "l", "points": [[0, 0]]}]}, "2 to 16"),
        (
            {"lines": [{"id": "l", "points": [[0, 0], [1, 1], [1, 0], [0, 1]]}]},
            "crosses itself: the side from point 1 meets the one from point 3",
        ),
        ({"lines": [{"id": "l", "points": [[0, 0], [1, 0], [0.5, 0]]}]}, "runs back"),
        ({"masks": [{"id": "m", "points": SQUARE, "kind": "pixels"}]}, "not one of"),
        (
            {"zones": [{"id": f"z{n}", "points": SQUARE} for n in range(SHAPES_AT_MOST + 1)]},
            "over the limit",
        ),
        (
            {
                "zones": [{"id": f"z{n}", "points": SQUARE} for n in range(20)],
                "masks": [{"id": f"m{n}", "points": SQUARE} for n in range(20)],
            },
            "40 is over the limit of 32",
        ),
        (
            {
                "zones": [{"id": "a", "points": SQUARE}],
                "masks": [{"id": "a", "points": SQUARE}],
            },
            "twice",
        ),
    ],
)
def test_what_is_wrong_is_refused_by_name(body: object, word: str) -> None:
    with pytest.raises(UnprocessableError, match=word):
        parse_layout(body)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["zones", "lines", "masks", "appear", "id", "points", "classes"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=30,
    )
)
def test_any_json_is_taken_or_refused(body: object) -> None:
    try:
        layout = parse_layout(body)
    except UnprocessableError:
        return
    assert parse_layout(layout.to_json()) == layout


def inside(layout: Layout, *points: tuple[float, float]) -> list[list[bool]]:
    places = np.array(points, float).reshape(-1, 1, 2)
    found: list[list[bool]] = layout.inside(places.repeat(len(layout.zones), axis=1)).tolist()
    return found


def test_points_are_found_in_all_their_zones() -> None:
    layout = parse_layout(
        {
            "zones": [
                {"id": "square", "points": SQUARE},
                {"id": "left", "points": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]},
                # like a C, open to the right
                {
                    "id": "c",
                    "points": [
                        [0, 0], [1, 0], [1, 0.3], [0.3, 0.3], [0.3, 0.7], [1, 0.7], [1, 1], [0, 1],
                    ],
                },
            ]
        }
    )  # fmt: skip
    assert inside(layout, (0.3, 0.5), (0.7, 0.5), (0.9, 0.1), (0.1, 0.5)) == [
        [True, True, False],
        [True, False, False],
        [False, False, True],
        [False, True, True],
    ]


def test_no_points_and_no_zones_are_fine() -> None:
    assert parse_layout(zone()).inside(np.zeros((0, 1, 2))).shape == (0, 1)
    assert Layout().inside(np.zeros((3, 0, 2))).shape == (3, 0)


@given(st.integers(3, 64), st.floats(0, 1), st.floats(0, 1))
def test_a_circle_of_any_corners_holds_what_its_radius_says(count: int, x: float, y: float) -> None:
    layout = parse_layout(zone(points=circle(count)))
    distance = math.dist((x, y), (0.5, 0.5))
    if distance < 0.4 * math.cos(math.pi / count) - 1e-9:
        assert inside(layout, (x, y)) == [[True]]
    elif distance > 0.4 + 1e-9:
        assert inside(layout, (x, y)) == [[False]]
