"""Log lines that stay lines: what callers sent cannot make new ones, colour them or fill disks.

Events that machines read have stable keys: `log_event`. On the console they are a line of
`key=value`, with `log_format: json` every line is one object.
"""

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

ExceptionInfo = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)

FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
LENGTH_AT_MOST = 2000
# Where an event's name and fields travel in a record.
EVENT, FIELDS = "sightline_event", "sightline_fields"
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


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger and message, and the fields of an event."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        event = getattr(record, EVENT, None)
        if event is None:
            line["message"] = one_line(record.getMessage())
        else:
            line |= {"event": event, **_safe(getattr(record, FIELDS))}
        if record.exc_info:
            line["exception"] = one_line(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = one_line(record.stack_info)
        return json.dumps(line, separators=(",", ":"), default=str)


def log_event(logger: logging.Logger, event: str, /, **fields: Any) -> None:
    """Say that something happened, in fields of plain values; None and empty ones are left out.

    `event` and the names of fields are what machines look for: they stay. Secrets do not go here,
    nor ids that entitle to something: `short` makes those harmless.
    """
    told = {name: value for name, value in fields.items() if value not in (None, "", (), {}, [])}
    words = " ".join(f"{name}={_word(value)}" for name, value in told.items())
    logger.info("%s: %s", event, words, extra={EVENT: event, FIELDS: told})


def short(secret_id: str) -> str:
    """Enough of an id to find its lines, too little to use it."""
    return secret_id[:8]


def _word(value: Any) -> str:
    """A value on the console, in quotes where it would fall apart."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}:{_word(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(_word, value))
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if re.fullmatch(r"[^\s\"=]+", text) else json.dumps(text)


def _safe(value: Any) -> Any:
    """A field's value with its texts made harmless; JSON itself escapes what could end a line."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, Mapping):
        return {str(name): _safe(part) for name, part in value.items()}
    return [_safe(part) for part in value] if isinstance(value, list | tuple) else value


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whether a record is about us: aiohttp has a traceback for whatever is not HTTP, and whoever
    reaches the port could write as many as he likes."""
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__module__ != "aiohttp.http_exceptions"


def set_up_logging(level: str, log_format: str = "console") -> None:
    """Everything to standard error, through a formatter above."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else SafeFormatter(FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("aiohttp.server").addFilter(is_worth_a_line)
    for noisy in ("aioice", "aiortc", "alembic"):
        logging.getLogger(noisy).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
