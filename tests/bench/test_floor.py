"""`python -m bench floor`: the work without a server, and its part in other records."""

from pathlib import Path

import pytest

from bench.__main__ import OK, WRONG_USAGE, main
from bench.floor import describe_ratio, ratio_to
from bench.glass import GlassSettings
from bench.record import Record

pytestmark = pytest.mark.loopback

QUICK = ["--size", "320x240", "--frames", "12", "--fps", "0", "--model", "none"]


def test_every_stage_is_measured_and_drawing_is_not_in_the_sum(
    moving_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["floor", *QUICK, "--clip", str(moving_clip), "--out", str(tmp_path), "--json"]
    assert main(arguments) == OK
    record = Record.from_json(capsys.readouterr().out.splitlines()[-1])
    stages = record.summary["stages_ms"]
    assert list(stages) == ["encode in", "decode", "draw", "encode out", "decode out"]
    assert all(told["count"] == 12 for told in stages.values())
    parts = sum(told["mean"] for name, told in stages.items() if name != "draw")
    assert record.summary["unavoidable_ms"]["mean"] == pytest.approx(parts, rel=0.01)


def test_a_glass_record_holds_the_floor_and_the_ratio_to_it(
    moving_clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As many pictures as a real floor has take four seconds.
    whole = GlassSettings.floor_args
    monkeypatch.setattr(
        GlassSettings, "floor_args", lambda settings: [*whole(settings), "--frames", "12"]
    )
    arguments = ["glass", "--no-detector", "--size", "320x240", "--clip", str(moving_clip)]
    arguments += ["--seconds", "1", "--warmup", "0.2", "--floor", "--out", str(tmp_path), "--json"]
    assert main(arguments) == OK
    summary = Record.from_json(capsys.readouterr().out.splitlines()[-1]).summary
    floor_ms = summary["floor"]["unavoidable_ms"]["p50"]
    assert summary["times_floor"] == pytest.approx(
        summary["worst_client_ms"]["p50"] / floor_ms, rel=0.01
    )
    assert "infer" not in summary["floor"]["stages_ms"]


def test_a_running_server_has_no_floor_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["glass", "--url", "http://127.0.0.1:1", "--floor"]) == WRONG_USAGE
    assert "--url" in capsys.readouterr().err


def test_the_floor_is_of_the_engine_that_the_server_is_given() -> None:
    settings = GlassSettings(model="m.onnx", server_args=("--threads=1", "--fade-ms=0"))
    assert settings.floor_args()[-3:] == ["--model", "m.onnx", "--threads=1"]
    assert GlassSettings(detector=False).floor_args()[-2:] == ["--model", "none"]


def test_without_a_floor_there_is_no_ratio() -> None:
    floor = {"unavoidable_ms": {"p50": 10.0}, "stages_ms": {"infer": {"p50": 6.0}}}
    assert ratio_to(None, 15.0) is None
    assert ratio_to(floor, None) is None
    assert ratio_to(floor, 15.0) == 1.5
    assert "1.50 times" in describe_ratio(floor, 1.5)
    assert "times" not in describe_ratio(floor, None)
