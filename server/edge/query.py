"""What stands behind the `?`: strict values, and cursors from page to page. Pure functions."""

import base64
import math
import re
from collections.abc import Mapping

from server.errors import MalformedError, NotFoundError
from server.settings import STREAM_NAME, STREAM_NAME_RULE

PAGE, PAGE_AT_MOST = 50, 500
TEXT_AT_MOST = 255
INTEGER_AT_MOST = 2**53
CURSOR = re.compile(r"([0-9]{1,16})-([0-9a-f]{32})")


def check_query(query: Mapping[str, str], known: tuple[str, ...]) -> Mapping[str, str]:
    """Refuses what is unknown, too long, or twice there."""
    seen = set()
    for name, value in query.items():
        if name not in known:
            raise MalformedError(f"{name[:40]}: unknown; known are {', '.join(known)}")
        if name in seen:
            raise MalformedError(f"{name}: it is there twice")
        seen.add(name)
        if len(value) > TEXT_AT_MOST or "\0" in value:
            raise MalformedError(f"{name}: not text of up to {TEXT_AT_MOST} characters")
    stream = query.get("stream")
    if stream is not None and not STREAM_NAME.fullmatch(stream):
        raise NotFoundError(f"stream: {STREAM_NAME_RULE}")
    return query


def number(
    query: Mapping[str, str], name: str, default: int | None, low: int, high: int
) -> int | None:
    """A whole number; the default where there is none."""
    text = query.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,16}", text) or not low <= int(text) <= high:
        raise MalformedError(f"{name}: {text[:20]!r} is not a whole number from {low} to {high}")
    return int(text)


def per_second(
    query: Mapping[str, str], name: str, default: float, low: float, high: float
) -> float:
    """A rate; the default where there is none."""
    text = query.get(name, "")
    try:
        rate = float(text) if text else default
    except ValueError:
        rate = math.nan
    if text and not low <= rate <= high:
        raise MalformedError(f"{name}: {text[:20]!r} is not within {low:g} to {high:g}")
    return rate


def choice(query: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str | None:
    """One of some words; None where there is none."""
    text = query.get(name)
    if text is not None and text not in choices:
        raise MalformedError(f"{name}: {text[:20]!r} is not one of {', '.join(choices)}")
    return text


def make_cursor(started_unix_ms: int, identity: str) -> str:
    """Where the next page begins; its form may change."""
    return base64.urlsafe_b64encode(f"{started_unix_ms}-{identity}".encode()).decode().rstrip("=")


def read_cursor(text: str | None) -> tuple[int, str] | None:
    if text is None:
        return None
    try:
        plain = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
    except ValueError:
        plain = ""
    found = CURSOR.fullmatch(plain)
    if found is None:
        raise MalformedError("cursor: not one that was given out here")
    return int(found[1]), found[2]
