"""The server as its own process: where it listens, how it ends, and a peer that is killed."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from aiohttp import ClientSession

from tests.fakes import FakeDetector
from tests.processes import DEADLINE_S, ROOT, a_call, server_process
from tests.serving import Caller, changed, serving, until

pytestmark = pytest.mark.loopback


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


def test_opencv_is_told_how_to_wait_before_it_is_imported() -> None:
    # OpenCV reads it once, while it is imported.
    watched = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "cv2":
            print(os.environ.get("OPENCV_THREAD_POOL_ACTIVE_WAIT_WORKER"))
sys.meta_path.insert(0, Watch())
import server.__main__
"""
    done = subprocess.run(
        [sys.executable, "-c", watched],
        cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("OPENCV_")},
    )  # fmt: skip
    assert set(done.stdout.split()) == {"0"}, done.stdout
