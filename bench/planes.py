"""Planes of a planar 4:2:0 picture as numpy views. The view lives as long as its picture."""

from typing import TYPE_CHECKING

import numpy as np

from bench.barcode import UInt8Array

if TYPE_CHECKING:
    from av import VideoFrame


def plane_view(video_frame: "VideoFrame", index: int) -> UInt8Array:
    """Plane 0 (luma), 1 or 2 (chroma) as (height, width), without its padding; no copy."""
    plane = video_frame.planes[index]
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return lines[: plane.height, : plane.width]
