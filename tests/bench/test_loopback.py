"""The instrument against an echo: real peers, real codecs, pictures read back."""

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench.__main__ import NOT_MEASURED, OK, OVER_BUDGET, main
from bench.echo import EchoServer
from bench.errors import PeerError, ServerError
from bench.glass import GlassSettings, measure
from bench.record import Record
from bench.server_process import started

pytestmark = pytest.mark.loopback

SHORT = GlassSettings(size_wh=(320, 240), seconds=1.5, warmup_s=0.3)


def silent(_: str) -> None:
    """No progress wanted."""


@pytest.mark.parametrize("codec", ["H264", "VP8"])
async def test_two_peers_read_their_own_pictures_back(codec: str, moving_clip: Path) -> None:
    async with TestServer(EchoServer(stock=False).application()) as server:
        settings = replace(
            SHORT, codec=codec, clients=2, clip=moving_clip, url=str(server.make_url("/"))
        )
        (report,) = await measure(settings, silent)
    assert [client.name for client in report.clients] == ["client 1", "client 2"]
    for client in report.clients:
        assert client.sent > 5
        assert 0 < client.returned <= client.sent
        assert (client.misread, client.repeated) == (0, 0)
        assert client.latency_ms is not None
        assert client.send_ms is not None
        assert client.receive_ms is not None
        # The whole way holds both of the client's own shares.
        assert client.latency_ms.p50 > client.send_ms.p50 > 0
        assert client.latency_ms.p50 > client.receive_ms.p50 > 0
    assert all(ms is not None and ms > 0 for ms in report.first_picture_ms)
    assert report.client_process is not None
    assert report.client_process.cpu_percent > 0
    assert report.server_process is not None


@pytest.mark.parametrize("against", ["echo", "stock-echo"])
def test_the_command_measures_a_server_of_its_own_and_writes_a_record(
    against: str, moving_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["glass", "--against", against, "--clip", str(moving_clip), "--size", "320x240"]
    arguments += ["--seconds", "1", "--warmup", "0.2", "--out", str(tmp_path), "--json"]

    assert main([*arguments, "--budget-ms", "50000"]) == OK

    captured = capsys.readouterr()
    record = Record.from_json(captured.out.splitlines()[-1])
    assert record.settings["against"] == against
    assert record.settings["clip"] == "moving.mp4"
    assert record.summary["worst_client_ms"]["p95"] > 0
    assert record.summary["server_start_s"] > 0
    assert record.summary["server_cpu_percent"] > 0
    assert str(tmp_path) not in record.to_json()
    (file,) = tmp_path.glob("glass-*.json")
    assert Record.from_json(file.read_text(encoding="utf-8")) == record
    assert "run 1/1: starting the server" in captured.err


def test_a_passed_budget_ends_with_one(moving_clip: Path, tmp_path: Path) -> None:
    arguments = ["glass", "--against", "echo", "--clip", str(moving_clip), "--size", "320x240"]
    arguments += ["--seconds", "0.5", "--warmup", "0", "--out", str(tmp_path), "--no-channel"]
    assert main([*arguments, "--budget-ms", "0.01"]) == OVER_BUDGET


def test_nobody_at_the_url_is_one_line_and_not_measured(
    moving_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        arguments = ["glass", "--url", url, "--clip", str(moving_clip), "--json"]
        assert main(arguments) == NOT_MEASURED
    captured = capsys.readouterr()
    assert "client 1: no answer to the offer" in captured.err
    assert "client 1" in json.loads(captured.out.splitlines()[-1])["error"]


async def test_a_refused_offer_is_told_with_the_servers_words(moving_clip: Path) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"status": 503, "detail": "full: 16 of 16"}, status=503)

    application = web.Application()
    application.router.add_post("/offer", refuse)
    async with TestServer(application) as server:
        settings = replace(SHORT, clip=moving_clip, url=str(server.make_url("/")))
        with pytest.raises(PeerError, match=r"503.*full: 16 of 16"):
            await measure(settings, silent)


async def test_a_server_that_ends_at_once_is_told_with_the_end_of_its_log() -> None:
    with pytest.raises(ServerError, match="unrecognized arguments: --no-such-option"):
        async with started(["bench", "echo", "--no-such-option"]):
            pytest.fail("it started")


async def test_a_started_server_is_gone_afterwards() -> None:
    async with started(["bench", "echo"]) as server:
        assert server.pid is not None
        assert server.start_s is not None
        port = int(server.url.rsplit(":", 1)[1])
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 2):
        pytest.fail("it still listens")
