"""`python -m bench compare`: what rounds add up to, what is refused, and one real short round."""

import asyncio
import concurrent.futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench.__main__ import OK, WRONG_USAGE, main
from bench.compare_report import describe, detections_of, summarise, too_close
from bench.errors import PeerError
from bench.jpeg_peer import JpegPeer
from bench.record import Record
from bench.seen_boxes import Seen
from bench.subjects import SUBJECTS
from bench.window import Window
from tests.bench.making_records import run_report

pytestmark = pytest.mark.loopback


def measured(*rounds: tuple[float, float], seen: Seen | None = None) -> dict[str, Any]:
    """Rounds of ours and of a peer, one client."""
    runs = []
    for turn, (ours, peer) in enumerate(rounds):
        told = {"clients_at_once": 1, "round": turn}
        runs.append({**told, "subject": "aiortc", "report": run_report(peer)})
        runs.append({**told, "subject": "sightline", "report": run_report(ours)})
    return {
        "runs": runs,
        "floor": None,
        "environments": {},
        "failures": {},
        "detections": {"aiortc": detections_of(seen or Seen(4, 8, 8, 0))},
    }


def test_ratios_are_taken_within_rounds_and_their_median_counts() -> None:
    # In the last round the machine was busy with something else, on both sides.
    summary = summarise(measured((10, 40), (10, 30), (100, 350)))
    assert summary["ratios"]["1"]["aiortc"]["p50"] == {
        "median": 3.5,
        "low": 3.0,
        "high": 4.0,
        "pairs": 3,
        "bounded": 0,
    }
    assert summary["clients"]["1"]["sightline"]["worst_client_ms"]["p50"] == 10
    assert list(summary["clients"]["1"]) == ["sightline", "aiortc"]


def test_a_peer_that_failed_is_told_and_has_no_ratio() -> None:
    rounds = measured((10, 40))
    rounds["runs"][0] = {
        "clients_at_once": 1,
        "round": 0,
        "subject": "aiortc",
        "error": "it ended with 1",
    }
    summary = summarise(rounds)
    assert summary["ratios"]["1"]["aiortc"]["p50"] is None
    assert summary["clients"]["1"]["aiortc"]["errors"] == ["it ended with 1"]
    assert too_close(summary, 2.0) == ["aiortc, 1 client(s): not measured"]


def test_a_peer_whose_pictures_never_came_back_is_slower_than_the_window_is_long() -> None:
    rounds = measured((10, 40))
    (client,) = rounds["runs"][0]["report"].clients
    nothing = replace(client, returned=0, latency_ms=None, lost=client.sent)
    rounds["runs"][0]["report"] = replace(rounds["runs"][0]["report"], clients=[nothing])
    ratio = summarise(rounds)["ratios"]["1"]["aiortc"]["p50"]
    assert ratio["median"] == pytest.approx(200)
    assert ratio["bounded"] == 1
    assert too_close(summarise(rounds), 3.5) == []


def test_a_bound_finds_ratios_under_it_and_boxes_that_are_not_there() -> None:
    assert too_close(summarise(measured((10, 40))), 3.5) == []
    (fault,) = too_close(summarise(measured((10, 30))), 3.5)
    assert "3.00 times ours" in fault
    (fault,) = too_close(summarise(measured((10, 40), seen=Seen(4, 8, 1, 0))), 3.5)
    assert "1 of 8" in fault
    assert too_close(summarise(measured((10, 11))), None) == []


def test_the_text_names_every_server_with_its_ratio() -> None:
    settings = {"size": "640x480", "fps": 30.0, "codec": "H264", "runs": 1, "seconds": 2.0}
    text = describe(summarise(measured((10, 40))), settings)
    assert "Sightline" in text
    assert "4.00 (4.0-4.0)" in text
    assert "boxes of aiortc: real, 8 of 8" in text


def test_columns_stay_apart_where_a_peer_falls_behind_for_good() -> None:
    settings = {"size": "640x480", "fps": 30.0, "codec": "H264", "runs": 2, "seconds": 20.0}
    text = describe(summarise(measured((10, 14_444.4), (9, 29_999.9))), settings)
    [line] = [line for line in text.splitlines() if line.startswith("aiortc")]
    # p50, p95, fps, growth, CPU, and two ratios with their spread.
    assert len(line.removeprefix(SUBJECTS["aiortc"].title).split()) == 9


async def test_a_websocket_server_that_says_no_is_one_error() -> None:
    async def hang_up(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        await socket.send_str('{"error": "invalid image"}')
        return socket

    application = web.Application()
    application.router.add_get("/ws/stream", hang_up)
    async with TestServer(application) as server, aiohttp.ClientSession() as http:
        picture = np.zeros((96, 128, 3), np.uint8)
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            peer = JpegPeer("client 1", [picture], 30.0, 0.0, executor)
            with pytest.raises(PeerError, match="invalid image"):
                await peer.run(http, str(server.make_url("")))


async def test_a_websocket_client_has_the_newest_picture_under_way_and_keeps_answers() -> None:
    async def answer(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            assert message.data[:2] == b"\xff\xd8"
            await socket.send_str('{"detections": [{"box": [1, 2, 30, 40]}]}')
        return socket

    application = web.Application()
    application.router.add_get("/ws/stream", answer)
    async with TestServer(application) as server, aiohttp.ClientSession() as http:
        picture = np.zeros((96, 128, 3), np.uint8)
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            peer = JpegPeer("client 1", [picture], 120.0, 0.5, executor)
            peer.keeps_every = 1
            call = asyncio.create_task(peer.run(http, str(server.make_url(""))))
            await peer.wait_first_answer(15)
            peer.stop.set()
            await asyncio.wait_for(call, 15)
    assert peer.kept[0].boxes == ((1.0, 2.0, 30.0, 40.0),)
    assert not picture.any()
    begin = peer.exchanges[0].taken_at_ns
    report = peer.report(Window(begin, begin + 10**9))
    assert report.returned >= 1
    assert report.latency_ms is not None
    assert report.latency_ms.p50 > 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--against", "nobody"], "nobody"),
        (["--against", "sightline"], "sightline"),
        (["--clients", "0"], "--clients"),
        (["--runs", "0"], "--runs"),
        (["--fps", "0"], "--fps"),
    ],
)
def test_a_wrong_option_is_named(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *arguments]) == WRONG_USAGE
    assert named in capsys.readouterr().err


def test_a_short_round_against_the_usual_shape_is_measured_and_its_boxes_are_real(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", "--against", "aiortc", "--clients", "1", "--runs", "1"]
    arguments += ["--seconds", "1.5", "--warmup", "0.5", "--no-floor", "--out", str(tmp_path)]
    arguments += ["--pictures", str(tmp_path / "pictures"), "--at-least", "0.01", "--json"]

    assert main(arguments) == OK

    record = Record.from_json(capsys.readouterr().out.splitlines()[-1])
    assert [run["subject"] for run in record.runs] == ["sightline", "aiortc"]
    assert record.summary["ratios"]["1"]["aiortc"]["p50"]["median"] > 0
    for subject in ("sightline", "aiortc"):
        seen = record.summary["detections"][subject]
        assert seen["expected"] > 0
        assert seen["real"] is True
        assert (tmp_path / "pictures" / f"{subject}.png").stat().st_size > 1000
    engines = record.summary["clients"]["1"]
    assert engines["aiortc"]["engine"]["calls"] > 5
    assert record.summary["environments"]["aiortc"]["aiortc"]
    assert str(tmp_path) not in record.to_json()
