"""Sources that the server fetches: a real RTSP camera, files, and all that is none."""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from aiohttp import web

from server.logs import EVENT, FIELDS
from server.pull.device import camera_pictures, to_frame
from server.settings import Settings
from tests.fakes import FakeDetector
from tests.gate.guarded import ADMIN, FRONT, PUBLISHER, guarded, guarded_settings
from tests.gateway.watching import watching
from tests.serving import DEADLINE_S, Serving, changed, serving, until
from tests.sources.cameras import camera, want_camera, write_clip, write_play_list

pytestmark = pytest.mark.loopback

HERE = ("127.0.0.1", "localhost")


def fetching(
    detector: FakeDetector | None = None, **sources: Any
) -> contextlib.AbstractAsyncContextManager[Serving]:
    """A server that may fetch from this machine and tries again soon."""
    return serving(detector, settings(**sources))


def settings(**sources: Any) -> Settings:
    given = {"source_hosts": HERE, "source_retry_s": 0.5, "source_timeout_s": 3.0, **sources}
    limits = {"admit_loop_lag_ms": 0, "admit_wait_ms": 0}
    return changed(sources=given, limits=limits)


async def add(server: Serving, source: str, name: str = "door", **more: Any) -> tuple[int, Any]:
    body = {"name": name, "source": source, **more}
    async with server.http.post(f"{server.url}/api/streams", json=body) as reply:
        return reply.status, await reply.json()


async def reached(server: Serving, name: str = "door", **wanted: Any) -> dict[str, Any]:
    """Wait until the stream tells all this of itself, or of its pull."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            body = await server.stream(name)
            told = {**(body.get("pull") or {}), **body}
            if all(told.get(key) == value for key, value in wanted.items()):
                return body
            await asyncio.sleep(0.02)


async def tried(server: Serving, times: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while (await server.stream("door"))["pull"]["attempts"] < times:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def pull_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("pull ")]


@pytest.fixture(autouse=True)
async def no_thread_is_left() -> AsyncIterator[None]:
    yield
    await until(lambda: not pull_threads())


@pytest.mark.parametrize("scheme", ["rtsp", "rtsp+udp"])
async def test_a_viewer_sees_an_rtsp_camera_with_boxes(scheme: str) -> None:
    want_camera()
    async with camera(fps="15") as cam, fetching(FakeDetector()) as server:
        status, body = await add(server, f"{scheme}://{cam.path}")
        assert (status, body["source"]) == (201, "pull")
        async with watching(server, "door", channel=True) as watcher:
            frame = await watcher.picture()
            assert (frame.width, frame.height) == (640, 360)
            found = await watcher.message("boxes")
            assert found["boxes"][0][:4] == [160, 90, 320, 180]
        told = await reached(server, live=True, state="playing")
        assert told["pull"]["decoder"] == "h264"
        assert told["pull"]["dropped"]["corrupt"] == 0


async def test_a_camera_that_vanishes_comes_back_under_the_eyes_of_its_viewer() -> None:
    want_camera()
    async with fetching() as server:
        async with camera(fps="15") as cam:
            port = cam.port
            await add(server, f"rtsp://{cam.path}")
            opened = watching(server, "door")
            watcher = await opened.__aenter__()
            await watcher.picture()
        try:
            await reached(server, live=False)
            async with camera(fps="15", port=str(port)):
                before = server.registry.statistics().streams[0].frames
                told = await reached(server, live=True)
                async with asyncio.timeout(DEADLINE_S):
                    while server.registry.statistics().streams[0].frames < before + 10:
                        await watcher.picture()
                assert (told["viewers"], told["sources"]) == (1, 1)
                assert told["pull"]["connects"] == 2
        finally:
            await opened.__aexit__(None, None, None)


@pytest.mark.long
async def test_a_camera_that_falls_silent_is_asked_again() -> None:
    want_camera()
    async with (
        camera(fps="15", silent_after="10") as cam,
        fetching(source_timeout_s=1.0) as server,
    ):
        await add(server, f"rtsp://{cam.path}")
        await until(lambda: server.registry.statistics().streams[0].frames > 0)
        await tried(server, 2)


async def test_wrong_credentials_are_told_and_stand_nowhere(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    want_camera()
    caplog.set_level(logging.DEBUG)
    async with (
        camera(user="admin", password="right-word") as cam,
        fetching(source_retry_s=60) as server,
    ):
        _, wrong = await add(server, f"rtsp://admin:wrong-word@{cam.path}?token=hush", "wrong")
        _, right = await add(server, f"rtsp://admin:right-word@{cam.path}", "right")
        refused = await reached(server, "wrong", state="waiting")
        assert refused["pull"]["last_error"] == "it refuses the user name or password"
        await reached(server, "right", live=True)
        async with server.http.get(f"{server.url}/api/streams") as reply:
            listed = await reply.text()
        async with server.http.get(f"{server.url}/api/stats") as reply:
            listed += await reply.text()
        listed += str(server.registry.statistics())
        async with server.http.get(f"{server.url}/metrics") as reply:
            listed += await reply.text()
    out, err = capfd.readouterr()
    everything = "\n".join([str(wrong), str(right), listed, caplog.text, out, err])
    for secret in ("wrong-word", "right-word", "hush", "admin:"):
        assert secret not in everything, secret
    assert f"rtsp://127.0.0.1:{cam.port}/…" in everything


async def test_a_host_that_says_nothing_ends_by_its_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        async with fetching(source_timeout_s=0.6) as server:
            status, body = await add(server, f"rtsp://127.0.0.1:{port}/x")
            assert (status, body["live"]) == (201, False)
            told = await reached(server, state="waiting")
            assert told["pull"]["last_error"].startswith("source_timeout_s")
            async with server.http.delete(f"{server.url}/api/streams/door") as reply:
                assert reply.status == 200
            assert (await add(server, f"rtsp://127.0.0.1:{port}/x"))[0] == 201


async def test_a_closed_port_is_tried_again_and_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    async with fetching(source_retry_s=0.1) as server:
        await add(server, f"rtsp://127.0.0.1:{port}/x")
        await tried(server, 3)
        assert (await server.stream("door"))["pull"]["last_error"] == "Connection refused"


async def test_a_file_goes_round_in_its_own_time(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", seconds=0.5, fps=10)
    loop = asyncio.get_running_loop()
    async with fetching(source_folder=str(tmp_path)) as server:
        began = loop.time()
        await add(server, "file:clip.mp4")
        async with watching(server, "door") as watcher:
            await watcher.picture()
            # Five pictures in half a second: three rounds take a second and a half, or more.
            await until(lambda: server.registry.statistics().streams[0].frames >= 15)
            assert loop.time() - began >= 1.2
            await watcher.picture()
        assert (await server.stream("door"))["pull"]["address"] == "file:clip.mp4"
        async with server.http.get(f"{server.url}/metrics") as reply:
            told = await reply.text()
        assert 'sightline_source_playing{stream="door"} 1.0' in told
        assert 'sightline_source_dropped_total{reason="late",stream="door"} 0.0' in told


async def test_what_is_no_video_is_told_and_costs_nobody_anything(tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("these are words\n" * 100)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    (tmp_path / "join.mp4").write_text("ffconcat version 1.0\nfile /etc/passwd\n")
    (tmp_path / "empty.mp4").touch()
    async with fetching(source_folder=str(tmp_path)) as server:
        for number, name in enumerate(("notes.mp4", "list.m3u8", "join.mp4", "empty.mp4")):
            assert (await add(server, f"file:{name}", f"s{number}"))[0] == 201
            told = await reached(server, f"s{number}", state="waiting")
            assert told["pull"]["pictures"] == 0, name
            assert "not video" in told["pull"]["last_error"], told["pull"]
        async with server.http.get(f"{server.url}/healthz") as reply:
            assert reply.status == 200


async def test_a_picture_that_is_too_large_is_refused_before_it_takes_memory(
    tmp_path: Path,
) -> None:
    """A clip whose header says that its pictures have 15360x8640 points."""
    clip = write_clip(tmp_path / "clip.avi", codec="mjpeg").read_bytes()
    # The size stands in each picture's own header too: SOF0, length, 8 bits, 120 lines of 160.
    small, large = (
        b"\xff\xc0\x00\x11\x08" + size for size in (b"\x00x\x00\xa0", b"\x21\xc0\x3c\x00")
    )
    assert small in clip
    (tmp_path / "large.avi").write_bytes(clip.replace(small, large))
    async with fetching(source_folder=str(tmp_path)) as server:
        await add(server, "file:large.avi")
        told = await reached(server, state="waiting")
        assert told["pull"]["pictures"] == 0
        await add(server, "file:clip.avi", "small")
        await reached(server, "small", live=True)


async def test_sources_of_the_settings_are_there_and_a_bad_one_stops_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_clip(tmp_path / "clip.mp4")
    rows = ("gate=gopher://x:secret-word@y", "door=file:clip.mp4")
    async with fetching(sources=rows, source_folder=str(tmp_path)) as server:
        await reached(server, "door", live=True)
        async with server.http.get(f"{server.url}/api/streams") as reply:
            names = [stream["name"] for stream in (await reply.json())["streams"]]
    assert names == ["door"]
    assert "sources: gate: source: its scheme" in caplog.text
    assert "secret-word" not in caplog.text


@pytest.mark.long
async def test_a_codec_that_needs_the_parser_is_opened_again_with_it() -> None:
    want_camera()
    async with camera(codec="mjpeg", fps="15") as cam, fetching() as server:
        await add(server, f"rtsp://{cam.path}")
        told = await reached(server, live=True)
        assert told["pull"]["decoder"] == "mjpeg"
        assert told["pull"]["connects"] == 1


async def test_motion_jpeg_over_http_is_a_source_ours_too(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", seconds=2)
    async with fetching(source_folder=str(tmp_path)) as far, fetching() as server:
        await add(far, "file:clip.mp4", "porch")
        await reached(far, "porch", live=True)
        await add(server, f"{far.url}/api/streams/porch/mjpeg?annotated=0")
        told = await reached(server, live=True)
        assert (told["pull"]["decoder"], told["size"]) == ("mjpeg", [160, 120])
        assert (await far.stream("porch"))["mjpeg"]["readers"] == 1


@contextlib.asynccontextmanager
async def files_over_http(folder: Path) -> AsyncIterator[str]:
    app = web.Application()
    app.add_routes([web.static("/", folder)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_play_list_is_read_in_its_own_time_where_its_host_is_named(tmp_path: Path) -> None:
    write_play_list(tmp_path)
    async with files_over_http(tmp_path) as url:
        async with fetching() as server:
            await add(server, f"{url}/list.m3u8")
            await reached(server, live=True)
            # Two seconds of pictures do not come at once, though they could.
            assert (await server.stream("door"))["frames"] < 20
            assert "Connection" not in (await server.stream("door"))["pull"]["last_error"]
        async with fetching(source_hosts=("127.0.0.0/8",)) as server:
            await add(server, f"{url}/list.m3u8")
            told = await reached(server, state="waiting")
            assert "not video that may be read here" in told["pull"]["last_error"]


@pytest.mark.xfail(strict=True, reason="FFmpeg has no option for it; docs/sources.md says so")
async def test_an_rtsp_server_cannot_send_us_on_to_another_host() -> None:
    came = asyncio.Event()

    async def inside(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        writer.close()

    async def camera_that_redirects(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while request := (await reader.readuntil(b"\r\n\r\n")).decode():
                number = request.partition("CSeq: ")[2].partition("\r\n")[0]
                answer, more = "200 OK", "Public: DESCRIBE"
                if not request.startswith("OPTIONS"):
                    answer, more = "302 Found", f"Location: rtsp://127.0.0.1:{port}/inside"
                writer.write(f"RTSP/1.0 {answer}\r\nCSeq: {number}\r\n{more}\r\n\r\n".encode())
        writer.close()

    async with (
        await asyncio.start_server(inside, "127.0.0.1") as closed,
        await asyncio.start_server(camera_that_redirects, "127.0.0.1") as outside,
        # The one is named, the other is not.
        fetching(source_hosts=("localhost",)) as server,
    ):
        port = closed.sockets[0].getsockname()[1]
        await add(server, f"rtsp://localhost:{outside.sockets[0].getsockname()[1]}/x")
        await reached(server, state="waiting")
        assert not came.is_set()


async def test_a_decoder_that_is_not_there_is_done_without(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4")
    for wanted in ("auto", "cuda", "videotoolbox"):
        async with fetching(source_folder=str(tmp_path), source_decoder=wanted) as server:
            await add(server, "file:clip.mp4")
            told = await reached(server, live=True)
            assert told["pull"]["decoder"].startswith("h264"), wanted


async def test_a_protocol_that_ffmpeg_was_built_without_says_so() -> None:
    async with fetching() as server:
        await add(server, "srt://127.0.0.1:9")
        told = await reached(server, state="waiting")
        assert "cannot speak this protocol" in told["pull"]["last_error"]


async def test_a_camera_that_is_not_there_is_told() -> None:
    async with fetching() as server:
        assert (await add(server, "device:/dev/video99"))[0] == 201
        told = await reached(server, state="waiting")
        assert "no such camera" in told["pull"]["last_error"]


def test_pictures_of_a_camera_are_made_fit_for_the_stream(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", seconds=0.5)
    pictures = list(camera_pictures(0, lambda number: cv2.VideoCapture(str(clip))))
    assert len(pictures) == 5
    assert {(p.width, p.height, p.format.name) for p in pictures} == {(160, 120, "yuv420p")}
    luma = [int(p.to_ndarray()[:120].mean()) for p in pictures]
    assert luma == sorted(luma)
    assert (to_frame(np.zeros((121, 161, 3), np.uint8)).width) == 160


async def test_the_server_stops_soon_though_a_camera_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        rows = (f"door=rtsp://127.0.0.1:{deaf.getsockname()[1]}/x",)
        async with fetching(sources=rows, source_timeout_s=60.0) as server:
            await reached(server, state="connecting")
        # The server is down, and did not wait for what ends with its deadline.
        assert pull_threads()


async def test_options_are_those_asked_for_and_change_live(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4")
    async with fetching(FakeDetector(), source_folder=str(tmp_path)) as server:
        _, body = await add(server, "file:clip.mp4", options={"confidence": 0.9})
        assert body["options"]["confidence"] == 0.9
        url = f"{server.url}/api/streams/door"
        change = {"options": {"classes": ["nothing"]}}
        async with server.http.patch(url, json=change) as reply:
            assert (await reply.json())["options"]["classes"] == ["nothing"]
        assert (await add(server, "file:clip.mp4", "two", options={"mode": "odd"}))[0] == 422
        assert (await add(server, "file:clip.mp4"))[0] == 409


async def test_ending_a_fetched_stream_ends_its_thread_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "server.pull.pulls")
    write_clip(tmp_path / "clip.mp4")
    async with fetching(source_folder=str(tmp_path)) as server:
        await add(server, "file:clip.mp4")
        await reached(server, live=True)
        async with server.http.delete(f"{server.url}/api/streams/door") as reply:
            assert reply.status == 200
        await until(lambda: not pull_threads())
        assert not server.registry.statistics().streams
    [told] = [getattr(r, FIELDS) for r in caplog.records if getattr(r, EVENT, "") == "source ended"]
    assert (told["stream"], told["reason"]) == ("door", "stream ended by the API")
    assert (told["source"], told["connects"]) == ("file:clip.mp4", 1)


async def test_beginning_a_source_takes_control_of_its_stream(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4")
    wanted = guarded_settings(sources={"source_folder": str(tmp_path)})
    async with guarded(wanted) as server:
        for secret, name, status in (
            (PUBLISHER, "front-door", 403),
            (FRONT, "yard", 403),
            (FRONT, "front-door", 201),
            (ADMIN, "yard", 201),
            (ADMIN, "no/name", 422),
        ):
            body = {"name": name, "source": "file:clip.mp4"}
            found, _ = await server.ask("POST", "/api/streams", secret, json=body)
            assert found == status, (secret, name)
