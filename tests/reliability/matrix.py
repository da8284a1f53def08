"""One line of the reliability table: what a case measured, what it had to be, and whether it was.

`--matrix-out FOLDER` makes each test leave its lines there; `python -m tools.reliability_table
FOLDER` takes them into `record.json` and writes docs/reliability.md from it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from server.clock import now_ns
from tests.reliability.machine import Machine

# A process that does nothing but sleep woke later than this in one of a hundred times: what the
# server did meanwhile says nothing about the server.
TOO_BUSY_P99_MS = 8.0


HOLDS, MISSED, NO_VERDICT, FAILED = "holds", "missed", "no verdict", "failed"


@dataclass(slots=True)
class Matrix:
    """The lines of one test; writes them when there is a folder for them."""

    test: str
    folder: Path | None
    machine: Machine | None = None
    since_ns: int = 0
    complaints: list[str] = field(default_factory=list)
    """What else does not hold of the case that is recorded next."""
    missed: list[str] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)

    @property
    def measures(self) -> bool:
        """Whether figures are wanted, of a machine that does nothing else."""
        return self.folder is not None

    def observe(self, machine: Machine) -> None:
        """From now on this machine's own lateness is known."""
        self.machine, self.since_ns = machine, now_ns()

    def complain(self, holds: bool, told: str) -> None:
        """Note for the next line what does not hold beside its figure."""
        if not holds:
            self.complaints.append(told)

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
        """Note what a case measured and whether that will do; the test is judged at its end.

        `note` tells the reason where `threshold` is not the target of the matrix.
        """
        verdict = HOLDS
        if not holds or self.complaints:
            told = "; ".join([f"{case}: {figure}; wanted: {threshold}", *self.complaints])
            note = "; ".join(filter(None, [note, *self.complaints]))
            late_ms = self._late_ms()
            if late_ms > TOO_BUSY_P99_MS:
                verdict = NO_VERDICT
                note = (
                    f"{note}; " * bool(note) + f"this machine was late itself, p99 {late_ms:.0f} ms"
                )
                self.excused.append(told)
            else:
                verdict = MISSED
                self.missed.append(told)
            self.complaints = []
        self._write(
            case,
            {
                "case": case,
                "seed": seed,
                "figure": figure,
                "threshold": threshold,
                "verdict": verdict,
                "note": note,
                "test": self.test,
            },
        )

    def fail(self, error: BaseException) -> None:
        """The test ended before its line."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        self._write("failed", {"verdict": FAILED, "note": reason, "test": self.test})

    def judge(self) -> None:
        """Fail the test, or skip it where the machine was too busy for a verdict."""
        missed = [*self.missed, *self.complaints]
        if missed:
            pytest.fail("\n".join(missed), pytrace=False)
        if self.excused:
            pytest.skip("no verdict, this machine is late itself: " + "; ".join(self.excused))

    def _late_ms(self) -> float:
        if self.machine is None:
            return 0.0
        return self.machine.lateness_ms(self.since_ns, now_ns())[0]

    def _write(self, name: str, line: Mapping[str, object]) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = re.sub(r"[^\w.-]+", "-", f"{name}-{self.test.rpartition('::')[2]}")
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
