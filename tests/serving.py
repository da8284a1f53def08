"""A real server in the test's own loop, and a stock aiortc peer that calls it."""

import asyncio
import dataclasses
import fractions
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import av
from aiohttp import ClientSession, web
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError

from server.app import BULLETIN, INFERENCE, JOURNAL, RECORDER, SIGNALING, make_app
from server.history.clips import ClipRecorder
from server.history.journal import Journal
from server.inference import Detector, InferenceWorker
from server.outlets.bulletin import Bulletin
from server.registry import Registry
from server.settings import DetectorSettings, Settings
from server.workers import load_for_cameras
from tests.fakes import grey_video_frame

DEADLINE_S = 20.0
TIME_BASE = fractions.Fraction(1, 90000)


@dataclass(frozen=True, slots=True)
class Serving:
    """Where the server listens and what a test may look at."""

    url: str
    http: ClientSession
    registry: Registry
    bulletin: Bulletin
    inference: InferenceWorker
    journal: Journal
    recorder: ClipRecorder

    def inference_state(self) -> str:
        return self.inference.statistics().state

    def names(self) -> tuple[str, ...]:
        return self.inference.names

    async def stream(self, name: str) -> dict[str, Any]:
        """One stream as the API tells it."""
        async with self.http.get(f"{self.url}/api/streams/{name}") as reply:
            body: dict[str, Any] = await reply.json()
            return body

    async def stats(self) -> dict[str, Any]:
        async with self.http.get(f"{self.url}/api/stats") as reply:
            body: dict[str, Any] = await reply.json()
            return body


@asynccontextmanager
async def serving(
    detector: Detector | None,
    settings: Settings | None = None,
    load: Callable[[DetectorSettings], Detector] = load_for_cameras,
) -> AsyncIterator[Serving]:
    """The application on a free loopback port; everything is down when the block ends."""
    app = make_app(settings or Settings(), detector, load)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        async with ClientSession() as http:
            url = f"http://{host}:{port}"
            yield Serving(
                url,
                http,
                app[SIGNALING].registry,
                app[BULLETIN],
                app[INFERENCE],
                app[JOURNAL],
                app[RECORDER],
            )
    finally:
        await runner.cleanup()


def changed(**groups: dict[str, Any]) -> Settings:
    """Default settings with changes, such as `changed(session={"max_sessions": 1})`."""
    settings = Settings()
    return dataclasses.replace(
        settings,
        **{
            group: dataclasses.replace(getattr(settings, group), **changes)
            for group, changes in groups.items()
        },
    )


class NumberedTrack(MediaStreamTrack):
    """A camera at 30 pictures a second of media time; `make` may change size as it goes."""

    kind = "video"

    def __init__(self, make: Callable[[int], av.VideoFrame] | None = None) -> None:
        super().__init__()
        self._make = make or (lambda index: grey_video_frame(320, 240, 60 + index % 100))
        self._index = 0
        self._started_at = 0.0

    async def recv(self) -> av.VideoFrame:
        if self.readyState != "live":
            raise MediaStreamError
        loop = asyncio.get_running_loop()
        self._started_at = self._started_at or loop.time()
        # A camera keeps its own pace; this is its clock, not a wait for something to happen.
        await asyncio.sleep(max(0.0, self._started_at + self._index / 30 - loop.time()))
        frame = self._make(self._index)
        frame.pts, frame.time_base = self._index * 3000, TIME_BASE
        self._index += 1
        return frame


class Caller:
    """A stock peer with a camera and the `detections` channel."""

    def __init__(self, track: MediaStreamTrack | None = None) -> None:
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.pc.addTrack(track or NumberedTrack())
        self.channel: RTCDataChannel = self.pc.createDataChannel(
            "detections", ordered=False, maxRetransmits=0
        )
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.channel.on("message", lambda text: self.messages.put_nowait(json.loads(text)))
        self.returned: asyncio.Future[MediaStreamTrack] = asyncio.get_running_loop().create_future()
        self.pc.on("track", self._on_track)
        self.session = ""

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "video" and not self.returned.done():
            self.returned.set_result(track)

    async def offer(self, **options: object) -> dict[str, Any]:
        """The body of `POST /offer`."""
        await self.pc.setLocalDescription(await self.pc.createOffer())
        return {"sdp": self.pc.localDescription.sdp, "type": "offer", "options": options}

    async def call(self, serving: Serving, **options: object) -> dict[str, Any]:
        body = await self.offer(**options)
        async with serving.http.post(f"{serving.url}/offer", json=body) as reply:
            answer: dict[str, Any] = await reply.json()
            assert reply.status == 200, answer
        self.session = answer["session"]
        await self.pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
        return answer

    async def picture(self) -> av.VideoFrame:
        """The next returned picture."""
        async with asyncio.timeout(DEADLINE_S):
            frame = await (await self.returned).recv()
        assert isinstance(frame, av.VideoFrame)
        return frame

    async def message(self, where: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next message of the data channel that fits."""
        async with asyncio.timeout(DEADLINE_S):
            while not where(message := await self.messages.get()):
                pass
        return message

    async def close(self) -> None:
        await self.pc.close()


@asynccontextmanager
async def calling(
    serving: Serving, track: MediaStreamTrack | None = None, **options: object
) -> AsyncIterator[Caller]:
    """A call that is up, closed in the test's own coroutine when the block ends."""
    caller = Caller(track)
    try:
        await caller.call(serving, **options)
        yield caller
    finally:
        await caller.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until the condition holds; a deadline, not a pace."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - conditions of real parts have no event
            await asyncio.sleep(0.01)
