"""Processor time and memory of one process, between two instants."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from server.clock import NS_PER_S, now_ns


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process took over a window."""

    cpu_percent: float
    """100 is one core."""
    rss_mib: float
    """Resident memory at the end of the window."""
    threads: int


class UsageMeter:
    """Measures from its making to `read`. None when the process is gone or was never known.

    `family` counts the process's descendants too, as a browser has many; one that ends meanwhile
    takes its share with it.
    """

    def __init__(self, pid: int | None, *, family: bool = False) -> None:
        self._family = family
        self._process: psutil.Process | None = None
        self._begun_at_ns = now_ns()
        self._cpu_s = 0.0
        if pid is not None:
            try:
                self._process = psutil.Process(pid)
                self._cpu_s = self._spent_s(self._process)
            except psutil.Error:
                self._process = None

    def read(self) -> Usage | None:
        """The window so far."""
        if self._process is None:
            return None
        try:
            with self._process.oneshot():
                spent_s = self._spent_s(self._process) - self._cpu_s
                rss = self._process.memory_info().rss
                threads = self._process.num_threads()
        except psutil.Error:
            return None
        elapsed_s = (now_ns() - self._begun_at_ns) / NS_PER_S
        return Usage(round(100 * spent_s / elapsed_s, 1), round(rss / 2**20, 1), threads)

    def _spent_s(self, process: psutil.Process) -> float:
        spent_s = _cpu_s(process)
        for child in process.children(recursive=True) if self._family else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                spent_s += _cpu_s(child)
        return spent_s


def told_usage(
    before: Mapping[str, Any], after: Mapping[str, Any], duration_s: float
) -> Usage | None:
    """The same from two answers of `/api/stats`, for a server that we did not start."""
    try:
        begin, end = before["process"], after["process"]
        spent_s = float(end["cpu_s"]) - float(begin["cpu_s"])
        return Usage(
            round(100 * spent_s / duration_s, 1),
            round(float(end["resident_mib"]), 1),
            int(end["threads"]),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
