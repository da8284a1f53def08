"""One measurement as a JSON record: what was measured, with what, and how."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.errors import UsageError

FORMAT: Final = 1
NUMBERS: Final = re.compile(r"\[\s*(?:-?[\d.]+,?\s*)+\]")
"""A list of nothing but numbers, which is for reading as one line."""


@dataclass(frozen=True, slots=True)
class Record:
    """Everything but numbers in `summary` and `runs` is context; times are in milliseconds."""

    bench: str
    measured_utc: str
    code: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]
    format: int = FORMAT

    def to_json(self) -> str:
        """One line."""
        return json.dumps(plain(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Raises `UsageError` when the text is not a record of this format."""
        try:
            found = json.loads(text)
        except ValueError as error:
            raise UsageError(f"record: not JSON: {error}") from error
        known = {field.name for field in fields(cls)}
        if not isinstance(found, dict) or found.get("format") != FORMAT or set(found) != known:
            raise UsageError(f"record: not a bench record of format {FORMAT}")
        return cls(**found)

    def write(self, folder: Path, name: str) -> Path:
        """Indented for people, under a name that sorts by time; returns the file."""
        folder.mkdir(parents=True, exist_ok=True)
        instant = self.measured_utc.replace(":", "").replace("-", "")
        path = folder / f"{self.bench}-{instant}-{name}.json"
        path.write_text(readable(plain(self)), encoding="utf-8")
        return path


def utc_now() -> str:
    """For people and file names, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def readable(value: Any) -> str:
    """JSON for a file that people read, too."""
    text = json.dumps(value, indent=1, allow_nan=False)
    return NUMBERS.sub(_on_one_line, text) + "\n"


def _on_one_line(found: re.Match[str]) -> str:
    return " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]")


def plain(value: Any) -> Any:
    """Dataclasses and tuples as JSON's own kinds, floats to the microsecond."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value
