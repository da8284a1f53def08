"""The page of the reliability matrix says what its record says, for every case there is."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tools.reliability_table import CASES, PAGE, RECORD, ROOT, main, order, page, take

pytestmark = pytest.mark.unit


def recorded() -> dict:
    record: dict = json.loads(RECORD.read_text(encoding="utf-8"))
    return record


def test_the_page_is_written_from_the_record() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(recorded()), (
        "run python -m tools.reliability_table"
    )


def test_every_case_of_the_matrix_is_there() -> None:
    numbers = {"N": range(1, 17), "F": range(1, 21), "H": range(1, 19), "L": (4, 6, 7, 8)}
    assert [*CASES] == [f"{letter}{number}" for letter in numbers for number in numbers[letter]]


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_a_line(case: str) -> None:
    record = recorded()
    names = [line["case"] for line in record["lines"]] + list(record["elsewhere"])
    assert any(re.fullmatch(rf"{case}(?!\d).*", name) for name in names)


def test_what_is_recorded_holds_or_says_why_not() -> None:
    for line in recorded()["lines"]:
        assert line["verdict"] == "holds" or line["note"], line
        assert line["figure"], line
        assert line["threshold"], line


def test_tests_that_are_named_exist() -> None:
    record = recorded()
    named = [test for entry in record["elsewhere"].values() for test in entry["tests"]]
    named += [line["test"].partition("[")[0] for line in record["lines"]]
    for test in named:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        found = {node.name for node in tree.body if hasattr(node, "name")}
        assert name in found, test


def test_news_replace_what_was_known(tmp_path: Path) -> None:
    elsewhere = {"told": "not yet", "wanted": "it", "tests": []}
    record: dict[str, Any] = {
        "lines": [line("N2 up", "old"), line("F1", "kept"), line("H1", "old", test="floods")],
        "elsewhere": {"N10": elsewhere, "N1": elsewhere},
    }
    news = [
        line("N2 up", "new"),
        line("N10", "added"),
        {"verdict": "failed", "note": "TimeoutError", "test": "floods"},
        {"verdict": "failed", "note": "TimeoutError", "test": "unknown"},
    ]
    for number, one in enumerate(news):
        (tmp_path / f"{number}.json").write_text(json.dumps(one))
    told = take(record, tmp_path)
    assert [(one["case"], one["figure"], one["verdict"]) for one in record["lines"]] == [
        ("N2 up", "new", "holds"),
        ("N10", "added", "holds"),
        ("F1", "kept", "holds"),
        ("H1", "old", "failed"),
    ]
    assert [*record["elsewhere"]] == ["N1"], "what is measured is not missing any more"
    assert told == ["without a line: unknown: TimeoutError", "as it was before: F1", "failed: H1"]


def line(case: str, figure: str, test: str = "a test") -> dict[str, str]:
    return {"case": case, "figure": figure, "verdict": "holds", "test": test}


def test_cases_are_in_the_order_of_the_matrix() -> None:
    names = ["H2", "N10", "N9 up", "F1", "N9 down", "L4"]
    assert sorted(names, key=order) == ["N9 down", "N9 up", "N10", "F1", "H2", "L4"]


def test_a_folder_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-folder"]) == 1
    assert "no-such-folder: no such folder" in capsys.readouterr().err


def test_the_witness_and_the_seed_have_their_own_place() -> None:
    measured = line("N9 up", "fast; witness p95 8 -> 9 ms (machine late by 4 ms) again") | {
        "seed": 7, "note": "why", "threshold": "so much",
    }  # fmt: skip
    text = page({"measured": "", "lines": [measured], "elsewhere": {}})
    cells = ("N9 up", CASES["N9"], "fast again (why). Seed 7.", "8 → 9 (late by 4)", "so much")
    assert f"| {' | '.join(cells)} | holds |" in text.splitlines()
    assert "1 measurements: 1 hold." in text
