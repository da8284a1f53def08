"""`python -m bench websocket`: what it makes of single answers, and a short real measurement."""

import csv
from pathlib import Path

import pytest

from bench.__main__ import NOT_MEASURED, OVER_BUDGET, WRONG_USAGE, main
from bench.record import Record
from bench.statistics import distribution
from bench.websocket import COLUMNS, Measurement, Reply, describe, summarise, write_csv

pytestmark = pytest.mark.loopback

# Pictures of a clip in a small size, a second in all; nothing is looked for in them.
EASY = ["websocket", "--against", "sightline", "--runs", "1", "--size", "64x64"]
EASY += ["--seconds", "0.3", "--warmup", "0.1"]


def measured(server: str, clients: int, run: int, delays_ms: list[float]) -> Measurement:
    return Measurement(
        server=server,
        clients=clients,
        run=run,
        delay_ms=distribution(delays_ms),
        fps=sum(1000 / delay for delay in delays_ms) / len(delays_ms),
        fps_all=40.0,
        detections=2.0,
        errors=1,
        server_ms=None,
        server_process=None,
        client_process=None,
    )


def test_figures_are_means_of_runs_and_ratios_those_of_the_same_run() -> None:
    found = [
        measured("sightline", 1, 1, [20.0, 20.0]),
        measured("plain", 1, 1, [40.0, 44.0]),
        measured("plain", 1, 2, [90.0]),
        measured("sightline", 1, 2, [30.0]),
    ]
    summary = summarise(found)
    row = summary["sightline"]["1"]
    assert (row["mean_ms"], row["p99_ms"], row["errors"]) == (25.0, 25.0, 2)
    assert row["fps"] == pytest.approx((50 + 1000 / 30) / 2)
    # 42 / 20 and 90 / 30; the median of two is between them.
    assert summary["plain_over_sightline"] == {"1": pytest.approx(2.55)}
    text = describe(summary)
    assert "2.55 times as long with 1 clients" in text


def test_single_answers_have_the_columns_of_stream_yolos_client(tmp_path: Path) -> None:
    replies = [Reply(0, 1, 20.0, 3), Reply(1, 1, 25.0, -1)]
    path = write_csv(tmp_path, measured("plain", 2, 3, [20.0, 25.0]), replies)
    assert path.name == "plain-2-run3.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == COLUMNS == ("client_id", "frame", "delay_ms", "fps")
    assert rows[1:] == [["0", "1", "20.000", "50.000"], ["1", "1", "25.000", "40.000"]]


def test_a_short_measurement_writes_a_record_and_its_answers(
    moving_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*EASY, "--clients", "1,2", "--clip", str(moving_clip), "--out", str(tmp_path)]
    arguments += ["--model", str(Path("models/sightline-nano.onnx").resolve())]
    assert main([*arguments, "--json", "--budget-ms", "0.001"]) == OVER_BUDGET
    record = Record.from_json(capsys.readouterr().out.splitlines()[-1])
    rows = record.summary["sightline"]
    assert set(rows) == {"1", "2"}
    for row in rows.values():
        assert row["mean_ms"] > 0
        assert row["fps_all"] > 0
        assert row["errors"] == 0
    assert [run["clients"] for run in record.runs] == [1, 2]
    assert all(run["server_ms"]["count"] == run["delay_ms"]["count"] for run in record.runs)
    files = sorted(path.name for path in tmp_path.glob("websocket-*/*.csv"))
    assert files == ["sightline-1-run1.csv", "sightline-2-run1.csv"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--clients", "0"], WRONG_USAGE),
        (["--clients", "1,500"], WRONG_USAGE),
        (["--seconds", "0"], WRONG_USAGE),
        (["--against", "plain", "--model", "no-such-model"], WRONG_USAGE),
        (["--url", "http://127.0.0.1:1"], NOT_MEASURED),
    ],
)
def test_what_cannot_be_measured_is_said(
    arguments: list[str],
    code: int,
    moving_clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["websocket", "--runs", "1", "--clip", str(moving_clip), "--out", str(tmp_path)]
    assert main([*command, *arguments]) == code
    assert capsys.readouterr().err.strip()
    assert not list(tmp_path.glob("*.json"))
