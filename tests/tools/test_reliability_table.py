"""The page of the reliability matrix says what its record says, for every case there is."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tools.reliability_table import PAGE, RECORD, ROOT, main, order, page, take

pytestmark = pytest.mark.unit

CASES = (
    *(f"N{number}" for number in range(1, 17)),
    *(f"F{number}" for number in range(1, 21)),
    *(f"H{number}" for number in range(1, 19)),
    "L4", "L6", "L7", "L8",
)  # fmt: skip


def recorded() -> dict:
    record: dict = json.loads(RECORD.read_text(encoding="utf-8"))
    return record


def test_the_page_is_written_from_the_record() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(recorded()), (
        "run python -m tools.reliability_table"
    )


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_a_line(case: str) -> None:
    record = recorded()
    names = [line["case"] for line in record["lines"]] + list(record["elsewhere"])
    assert any(re.fullmatch(rf"{case}(?!\d).*", name) for name in names)


def test_what_is_recorded_holds_or_says_why_not() -> None:
    for line in recorded()["lines"]:
        assert line["verdict"] == "holds", line
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
    wanted = {"told": "not yet", "wanted": "it", "tests": []}
    record: dict[str, Any] = {
        "lines": [{"case": "N2 up", "figure": "old"}, {"case": "F1", "figure": "kept"}],
        "elsewhere": {"N10": wanted, "N1": wanted, "F1": {**wanted, "tests": ["another"]}},
    }
    (tmp_path / "a.json").write_text(json.dumps({"case": "N2 up", "figure": "new"}))
    (tmp_path / "b.json").write_text(json.dumps({"case": "N10", "figure": "added"}))
    take(record, tmp_path)
    assert [(line["case"], line["figure"]) for line in record["lines"]] == [
        ("N2 up", "new"),
        ("N10", "added"),
        ("F1", "kept"),
    ]
    assert [*record["elsewhere"]] == ["N1", "F1"], "what is measured is not missing any more"


def test_cases_are_in_the_order_of_the_matrix() -> None:
    names = ["H2", "N10", "N9 up", "F1", "N9 down", "L4"]
    assert sorted(names, key=order) == ["N9 down", "N9 up", "N10", "F1", "H2", "L4"]


def test_a_folder_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-folder"]) == 1
    assert "no-such-folder: no such folder" in capsys.readouterr().err
