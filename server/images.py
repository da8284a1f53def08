"""Pictures as files: JPEG and PNG to video frames, and video frames to JPEG.

What a file says about itself is checked before any pixel is decoded, because a small file can
ask for much memory or time. Any thread; nothing is kept between pictures.
"""

import re
import struct

import av
import cv2
import numpy as np
import simplejpeg

from server.errors import MalformedError, TooLargeError
from server.pixels import (
    FULL_CHROMA,
    FULL_LUMA,
    UInt8Array,
    copy_yuv420p,
    image_size,
    plane_views,
)

# A JPEG of many scans makes the decoder walk over the whole picture for each: a usual one has up
# to ten of them.
SCANS_AT_MOST = 100
SCANNED_PIXELS_AT_MOST = 1_000_000_000
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNK_FRAME, CHECKSUM_BYTES = struct.Struct("!I4s"), 4
# Writers cut the pixels into pieces of 8 KiB and more.
CHUNKS_AT_MOST = 20_000
# What a camera held upright may write in front; few files have it, and OpenCV turns them.
ORIENTED = re.compile(rb"\xff\xe1..Exif\0\0", re.DOTALL)
HEAD_BYTES = 4096
JPEG_QUALITY = 85


def check_image(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Width and height by the header; refuses what is neither JPEG nor PNG, or too large."""
    if not data:
        raise MalformedError("the image is empty")
    size_wh = image_size(data)
    if size_wh is None or 0 in size_wh:
        raise MalformedError("the image is neither JPEG nor PNG, or its header is broken")
    pixels = size_wh[0] * size_wh[1]
    if pixels > max_pixels:
        raise TooLargeError(
            f"max_image_megapixels: the image is {size_wh[0]}x{size_wh[1]}, "
            f"over {max_pixels / 1e6:g} megapixels"
        )
    return size_wh


def decode_image(data: bytes, size_wh: tuple[int, int]) -> av.VideoFrame:
    """The picture as a frame of format `bgr24`; `check_image` has told its size."""
    bgr = None
    if _is_jpeg(data):
        _check_scans(data, size_wh[0] * size_wh[1])
        if not ORIENTED.search(data, 0, HEAD_BYTES):
            bgr = _decode_jpeg(data)
    else:
        data = _whole_png(data)
    if bgr is None:
        bgr = _decode_any(data)
    return av.VideoFrame.from_numpy_buffer(bgr, format="bgr24")


def encode_jpeg(video_frame: av.VideoFrame, quality: int = JPEG_QUALITY) -> bytes:
    """The picture as a JPEG file; an odd last row or column is cropped."""
    if video_frame.format.name != "yuv420p" or video_frame.width % 2 or video_frame.height % 2:
        video_frame = copy_yuv420p(video_frame)
    tables = (FULL_LUMA, FULL_CHROMA, FULL_CHROMA)
    planes = [
        cv2.LUT(plane, table) for plane, table in zip(plane_views(video_frame), tables, strict=True)
    ]
    encoded: bytes = simplejpeg.encode_jpeg_yuv_planes(*planes, quality=quality)
    return encoded


def _is_jpeg(data: bytes) -> bool:
    return data[:2] == b"\xff\xd8"


def _check_scans(data: bytes, pixels: int) -> None:
    """Both markers cannot be part of coded pixels, so that counting bytes finds them."""
    octets = np.frombuffer(data, np.uint8)
    # Seven times as fast as `bytes.count`, which took a tenth of what decoding takes.
    scans = int(np.count_nonzero((octets[:-1] == 0xFF) & (octets[1:] == START_OF_SCAN[1])))
    if scans > SCANS_AT_MOST or scans * pixels > SCANNED_PIXELS_AT_MOST:
        raise MalformedError(f"the image has {scans} scans, too many for its size")
    end = data.rfind(END_OF_IMAGE)
    if not scans or end < 0 or data.find(START_OF_SCAN, end) >= 0:
        raise MalformedError("the image ends early")


def _whole_png(data: bytes) -> bytes:
    """Up to its end; refuses one whose parts are longer than itself.

    OpenCV makes room for a part before it looks whether it is there: 4 GiB for 100 bytes.
    """
    at = len(PNG_SIGNATURE)
    for _ in range(CHUNKS_AT_MOST):
        if len(data) < at + CHUNK_FRAME.size:
            break
        length, kind = CHUNK_FRAME.unpack_from(data, at)
        at += CHUNK_FRAME.size + length + CHECKSUM_BYTES
        if kind == b"IEND" and not length and at <= len(data):
            return data[:at]
    raise MalformedError("the image cannot be decoded whole: it ends early or has too many parts")


def _decode_jpeg(data: bytes) -> UInt8Array | None:
    """None for what only OpenCV may be able to read, such as CMYK."""
    try:
        if simplejpeg.decode_jpeg_header(data, strict=False)[2] in ("CMYK", "YCCK"):
            return None
        # Not strict: cameras leave bytes between markers; that the end is there was seen.
        bgr: UInt8Array = simplejpeg.decode_jpeg(data, "BGR", strict=False)
    except (ValueError, KeyError):
        # The latter where the header names no colours that it knows.
        return None
    return bgr


def _decode_any(data: bytes) -> UInt8Array:
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise MalformedError("the image cannot be decoded") from error
    if bgr is None:
        raise MalformedError("the image cannot be decoded")
    return np.ascontiguousarray(bgr, np.uint8)
