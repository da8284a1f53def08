"""`python -m bench browser`: real browsers, the real server, pictures read back by the page."""

import json
from pathlib import Path

import pytest

from bench.__main__ import OK, OVER_BUDGET, WRONG_USAGE, main
from bench.record import Record

pytestmark = pytest.mark.browser

SHORT = ["--size", "320x240", "--seconds", "1", "--warmup", "0.2", "--no-detector"]


@pytest.mark.parametrize("name", ["chromium", "firefox"])
def test_a_browser_reads_its_own_pictures_back(
    name: str, moving_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["browser", "--browser", name, "--clip", str(moving_clip), *SHORT]
    arguments += ["--codec", "VP8", "--out", str(tmp_path), "--json"]

    assert main([*arguments, "--budget-ms", "50000"]) == OK

    captured = capsys.readouterr()
    record = Record.from_json(captured.out.splitlines()[-1])
    (run,) = record.runs
    assert run["codec"]["name"] == "VP8"
    assert run["sent"] > 5
    assert 0 < run["returned"] <= run["sent"]
    assert run["misread"] == 0
    assert run["latency_ms"]["p50"] > run["display_ms"]["p50"] > 0
    assert run["browser_cpu_percent"] > 0
    assert run["server_cpu_percent"] > 0
    assert record.summary[name]["latency_ms"]["p95"] > 0
    assert str(tmp_path) not in record.to_json()
    (file,) = tmp_path.glob("browser-*.json")
    assert Record.from_json(file.read_text(encoding="utf-8")) == record


def test_a_passed_budget_ends_with_one(moving_clip: Path, tmp_path: Path) -> None:
    arguments = ["browser", "--browser", "chromium", "--clip", str(moving_clip), *SHORT]
    assert main([*arguments, "--out", str(tmp_path), "--budget-ms", "0.01"]) == OVER_BUDGET


def test_a_wrong_option_is_named_before_any_browser_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["browser", "--url", "http://127.0.0.1:1", "--model", "x", "--json"]
    assert main(arguments) == WRONG_USAGE
    captured = capsys.readouterr()
    assert "--url" in json.loads(captured.out.splitlines()[-1])["error"]


def test_the_products_own_page_is_measured_from_its_cameras_pictures(
    moving_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["browser", "--browser", "chromium", "--page", "--clip", str(moving_clip)]
    arguments += ["--seconds", "2", "--warmup", "0.5", "--no-detector", "--out", str(tmp_path)]

    assert main([*arguments, "--json"]) == OK

    record = Record.from_json(capsys.readouterr().out.splitlines()[-1])
    (run,) = record.runs
    assert run["returned"] > 5
    assert run["latency_ms"]["p50"] > run["display_ms"]["p50"] > 0
    assert run["codec"]["name"] in ("H264", "VP8")
    # The page says how old the picture is; both looked at the same pictures.
    assert run["shown_age_ms"]["p50"] > 0
    assert (record.settings["door"], record.settings["camera"]) == ("page", "clip")


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("chromium", ["--whep"]),
        pytest.param("firefox", ["--whep"], marks=pytest.mark.long),
        pytest.param("chromium", ["--whep", "--camera", "clip"], marks=pytest.mark.long),
        ("firefox", ["--page", "--camera", "canvas"]),
    ],
)
def test_other_doors_and_cameras_are_measured_the_same_way(
    name: str,
    way: list[str],
    moving_clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["browser", "--browser", name, *way, "--clip", str(moving_clip), *SHORT]

    assert main([*arguments, "--out", str(tmp_path), "--json"]) == OK

    record = Record.from_json(capsys.readouterr().out.splitlines()[-1])
    (run,) = record.runs
    assert run["returned"] > 3
    assert run["misread"] == 0
    assert run["latency_ms"]["p50"] > run["display_ms"]["p50"] > 0
    assert run["codec"]["name"] in ("H264", "VP8")
    assert record.settings["door"] == way[0].removeprefix("--")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--browser", "both", "--page"],
        ["--browser", "firefox", "--whep", "--camera", "clip"],
        ["--browser", "chromium", "--camera", "clip"],
        ["--browser", "chromium", "--page", "--camera", "track"],
    ],
)
def test_a_camera_that_there_is_not_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["browser", *arguments]) == WRONG_USAGE
    assert "--camera" in capsys.readouterr().err
