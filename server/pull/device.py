"""Pictures of a camera on this machine, by OpenCV: the PyAV of PyPI comes without V4L2.

Tried with a file in the camera's place only: no machine of ours has had one.
"""

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import av
import cv2
import numpy as np

if TYPE_CHECKING:
    from av import VideoFrame


class NoCameraError(Exception):
    """It is not there, or another program has it."""


def open_camera(number: int) -> Any:
    return cv2.VideoCapture(number, cv2.CAP_V4L2)


def camera_pictures(
    number: int, open_capture: Callable[[int], Any] = open_camera
) -> "Generator[VideoFrame]":
    """As they come, until the camera goes; blocks, for OpenCV's ten seconds at most."""
    capture = open_capture(number)
    try:
        if not capture.isOpened():
            raise NoCameraError
        # One: what waits in a buffer gets old.
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        while True:
            came, bgr = capture.read()
            if not came:
                return
            yield to_frame(np.asarray(bgr, np.uint8))
    finally:
        capture.release()


def to_frame(bgr: Any) -> "VideoFrame":
    """As yuv420p; an odd last row or column is left out, which 4:2:0 has no place for."""
    height, width = (side - side % 2 for side in bgr.shape[:2])
    i420: Any = cv2.cvtColor(bgr[:height, :width], cv2.COLOR_BGR2YUV_I420)
    return av.VideoFrame.from_ndarray(i420, format="yuv420p")
