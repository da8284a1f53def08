"""A stock aiortc peer that watches a stream by WHEP, and one that publishes by WHIP."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Protocol

import av
from aiohttp import ClientSession
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSessionDescription,
)

from server.inference import Detector
from tests.serving import DEADLINE_S, NumberedTrack, Serving, changed, serving

SDP = {"Content-Type": "application/sdp"}


def streaming(
    detector: Detector | None = None, **streams: object
) -> contextlib.AbstractAsyncContextManager[Serving]:
    """A server with these stream settings that admits whatever the load: the machine that runs
    the tests is busy, and all peers share its loop."""
    limits = {"admit_loop_lag_ms": 0, "admit_wait_ms": 0}
    return serving(detector, changed(streams=streams, limits=limits))


class Reached(Protocol):
    """A server, wherever it runs."""

    @property
    def url(self) -> str: ...

    @property
    def http(self) -> ClientSession: ...


class Watcher:
    """Receives a stream's picture and, if wanted, its detections."""

    def __init__(self, channel: bool = False) -> None:
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.pc.addTransceiver("video", direction="recvonly")
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        if channel:
            made: RTCDataChannel = self.pc.createDataChannel(
                "detections", ordered=False, maxRetransmits=0
            )
            made.on("message", lambda text: self.messages.put_nowait(json.loads(text)))
        self.track: asyncio.Future[MediaStreamTrack] = asyncio.get_running_loop().create_future()
        self.pc.on("track", self.track.set_result)
        self.url = ""
        self.etag = ""

    async def watch(self, serving: Reached, stream: str, query: str = "") -> None:
        await self.pc.setLocalDescription(await self.pc.createOffer())
        url = f"{serving.url}/whep/{stream}{query}"
        async with serving.http.post(url, data=self.pc.localDescription.sdp, headers=SDP) as reply:
            body = await reply.text()
            assert reply.status == 201, body
            self.url = serving.url + reply.headers["Location"]
            self.etag = reply.headers["ETag"]
        await self.pc.setRemoteDescription(RTCSessionDescription(body, "answer"))

    async def picture(self) -> av.VideoFrame:
        """The next picture."""
        async with asyncio.timeout(DEADLINE_S):
            frame = await (await self.track).recv()
        assert isinstance(frame, av.VideoFrame)
        return frame

    async def message(self, kind: str) -> dict[str, Any]:
        """The next message that has this key."""
        async with asyncio.timeout(DEADLINE_S):
            while kind not in (message := await self.messages.get()):
                pass
        return message


@contextlib.asynccontextmanager
async def watching(
    serving: Serving, stream: str, query: str = "", *, channel: bool = False
) -> AsyncIterator[Watcher]:
    """A viewer that is admitted; gone when the block ends."""
    watcher = Watcher(channel)
    try:
        await watcher.watch(serving, stream, query)
        yield watcher
    finally:
        await watcher.pc.close()


@contextlib.asynccontextmanager
async def sending(
    serving: Serving, stream: str, track: MediaStreamTrack | None = None
) -> AsyncIterator[str]:
    """A stock peer publishes; yields its session URL, and ends the session with the block."""
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    pc.addTransceiver(track or NumberedTrack(), direction="sendonly")
    url = ""
    try:
        await pc.setLocalDescription(await pc.createOffer())
        async with serving.http.post(
            f"{serving.url}/whip/{stream}", data=pc.localDescription.sdp, headers=SDP
        ) as reply:
            body = await reply.text()
            assert reply.status == 201, body
            url = serving.url + reply.headers["Location"]
        await pc.setRemoteDescription(RTCSessionDescription(body, "answer"))
        yield url
    finally:
        if url:
            async with serving.http.delete(url):
                pass
        await pc.close()
