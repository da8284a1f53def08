"""Whole calls over loopback: a stock peer, a real server, a detector that always finds a box."""

import asyncio
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from server.overlay import PALETTE_YUV
from server.workers import make_detector
from tests.detector.graphs import write_model
from tests.fakes import FakeDetector, grey_video_frame
from tests.serving import Caller, NumberedTrack, Serving, calling, changed, serving, until

pytestmark = pytest.mark.loopback


def write_one_box_model(path: Path, name: str) -> None:
    """A graph that finds one box of class `name` in whatever it is shown."""
    rows = np.zeros((1, 30, 6), np.float32)
    rows[0, 0] = (10, 10, 40, 40, 0.9, 0)
    write_model(path, {"output0": rows}, metadata={"names": f"{{0: '{name}'}}"})


def box_luma(frame: av.VideoFrame) -> tuple[float, float]:
    """Mean luma on the left edge of the fake's box, and just left of it."""
    luma = frame.to_ndarray(format="gray")
    height, width = luma.shape
    rows = slice(height * 3 // 8, height * 7 // 16)
    left = width // 4
    return float(luma[rows, left : left + 2].mean()), float(luma[rows, left - 8 : left - 4].mean())


def has_box(frame: av.VideoFrame) -> bool:
    edge, outside = box_luma(frame)
    return abs(edge - PALETTE_YUV[0][0]) < 25 and abs(edge - outside) > 25


async def wait_box(caller: Caller, wanted: bool = True) -> av.VideoFrame:
    """The first returned picture that has the box, or has it no more."""
    async with asyncio.timeout(20):
        while has_box(frame := await caller.picture()) is not wanted:
            pass
    return frame


async def test_the_box_is_in_the_returned_picture_and_on_the_data_channel() -> None:
    async with serving(FakeDetector(name="person")) as server, calling(server) as caller:
        hello = await caller.message(lambda message: message.get("type") == "hello")
        assert hello["names"] == ["person"]
        assert hello["model"]["provider"] == "fake"
        frame = await wait_box(caller)
        assert (frame.width, frame.height) == (320, 240)
        message = await caller.message(
            lambda message: "boxes" in message and "send" in message["stages_ms"]
        )
        assert message["size"] == [320, 240]
        assert message["boxes"] == [[80.0, 60.0, 160.0, 120.0, 0, 1.0, None]]
        assert set(message["stages_ms"]) >= {
            "assemble",
            "decode",
            "wait",
            "infer",
            "encode",
            "send",
        }
        assert message["server_ms"] > 0


@pytest.mark.parametrize("codec", ["H264", "VP8"])
async def test_both_codecs_carry_the_call(codec: str) -> None:
    settings = changed(rtc={"video_codecs": (codec,)})
    async with serving(FakeDetector(), settings) as server:
        caller = Caller()
        try:
            answer = await caller.call(server)
            assert answer["codec"] == codec
            await wait_box(caller)
        finally:
            await caller.close()


async def test_media_time_of_the_source_is_kept() -> None:
    async with serving(FakeDetector()) as server, calling(server) as caller:
        await wait_box(caller)
        instants = [(await caller.picture()).pts or 0 for _ in range(20)]
        steps = [later - earlier for earlier, later in pairwise(instants)]
        assert all(step > 0 and step % 3000 == 0 for step in steps), steps


async def test_smooth_shows_every_frame_with_the_newest_boxes() -> None:
    async with serving(FakeDetector()) as server, calling(server, mode="smooth") as caller:
        await wait_box(caller)


async def test_smooth_goes_on_and_boxes_fade_while_the_detector_hangs() -> None:
    detector = FakeDetector()
    async with serving(detector) as server, calling(server, mode="smooth") as caller:
        await wait_box(caller)
        detector.go_on.clear()
        await wait_box(caller, wanted=False)
        detector.go_on.set()
        await wait_box(caller)


async def test_exact_goes_on_without_boxes_while_the_detector_hangs() -> None:
    detector = FakeDetector()
    async with serving(detector) as server, calling(server) as caller:
        await wait_box(caller)
        detector.go_on.clear()
        await wait_box(caller, wanted=False)
        async with server.http.get(f"{server.url}/readyz") as reply:
            assert reply.status == 503
            assert (await reply.json())["detector"] == "stalled"
        detector.go_on.set()
        await wait_box(caller)


async def test_a_detector_that_raises_costs_boxes_not_video() -> None:
    detector = FakeDetector()
    async with serving(detector) as server, calling(server) as caller:
        await wait_box(caller)
        detector.failure = RuntimeError("out of memory")
        await wait_box(caller, wanted=False)
        detector.failure = None
        await wait_box(caller)


async def test_without_a_detector_video_passes_through_and_readyz_says_so() -> None:
    async with serving(None) as server:
        async with calling(server) as caller:
            frame = await caller.picture()
            assert not has_box(frame)
            hello = await caller.message(lambda message: message.get("type") == "hello")
            assert hello["model"] is None
        async with server.http.get(f"{server.url}/readyz") as reply:
            body = await reply.json()
        assert reply.status == 200
        assert body["detector"] == "none: passing video through"


async def test_options_change_while_the_call_runs() -> None:
    async with serving(FakeDetector(name="cat")) as server, calling(server) as caller:
        await wait_box(caller)
        url = f"{server.url}/sessions/{caller.session}"
        async with server.http.patch(url, json={"options": {"classes": ["dog"]}}) as reply:
            assert (await reply.json())["options"]["classes"] == ["dog"]
        await wait_box(caller, wanted=False)
        async with server.http.patch(url, json={"options": {"classes": None, "mode": "smooth"}}):
            pass
        await wait_box(caller)
        async with server.http.patch(url, json={"options": {"confidence": 2}}) as reply:
            assert reply.status == 422
            assert "options.confidence" in (await reply.json())["detail"]
        async with server.http.get(url) as reply:
            statistics = await reply.json()
        assert statistics["options"]["mode"] == "smooth"
        assert statistics["frames_in"] > 0
        assert statistics["size_wh"] == [320, 240]


async def test_size_changes_odd_sizes_and_rotation_go_on_mid_stream() -> None:
    sizes = [(320, 240), (240, 320), (321, 241), (640, 360)]

    def make(index: int) -> av.VideoFrame:
        width, height = sizes[min(index // 30, len(sizes) - 1)]
        luma = np.full((height, width, 3), 90, np.uint8)
        return av.VideoFrame.from_ndarray(luma, format="rgb24")

    # aiortc's own H264 encoder, which the test's camera uses, cannot do odd sizes.
    settings = changed(rtc={"video_codecs": ("VP8",)})
    async with serving(FakeDetector(), settings) as server:
        async with calling(server, NumberedTrack(make)) as caller:
            seen: set[tuple[int, int]] = set()
            async with asyncio.timeout(30):
                while (640, 360) not in seen:
                    frame = await caller.picture()
                    seen.add((frame.width, frame.height))
        # An odd row or column is cut off, because chroma comes in pairs.
        assert seen == {(320, 240), (240, 320), (640, 360)}


async def test_the_clock_ping_is_answered_and_other_messages_are_not() -> None:
    async with serving(FakeDetector()) as server, calling(server) as caller:
        await caller.message(lambda message: message.get("type") == "hello")
        for junk in ("", "[]", "{", '{"type":"pong"}', '{"type":"ping","t":"x"}', "x" * 5000):
            caller.channel.send(junk)
        caller.channel.send('{"type":"ping","t":12.5}')
        pong = await caller.message(lambda message: message.get("type") == "pong")
        assert pong["t"] == 12.5
        assert pong["server_ms"] > 0


async def test_ending_a_call_frees_it_and_its_id() -> None:
    async with serving(FakeDetector()) as server, calling(server) as caller:
        await caller.picture()
        url = f"{server.url}/sessions/{caller.session}"
        async with server.http.delete(url) as reply:
            assert reply.status == 200
        async with server.http.delete(url) as reply:
            assert reply.status == 404
            assert reply.content_type == "application/problem+json"
        assert (await server.stats())["sessions"] == []


async def test_a_peer_that_leaves_is_freed() -> None:
    async with serving(FakeDetector()) as server:
        async with calling(server) as caller:
            await caller.picture()
        await until(lambda: not server.registry.statistics().sessions)
        assert sum(server.registry.statistics().ended.values()) == 1


async def test_a_call_that_never_connects_is_freed_by_its_deadline() -> None:
    settings = changed(session={"connect_timeout_s": 1.0})
    async with serving(FakeDetector(), settings) as server:
        caller = Caller()
        try:
            body = await caller.offer()
            async with server.http.post(f"{server.url}/offer", json=body) as reply:
                assert reply.status == 200
            assert len(server.registry.statistics().sessions) == 1
            await until(lambda: not server.registry.statistics().sessions)
            assert server.registry.statistics().ended == {"did not connect": 1}
        finally:
            await caller.close()


async def test_a_full_server_refuses_with_a_reason_and_a_time_to_return() -> None:
    settings = changed(session={"max_sessions": 1})
    async with serving(FakeDetector(), settings) as server, calling(server) as first:
        second = Caller()
        try:
            body = await second.offer()
            async with server.http.post(f"{server.url}/offer", json=body) as reply:
                problem = await reply.json()
                assert reply.status == 503
                assert int(reply.headers["Retry-After"]) > 0
                assert "max_sessions" in problem["detail"]
        finally:
            await second.close()
        await wait_box(first)


async def test_two_calls_have_their_own_options() -> None:
    async with (
        serving(FakeDetector()) as server,
        calling(server) as shown,
        calling(server, classes=["nothing"]) as hidden,
    ):
        await wait_box(shown)
        for _ in range(5):
            assert not has_box(await hidden.picture())


async def test_stopping_the_server_ends_calls_and_leaves_no_thread_or_task() -> None:
    threads_before = {thread.name for thread in threading.enumerate()}
    detector = FakeDetector()
    caller = None
    async with serving(detector) as server:
        caller = Caller()
        await caller.call(server)
        await caller.picture()
    await caller.close()
    await until(lambda: _ours_are_gone(threads_before))
    assert detector.closed
    left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert left == []


def _ours_are_gone(before: set[str]) -> bool:
    now = {thread.name for thread in threading.enumerate()} - before
    return not [name for name in now if name.startswith(("inference", "encode", "decode", "video"))]


async def test_stopping_while_the_detector_hangs_is_bounded() -> None:
    detector = FakeDetector()
    settings = changed(session={"close_timeout_s": 0.2})
    async with asyncio.timeout(20):
        async with serving(detector, settings) as server, calling(server) as caller:
            await caller.picture()
            detector.go_on.clear()
            detector.entered.clear()
            await until(detector.entered.is_set)
    detector.go_on.set()


def _bad(sdp: str) -> list[tuple[str, Any]]:
    return [
        ("no video line", sdp.replace("m=video", "m=audio")),
        ("recvonly", sdp.replace("a=sendrecv", "a=recvonly")),
        ("no fingerprint", "\r\n".join(x for x in sdp.splitlines() if "fingerprint" not in x)),
        ("no ice password", "\r\n".join(x for x in sdp.splitlines() if "ice-pwd" not in x)),
        ("no rtcp-mux", sdp.replace("a=rtcp-mux\r\n", "")),
        ("no codec of ours", sdp.replace("VP8/", "VP7/").replace("H264/", "H261/")),
        ("cut in the middle", sdp[: len(sdp) // 2]),
        ("numbers are words", sdp.replace("90000", "ninety")),
        ("candidate nonsense", sdp.replace("a=candidate:", "a=candidate:x ")),
        ("bundle of a stranger", sdp.replace("a=group:BUNDLE 0 1", "a=group:BUNDLE 7 8")),
        ("only a first line", "v=0\r\n"),
        ("nul bytes", sdp.replace("s=-", "s=\x00")),
    ]  # fmt: skip


async def test_bad_offers_get_4xx_and_leave_nothing_while_a_witness_goes_on() -> None:
    async with serving(FakeDetector()) as server, calling(server) as witness:
        await wait_box(witness)
        probe = Caller()
        good = (await probe.offer())["sdp"]
        await probe.close()
        for what, sdp in _bad(good):
            body = {"sdp": sdp, "type": "offer"}
            async with server.http.post(f"{server.url}/offer", json=body) as reply:
                assert 400 <= reply.status < 500, what
                problem = await reply.json()
                assert problem["status"] == reply.status, what
                assert "\n" not in problem["detail"], what
        await _refused(server, data=b"{" + b" " * 140_000 + b"}", status=413, told="max_body_kib")
        await _refused(server, data=b"{nope", status=400, told="not JSON")
        await _refused(server, data=b"[" * 50_000, status=400, told="JSON")
        await _refused(
            server, data=b"{}", status=415, told="Content-Type", content_type="text/plain"
        )
        await until(lambda: len(server.registry.statistics().sessions) == 1)
        await wait_box(witness)


async def _refused(
    server: Serving, *, data: bytes, status: int, told: str, content_type: str = "application/json"
) -> None:
    headers = {"Content-Type": content_type}
    async with server.http.post(f"{server.url}/offer", data=data, headers=headers) as reply:
        assert reply.status == status
        assert told in (await reply.json())["detail"]


async def test_unknown_routes_methods_and_sessions_are_problems() -> None:
    async with serving(None) as server:
        for method, path, status in (
            ("GET", "/nothing", 404),
            ("GET", "/offer", 405),
            ("PATCH", "/sessions/none", 415),
            ("DELETE", "/sessions/none", 404),
            ("GET", "/web/../server/app.py", 404),
            ("GET", "/web/%2e%2e/server/app.py", 404),
        ):
            async with server.http.request(method, server.url + path) as reply:
                assert reply.status == status, path
                assert reply.content_type == "application/problem+json", path
                assert "default-src 'self'" in reply.headers["Content-Security-Policy"]


async def test_health_index_config_and_metrics_answer() -> None:
    async with serving(FakeDetector(name="cat")) as server, calling(server) as caller:
        await wait_box(caller)
        async with server.http.get(f"{server.url}/healthz") as reply:
            assert await reply.json() == {"status": "ok"}
        async with server.http.get(f"{server.url}/") as reply:
            body = await reply.json()
            assert (body["status"], body["model_loaded"]) == ("ok", True)
        async with server.http.get(f"{server.url}/", headers={"Accept": "text/html"}) as reply:
            assert reply.content_type == "text/html"
        async with server.http.get(f"{server.url}/api/client-config") as reply:
            config = await reply.json()
            assert config["ice_servers"] == []
            assert config["modes"] == ["exact", "smooth", "data"]
        async with server.http.get(f"{server.url}/metrics") as reply:
            text = await reply.text()
        assert 'sightline_stage_seconds_bucket{le="+Inf",stage="infer"}' in text
        assert 'sightline_engine{model="cat",precision="fp32",provider="fake"} 1.0' in text
        assert 'sightline_calls{state="live"} 1.0' in text
        statistics = await server.stats()
        assert statistics["stages_ms"]["total"]["count"] > 0
        assert statistics["loop_lag_ms"]["count"] > 0
        assert statistics["process"]["resident_mib"] > 10


def test_the_fake_camera_is_grey() -> None:
    assert grey_video_frame(32, 16).to_ndarray(format="gray").std() == 0


async def test_another_model_takes_over_without_ending_the_call(tmp_path: Path) -> None:
    """The real loader on tiny graphs: a good one swaps in, a broken one leaves all as it was."""
    write_one_box_model(tmp_path / "first.onnx", "first")
    write_one_box_model(tmp_path / "second.onnx", "second")
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    settings = changed(detector={"model": str(tmp_path / "first.onnx"), "parity": False})
    async with serving(make_detector(settings), settings) as server, calling(server) as caller:
        await caller.message(lambda message: bool(message.get("boxes")))
        async with server.http.get(f"{server.url}/api/models") as reply:
            listed = await reply.json()
        assert {"first", "second", "broken"} <= {row["name"] for row in listed["models"]}
        assert listed["running"]["names"] == ["first"]
        url = f"{server.url}/api/model"
        for body, status in (
            ({"model": "broken"}, 422),
            ({"model": "../etc/passwd"}, 404),
            ({"model": str(tmp_path / "second.onnx")}, 404),
            ({"model": 1}, 400),
            ({"model": "second", "x": 1}, 400),
        ):
            async with server.http.put(url, json=body) as reply:
                assert reply.status == status, body
        assert (await server.stats())["model"]["names"] == ["first"]
        async with server.http.put(url, json={"model": "second"}) as reply:
            assert reply.status == 200, await reply.text()
            assert (await reply.json())["model"]["names"] == ["second"]
        await caller.message(lambda message: bool(message.get("boxes")))
        statistics = await server.stats()
        assert statistics["inference"]["swaps"] == 1
        assert len(statistics["sessions"]) == 1
