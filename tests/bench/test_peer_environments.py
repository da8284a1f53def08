"""The compared servers get exact versions, and the same of everything that decides the numbers."""

import re

import pytest

from bench.peer_environments import CONSTRAINTS, DETECTOR, ENGINES, WANTED, constraints

pytestmark = pytest.mark.unit

# What decodes, encodes, moves packets, scales pictures: the same in every environment.
DECISIVE = (
    "aioice",
    "aiortc",
    "av",
    "cryptography",
    "numpy",
    "opencv-python-headless",
    "pylibsrtp",
)


def pinned() -> dict[str, str]:
    text = (CONSTRAINTS.parents[1] / "constraints.txt").read_text(encoding="utf-8")
    return dict(line.split("==") for line in text.splitlines() if line and line[0] != "#")


@pytest.mark.parametrize("name", WANTED)
def test_versions_are_exact_sorted_and_whole(name: str) -> None:
    text = (CONSTRAINTS / f"{name}.txt").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line and line[0] != "#"]
    assert [row for row in rows if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", row)] == []
    assert rows == sorted(set(rows))
    for wanted in (*WANTED[name], *DETECTOR):
        assert wanted.partition("[")[0].lower() in constraints(name)


@pytest.mark.parametrize("name", WANTED)
def test_what_decides_the_numbers_is_the_same_everywhere(name: str) -> None:
    ours, theirs = pinned(), constraints(name)
    shared = [distribution for distribution in DECISIVE if distribution in theirs]
    assert "av" in shared
    assert "numpy" in shared
    assert {key: theirs[key] for key in shared} == {key: ours[key] for key in shared}


def test_the_engine_is_not_listed_but_taken_from_the_bench() -> None:
    listed = {distribution for name in WANTED for distribution in constraints(name)}
    assert listed.isdisjoint(ENGINES)
