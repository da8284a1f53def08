"""From the log of one page to its report over the measured window. Pure.

All instants are milliseconds of the page's own monotonic clock, which also wrote the bar code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench import barcode
from bench.statistics import (
    Distribution,
    Freezes,
    distribution,
    freezes,
    growth_per_minute,
    rate_per_s,
)

US_PER_MS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Seen:
    """One returned picture as the page saw it; the order of the page's log rows."""

    number: int
    time_us: int
    called_at_ms: float
    """The callback ran."""
    frame_at_ms: float
    """The browser's own instant of this turn of its rendering."""
    presented_at_ms: float
    """Handed to the compositor."""
    displayed_at_ms: float
    """When the browser expects it on the glass."""
    received_at_ms: float
    """Its last packet arrived; -1 where the browser does not tell."""
    decoded_ms: float
    """From the decoder's start to the picture; -1 where the browser does not tell."""
    reading_ms: float
    """What reading the bar code cost."""

    @classmethod
    def from_row(cls, row: Sequence[float]) -> "Seen":
        return cls(int(row[0]), int(row[1]), *(float(value) for value in row[2:9]))


@dataclass(frozen=True, slots=True)
class BrowserReport:
    """One run in one browser. Times are milliseconds."""

    browser: str
    version: str
    sent: int
    returned: int
    lost: int
    unreadable: int
    misread: int
    repeated: int
    slots_skipped: int
    fps_sent: float
    fps_received: float
    latency_ms: Distribution | None
    """From the bar code drawn until the page is told that the returned picture is presented."""
    presented_ms: Distribution | None
    """The same until the browser handed the picture to its compositor."""
    expected_ms: Distribution | None
    """The same until the instant of display that the browser expects."""
    display_ms: Distribution | None
    """The browser's own part: last packet received until the page is told."""
    hold_ms: Distribution | None
    """Of that, until handed to the compositor: decoding, and waiting for no reason but pace."""
    decode_ms: Distribution | None
    reading_ms: Distribution | None
    freezes: Freezes
    growth_ms_per_minute: float
    encode_ms: float | None
    """Mean per picture, by the browser's own count."""
    jitter_buffer_ms: float | None
    """Mean per picture, by the browser's own count."""
    codec: Mapping[str, Any]
    server_ms: Mapping[str, float] | None
    """First packet in to last packet out, as the server counts it."""
    server_stages_ms: Mapping[str, Any]
    browser_cpu_percent: float | None
    server_cpu_percent: float | None
    first_picture_ms: float
    shown_age_ms: Mapping[str, float | None] | None = None
    """What the product's own page showed meanwhile, where it made the call."""


def picture_report(
    seen: Sequence[Seen], drawn_at_ms: Sequence[float], begin_ms: float, end_ms: float
) -> dict[str, Any]:
    """The part of the report that the pictures themselves tell."""
    inside: list[tuple[float, Seen]] = []
    misread = repeated = 0
    newest = -1
    arrivals_ms: list[float] = []
    for picture in seen:
        number = barcode.unwrap(picture.number, max(0, newest), barcode.NUMBER_BITS)
        if not 0 <= number < len(drawn_at_ms) or (
            round(drawn_at_ms[number] * US_PER_MS) - picture.time_us
        ) % (1 << barcode.TIME_BITS) not in (0, 1, (1 << barcode.TIME_BITS) - 1):
            misread += 1
            continue
        if number <= newest:
            repeated += 1
            continue
        newest = number
        arrivals_ms.append(picture.called_at_ms)
        if begin_ms <= drawn_at_ms[number] < end_ms:
            inside.append((drawn_at_ms[number], picture))
    sent = sum(begin_ms <= at < end_ms for at in drawn_at_ms)
    arrived = sum(begin_ms <= at < end_ms for at in arrivals_ms)
    duration_s = (end_ms - begin_ms) / 1_000
    latencies = [picture.called_at_ms - at for at, picture in inside]
    told = [picture for _, picture in inside if picture.received_at_ms >= 0]
    decoded = [picture for _, picture in inside if picture.decoded_ms >= 0]
    return {
        "sent": sent,
        "returned": len(inside),
        "lost": sent - len(inside),
        "misread": misread,
        "repeated": repeated,
        "fps_sent": rate_per_s(sent, duration_s),
        "fps_received": rate_per_s(arrived, duration_s),
        "latency_ms": distribution(latencies),
        "presented_ms": distribution([picture.presented_at_ms - at for at, picture in inside]),
        "expected_ms": distribution([picture.displayed_at_ms - at for at, picture in inside]),
        "display_ms": distribution([p.called_at_ms - p.received_at_ms for p in told]),
        "hold_ms": distribution([p.presented_at_ms - p.received_at_ms for p in told]),
        "decode_ms": distribution([picture.decoded_ms for picture in decoded]),
        "reading_ms": distribution([picture.reading_ms for _, picture in inside]),
        "freezes": freezes(arrivals_ms, begin_ms, end_ms),
        "growth_ms_per_minute": growth_per_minute(
            [(at - begin_ms) / 1_000 for at, _ in inside], latencies
        ),
    }


def mean_between(
    readings: Sequence[Mapping[str, Any]], total_key: str, count_key: str
) -> float | None:
    """Milliseconds per event from the first and last reading of a total in seconds and a count."""
    before, after = readings[0], readings[-1]
    try:
        count = after[count_key] - before[count_key]
        total_s = after[total_key] - before[total_key]
    except (KeyError, TypeError):
        return None
    return 1_000 * total_s / count if count > 0 else None


def rate_between(
    readings: Sequence[Mapping[str, Any]], bytes_key: str, at_key: str
) -> float | None:
    """Kilobits per second from the first and last reading of a count and its instant in ms."""
    before, after = readings[0], readings[-1]
    try:
        duration_ms = after[at_key] - before[at_key]
        counted = after[bytes_key] - before[bytes_key]
    except (KeyError, TypeError):
        return None
    return float(8 * counted / duration_ms) if duration_ms > 0 else None
