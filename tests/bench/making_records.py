"""Records as the bench writes them, with delays chosen by the test."""

from collections.abc import Sequence
from typing import Any

from bench.compare_report import detections_of, summarise
from bench.eye import EyeStatistics, Returned
from bench.record import Record, plain
from bench.seen_boxes import Seen
from bench.subjects import SUBJECTS
from bench.summary import RunReport
from bench.summary import summarise as summarise_calls
from bench.window import Window, client_report

MS = 1_000_000
NOTHING = EyeStatistics(0, 0, 0, 0)


def run_report(delays_ms: float | Sequence[float], seconds: int = 2) -> RunReport:
    """One client whose pictures took so long, over and over, 30 a second."""
    delays = [delays_ms] if isinstance(delays_ms, int | float) else delays_ms
    handed = [number * 1000 * MS // 30 for number in range(30 * seconds)]
    returned = [
        Returned(number, at_ns, at_ns, at_ns + round(delays[number % len(delays)] * MS), 0)
        for number, at_ns in enumerate(handed)
    ]
    window = Window(0, seconds * 1000 * MS)
    # Pictures go on arriving at their rate until the end, as in a run with a tail.
    client = client_report("client 1", window, handed, [], returned, [], NOTHING, NOTHING, 0, True)
    stages = {
        name: {"p50": value, "p95": 2 * value, "p99": 3 * value}
        for name, value in (("decode", 0.5), ("infer", 6.0), ("encode", 1.5), ("total", 8.0))
    }
    return RunReport([client], 1.0, [50.0], {}, None, None, {"stages_ms": stages})


def _record(bench: str, settings: dict[str, Any], summary: Any, runs: Any) -> Record:
    return Record(
        bench=bench,
        measured_utc="2026-11-20T12:00:00Z",
        code={"commit": "0" * 40, "changed": False},
        versions={"python": "3.11", "aiortc": "1.16.0"},
        machine={"cpu": "A <fast> one", "cores": 2, "load_before": [0.1, 0.2, 0.3]},
        settings=settings,
        summary=plain(summary),
        runs=plain(runs),
    )


SETTINGS = {
    "fps": 30.0,
    "size": "640x480",
    "codec": "H264",
    "mode": "exact",
    "clip": "photographs",
    "seconds": 2.0,
    "warmup_s": 1.0,
    "runs": 1,
}


def glass_record(delays_ms: float | Sequence[float], seconds: int = 2, clients: int = 1) -> Record:
    reports = [run_report(delays_ms, seconds)]
    settings = SETTINGS | {
        "clients": clients,
        "against": "server",
        "model": None,
        "detector": True,
        "server_args": [],
        "data_channel": True,
    }
    return _record("glass", settings, summarise_calls(reports), reports)


def compare_record(ours_ms: float, peer_ms: float, seconds: int = 2) -> Record:
    runs = [
        {
            "clients_at_once": 1,
            "round": 1,
            "subject": "sightline",
            "report": run_report(ours_ms, seconds),
        },
        {
            "clients_at_once": 1,
            "round": 1,
            "subject": "aiortc",
            "report": run_report(peer_ms, seconds),
        },
    ]
    floor = {
        "stages_ms": {"encode in": {"p50": 1.0}, "infer": {"p50": 6.0}, "encode out": {"p50": 1.5}},
        "unavoidable_ms": {"p50": 8.5, "p95": 9.5},
    }
    summary = summarise(
        {
            "runs": runs,
            "floor": floor,
            "environments": {"aiortc": {"aiortc": "1.16.0"}},
            "failures": {},
            "detections": {"aiortc": detections_of(Seen(4, 8, 8, 0))},
        }
    )
    settings = SETTINGS | {
        "clients": [1],
        "against": ["aiortc"],
        "engine": {"model": None},
        "subjects": {
            name: {"title": SUBJECTS[name].title, "how": SUBJECTS[name].how}
            for name in ("sightline", "aiortc")
        },
        "left_out": {"another": "it <cannot> be driven"},
    }
    told = [{**{k: v for k, v in r.items() if k != "report"}, **plain(r["report"])} for r in runs]
    return _record("compare", settings, summary, told)
