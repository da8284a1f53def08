"""Records back from their files: single ones, and the joined ones that a release publishes."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.errors import UsageError
from bench.record import Record


def read_record(path: Path) -> Record:
    """One record. Raises `UsageError` when the file is none, or holds several."""
    found = [record for _, record in read_records([path])]
    if len(found) != 1:
        raise UsageError(f"{path.name}: holds {len(found)} records, and one is wanted")
    return found[0]


def read_records(paths: Iterable[Path]) -> Iterator[tuple[str, Record]]:
    """Name and record, from single and joined files; of a joined one, what no bench wrote (such as
    figures of accuracy) is passed over. Raises `UsageError` for what cannot be read."""
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
            found = json.loads(text)
        except (OSError, ValueError) as error:
            raise UsageError(f"{path.name}: cannot be read: {error}") from error
        if isinstance(found, dict) and set(found) == {"records"}:
            for name, inner in found["records"].items():
                if isinstance(inner, dict) and "bench" in inner:
                    yield name, Record.from_json(json.dumps(inner))
        else:
            yield path.name, Record.from_json(text)
