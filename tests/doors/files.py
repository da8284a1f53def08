"""Picture files for the tests: good ones, odd ones, and such as want to do harm."""

from pathlib import Path

import cv2
import numpy as np
import simplejpeg

PHOTOGRAPHS = Path(__file__).parents[2] / "server" / "pictures"


def photograph(name: str = "astronaut") -> bytes:
    """A real one that comes with the server."""
    return (PHOTOGRAPHS / f"{name}.jpg").read_bytes()


def jpeg(width: int, height: int, *, grey: bool = False, progressive: bool = False) -> bytes:
    shape = (height, width) if grey else (height, width, 3)
    parameters = [cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    return cv2.imencode(".jpg", np.full(shape, 90, np.uint8), parameters)[1].tobytes()


def png(width: int, height: int, *, channels: int = 3, bits: int = 8) -> bytes:
    pixels = np.full((height, width, channels), 90, np.uint16 if bits == 16 else np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def cmyk_jpeg(width: int, height: int) -> bytes:
    pixels = np.full((height, width, 4), 90, np.uint8)
    encoded: bytes = simplejpeg.encode_jpeg(pixels, colorspace="CMYK")
    return encoded


def truncated_jpeg() -> bytes:
    data = photograph()
    return data[: len(data) // 2]


def wide_jpeg(width: int, height: int) -> bytes:
    """A small file that says it is of this size."""
    data = bytearray(jpeg(64, 48))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


def bomb_png(width: int, height: int) -> bytes:
    data = bytearray(png(64, 48))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(data)


def many_scans(scans: int, width: int = 640, height: int = 480) -> bytes:
    """A progressive JPEG whose last scan comes over and over again."""
    data = jpeg(width, height, progressive=True)
    at = data.rindex(b"\xff\xda")
    last = data[at:-2]
    return data[:at] + last * scans + data[-2:]


def turned_jpeg(width: int, height: int) -> bytes:
    """One whose EXIF says that it was taken with the camera on its side (orientation 6)."""
    data = jpeg(width, height)
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    body = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:]
