"""A camera that is not there: stamped pictures of a clip on a fixed grid of instants."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiortc import MediaStreamTrack
from aiortc.mediastreams import VIDEO_TIME_BASE, MediaStreamError

from bench import barcode
from bench.clip import Clip
from bench.pacing import Pace
from bench.planes import plane_view
from server.clock import NS_PER_S, now_ns

if TYPE_CHECKING:
    from av import VideoFrame

RTP_CLOCK_HZ: Final = 90_000
NS_PER_US: Final = 1_000


@dataclass(frozen=True, slots=True)
class SendTimes:
    """The client's own cost of one picture on its way out."""

    handed_at_ns: int
    encode_started_at_ns: int
    encoded_at_ns: int
    sent_at_ns: int


class StampedPicture:
    """One picture for the sender, which says through `sent` when it had left. One use."""

    __slots__ = ("_camera", "_handed_at_ns", "_video_frame")

    def __init__(self, camera: "Camera", video_frame: "VideoFrame", handed_at_ns: int) -> None:
        self._camera = camera
        self._video_frame = video_frame
        self._handed_at_ns = handed_at_ns

    def render(self) -> "VideoFrame":
        """The picture; it was stamped when it was handed over, so encoding counts in full."""
        return self._video_frame

    def sent(self, encode_started_at_ns: int, encoded_at_ns: int, sent_at_ns: int) -> None:
        """On the loop, after the last packet."""
        self._camera.note_sent(
            SendTimes(self._handed_at_ns, encode_started_at_ns, encoded_at_ns, sent_at_ns)
        )


class Camera(MediaStreamTrack):
    """Loop only. Ends with `stop()`. Logs are bounded by `max_pictures`, the plan of the run."""

    kind = "video"

    def __init__(self, clip: Clip, fps: float, phase: float, max_pictures: int) -> None:
        """`phase` shifts the grid by a share of an interval: cameras are not in step."""
        super().__init__()
        self._clip = clip
        self._fps = fps
        self._phase = phase
        self._max_pictures = max_pictures
        self._pace: Pace | None = None
        # The instant each picture was handed to the encoder, by frame number. The decoder
        # thread reads entries that were there before their picture left.
        self.handed_at_ns: list[int] = []
        # Which picture of the clip each was, as its slot.
        self.slots: list[int] = []
        self.send_times: list[SendTimes] = []
        self.slots_skipped = 0

    async def recv(self) -> StampedPicture:  # type: ignore[override]
        """The next picture, at its instant. One call at a time, by the sender."""
        if self.readyState != "live" or len(self.handed_at_ns) >= self._max_pictures:
            raise MediaStreamError
        if self._pace is None:
            first_at_ns = now_ns() + round(self._phase * NS_PER_S / self._fps)
            self._pace = Pace(self._fps, first_at_ns)
        slot = self._pace.next_slot(now_ns())
        skipped = slot.skipped
        while True:
            delay_ns = slot.due_at_ns - now_ns()
            if delay_ns > 0:
                await asyncio.sleep(delay_ns / NS_PER_S)
            if not self._pace.is_over(slot, now_ns()):
                break
            slot = self._pace.next_slot(now_ns())
            skipped += slot.skipped + 1
        self.slots_skipped += skipped

        video_frame = self._clip.picture(slot.index)
        video_frame.pts = round(slot.index * RTP_CLOCK_HZ / self._fps)
        video_frame.time_base = VIDEO_TIME_BASE
        luma = plane_view(video_frame, 0)
        number = len(self.handed_at_ns)
        self.slots.append(slot.index)
        handed_at_ns = now_ns()
        barcode.stamp(luma, barcode.Mark(handed_at_ns // NS_PER_US, number))
        self.handed_at_ns.append(handed_at_ns)
        return StampedPicture(self, video_frame, handed_at_ns)

    def source(self, number: int) -> "VideoFrame":
        """The picture of the clip that was sent as `number`; its bar code may be a later one."""
        return self._clip.picture(self.slots[number])

    def note_sent(self, times: SendTimes) -> None:
        """One per picture that was encoded; bounded with the pictures themselves."""
        self.send_times.append(times)
