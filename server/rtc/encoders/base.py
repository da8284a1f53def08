"""What an encoder is to the sender, and the handling of pictures that all encoders share."""

from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Protocol, cast

import numpy as np
from av import VideoFrame
from av.video.frame import PictureType
from av.video.plane import VideoPlane
from numpy.typing import NDArray

# Largest RTP payload. 1200 is what browsers use: with header, extensions, SRTP, UDP, IPv6 and a
# TURN wrapper it still fits the 1280 octets that every IPv6 path carries.
PAYLOAD_MAX = 1200


class EncodeError(Exception):
    """A picture could not be encoded; the message says why in one line."""


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """One picture, cut into RTP payloads in order; empty when the encoder gave nothing."""

    payloads: tuple[bytes, ...]
    keyframe: bool


class VideoEncoder(Protocol):
    """One encoder of one outgoing video. One call at a time, on whichever encode thread."""

    @property
    def name(self) -> str:
        """The live encoder as people know it: libx264, h264_nvenc, libvpx."""

    @property
    def note(self) -> str:
        """Why it is not the one asked for; empty otherwise."""

    def encode(
        self, video_frame: VideoFrame, keyframe: bool, bits_per_s: int, fps: float
    ) -> EncodedPicture:
        """Encode one picture; `bits_per_s` is for pictures that come at `fps`."""


class Borrowed:
    """A picture lent to a codec, which needs its own time and type written into it.

    The caller's values come back at the end: the picture may be in other hands too, who read
    its planes and its time.
    """

    def __init__(
        self, video_frame: VideoFrame, pts: int, time_base: Fraction, keyframe: bool
    ) -> None:
        self._video_frame = video_frame
        self._lent = (pts, time_base, PictureType.I if keyframe else PictureType.NONE)

    def __enter__(self) -> VideoFrame:
        frame = self._video_frame
        self._own = (frame.pts, frame.time_base, frame.pict_type)
        frame.pts, frame.time_base, frame.pict_type = self._lent
        return frame

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pts, time_base, pict_type = self._own
        self._video_frame.pts = pts
        self._video_frame.pict_type = pict_type
        if time_base:
            self._video_frame.time_base = time_base


def as_yuv420p(video_frame: VideoFrame) -> VideoFrame:
    """The picture in the one format that every encoder takes; the same object if it has it."""
    if video_frame.format.name == "yuv420p":
        return video_frame
    converted = video_frame.reformat(format="yuv420p")
    converted.pts = video_frame.pts
    return converted


def cropped_to_even(video_frame: VideoFrame) -> VideoFrame:
    """The yuv420p picture without its last odd column and row; the same object if even.

    H264 counts chroma in pairs. A row of planes copied is 0.1 ms; scaling would blur all.
    """
    width, height = video_frame.width & ~1, video_frame.height & ~1
    if (width, height) == (video_frame.width, video_frame.height):
        return video_frame
    if not width or not height:
        raise EncodeError(f"a picture of {video_frame.width}x{video_frame.height} is too small")
    even = VideoFrame(width, height, "yuv420p")
    for source, target in zip(video_frame.planes, even.planes, strict=True):
        rows, into = _rows(source), _rows(target)
        into[:, : target.width] = rows[: target.height, : target.width]
    even.pts = video_frame.pts
    return even


def _rows(plane: VideoPlane) -> NDArray[np.uint8]:
    """A view of a plane's memory, padding included."""
    memory = np.frombuffer(cast(bytes, plane), np.uint8)
    return memory.reshape(plane.height, plane.line_size)
