import json
from pathlib import Path

import pytest

from bench.gather import main

pytestmark = pytest.mark.unit


def test_records_are_joined_as_they_are(tmp_path: Path) -> None:
    first, second, out = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "release.json"
    first.write_text('{"p50": 1.5}')
    second.write_text('{"p50": 2}')
    assert main([str(out), str(first), str(second)]) == 0
    assert json.loads(out.read_text()) == {
        "records": {"a.json": {"p50": 1.5}, "b.json": {"p50": 2}}
    }


def test_what_is_no_record_or_has_anothers_name_is_refused(tmp_path: Path) -> None:
    broken, out = tmp_path / "a.json", tmp_path / "release.json"
    broken.write_text("{")
    assert main([str(out), str(broken)]) == 2
    broken.write_text("{}")
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "a.json"
    twin.write_text("{}")
    assert main([str(out), str(broken), str(twin)]) == 2
    assert not out.exists()
