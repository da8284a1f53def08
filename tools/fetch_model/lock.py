"""What was fetched here: the digest seen first, and the terms that were accepted.

A model whose SHA-256 nobody has recorded is pinned by the first fetch; a later fetch that brings
other bytes is refused. The file lies in the cache folder and is replaced in one step.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.fetch_model.download import FetchError

LOCK_NAME = "fetched.json"


@dataclass(frozen=True, slots=True)
class Pin:
    """One fetched file."""

    url: str
    sha256: str
    size_bytes: int
    licence: str
    fetched_unix_ms: int


class Lock:
    """The pins of one cache folder; read when made, written by `add`."""

    def __init__(self, cache_dir: Path) -> None:
        self.path = cache_dir / LOCK_NAME
        self._pins: dict[str, Pin] = {}
        if not self.path.is_file():
            return
        try:
            rows = json.loads(self.path.read_text(encoding="utf-8"))
            self._pins = {name: Pin(**row) for name, row in rows.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise FetchError(
                f"{self.path} is damaged ({error}); check the models beside it and delete it"
            ) from None

    def pin(self, name: str) -> Pin | None:
        return self._pins.get(name)

    def add(self, name: str, pin: Pin) -> None:
        self._pins[name] = pin
        rows = {key: asdict(value) for key, value in sorted(self._pins.items())}
        draft = self.path.with_name(self.path.name + ".part")
        draft.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        os.replace(draft, self.path)
