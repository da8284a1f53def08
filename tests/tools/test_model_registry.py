"""The registry is well formed and answers to the names that people write."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from server.errors import ModelError
from server.model_registry import REGISTRY, ModelEntry, find_entry, resolve_model, similar_names

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("entry", REGISTRY, ids=lambda entry: entry.name)
def test_entry_is_pinned_and_on_known_terms(entry: ModelEntry) -> None:
    parts = urlsplit(entry.url)
    assert parts.scheme == "https"
    assert not {"main", "master", "latest"} & set(parts.path.split("/"))
    assert entry.sha256 == "" or (len(entry.sha256) == 64 and int(entry.sha256, 16) >= 0)
    assert entry.sha256 == entry.sha256.lower()
    assert entry.licence in ("Apache-2.0", "MIT", "AGPL-3.0")
    assert entry.needs_consent == (entry.licence == "AGPL-3.0")
    assert entry.file_name.endswith(".onnx")
    assert Path(entry.file_name).name == entry.file_name


def test_names_and_files_are_unique() -> None:
    assert len({entry.name for entry in REGISTRY}) == len(REGISTRY)
    assert len({entry.file_name for entry in REGISTRY}) == len(REGISTRY)


@pytest.mark.parametrize(
    "spelling", ["yolox-nano", "YOLOX_Nano", "yoloxnano", "yolox nano", "yolox_nano"]
)
def test_name_is_found_however_it_is_spelled(spelling: str) -> None:
    entry = find_entry(spelling)
    assert entry is not None
    assert entry.name == "yolox-nano"


def test_misspelled_name_gets_a_suggestion() -> None:
    assert find_entry("yolo26m") is None
    assert "yolo26n" in similar_names("yolo26m")


def test_path_wins_over_name_and_cache_is_used_for_names(tmp_path: Path) -> None:
    cached = tmp_path / "yolox_nano.onnx"
    cached.write_bytes(b"x")
    assert resolve_model("yolox-nano", tmp_path) == cached
    assert resolve_model(str(cached)) == cached


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        # known, but not on this disk: the command that brings it
        ("yolox-nano", "fetch_model yolox-nano"),
        ("no/such.onnx", "no such file"),
        ("yolo26x-large", "neither a file nor a known model"),
        ("yolo26n.pt", "yolo export"),
    ],
)
def test_missing_model_says_what_to_do(model: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=expected):
        resolve_model(model, tmp_path)


def test_the_page_about_models_lists_every_entry() -> None:
    page = Path(__file__).parents[2] / "docs" / "models.md"
    text = page.read_text(encoding="utf-8")
    assert [entry.name for entry in REGISTRY if f"`{entry.name}`" not in text] == []
