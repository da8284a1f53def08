"""One line of the reliability table: what a case measured, what it had to be, and whether it was.

`--matrix-out FOLDER` makes each test leave its lines there; `python -m tools.reliability_table
FOLDER` takes them into `record.json` and writes docs/reliability.md from it.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Matrix:
    """The lines of one test; writes them when there is a folder for them."""

    test: str
    folder: Path | None
    failures: list[str] = field(default_factory=list)

    def record(
        self,
        case: str,
        *,
        figure: str,
        threshold: str,
        holds: bool,
        seed: int | None = None,
        note: str = "",
    ) -> None:
        """Note a case and fail the test at once when it does not hold.

        `note` tells the reason where `threshold` is not the target of the matrix.
        """
        line = {
            "case": case,
            "seed": seed,
            "figure": figure,
            "threshold": threshold,
            "verdict": "holds" if holds else "fails",
            "note": note,
            "test": self.test,
        }
        print(f"{case}: {figure} (wanted {threshold})")
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = re.sub(r"[^\w.-]+", "-", f"{case}-{self.test.rpartition('::')[2]}")
            path = self.folder / f"{name}.json"
            path.write_text(json.dumps(line, indent=1) + "\n", encoding="utf-8")
        assert holds, f"{case}: {figure}; wanted: {threshold}"


@dataclass(frozen=True, slots=True)
class Shown:
    """What one caller saw of its own camera during a window. Times in ms."""

    sent: int
    returned: int
    age_p50_ms: float
    age_p95_ms: float
    longest_gap_ms: float
    frozen_ms: float
    """Time in gaps of over 200 ms."""

    @property
    def share(self) -> float:
        """Of the pictures sent, those that came back."""
        return self.returned / max(1, self.sent)

    def told(self) -> str:
        return (
            f"{100 * self.share:.0f} % of {self.sent} pictures, age p50 {self.age_p50_ms:.0f} "
            f"p95 {self.age_p95_ms:.0f} ms, longest gap {self.longest_gap_ms:.0f} ms"
        )

    def to_json(self) -> dict[str, float]:
        return asdict(self)
