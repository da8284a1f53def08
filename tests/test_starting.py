"""What the server says before it serves: wrong starts, slips of the pen, what the doctor finds."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from server.__main__ import main
from tests.processes import DEADLINE_S, ROOT, run_server

pytestmark = pytest.mark.service


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port", "99999"], ["--port", "99999", "0 to 65535"]),
        (["--model", "nowhere.onnx"], ["nowhere.onnx"]),
        (["--model", "README.md"], ["README.md"]),
        (["--video-codecs", "AV1"], ["video_codecs", "AV1"]),
        (["--config", "nowhere.yaml"], ["config", "nowhere.yaml"]),
        (["--tls-certificate", "nowhere.pem", "--port", "0"], ["tls_certificate", "nowhere.pem"]),
        (["--host", "nowhere.invalid"], ["host", "nowhere.invalid"]),
        (["--listen", "127.0.0.1:1", "--listen", "127.0.0.1:1"], ["listen", "127.0.0.1:1"]),
        (["--port", "0", "--auth", "on", "--api-keys", "short"], ["api_keys", "24 to 200"]),
        (["--port", "0", "--announce", "name"], ["announce", "IP address"]),
        (["--port", "0", "--webhook-urls", "name"], ["webhook_urls", "http://"]),
        (["--model", "server"], ["server: a folder"]),
    ],
)
def test_a_wrong_start_is_one_clear_line_and_exit_code_2(
    arguments: list[str], told: list[str]
) -> None:
    result = run_server(*arguments)
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("sightline:")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "INFO server.detector" not in result.stderr, "told before the model is loaded"
    for part in told:
        assert part in lines[0]


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_server("--port", str(port))
    assert result.returncode == 2
    assert f"127.0.0.1:{port}" in result.stderr
    assert "Traceback" not in result.stderr


def test_variables_set_what_flags_do() -> None:
    result = run_server(SIGHTLINE_PORT="none")
    assert result.returncode == 2
    assert "SIGHTLINE_PORT: port: 'none'" in result.stderr


def test_a_variable_that_is_no_setting_is_told() -> None:
    result = run_server("--host", "nowhere.invalid", SIGHTLINE_PROT="9000")
    assert "SIGHTLINE_PROT: no such setting" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--prot", "9000"], "--prot: no such setting; --port may be meant"),
        (["--nonsense=1"], "--nonsense: no such setting; --help lists them"),
        (["sevre"], "'sevre' is not one of serve, doctor, token"),
    ],
)
def test_a_slip_of_the_pen_is_told_in_two_lines(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert "[--SETTING VALUE ...]" in usage
    assert told in error


def test_an_interrupted_start_leaves_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("server.__main__.make_detector", load)
    monkeypatch.setattr("server.__main__.set_up_allocator", lambda: None)
    monkeypatch.setattr("sys.setswitchinterval", lambda _: None)
    monkeypatch.setattr("server.__main__.set_up_logging", lambda *_: None)
    assert main(["--port", "0", "--model", "none"]) == 130


def test_a_python_without_the_packages_says_where_they_are() -> None:
    result = subprocess.run(
        [sys.executable, "-S", "-m", "server"],
        cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith("sightline: the package aiohttp is not installed")
    assert "Traceback" not in result.stderr


def test_doctor_tells_what_would_run_and_fails_when_it_would_not() -> None:
    good = run_server("doctor", "--json", "--port", "0")
    assert good.returncode == 0, good.stderr
    assert '"h264_encoder"' in good.stdout.splitlines()[-1]
    bad = run_server("doctor", "--model", "nowhere.onnx", "--port", "0", "--announce", "name")
    assert bad.returncode == 1
    assert "PROBLEM    nowhere.onnx" in bad.stderr
    assert "PROBLEM    announce" in bad.stderr


def test_doctor_makes_no_secret_and_says_where_nothing_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run_server(
        "doctor", "--model", "none", "--port", "0", "--auth", "on", "--clips", "on",
        "--state-dir", str(tmp_path / "state"), "--clips-dir", str(tmp_path / "file" / "clips"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    kept = next(line for line in result.stdout.splitlines() if line.startswith("  kept"))
    assert f"zones and events in {tmp_path / 'state'}, clips in" in kept
    assert f"(NOT NOW: {tmp_path / 'file'} is no folder)" in kept
