"""The camera's pictures carry their number and the time they are handed over."""

from fractions import Fraction
from itertools import pairwise

import av
import pytest
from aiortc.mediastreams import MediaStreamError

from bench.barcode import read
from bench.camera import Camera, StampedPicture
from bench.clip import Clip
from bench.planes import plane_view
from server.clock import NS_PER_S, now_ns

pytestmark = pytest.mark.unit

FPS = 100.0


def camera(max_pictures: int = 100) -> Camera:
    video_frames = tuple(av.VideoFrame(320, 240, "yuv420p") for _ in range(3))
    return Camera(Clip("test", (320, 240), video_frames), FPS, 0.5, max_pictures)


async def test_pictures_carry_their_number_and_the_time_they_were_handed_over() -> None:
    source = camera()
    for number in range(8):
        before_us = now_ns() // 1000
        picture = await source.recv()
        reading = read(plane_view(picture.render(), 0))
        assert reading is not None
        assert reading.mark.number == number
        assert reading.mark.time_us == source.handed_at_ns[number] // 1000 % 2**32
        assert before_us <= source.handed_at_ns[number] // 1000 <= now_ns() // 1000


async def test_pictures_never_come_in_bursts() -> None:
    source = camera()
    for _ in range(20):
        await source.recv()
    gaps_ns = [after - before for before, after in pairwise(source.handed_at_ns)]
    # Half an interval less the millisecond to which uvloop and epoll round their timers.
    assert min(gaps_ns) >= 0.5 * NS_PER_S / FPS - 1_100_000


async def test_media_time_follows_the_grid_in_rtp_ticks() -> None:
    source = camera()
    ticks: list[int] = []
    for _ in range(5):
        video_frame = (await source.recv()).render()
        assert video_frame.time_base == Fraction(1, 90_000)
        assert video_frame.pts is not None
        ticks.append(video_frame.pts)
    steps = [after - before for before, after in pairwise(ticks)]
    assert all(step > 0 and step % 900 == 0 for step in steps)


async def test_what_the_sender_says_is_logged() -> None:
    source = camera()
    picture = await source.recv()
    assert isinstance(picture, StampedPicture)
    picture.sent(10, 20, 30)
    (times,) = source.send_times
    assert (times.handed_at_ns, times.sent_at_ns) == (source.handed_at_ns[0], 30)


async def test_the_camera_ends_when_stopped_or_when_its_plan_is_done() -> None:
    planned = camera(max_pictures=2)
    await planned.recv()
    await planned.recv()
    with pytest.raises(MediaStreamError):
        await planned.recv()
    stopped = camera()
    stopped.stop()
    with pytest.raises(MediaStreamError):
        await stopped.recv()
