"""What callers send stays inside one log line."""

import logging

import pytest
from aiohttp.http_exceptions import BadStatusLine
from hypothesis import given
from hypothesis import strategies as st

from server.logs import FORMAT, LENGTH_AT_MOST, SafeFormatter, is_worth_a_line, one_line

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
