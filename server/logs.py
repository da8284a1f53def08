"""Log lines that stay lines: what callers sent cannot make new ones, colour them or fill disks."""

import logging
import re
import sys
from types import TracebackType

ExceptionInfo = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)

FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
LENGTH_AT_MOST = 2000
# C0 with CR, LF and ESC, DEL, C1, the separators that some viewers break lines at, and the
# marks that turn the direction of writing.
UNSAFE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def one_line(text: str) -> str:
    """Control characters as escapes, and no longer than a line may be."""
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) > LENGTH_AT_MOST:
        text = f"{text[:LENGTH_AT_MOST]}... ({len(text)} characters)"
    return UNSAFE.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class SafeFormatter(logging.Formatter):
    """One line a record; the lines of a traceback are indented by a bar of ours."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))

    def formatException(self, ei: ExceptionInfo) -> str:
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"  | {one_line(line)}" for line in lines)

    def formatStack(self, stack_info: str) -> str:
        return "\n".join(f"  | {one_line(line)}" for line in stack_info.split("\n"))


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whether a record is about us: aiohttp has a traceback for whatever is not HTTP, and whoever
    reaches the port could write as many as he likes."""
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__module__ != "aiohttp.http_exceptions"


def set_up_logging(level: str) -> None:
    """Everything to standard error, through the formatter above."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(SafeFormatter(FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("aiohttp.server").addFilter(is_worth_a_line)
    for noisy in ("aioice", "aiortc"):
        logging.getLogger(noisy).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
