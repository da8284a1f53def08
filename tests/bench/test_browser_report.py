"""From the log of a page to its report, and from reports to the summary."""

from dataclasses import replace

import pytest

from bench.browsers.report import BrowserReport, Seen, mean_between, picture_report, rate_between
from bench.browsers.summary import describe, summarise, worst_p95_ms
from bench.statistics import Freezes, distribution

pytestmark = pytest.mark.unit

INTERVAL_MS = 40.0


def seen(number: int, drawn_at_ms: float, latency_ms: float = 30.0) -> Seen:
    called_at_ms = drawn_at_ms + latency_ms
    return Seen(
        number=number,
        time_us=round(drawn_at_ms * 1_000),
        called_at_ms=called_at_ms,
        frame_at_ms=called_at_ms - 1,
        presented_at_ms=called_at_ms - 4,
        displayed_at_ms=called_at_ms + 12,
        received_at_ms=called_at_ms - 10,
        decoded_ms=1.5,
        reading_ms=0.4,
    )


def test_a_log_row_is_read_in_the_order_the_page_writes_it() -> None:
    assert Seen.from_row([7, 1_000, 2, 3, 4, 5, 6, 7.5, 0.5]) == Seen(
        7, 1_000, 2.0, 3.0, 4.0, 5.0, 6.0, 7.5, 0.5
    )


def test_only_pictures_drawn_within_the_window_count() -> None:
    drawn = [1_000 + INTERVAL_MS * number for number in range(20)]
    log = [seen(number, at) for number, at in enumerate(drawn)]
    told = picture_report(log, drawn, drawn[5], drawn[15])
    assert (told["sent"], told["returned"], told["lost"]) == (10, 10, 0)
    assert told["latency_ms"].p50 == pytest.approx(30)
    assert told["presented_ms"].p50 == pytest.approx(26)
    assert told["expected_ms"].p50 == pytest.approx(42)
    assert told["display_ms"].p50 == pytest.approx(10)
    assert told["hold_ms"].p50 == pytest.approx(6)
    assert told["fps_sent"] == pytest.approx(25)


def test_losses_repeats_and_foreign_marks_are_told_apart() -> None:
    drawn = [1_000 + INTERVAL_MS * number for number in range(6)]
    log = [
        seen(0, drawn[0]),
        seen(1, drawn[1]),
        seen(1, drawn[1]),
        replace(seen(2, drawn[2]), time_us=1),
        seen(5, drawn[5]),
        seen(300, 1.0),
    ]
    told = picture_report(log, drawn, 0, 2_000)
    assert (told["returned"], told["lost"]) == (3, 3)
    assert (told["repeated"], told["misread"]) == (1, 2)


def test_numbers_and_times_that_wrapped_are_the_ones_that_were_meant() -> None:
    # The sixteen bits of the number wrap after 36 minutes, the 32 of the time after 72.
    first = (1 << 16) - 3
    drawn = [4_294_960.0 + number for number in range(first + 6)]
    log = [
        Seen(
            number % (1 << 16),
            round(drawn[number] * 1_000) % (1 << 32),
            *(drawn[number] + 20,) * 4,
            -1,
            -1,
            0,
        )
        for number in range(first - 40_000, first + 6, 20_000)
    ]
    told = picture_report(log, drawn, 0, 1e9)
    assert told["misread"] == 0
    assert told["returned"] == len(log)
    assert told["display_ms"] is None


def test_a_page_that_saw_nothing_has_no_numbers_but_its_losses() -> None:
    told = picture_report([], [1.0, 2.0], 0, 10)
    assert told["latency_ms"] is None
    assert told["lost"] == 2
    assert told["freezes"].count == 0


def test_the_mean_between_two_readings_of_a_counter() -> None:
    readings = [{"t": 1.0, "n": 10}, {"t": 1.2, "n": 110}]
    assert mean_between(readings, "t", "n") == pytest.approx(2.0)
    assert mean_between([readings[0], readings[0]], "t", "n") is None
    assert mean_between([{}, readings[0]], "t", "n") is None


def test_the_rate_between_two_readings_of_a_counter() -> None:
    readings = [{"bytes": 1_000, "at": 500.0}, {"bytes": 126_000, "at": 1_500.0}]
    assert rate_between(readings, "bytes", "at") == pytest.approx(1_000)
    assert rate_between([readings[0], readings[0]], "bytes", "at") is None
    assert rate_between([{}, {}], "bytes", "at") is None


def report(browser: str, p50_ms: float) -> BrowserReport:
    spread = distribution([p50_ms])
    return BrowserReport(
        browser=browser,
        version="1",
        sent=10,
        returned=9,
        lost=1,
        unreadable=0,
        misread=0,
        repeated=0,
        slots_skipped=0,
        fps_sent=30,
        fps_received=29,
        latency_ms=spread,
        presented_ms=spread,
        expected_ms=spread,
        display_ms=None,
        hold_ms=None,
        decode_ms=None,
        reading_ms=None,
        freezes=Freezes(0, 0, 50),
        growth_ms_per_minute=0,
        encode_ms=None,
        jitter_buffer_ms=None,
        codec={"name": "VP8"},
        server_ms=None,
        server_stages_ms={},
        browser_cpu_percent=40,
        server_cpu_percent=None,
        first_picture_ms=300,
    )


def test_the_summary_holds_medians_by_browser_and_the_budget_meets_the_slowest() -> None:
    reports = [report("chromium", ms) for ms in (20, 40, 30)] + [report("firefox", 55)]
    summary = summarise(reports)
    assert summary["chromium"]["latency_ms"]["p50"] == 30
    assert summary["chromium"]["lost"] == 3
    assert worst_p95_ms(summary) == 55
    settings = {"size": "640x480", "fps": 30, "codec": "auto", "mode": "exact"}
    text = describe(summary, {**settings, "runs": 3, "seconds": 10})
    assert "chromium" in text
    assert "55.0" in text


def test_a_browser_without_a_number_is_over_every_budget() -> None:
    blind = replace(report("firefox", 1), latency_ms=None)
    assert worst_p95_ms(summarise([report("chromium", 20), blind])) is None
