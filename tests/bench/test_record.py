"""A record says what was measured with what, and reads back as it was written."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.environment import commit, machine, versions
from bench.errors import UsageError
from bench.record import Record, plain, utc_now
from bench.statistics import Distribution
from tests.bench.making_records import glass_record

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Outer:
    inner: Distribution | None
    pairs: tuple[tuple[str, float], ...]


def record() -> Record:
    return Record(
        bench="glass",
        measured_utc="2026-01-02T03:04:05Z",
        code={"commit": "0123abc", "changed": False},
        versions=versions(),
        machine=plain(machine()),
        settings={"size": "640x480", "fps": 30.0, "clip": "photographs"},
        summary={"worst_client_ms": {"p50": 14.25, "p95": None}},
        runs=[plain(Outer(Distribution(3, 2.0, 2.0, 2.9, 2.98, 3.0), (("a", 1.23456),)))],
    )


def test_a_record_reads_back_as_it_was_written() -> None:
    assert Record.from_json(record().to_json()) == record()


def test_a_record_is_one_line() -> None:
    assert "\n" not in record().to_json()


def test_a_record_file_is_named_after_bench_and_instant(tmp_path: Path) -> None:
    path = record().write(tmp_path / "new", "1x640x480")
    assert path.name == "glass-20260102T030405Z-1x640x480.json"
    assert Record.from_json(path.read_text(encoding="utf-8")) == record()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps({"format": 99}),
        json.dumps({**json.loads(record().to_json()), "format": 2}),
        json.dumps({**json.loads(record().to_json()), "more": 1}),
    ],
)
def test_what_is_not_a_record_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="record"):
        Record.from_json(text)


def test_a_number_that_json_cannot_hold_is_refused() -> None:
    broken = Record("glass", utc_now(), {}, {}, {}, {}, {"p50": float("nan")}, [])
    with pytest.raises(ValueError, match="JSON"):
        broken.to_json()


def test_plain_rounds_to_the_microsecond_and_keeps_none() -> None:
    assert plain(Outer(None, (("x", 1.23456),))) == {"inner": None, "pairs": [["x", 1.235]]}


def test_versions_name_what_decides_the_numbers() -> None:
    assert {"python", "aiortc", "av", "numpy", "libavcodec"} <= set(versions())


def test_the_machine_is_described_without_its_name() -> None:
    import platform

    described = json.dumps([machine(), commit()])
    assert machine()["cpu"]
    assert platform.node() not in described or len(platform.node()) < 3


def test_a_list_of_numbers_is_one_line_of_the_file(tmp_path: Path) -> None:
    written = glass_record([10, 12])
    text = written.write(tmp_path, "x").read_text()
    assert Record.from_json(text) == Record.from_json(written.to_json())
    (line,) = [line for line in text.splitlines() if '"quantiles_ms"' in line]
    assert line.count(",") >= 100
