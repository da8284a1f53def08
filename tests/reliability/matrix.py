"""One line of the reliability table: what a case measured, what it had to be, and whether it was.

`--matrix-out FOLDER` makes each test leave its lines there; `python -m tools.reliability_table
FOLDER` takes them into `record.json` and writes docs/reliability.md from it.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.clock import now_ns
from tests.reliability.machine import Machine

# A process that does nothing but sleep woke later than this in one of a hundred times: what the
# server did meanwhile says nothing about the server.
TOO_BUSY_P99_MS = 8.0


@dataclass(slots=True)
class Matrix:
    """The lines of one test; writes them when there is a folder for them."""

    test: str
    folder: Path | None
    machine: Machine | None = None
    since_ns: int = 0

    def observe(self, machine: Machine) -> None:
        """From now on this machine's own lateness is known."""
        self.machine, self.since_ns = machine, now_ns()

    def judge(self, holds: bool, told: str) -> None:
        """Fail the test, or skip it where the machine was too busy for a verdict."""
        if holds:
            return
        if self.machine is not None:
            p99_ms, longest_ms = self.machine.lateness_ms(self.since_ns, now_ns())
            if p99_ms > TOO_BUSY_P99_MS:
                pytest.skip(
                    f"no verdict, this machine is late itself (p99 {p99_ms:.0f} ms, up to "
                    f"{longest_ms:.0f} ms): {told}"
                )
        pytest.fail(told, pytrace=False)

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
        """Note a case that holds; end the test when it does not.

        `note` tells the reason where `threshold` is not the target of the matrix.
        """
        line = {
            "case": case,
            "seed": seed,
            "figure": figure,
            "threshold": threshold,
            "verdict": "holds",
            "note": note,
            "test": self.test,
        }
        told = f"{case}: {figure}; wanted: {threshold}"
        self.judge(holds, told)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = re.sub(r"[^\w.-]+", "-", f"{case}-{self.test.rpartition('::')[2]}")
            path = self.folder / f"{name}.json"
            path.write_text(json.dumps(line, indent=1) + "\n", encoding="utf-8")


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
