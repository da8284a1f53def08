"""A small JPEG of a decoded picture: what an event or a clip is shown by."""

from typing import TYPE_CHECKING

import cv2

from server.errors import UnprocessableError

if TYPE_CHECKING:
    from av import VideoFrame

LONGER_SIDE = 640
QUALITY = 80


def thumbnail(video_frame: "VideoFrame", longer_side: int = LONGER_SIDE) -> bytes:
    """The whole picture, scaled down where it is larger. 2 to 4 ms; on any thread but the loop."""
    width, height = video_frame.width, video_frame.height
    shrink = min(1.0, longer_side / max(width, height))
    small = video_frame.reformat(
        max(2, round(width * shrink) // 2 * 2), max(2, round(height * shrink) // 2 * 2), "bgr24"
    )
    done, data = cv2.imencode(".jpg", small.to_ndarray(), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        raise UnprocessableError(f"the picture of {width}x{height} cannot be made into a JPEG")
    return data.tobytes()
