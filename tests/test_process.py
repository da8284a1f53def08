"""The server as its own process: start, refusals at start, signals, and a peer that is killed."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession
from aiortc import RTCSessionDescription

from server.__main__ import main
from tests.fakes import FakeDetector
from tests.serving import Caller, changed, serving, until

pytestmark = pytest.mark.loopback

ROOT = Path(__file__).parents[1]
DEADLINE_S = 30.0


@asynccontextmanager
async def server_process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A server on a free port and its address; killed if the test leaves it running."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", "--port", "0", *arguments,
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            first = (await process.stdout.readline()).decode()
        found = re.search(r"http://\S+", first)
        assert found, first
        yield process, found[0].rstrip("/")
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def run_server(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S,
        env={**os.environ, **environment}, check=False,
    )  # fmt: skip


async def test_it_says_what_runs_and_stops_in_order_on_sigterm() -> None:
    async with server_process("--model", "none") as (process, url):
        async with ClientSession() as http, http.get(f"{url}/healthz") as reply:
            assert reply.status == 200
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE_S):
            output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    text = output.decode()
    assert "none: passing video through" in text
    assert "no STUN or TURN is asked" in text
    assert text.rstrip().endswith("Stopping")


async def test_it_listens_on_every_address_it_is_given() -> None:
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in (first, second)]
    listens = [f"--listen=127.0.0.1:{port}" for port in ports]
    async with server_process("--model", "none", *listens) as (_, url), ClientSession() as http:
        for address in (url, *(f"http://127.0.0.1:{port}" for port in ports)):
            async with http.get(f"{address}/") as reply:
                body = await reply.json()
                assert (body["status"], body["model_loaded"]) == ("ok", False)


@asynccontextmanager
async def a_call(url: str, http: ClientSession) -> AsyncIterator[Caller]:
    """A call of a server in another process, that has had a picture."""
    caller = Caller()
    try:
        body = await caller.offer()
        async with http.post(f"{url}/offer", json=body) as reply:
            answer = await reply.json()
            assert reply.status == 200, answer
        await caller.pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
        await caller.picture()
        yield caller
    finally:
        await caller.close()


async def test_sigterm_sends_everybody_elsewhere_and_ends_when_they_have_gone() -> None:
    arguments = ("--model", "none", "--drain-s", "60", "--log-format", "json")
    async with server_process(*arguments) as (process, url), ClientSession() as http:
        async with a_call(url, http) as caller:
            process.send_signal(signal.SIGTERM)
            told = await caller.message(lambda message: message["type"] == "reconnect")
            assert 0 <= told["after_ms"] <= 2000
            async with http.get(f"{url}/readyz") as reply:
                assert (reply.status, (await reply.json())["ready"]) == (503, False)
            async with http.get(f"{url}/healthz") as reply:
                assert reply.status == 200
            other = Caller()
            async with http.post(f"{url}/offer", json=await other.offer()) as reply:
                assert reply.status == 503
                assert int(reply.headers["Retry-After"]) > 0
            await other.close()
            pulled = {"name": "pulled", "source": "file:nowhere.mp4"}
            async with http.post(f"{url}/api/streams", json=pulled) as reply:
                assert reply.status == 503
                assert int(reply.headers["Retry-After"]) > 0
            # Those who are in are served until they go.
            await caller.picture()
        async with asyncio.timeout(DEADLINE_S):
            output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert "Draining" in output.decode()
    events = [json.loads(line) for line in errors.decode().splitlines()]
    (ended,) = (event for event in events if event.get("event") == "session ended")
    assert ended["reason"] == "peer left"
    assert ended["frames_in"] > 0
    (drained,) = (event for event in events if event.get("event") == "drained")
    assert (drained["told"], drained["left"]) == (1, 0)


async def test_sigterm_ends_those_who_stay_when_the_time_is_over() -> None:
    arguments = ("--model", "none", "--drain-s", "0.2")
    async with (
        server_process(*arguments) as (process, url),
        ClientSession() as http,
        a_call(url, http),
    ):
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE_S):
            _, errors = await process.communicate()
    assert process.returncode == 0
    assert 'reason="server stops"' in errors.decode()


async def test_a_second_signal_does_not_wait_for_anybody() -> None:
    arguments = ("--model", "none", "--drain-s", "300")
    async with (
        server_process(*arguments) as (process, url),
        ClientSession() as http,
        a_call(url, http) as caller,
    ):
        process.send_signal(signal.SIGTERM)
        await caller.message(lambda message: message["type"] == "reconnect")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE_S):
            await process.communicate()
    assert process.returncode == -signal.SIGTERM


async def test_sigint_stops_as_well() -> None:
    async with server_process() as (process, _):
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(DEADLINE_S):
            await process.communicate()
    assert process.returncode == 0


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
    monkeypatch.setattr("server.__main__.limit_arenas", lambda: None)
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


async def test_a_killed_peer_is_noticed_and_freed() -> None:
    settings = changed(session={"stale_after_s": 0.5, "silent_timeout_s": 2.0})
    async with serving(FakeDetector(), settings) as server:
        peer = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.vanishing_peer", server.url,
            cwd=ROOT, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert peer.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            assert await peer.stdout.readline() == b"live\n"
        peer.kill()
        await peer.communicate()
        states: set[str] = set()

        def freed() -> bool:
            sessions = server.registry.statistics().sessions
            states.update(session.state for session in sessions)
            return not sessions

        await until(freed)
        assert "stale" in states
        assert server.registry.statistics().ended == {"peer fell silent": 1}
