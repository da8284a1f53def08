"""The fan-out by itself: who gets which picture, and what is encoded; a real encoder inside."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from fractions import Fraction

import av
import pytest

from server.clock import NS_PER_S, now_ns
from server.rtc.bitrate import Allowance
from server.rtc.encoders import Renderable
from server.rtc.fanout import Fanout, common_allowance
from server.rtc.fanout_sender import BURST_S, ViewerPace
from server.rtc.options import RtcOptions
from server.rtc.picture_source import SharedPicture
from tests.fakes import grey_video_frame
from tests.serving import DEADLINE_S

pytestmark = pytest.mark.unit

OPTIONS = RtcOptions(h264_encoder="libx264")
RATE_BPS = 800_000


class Picture:
    """A grey picture; fails to render when told."""

    def __init__(self, number: int, fails: bool = False) -> None:
        self.number = number
        self._fails = fails

    def render(self) -> av.VideoFrame:
        if self._fails:
            raise ValueError("no picture")
        frame = grey_video_frame(luma=60 + self.number % 100)
        frame.pts, frame.time_base = self.number * 3000, Fraction(1, 90_000)
        return frame

    def sent(self, encode_started_at_ns: int, encoded_at_ns: int, sent_at_ns: int) -> None: ...


class NotingViewer:
    """Keeps what it was given."""

    def __init__(self, cap_bps: int | None = None) -> None:
        self.pictures: list[SharedPicture] = []
        self._cap_bps = cap_bps

    def send_picture(self, picture: SharedPicture) -> None:
        self.pictures.append(picture)

    def allowance(self) -> Allowance:
        return allowance(self._cap_bps)


def allowance(cap_bps: int | None) -> Allowance:
    return Allowance(1.0, cap_bps, OPTIONS.bitrate_min_bps, OPTIONS.bitrate_max_bps)


class Stage:
    """A fan-out whose pictures are played one by one."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.sent: asyncio.Queue[SharedPicture] = asyncio.Queue()
        self.wishes = 0
        self.fanout = Fanout("H264", OPTIONS, pool, self._on_sent, self._on_wish)
        self.number = 0

    def _on_sent(self, picture: Renderable, shared: SharedPicture) -> None:
        self.sent.put_nowait(shared)

    def _on_wish(self) -> None:
        self.wishes += 1

    def offer(self, fails: bool = False) -> None:
        self.fanout.offer(Picture(self.number, fails), self.number * 3000, now_ns())
        self.number += 1

    async def play(self) -> SharedPicture:
        """One picture, until it has left."""
        self.offer()
        async with asyncio.timeout(DEADLINE_S):
            return await self.sent.get()


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    pool = ThreadPoolExecutor(1)
    try:
        yield Stage(pool)
    finally:
        pool.shutdown(wait=True)


async def test_all_viewers_get_the_same_payloads_of_one_encode() -> None:
    async with stage() as on:
        viewers = [NotingViewer() for _ in range(40)]
        for viewer in viewers:
            on.fanout.join(viewer)
        for _ in range(3):
            await on.play()
        first = viewers[0].pictures
        assert len(first) == 3
        assert first[0].keyframe
        # The very same objects: nothing is copied per viewer.
        assert all(viewer.pictures == first for viewer in viewers)
        assert all(a is b for v in viewers for a, b in zip(v.pictures, first, strict=True))
        assert on.fanout.statistics().encoded == 3


async def test_without_viewers_nothing_is_encoded() -> None:
    async with stage() as on:
        on.offer()
        viewer = NotingViewer()
        on.fanout.join(viewer)
        await on.play()
        on.fanout.leave(viewer)
        on.offer()
        assert on.fanout.statistics().encoded == 1
        assert not on.fanout.watched


async def test_viewer_that_joins_soon_after_a_key_frame_is_given_it_at_once() -> None:
    async with stage() as on:
        on.fanout.join(NotingViewer())
        for _ in range(3):
            await on.play()
        late = NotingViewer()
        on.fanout.join(late)
        # Before any further picture.
        assert [picture.keyframe for picture in late.pictures] == [True, False, False]
        statistics = on.fanout.statistics()
        assert (statistics.keyframes, statistics.replays, on.wishes) == (1, 1, 1)
        await on.play()
        assert len(late.pictures) == 4


async def test_picture_that_fails_costs_itself_and_is_followed_by_a_key_frame() -> None:
    async with stage() as on:
        viewer = NotingViewer()
        on.fanout.join(viewer)
        await on.play()
        on.offer(fails=True)
        on.offer()
        async with asyncio.timeout(DEADLINE_S):
            await on.sent.get()
        assert len(viewer.pictures) == 2
        assert on.fanout.statistics().failures == 1
        # What came before is not replayed over the gap.
        late = NotingViewer()
        on.fanout.join(late)
        assert late.pictures == []


async def test_busy_encoder_takes_the_newest_and_counts_the_rest() -> None:
    async with stage() as on:
        viewer = NotingViewer()
        on.fanout.join(viewer)
        for _ in range(5):
            on.offer()
        async with asyncio.timeout(DEADLINE_S):
            await on.sent.get()
            await on.sent.get()
        assert on.fanout.statistics().dropped_replaced == 3
        assert len(viewer.pictures) == 2
        step = viewer.pictures[1].rtp_timestamp - viewer.pictures[0].rtp_timestamp
        assert step & 0xFFFFFFFF == 4 * 3000


@pytest.mark.parametrize(
    ("caps", "expected"),
    [
        ([None, None], None),
        ([None, 900_000], 900_000),
        ([800_000, 900_000, 1_000_000], 800_000),
        # One viewer on a thin line does not decide for all.
        ([50_000, 900_000, 1_000_000], 450_000),
    ],
)
def test_common_rate_follows_the_slowest_down_to_half_of_the_middle(
    caps: list[int | None], expected: int | None
) -> None:
    assert common_allowance([allowance(cap) for cap in caps]).cap_bps == expected


# --- one viewer's pace ---


def test_viewer_begins_with_a_key_frame() -> None:
    pace = ViewerPace()
    assert not pace.take(1000, False, None, 0)
    assert pace.take(1000, True, None, 0)
    assert pace.take(1000, False, None, 0)
    assert pace.dropped == 0


def test_slow_viewer_is_dropped_to_the_next_key_frame_and_gets_what_its_way_can_take() -> None:
    pace, at_ns, sent = ViewerPace(), 0, 0
    for number in range(300):
        size = 20_000
        # Six times more than the way can take, a key frame a second.
        if pace.take(size, number % 30 == 0, RATE_BPS, at_ns):
            sent += size
        else:
            assert pace.needs_keyframe
        at_ns += NS_PER_S // 30
    burst = RATE_BPS / 8 * BURST_S
    assert sent <= RATE_BPS / 8 * 10 + burst + 20_000
    assert sent >= RATE_BPS / 8 * 10 / 2
    assert pace.dropped == 300 - sent // 20_000


def test_after_a_gap_only_a_key_frame_goes_out() -> None:
    pace = ViewerPace()
    assert pace.take(1000, True, RATE_BPS, 0)
    assert pace.take(200_000, False, RATE_BPS, 0)
    assert not pace.take(1000, False, RATE_BPS, 0)
    assert not pace.may_go_on()
    later_ns = 10 * NS_PER_S
    assert not pace.take(1000, False, RATE_BPS, later_ns)
    assert pace.may_go_on()
    assert pace.take(1000, True, RATE_BPS, later_ns)
    assert pace.take(1000, False, RATE_BPS, later_ns)
