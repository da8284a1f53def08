"""Two real peers on this machine, and a camera that shows a picture when told to."""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from server.rtc.decoding import DecodedFrame
from server.rtc.options import RtcOptions
from server.rtc.peer import PeerConnection
from server.rtc.receiver import RemoteVideoTrack, VideoReceiver
from tests.rtc.pictures import grey, level_of

DEADLINE_S = 15.0


class Camera(MediaStreamTrack):
    """Serves what `show` was given, and nothing in between."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self._pictures: asyncio.Queue[av.VideoFrame | None] = asyncio.Queue()
        self._numbers = itertools.count()

    def show(self, level: int, size_wh: tuple[int, int] = (160, 120)) -> None:
        self._show(grey(level, size_wh))

    def show_noise(self, size_wh: tuple[int, int] = (160, 120)) -> None:
        """A picture that takes several packets."""
        noise = np.random.default_rng(1).integers(0, 256, (size_wh[1], size_wh[0], 3), np.uint8)
        self._show(av.VideoFrame.from_ndarray(noise, format="rgb24").reformat(format="yuv420p"))

    def _show(self, picture: av.VideoFrame) -> None:
        picture.pts, picture.time_base = 3000 * next(self._numbers), Fraction(1, 90_000)
        self._pictures.put_nowait(picture)

    async def recv(self) -> av.VideoFrame:
        picture = await self._pictures.get()
        if picture is None:
            raise MediaStreamError
        return picture

    def stop(self) -> None:
        super().stop()
        self._pictures.put_nowait(None)


@dataclass
class Call:
    """A camera on the far peer, whose pictures arrive at the near one."""

    near: PeerConnection
    far: RTCPeerConnection
    camera: Camera
    track: RemoteVideoTrack
    decoded: asyncio.Queue[DecodedFrame] = field(default_factory=asyncio.Queue)
    levels: Iterator[int] = field(default_factory=lambda: itertools.cycle(range(40, 220, 20)))

    @property
    def receiver(self) -> VideoReceiver:
        [receiver] = self.near.getReceivers()
        assert isinstance(receiver, VideoReceiver)
        return receiver

    def deliver_here(self) -> None:
        """Make the track deliver to `decoded`."""
        loop = asyncio.get_running_loop()

        def sink(decoded: DecodedFrame) -> None:
            loop.call_soon_threadsafe(self.decoded.put_nowait, decoded)

        self.track.deliver_to(sink)

    async def see(self, level: int, size_wh: tuple[int, int] = (160, 120)) -> DecodedFrame:
        """Show one picture at the far end and wait until it is here; nothing follows it."""
        self.camera.show(level, size_wh)
        return await self.arrival(level)

    async def arrival(self, level: int) -> DecodedFrame:
        """The next decoded picture of this brightness."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                decoded = await self.decoded.get()
                if abs(level_of(decoded.video_frame) - level) <= 4:
                    return decoded

    async def goes_on(self, pictures: int = 3) -> None:
        """Media still flows."""
        for _ in range(pictures):
            await self.see(next(self.levels))

    async def flows(self, pictures: int = 5) -> None:
        """Media still flows, though the kernel may drop a datagram of a burst."""
        wanted = self.receiver.statistics().frames_decoded + pictures
        await self.shows_until(lambda: self.receiver.statistics().frames_decoded >= wanted)

    async def shows_until(self, condition: Callable[[], bool], interval_s: float = 0.02) -> None:
        """A running camera, until something has happened."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self.camera.show(next(self.levels))
                await asyncio.sleep(interval_s)


def stock_peer() -> RTCPeerConnection:
    """aiortc as it is, asking nobody outside."""
    return RTCPeerConnection(RTCConfiguration(iceServers=[]))


@contextlib.contextmanager
def executor() -> Iterator[ThreadPoolExecutor]:
    """Threads to encode on, which are gone afterwards."""
    pool = ThreadPoolExecutor(1, "test-encode")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True)


async def negotiate(offering: RTCPeerConnection, answering: RTCPeerConnection) -> None:
    """Exchange descriptions both ways."""
    async with asyncio.timeout(DEADLINE_S):
        await offering.setLocalDescription(await offering.createOffer())
        await answering.setRemoteDescription(offering.localDescription)
        await answering.setLocalDescription(await answering.createAnswer())
        await offering.setRemoteDescription(answering.localDescription)


async def reaches(peer: RTCPeerConnection, state: str) -> None:
    """Wait until a peer is in a connection state."""
    reached = asyncio.Event()

    def check() -> None:
        if peer.connectionState == state:
            reached.set()

    peer.on("connectionstatechange", check)
    check()
    async with asyncio.timeout(DEADLINE_S):
        await reached.wait()


@contextlib.asynccontextmanager
async def calling(
    options: RtcOptions | None = None,
    *,
    ours_at_both_ends: bool = True,
    data_channel: bool = False,
    sink: bool = True,
) -> AsyncIterator[Call]:
    """A call that is connected and has shown its first picture."""
    options = options or RtcOptions(h264_encoder="libx264")
    with executor() as pool:
        near = PeerConnection(options, pool)
        far = PeerConnection(options, pool) if ours_at_both_ends else stock_peer()
        camera = Camera()
        arrived: asyncio.Future[RemoteVideoTrack] = asyncio.get_running_loop().create_future()
        near.on("track", arrived.set_result)
        try:
            far.addTrack(camera)
            if data_channel:
                far.createDataChannel("detections")
            await negotiate(far, near)
            async with asyncio.timeout(DEADLINE_S):
                call = Call(near, far, camera, await arrived)
            if sink:
                call.deliver_here()
                await call.see(128)
            else:
                await reaches(near, "connected")
            yield call
        finally:
            camera.stop()
            assert await near.close_within(DEADLINE_S) == ()
            async with asyncio.timeout(DEADLINE_S):
                await far.close()
    for thread in threading.enumerate():
        if "decoder" in thread.name:
            # It has said that it ends; between that and its end lies an instant.
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
