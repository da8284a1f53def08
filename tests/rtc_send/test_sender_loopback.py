"""Our sender against a stock aiortc receiver, over real sockets."""

import asyncio
import threading
from typing import Any

import pytest
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av import VideoFrame

from tests.rtc_send.peers import DEADLINE_S, THREAD_PREFIX, sending_to
from tests.rtc_send.pictures import picture

pytestmark = pytest.mark.loopback

FAST_FPS = 100.0


class Drawn:
    """A `Renderable` that notes where it was rendered and what it was told."""

    def __init__(self, frame: VideoFrame, log: "PictureTrack") -> None:
        self._frame = frame
        self._log = log

    def render(self) -> VideoFrame:
        self._log.render_threads.add(threading.current_thread().name)
        return self._frame

    def sent(self, encode_started_at_ns: int, encoded_at_ns: int, sent_at_ns: int) -> None:
        self._log.sent.append((encode_started_at_ns, encoded_at_ns, sent_at_ns))
        self._log.sent_threads.add(threading.current_thread().name)


class PictureTrack(MediaStreamTrack):
    """Serves moving pictures at a steady pace until told to end."""

    kind = "video"

    def __init__(self, *, drawn: bool, size_wh: tuple[int, int] = (320, 240)) -> None:
        super().__init__()
        self.drawn = drawn
        self.size_wh = size_wh
        self.index = 0
        self.render_threads: set[str] = set()
        self.sent_threads: set[str] = set()
        self.sent: list[tuple[int, int, int]] = []

    async def recv(self) -> Any:
        if self.readyState != "live":
            raise MediaStreamError
        await asyncio.sleep(1 / FAST_FPS)
        frame = picture(self.index, self.size_wh)
        self.index += 1
        return Drawn(frame, self) if self.drawn else frame


@pytest.mark.parametrize("codec", ["H264", "VP8"])
@pytest.mark.parametrize("drawn", [True, False], ids=["renderable", "plain"])
async def test_pictures_arrive_at_a_stock_peer(codec: str, drawn: bool) -> None:
    track = PictureTrack(drawn=drawn)
    async with sending_to(track, codec) as (near, far_track), asyncio.timeout(DEADLINE_S):
        frames = [await far_track.recv() for _ in range(15)]
        statistics = near.video_sender.statistics()
    assert all(isinstance(f, VideoFrame) and (f.width, f.height) == (320, 240) for f in frames)
    assert statistics.codec == codec
    assert statistics.encoder == ("libvpx" if codec == "VP8" else "libx264")
    assert statistics.frames_sent >= 15
    assert statistics.keyframes_sent >= 1
    assert statistics.encode_failures == statistics.send_errors == 0
    assert statistics.failure == ""


async def test_drawing_and_encoding_run_on_the_encode_executor() -> None:
    track = PictureTrack(drawn=True)
    async with sending_to(track, "H264") as (_, far_track), asyncio.timeout(DEADLINE_S):
        for _ in range(5):
            await far_track.recv()
    assert track.render_threads
    assert all(name.startswith(THREAD_PREFIX) for name in track.render_threads)


async def test_source_is_told_on_the_loop_when_the_last_packet_left() -> None:
    track = PictureTrack(drawn=True)
    async with sending_to(track, "H264") as (_, far_track), asyncio.timeout(DEADLINE_S):
        for _ in range(5):
            await far_track.recv()
    assert track.sent_threads == {threading.current_thread().name}
    assert len(track.sent) >= 5
    assert all(started <= encoded <= sent for started, encoded, sent in track.sent)
