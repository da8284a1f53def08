"""What callers send stays inside one log line."""

import json
import logging

import pytest
from aiohttp.http_exceptions import BadStatusLine
from hypothesis import given
from hypothesis import strategies as st

from server.logs import (
    FORMAT,
    LENGTH_AT_MOST,
    JsonFormatter,
    SafeFormatter,
    is_worth_a_line,
    log_event,
    one_line,
    short,
)

pytestmark = pytest.mark.unit

EVIL = "name\r\n2026-11-20 ERROR forged \x1b[31mred\x1b[0m \u2028 next \u202e turned \x85"


def logged(message: str, *arguments: object, error: BaseException | None = None) -> str:
    record = logging.LogRecord(
        "test", logging.INFO, "here", 1, message, arguments,
        (type(error), error, None) if error is not None else None,
    )  # fmt: skip
    return SafeFormatter(FORMAT).format(record)


def test_a_message_with_line_ends_and_colours_is_one_plain_line() -> None:
    line = logged("Session %s ended", EVIL)
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert "\\x0d\\x0a2026" in line


def test_a_name_of_a_megabyte_is_cut_and_its_length_told() -> None:
    line = logged("Session %s ended", "x" * 1_000_000)
    assert len(line) < LENGTH_AT_MOST + 100
    assert "characters" in line


def test_the_lines_of_a_traceback_cannot_pass_for_lines_of_the_log() -> None:
    lines = logged("It failed", error=ValueError(EVIL + "\n2026-11-20 INFO all is well")).split(
        "\n"
    )
    assert lines[0].endswith("It failed")
    assert len(lines) > 1
    assert all(line.startswith("  | ") for line in lines[1:])


@given(st.text())
def test_any_text_becomes_one_line(text: str) -> None:
    assert len(one_line(text).splitlines()) <= 1
    one_line(text).encode("utf-8")


def test_what_is_not_http_is_not_worth_a_line_and_our_own_mistakes_are() -> None:
    def record(error: Exception) -> logging.LogRecord:
        info = (type(error), error, None)
        return logging.LogRecord("aiohttp.server", logging.ERROR, "here", 1, "failed", (), info)

    assert not is_worth_a_line(record(BadStatusLine("junk")))
    assert is_worth_a_line(record(ValueError("ours")))


# --- events, and JSON ---


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def event_record(event: str, /, **fields: object) -> logging.LogRecord:
    logger, kept = logging.Logger("sightline.test"), Kept()
    logger.addHandler(kept)
    log_event(logger, event, **fields)
    (record,) = kept.records
    return record


def test_an_event_is_words_on_the_console_and_an_object_in_json() -> None:
    fields = {"reason": "peer left", "frames_in": 0, "dropped": {"late": 2}, "left": ["a", "b"]}
    record = event_record("session ended", session="abc", stream="", rtt_ms=None, **fields)
    line = SafeFormatter(FORMAT).format(record)
    assert line.endswith(
        'session ended: session=abc reason="peer left" frames_in=0 dropped=late:2 left=a,b'
    )
    told = json.loads(JsonFormatter().format(record))
    assert list(told)[:4] == ["time", "level", "logger", "event"]
    assert {name: told[name] for name in fields} == fields
    assert (told["event"], told["session"], "stream" in told) == ("session ended", "abc", False)


@given(st.text())
def test_whatever_an_event_says_it_is_one_line_of_json_and_one_of_the_console(text: str) -> None:
    record = event_record("session ended", reason=text, dropped={text: 1}, left=[text])
    line = JsonFormatter().format(record)
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert json.loads(line)["event"] == "session ended"
    assert len(SafeFormatter(FORMAT).format(record).splitlines()) == 1


def test_other_lines_and_tracebacks_are_objects_too() -> None:
    error = ValueError(EVIL)
    record = logging.LogRecord(
        "test", logging.ERROR, "here", 1, "It %s", (EVIL,), (ValueError, error, None)
    )
    line = JsonFormatter().format(record)
    told = json.loads(line)
    assert len(line.splitlines()) == 1
    assert told["message"].startswith("It name\\x0d\\x0a")
    assert "ValueError" in told["exception"]


def test_an_id_in_the_log_entitles_to_nothing() -> None:
    assert len(short("x" * 24)) == 8
