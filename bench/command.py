"""What every command of `python -m bench` shares: exit codes, the loop, progress, its record."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from server.clock import NS_PER_S, now_ns

if TYPE_CHECKING:
    from bench.record import Record

OK: Final = 0
OVER_BUDGET: Final = 1
WRONG_USAGE: Final = 2
NOT_MEASURED: Final = 3
# As the server does: with Python's 5 ms the decoder thread waits for the interpreter while the
# loop reads what came after the picture.
SWITCH_INTERVAL_S: Final = 0.0005

Result = TypeVar("Result")
Progress = Callable[[str], None]
"""Told how far it is, in a line that the next one replaces."""
MakeRecord = Callable[[dict[str, Any], dict[str, Any], list[Any]], "Record"]


class Command(Protocol):
    """The module of a command. `run` may raise `BenchError`; `__main__` tells it in one line."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, options: argparse.Namespace) -> int:
        """Measure, print, write the record; returns the exit code."""
        ...


def run_async(main_coroutine: Coroutine[Any, Any, Result]) -> Result:
    """On uvloop where there is one: its transports take a third of the time per datagram."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main_coroutine)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main_coroutine)


def show_progress(text: str) -> None:
    """One line that is written over on a terminal; in a log, only what is new."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif "to go" not in text:
        print(text, file=sys.stderr, flush=True)


async def pass_time(
    duration_s: float,
    what: str,
    progress: Progress,
    each_second: Callable[[], None] | None = None,
) -> None:
    """Let what is measured run; says so once a second, which is all the loop does for it."""
    end_at_ns = now_ns() + round(duration_s * NS_PER_S)
    while (left_s := (end_at_ns - now_ns()) / NS_PER_S) > 0:
        progress(f"{what}, {left_s:.0f} s to go")
        await asyncio.sleep(min(1.0, left_s))
        if each_second is not None:
            each_second()


def record_begun(bench: str) -> MakeRecord:
    """Notes when the measurement began and what else ran; gives what makes its record."""
    from bench.environment import commit, load_before, machine, versions
    from bench.record import Record, utc_now

    measured_utc, load = utc_now(), load_before()

    def make(settings: dict[str, Any], summary: dict[str, Any], runs: list[Any]) -> Record:
        return Record(
            bench=bench,
            measured_utc=measured_utc,
            code=commit(),
            versions=versions(),
            machine={**machine(), "load_before": load},
            settings=settings,
            summary=summary,
            runs=runs,
        )

    return make


def publish(record: "Record", out: Path, name: str, text: str, *, as_json: bool) -> None:
    """Write the record and say what it says: for people first, as the last line for programs."""
    path = record.write(out, name.lower())
    print(text.rstrip())
    print(f"record: {path.name}")
    if as_json:
        print(record.to_json())


def over_budget(p95_ms: float | None, budget_ms: float | None) -> tuple[bool, str]:
    """Whether a budget is passed, and the sentence that says so; no budget, no sentence."""
    if budget_ms is None:
        return False, ""
    over = p95_ms is None or p95_ms > budget_ms
    return over, f"p95 {'passes' if over else 'is within'} the budget of {budget_ms:g} ms"
