"""`view=data` and `view=raw`, and calls in mode `data`: the picture as it came, boxes beside it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from aiortc import MediaStreamTrack, RTCSessionDescription

from server.rtc.decoding import DecodedFrame
from server.rtc.options import RtcOptions
from server.rtc.peer import PeerConnection
from server.rtc.remote_track import RemoteVideoTrack
from tests.fakes import FakeDetector
from tests.gateway.offers import VIEWER
from tests.gateway.test_checklist import post, publish
from tests.gateway.test_relay import frame
from tests.gateway.watching import SDP, sending, streaming, watching
from tests.serving import DEADLINE_S, Caller, NumberedTrack, Serving, calling, until

pytestmark = pytest.mark.loopback


class Eye:
    """One of our own peers that watches; it knows the RTP time of each picture."""

    def __init__(self, executor: ThreadPoolExecutor, codec: str = "H264") -> None:
        self.pc = PeerConnection(RtcOptions(video_codecs=(codec,)), executor)
        self.times: list[int] = []
        self.messages: list[dict[str, Any]] = []
        self.pc.on("track", self._on_track)
        self.url = ""

    def _on_track(self, track: MediaStreamTrack) -> None:
        assert isinstance(track, RemoteVideoTrack)
        track.deliver_to(self._see)

    def _see(self, decoded: DecodedFrame) -> None:
        self.times.append(decoded.rtp_timestamp)

    def _listen(self) -> None:
        channel = self.pc.createDataChannel("detections", ordered=False, maxRetransmits=0)
        channel.on("message", lambda text: self.messages.append(json.loads(text)))

    async def watch(self, server: Serving, path: str) -> None:
        self.pc.addTransceiver("video", direction="recvonly")
        self._listen()
        await self.pc.setLocalDescription(await self.pc.createOffer())
        sdp = self.pc.localDescription.sdp
        async with server.http.post(server.url + path, data=sdp, headers=SDP) as reply:
            body = await reply.text()
            assert reply.status == 201, body
        await self.pc.setRemoteDescription(RTCSessionDescription(body, "answer"))

    async def call(self, server: Serving, mode: str) -> None:
        self.pc.addTrack(NumberedTrack())
        self._listen()
        await self.pc.setLocalDescription(await self.pc.createOffer())
        body = {"sdp": self.pc.localDescription.sdp, "type": "offer", "options": {"mode": mode}}
        async with server.http.post(f"{server.url}/offer", json=body) as reply:
            answer = await reply.json()
            assert reply.status == 200, answer
        self.url = f"{server.url}/sessions/{answer['session']}"
        await self.pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))

    def boxes(self) -> list[dict[str, Any]]:
        return [message for message in self.messages if "boxes" in message]

    def matched(self) -> int:
        """Messages whose picture was seen."""
        return len({message["rtp_timestamp"] for message in self.boxes()} & set(self.times))


@asynccontextmanager
async def an_eye() -> AsyncIterator[Eye]:
    with ThreadPoolExecutor(1) as executor:
        eye = Eye(executor)
        try:
            yield eye
        finally:
            await eye.pc.close_within(2.0)


def relay_of(server: Serving) -> Any:
    streams = server.registry.statistics().streams
    return streams[0].relay if streams else None


async def passes_on(server: Serving) -> None:
    await until(lambda: bool(relay_of(server) and relay_of(server).codec))


async def test_data_is_the_sources_picture_with_boxes_beside_it_and_nothing_is_encoded() -> None:
    async with streaming(FakeDetector()) as server, sending(server, "cam"), an_eye() as eye:
        await passes_on(server)
        await eye.watch(server, "/whep/cam?view=data")
        await until(lambda: eye.matched() >= 5)
        hello = eye.messages[0]
        assert (hello["type"], hello["view"], hello["codec"]) == ("hello", "data", "H264")
        assert eye.boxes()[0]["boxes"][0][:4] == [80, 60, 160, 120]
        stream = server.registry.statistics().streams[0]
        assert stream.encodings == ()
        assert stream.relay.pictures >= 5
        # The boxes' message of every picture names that picture, not a neighbour.
        times = set(eye.times)
        matching = [message["rtp_timestamp"] in times for message in eye.boxes()[:-3]]
        assert sum(matching) >= len(matching) - 3


async def test_raw_has_the_picture_and_no_boxes_and_all_views_go_together() -> None:
    async with streaming(FakeDetector()) as server, sending(server, "cam"), an_eye() as eye:
        await passes_on(server)
        async with watching(server, "cam", channel=True) as drawn:
            await eye.watch(server, "/whep/cam?view=raw")
            await until(lambda: len(eye.times) >= 5)
            assert await drawn.message("boxes")
            assert eye.messages[0]["view"] == "raw"
            assert eye.boxes() == []
            stream = server.registry.statistics().streams[0]
            assert (stream.viewers, stream.relay.viewers) == (2, 1)


async def test_a_late_viewer_gets_a_key_frame_because_the_source_is_asked_for_one() -> None:
    async with streaming() as server, sending(server, "cam"):
        await passes_on(server)
        # No key frame comes by itself any more.
        await until(lambda: server.registry.statistics().sessions[0].frames_in > 20)
        async with watching(server, "cam", "?view=data") as watcher:
            await watcher.picture()
        (incoming,) = server.registry.statistics().sessions[0].peer.incoming
        assert incoming.plis_sent >= 1
        # At most two a second, however many ask.
        before, loop = incoming.plis_sent, asyncio.get_running_loop()
        begun = loop.time()
        for _ in range(3):
            async with watching(server, "cam", "?view=raw") as watcher:
                await watcher.picture()
        (incoming,) = server.registry.statistics().sessions[0].peer.incoming
        assert incoming.plis_sent - before <= 2 * (loop.time() - begun) + 1


async def test_a_source_that_leaves_is_told_and_one_that_comes_back_is_seen_again() -> None:
    async with streaming(no_signal_s=DEADLINE_S) as server, an_eye() as eye:
        async with sending(server, "cam"):
            await passes_on(server)
            await eye.watch(server, "/whep/cam?view=data")
            await until(lambda: len(eye.times) > 3)
        signals = [message["live"] for message in eye.messages if message["type"] == "signal"]
        await until(lambda: any(m["type"] == "signal" for m in eye.messages))
        seen = len(eye.times)
        async with sending(server, "cam"):
            await until(lambda: len(eye.times) > seen + 3)
        signals = [message["live"] for message in eye.messages if message["type"] == "signal"]
        assert signals[:2] == [False, True]


@pytest.mark.parametrize(
    ("query", "offer", "status", "told"),
    [
        ("?view=both", VIEWER, 400, "view"),
        ("?view=data&rung=low", VIEWER, 400, "rung"),
        ("?view=data", VIEWER.replace("H264/90000", "AV1/90000"), 406, "H264"),
    ],
)
async def test_views_that_cannot_be_are_refused(
    query: str, offer: str, status: int, told: str
) -> None:
    async with streaming() as server, sending(server, "cam"):
        await passes_on(server)
        reply, text = await post(server, f"/whep/cam{query}", offer)
        assert (reply.status, told in text) == (status, True), text
        assert server.registry.statistics().streams[0].viewers == 0


async def test_before_the_first_frame_data_is_409_and_for_pictures_without_packets_422() -> None:
    async with streaming() as server:
        await publish(server)
        reply, text = await post(server, "/whep/cam?view=data", VIEWER)
        assert reply.status == 409, text
        assert int(reply.headers["Retry-After"]) > 0
        server.registry._streams.claim("pulled", "rtsp", returns_picture=False)
        reply, text = await post(server, "/whep/pulled?view=data", VIEWER)
        assert reply.status == 422, text
        assert "annotated" in text


async def test_a_call_in_data_gets_its_own_pictures_back_and_boxes_with_their_times() -> None:
    async with streaming(FakeDetector()) as server, an_eye() as eye:
        await eye.call(server, "data")
        await until(lambda: eye.matched() >= 5)
        (session,) = server.registry.statistics().sessions
        (outgoing,) = session.peer.outgoing
        assert outgoing.frames_forwarded >= 5
        stages = eye.boxes()[-1]["stages_ms"]
        assert "infer" in stages
        assert "encode" not in stages


async def test_in_exact_too_a_message_has_the_time_of_its_returned_picture() -> None:
    async with streaming(FakeDetector()) as server, an_eye() as eye:
        await eye.call(server, "exact")
        await until(lambda: eye.matched() >= 5)


async def test_a_call_changes_to_data_and_back_without_losing_its_picture() -> None:
    async with streaming(FakeDetector()) as server, calling(server, mode="exact") as caller:
        await caller.picture()
        for mode in ("data", "exact", "data"):
            await change(server, caller, mode)
            count = forwarded if mode == "data" else sent_encoded
            await grows(partial(count, server))
            for _ in range(3):
                await caller.picture()


async def grows(count: Callable[[], int]) -> None:
    begun = count()
    await until(lambda: count() > begun + 3)


def forwarded(server: Serving) -> int:
    return int(outgoing(server).frames_forwarded)


async def change(server: Serving, caller: Caller, mode: str) -> None:
    url = f"{server.url}/sessions/{caller.session}"
    async with server.http.patch(url, json={"options": {"mode": mode}}) as reply:
        assert reply.status == 200


def outgoing(server: Serving) -> Any:
    return server.registry.statistics().sessions[0].peer.outgoing[0]


def sent_encoded(server: Serving) -> int:
    statistics = outgoing(server)
    return int(statistics.frames_sent - statistics.frames_forwarded)


async def test_a_covered_picture_is_not_passed_on() -> None:
    async with streaming(FakeDetector()) as server, sending(server, "cam"):
        await passes_on(server)
        async with watching(server, "cam", "?view=data") as watcher:
            await watcher.picture()
            server.registry._streams.get("cam").publication.hide(True)  # type: ignore[union-attr]
            await until(lambda: not server.registry.statistics().viewers)


async def test_viewers_of_data_end_when_the_source_changes_its_codec() -> None:
    async with streaming() as server, sending(server, "cam"):
        await passes_on(server)
        async with watching(server, "cam", "?view=data") as watcher:
            await watcher.picture()
            publication = server.registry._streams.get("cam").publication
            assert publication is not None
            publication.forward(frame(0, key=True, codec="VP8"), 0, lambda: None)
            await until(lambda: not server.registry.statistics().viewers)
        assert server.registry.statistics().viewers_ended == {"the source changed its codec": 1}


async def test_pictures_that_are_only_passed_on_are_in_the_stage_times() -> None:
    async with streaming(FakeDetector()) as server, sending(server, "cam"), an_eye() as eye:
        await passes_on(server)
        await eye.watch(server, "/whep/cam?view=data")
        await until(lambda: eye.matched() >= 5)
        stages = (await server.stats())["stages_ms"]
        assert min(stages["total"]["count"], stages["infer"]["count"]) >= 5
        assert stages["encode"]["count"] == 0
        assert stages["own"]["p50"] >= 0


async def test_viewers_too_are_sent_elsewhere_when_the_server_drains() -> None:
    async with streaming() as server, sending(server, "cam"):
        await passes_on(server)
        async with watching(server, "cam", channel=True) as watcher:
            await watcher.message("type")
            draining = asyncio.create_task(server.registry.drain(DEADLINE_S))
            told = await watcher.message("after_ms")
            assert told["type"] == "reconnect"
            reply, _ = await post(server, "/whep/cam", VIEWER)
            assert reply.status == 503
        await until(lambda: not server.registry.statistics().viewers)
        assert not draining.done(), "the publisher is still here"
    await draining
