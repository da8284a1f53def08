"""One line of progress on standard error: redrawn on a terminal, every tenth elsewhere."""

import sys
import time
from typing import TextIO

REDRAW_S = 0.1


class Progress:
    """`advance()` from one thread; `close()` ends the line. Standard output stays clean."""

    def __init__(
        self, label: str, total: float, unit: str = "", stream: TextIO | None = None
    ) -> None:
        self._label = label
        self._total = max(total, 0.0)
        self._unit = unit
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._begun_s = time.monotonic()
        self._drawn_s = 0.0
        self._tenth = -1
        self.done = 0.0

    def advance(self, amount: float = 1.0) -> None:
        self.done += amount
        if self._is_terminal:
            now_s = time.monotonic()
            if now_s - self._drawn_s >= REDRAW_S or self.done == self._total:
                self._drawn_s = now_s
                self._stream.write("\r" + self._line() + "\x1b[K")
                self._stream.flush()
        elif self._total and int(10 * self.done / self._total) > self._tenth:
            self._tenth = int(10 * self.done / self._total)
            self._stream.write(self._line() + "\n")
            self._stream.flush()

    def close(self) -> None:
        if self._is_terminal:
            self._stream.write("\r" + self._line() + "\x1b[K\n")
            self._stream.flush()

    def _line(self) -> str:
        elapsed_s = max(time.monotonic() - self._begun_s, 1e-6)
        rate = self.done / elapsed_s
        if not self._total:
            return f"{self._label} {self.done:,.0f}{self._unit}, {rate:,.1f}{self._unit}/s"
        share = min(self.done / self._total, 1.0)
        filled = int(24 * share)
        left_s = (self._total - self.done) / rate if rate else 0.0
        return (
            f"{self._label} [{'#' * filled}{'.' * (24 - filled)}] {100 * share:3.0f} % "
            f"{self.done:,.1f}/{self._total:,.1f}{self._unit}, {rate:,.1f}{self._unit}/s, "
            f"{max(left_s, 0):.0f} s left"
        )
