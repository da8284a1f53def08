"""The source pictures of a measurement: decoded, scaled and laid out before the clock starts.

A clip plays forwards and backwards without end, so that it has no cut which costs the encoder
a big frame every few seconds. Without a file, the camera sways over the photographs that come
with the server.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import av
import cv2
import numpy as np
import numpy.typing as npt

from bench import barcode
from bench.errors import ClipError
from bench.planes import plane_view

if TYPE_CHECKING:
    from av import VideoFrame

BgrArray = npt.NDArray[np.uint8]

SECONDS: Final = 3.0
MAX_BYTES: Final = 128 << 20
"""Of decoded pictures for all clients together: 290 pictures of 640x480, 43 of 1920x1080."""
PICTURES: Final = Path(__file__).parents[1] / "server" / "pictures"
# Sensor noise in steps of luma: without it a moved photograph costs the encoder far less than
# a camera does.
NOISE: Final = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Pictures of one size for one client, which alone writes its bar codes into them."""

    name: str
    size_wh: tuple[int, int]
    video_frames: tuple["VideoFrame", ...]

    def picture(self, index: int) -> "VideoFrame":
        """The picture to show at slot `index`, forwards and backwards without end."""
        return self.video_frames[ping_pong(index, len(self.video_frames))]

    def copy(self) -> "Clip":
        """The same pictures in memory of their own, for another client."""
        return Clip(self.name, self.size_wh, tuple(map(copied, self.video_frames)))


def load_clip(path: Path | None, size_wh: tuple[int, int], fps: float, max_bytes: int) -> Clip:
    """Up to three seconds of the file, or of the photographs, at `size_wh`; raises `ClipError`."""
    width, height = size_wh
    count = max(2, min(round(SECONDS * fps), max_bytes // (width * height * 3 // 2)))
    if path is None:
        name, bgr_pictures = "photographs", _sway(size_wh, count)
        video_frames = [av.VideoFrame.from_ndarray(bgr, format="bgr24") for bgr in bgr_pictures]
        video_frames = [video_frame.reformat(format="yuv420p") for video_frame in video_frames]
    else:
        name = path.name
        video_frames = list(islice(_decode(path, size_wh, fps), count))
    if not video_frames:
        raise ClipError(f"clip: {name} holds no pictures")
    for video_frame in video_frames:
        barcode.clear_chroma(plane_view(video_frame, 1), plane_view(video_frame, 2))
    return Clip(name, size_wh, tuple(video_frames))


def ping_pong(index: int, count: int) -> int:
    """0, 1 .. count-1 .. 1, 0, 1 .. for index 0, 1, 2 ..; the ends are shown once."""
    if count == 1:
        return 0
    place = index % (2 * count - 2)
    return place if place < count else 2 * count - 2 - place


def copied(video_frame: "VideoFrame") -> "VideoFrame":
    """The same picture in memory of its own."""
    twin = av.VideoFrame(video_frame.width, video_frame.height, video_frame.format.name)
    for index in range(len(video_frame.planes)):
        plane_view(twin, index)[:] = plane_view(video_frame, index)
    return twin


def _decode(path: Path, size_wh: tuple[int, int], fps: float) -> Iterator["VideoFrame"]:
    """The file's pictures, scaled to cover `size_wh` and cropped to its middle.

    A file faster than `fps` is thinned to it; a slower one is played as it is, picture by
    picture, since a repeated picture would cost the encoder nothing.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ClipError(f"clip: {path.name} has no video")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            file_fps = float(stream.average_rate or fps)
            step = max(1.0, file_fps / fps)
            wanted = 0.0
            for number, video_frame in enumerate(container.decode(stream)):
                if number >= wanted:
                    wanted += step
                    yield _cover(video_frame, size_wh)
    except (av.FFmpegError, OSError) as error:
        raise ClipError(f"clip: {path.name} cannot be read: {error}") from error


def _cover(video_frame: "VideoFrame", size_wh: tuple[int, int]) -> "VideoFrame":
    width, height = size_wh
    scale = max(width / video_frame.width, height / video_frame.height)
    # Even, so that the crop below falls on whole chroma samples.
    cover_w = max(width, math.ceil(video_frame.width * scale / 2) * 2)
    cover_h = max(height, math.ceil(video_frame.height * scale / 2) * 2)
    scaled = video_frame.reformat(cover_w, cover_h, format="yuv420p")
    cropped = av.VideoFrame(width, height, "yuv420p")
    left, top = (cover_w - width) // 4 * 2, (cover_h - height) // 4 * 2
    for index in range(3):
        share = 1 if index == 0 else 2
        target = plane_view(cropped, index)
        lines, columns = target.shape
        y, x = top // share, left // share
        target[:] = plane_view(scaled, index)[y : y + lines, x : x + columns]
    return cropped


def _sway(size_wh: tuple[int, int], count: int) -> Iterator[BgrArray]:
    """A camera held by hand in front of the photographs, side by side on a wall."""
    width, height = size_wh
    wall = _wall()
    wall_h, wall_w = wall.shape[:2]
    noise = np.random.default_rng(7)
    for number in range(count):
        phase = number / max(1, count - 1)
        zoom = height / wall_h * (1.1 + 0.1 * math.sin(2 * math.pi * phase))
        zoom = max(zoom, 1.02 * width / wall_w)
        # From the first photograph, which shows a person, towards the second and back.
        centre_x = wall_w * (0.19 + 0.05 * math.sin(math.pi * (phase - 0.5)))
        centre_y = wall_h * (0.5 + 0.02 * math.sin(5 * math.pi * phase))
        angle = 1.5 * math.sin(3 * math.pi * phase)
        matrix = cv2.getRotationMatrix2D((centre_x, centre_y), angle, zoom)
        matrix[:, 2] += (width / 2 - centre_x, height / 2 - centre_y)
        picture = cv2.warpAffine(wall, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
        grain = noise.normal(0, NOISE, (height, width, 1)).astype(np.float32)
        yield np.clip(picture + grain, 0, 255).astype(np.uint8)


def _wall() -> BgrArray:
    height = 512
    pictures = [cv2.imread(str(path)) for path in sorted(PICTURES.glob("*.jpg"))]
    found = [picture for picture in pictures if picture is not None]
    if not found:
        raise ClipError("clip: the server's photographs are missing; name a file with --clip")
    resized = [
        cv2.resize(picture, (round(picture.shape[1] * height / picture.shape[0]), height))
        for picture in found
    ]
    return np.hstack(resized).astype(np.uint8)
