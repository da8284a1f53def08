"""The numbers of the README are those of the published record; tables say what records hold."""

import json
import re
from pathlib import Path

import pytest

from bench.__main__ import OK, WRONG_USAGE, main
from bench.reading import read_records
from bench.table import Row, compare_rows, delay_rows, markdown, stage_rows
from tests.bench.making_records import compare_record, glass_record

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def published() -> list[Path]:
    """The records that the README links."""
    named = re.findall(r"\]\((bench/results/release-[\w.-]+\.json)\)", README)
    return [ROOT / name for name in dict.fromkeys(named)]


def rows_under(head: str, text: str = README) -> list[Row]:
    """The rows of every table of a document whose heading row matches."""
    found: list[Row] = []
    inside = False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
        elif re.match(head, line):
            inside = True
        elif inside and not re.fullmatch(r"[|\s:-]+", line):
            found.append(tuple(cell.strip() for cell in line.strip("|").split("|")))
    return found


def wrong_rows(rows: list[Row], allowed: list[Row]) -> list[Row]:
    """Rows whose numbers stand in no row of the record; what they are called is free."""
    numbers = {row[1:] for row in allowed}
    return [row for row in rows if row[1:] not in numbers]


def test_the_readme_names_its_record() -> None:
    assert published()
    assert all(path.is_file() for path in published())


def test_every_delay_in_the_readme_is_in_its_record() -> None:
    records = [record for _, record in read_records(published())]
    rows = rows_under(r"\|.*\| p50 ms \| p95 ms \| frames a second \|$")
    assert rows
    assert wrong_rows(rows, delay_rows(records)) == []


def test_every_stage_in_the_readme_is_of_one_measurement_of_its_record() -> None:
    records = [record for _, record in read_records(published()) if record.bench == "glass"]
    rows = rows_under(r"\| Stage \| p50 ms \| p95 ms \|$")
    assert rows
    assert any(set(rows) <= set(stage_rows(record)) for record in records)


def test_every_compared_server_in_the_readme_is_in_its_record() -> None:
    records = [record for _, record in read_records(published()) if record.bench == "compare"]
    rows = rows_under(r"\| clients \| server \| p50 ms")
    allowed = [row for record in records for row in compare_rows(record)]
    assert [row for row in rows if row not in allowed] == []


def test_a_number_that_is_not_in_the_record_is_found() -> None:
    text = "| what | p50 ms | p95 ms | frames a second |\n|---|---|---|---|\n| a | 1.0 | 2.0 | 30 |"
    rows = rows_under(r"\| what", text)
    assert rows == [("a", "1.0", "2.0", "30")]
    assert wrong_rows(rows, [("b", "1.0", "2.0", "30")]) == []
    assert wrong_rows(rows, [("a", "1.0", "2.1", "30")]) == rows


def test_tables_are_printed_from_single_and_joined_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    glass, compare = tmp_path / "g.json", tmp_path / "c.json"
    glass.write_text(glass_record(12.0).to_json())
    compare.write_text(compare_record(12.0, 48.0).to_json())
    joined = tmp_path / "joined.json"
    records = {path.name: json.loads(path.read_text()) for path in (glass, compare)}
    joined.write_text(json.dumps({"records": {**records, "accuracy.json": {"map": 0.4}}}))

    assert main(["table", str(glass), str(compare)]) == OK
    single = capsys.readouterr().out
    assert main(["table", str(joined)]) == OK
    assert capsys.readouterr().out == single
    assert "| one call, H264, our own detector | 12.0 | 12.0 | 30 |" in single
    assert "| 1 | aiortc, detection in recv() | 48.0 | 48.0 |" in single
    assert "| 4.0 | 4.0 |" in single


def test_an_empty_first_heading_is_good_markdown() -> None:
    assert markdown(("", "a"), [("x", "")]).splitlines() == ["| | a |", "| --- | --- |", "| x | |"]
    assert markdown(("a", "b", "c"), [("x", "", "")]).splitlines()[-1] == "| x | | |"


def test_what_is_no_record_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    assert main(["table", str(broken)]) == WRONG_USAGE
    assert "broken.json" in capsys.readouterr().err
