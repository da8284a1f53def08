"""What several runs say together: medians over runs, and the worst client of each."""

from typing import Any

import pytest

from bench.statistics import Freezes, distribution
from bench.summary import RunReport, describe, summarise
from bench.usage import Usage
from bench.window import ClientReport, ServerShare

pytestmark = pytest.mark.unit


def client(name: str, latency_ms: float | None, fps: float = 30.0) -> ClientReport:
    return ClientReport(
        name=name,
        sent=300,
        returned=300,
        lost=1,
        unreadable=0,
        misread=0,
        repeated=0,
        read_from_lower_strip=0,
        slots_skipped=0,
        fps_sent=30.0,
        fps_received=fps,
        latency_ms=None if latency_ms is None else distribution([latency_ms]),
        freezes=Freezes(1, 250.0, 250.0),
        growth_ms_per_minute=0.5,
        send_ms=distribution([2.0]),
        encode_ms=distribution([1.0]),
        receive_ms=distribution([0.8]),
        server=ServerShare(10, {}, distribution([6.0]), distribution([13.0]), 1.0, {}),
    )


def run(*clients: ClientReport, stats: dict[str, Any] | None = None) -> RunReport:
    return RunReport(
        clients=clients,
        server_start_s=1.5,
        first_picture_ms=[400.0, None],
        answer={},
        client_process=Usage(50.0, 100.0, 9),
        server_process=None,
        server_stats=stats or {},
    )


def test_the_median_over_runs_of_the_worst_client_counts() -> None:
    reports = [
        run(client("a", 10.0), client("b", 30.0)),
        run(client("a", 25.0), client("b", 12.0)),
        run(client("a", 90.0), client("b", 11.0)),
    ]
    summary = summarise(reports)
    assert summary["worst_client_ms"]["p95"] == 30.0
    assert [c["latency_ms"]["p95"] for c in summary["clients"]] == [25.0, 12.0]
    assert (summary["lost"], summary["freezes"]) == (6, 6)


def test_the_slowest_is_compared_with_the_fastest() -> None:
    summary = summarise([run(client("a", 10.0, fps=28.0), client("b", 10.0, fps=21.0))])
    assert summary["fps_slowest"] == 21.0
    assert summary["slowest_to_fastest"] == 0.75


def test_a_client_without_a_picture_leaves_no_number() -> None:
    summary = summarise([run(client("a", None, fps=0.0))])
    assert summary["worst_client_ms"]["p95"] is None
    assert summary["slowest_to_fastest"] is None


def test_server_times_are_taken_as_the_server_tells_them() -> None:
    stats = [
        {
            "stages_ms": {"decode": {"p50": value, "p95": 2 * value, "p99": 3 * value, "count": 9}},
            "loop_lag_ms": {"p50": 0.1, "p95": 0.5, "p99": value},
        }
        for value in (1.0, 3.0, 2.0)
    ]
    summary = summarise([run(client("a", 10.0), stats=told) for told in stats])
    assert summary["server_stages_ms"] == {"decode": {"p50": 2.0, "p95": 4.0, "p99": 6.0}}
    assert summary["loop_lag_ms"]["p99"] == 2.0
    assert summary["server_cpu_percent"] is None
    assert summary["client_cpu_percent"] == 50.0


def test_the_text_names_each_client_and_has_no_made_up_number() -> None:
    settings = {
        "clients": 2,
        "size": "640x480",
        "fps": 30.0,
        "codec": "H264",
        "mode": "exact",
        "against": "server",
        "runs": 1,
        "seconds": 10.0,
    }
    text = describe(summarise([run(client("client 1", 12.34), client("client 2", None))]), settings)
    assert "12.3" in text
    assert "client 2" in text
    assert "server - % CPU" in text
    assert "not told" in text
