"""Pixel formats: from decoded pictures to a model's tensor, and to frames to draw on.

The camera's picture is scaled as it lies, plane by plane, and only the small result is
turned into RGB: no full-size RGB picture ever exists on the live path. Scratch buffers
belong to a `Scratch`, which belongs to one thread.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol, cast

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange

from server.errors import MalformedError, TooLargeError, UnprocessableError
from server.geometry import InputSpec, Letterbox, fit

UInt8Array = npt.NDArray[np.uint8]
AnyArray = npt.NDArray[Any]
Planes = tuple[UInt8Array, UInt8Array, UInt8Array]

# Planar 8-bit formats whose chroma planes may be of any size: each plane is scaled alone.
PLANAR_FORMATS = frozenset(("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"))
# Of a JPEG before its size is known; a colour profile of 16 MiB has 256.
SEGMENTS_AT_MOST = 1000
FULL_RANGE_FORMATS = frozenset(("yuvj420p", "yuvj422p", "yuvj444p"))

# Full-range (JPEG) values as the limited-range values that OpenCV's conversion expects.
_VALUES = np.arange(256)
LIMITED_LUMA = np.round(16 + _VALUES * 219 / 255).astype(np.uint8)
LIMITED_CHROMA = np.round(128 + (_VALUES - 128) * 224 / 255).astype(np.uint8)
# And back, for JPEG.
FULL_LUMA = np.clip(np.round((_VALUES - 16) * 255 / 219), 0, 255).astype(np.uint8)
FULL_CHROMA = np.clip(np.round(128 + (_VALUES - 128) * 255 / 224), 0, 255).astype(np.uint8)


class Picture(Protocol):
    """A picture that can write itself into a model's input."""

    @property
    def size_wh(self) -> tuple[int, int]: ...

    def write_tensor(
        self, spec: InputSpec, out: AnyArray, scratch: "Scratch | None" = None
    ) -> Letterbox:
        """Fill `out` (one picture, no batch axis) and say where the picture lies in it."""
        ...


class Scratch:
    """Reused buffers of one thread; the least recently used go when `limit` is reached.

    A buffer is asked for by key and keeps its contents between calls, so padding is
    painted once per picture geometry and not once per frame.
    """

    def __init__(self, limit: int = 32) -> None:
        self._limit = limit
        self._buffers: OrderedDict[tuple[object, ...], AnyArray] = OrderedDict()

    def get(self, key: tuple[object, ...], make: Callable[[], AnyArray]) -> AnyArray:
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = self._buffers[key] = make()
            if len(self._buffers) > self._limit:
                self._buffers.popitem(last=False)
        else:
            self._buffers.move_to_end(key)
        return buffer


class YuvPicture:
    """A decoded video frame, read only."""

    def __init__(self, video_frame: av.VideoFrame) -> None:
        self._video_frame = video_frame

    @property
    def size_wh(self) -> tuple[int, int]:
        return self._video_frame.width, self._video_frame.height

    def write_tensor(
        self, spec: InputSpec, out: AnyArray, scratch: Scratch | None = None
    ) -> Letterbox:
        scratch = scratch or Scratch()
        letterbox = fit(self.size_wh, spec.size_wh, spec.placement, multiple_of=2)
        small_yuv = self._scaled_i420(letterbox, spec.pad, scratch)
        width, height = spec.size_wh
        even_hw = (height + height % 2, width + width % 2)
        small = scratch.get(("small", even_hw), lambda: np.empty((*even_hw, 3), np.uint8))
        code = cv2.COLOR_YUV2RGB_I420 if spec.colour == "rgb" else cv2.COLOR_YUV2BGR_I420
        cv2.cvtColor(small_yuv, code, dst=small)
        write_values(small[:height, :width], spec, out, scratch)
        return letterbox

    def _scaled_i420(self, letterbox: Letterbox, pad: int, scratch: Scratch) -> UInt8Array:
        """The picture letterboxed in one I420 image of limited range, even sides."""
        width, height = (side + side % 2 for side in letterbox.input_wh)
        i420 = scratch.get(
            ("i420", letterbox.input_wh, letterbox.content_wh, letterbox.offset_xy, pad),
            lambda: _grey_i420(width, height, pad),
        )
        chroma = i420[height:].reshape(2, height // 2, width // 2)
        (left, top), (wide, high) = letterbox.offset_xy, letterbox.content_wh
        luma_part = i420[top : top + high, left : left + wide]
        half_rows = slice(top // 2, top // 2 + (high + 1) // 2)
        half_columns = slice(left // 2, left // 2 + (wide + 1) // 2)
        u_part, v_part = chroma[0, half_rows, half_columns], chroma[1, half_rows, half_columns]
        if self._video_frame.format.name == "nv12":
            luma, u_and_v = _nv12_views(self._video_frame)
            _resize(luma, luma_part)
            pairs = cv2.resize(u_and_v, (u_part.shape[1], u_part.shape[0]))
            u_part[:], v_part[:] = pairs[:, :, 0], pairs[:, :, 1]
        else:
            frame = _as_planar(self._video_frame)
            for plane, part in zip(plane_views(frame), (luma_part, u_part, v_part), strict=True):
                _resize(plane, part)
        if is_full_range(self._video_frame):
            cv2.LUT(luma_part, LIMITED_LUMA, dst=luma_part)
            cv2.LUT(u_part, LIMITED_CHROMA, dst=u_part)
            cv2.LUT(v_part, LIMITED_CHROMA, dst=v_part)
        return i420


class BgrPicture:
    """A decoded image of shape (H, W, 3) uint8 in BGR order, read only."""

    def __init__(self, bgr: UInt8Array) -> None:
        if bgr.ndim != 3 or bgr.shape[2] != 3 or bgr.dtype != np.uint8:
            raise ValueError(f"a BGR picture is (H, W, 3) uint8, not {bgr.shape} {bgr.dtype}")
        if bgr.size == 0:
            raise UnprocessableError(f"the picture has no pixels: {bgr.shape[1]}x{bgr.shape[0]}")
        self.bgr = bgr

    @classmethod
    def from_array(cls, pixels: AnyArray) -> "BgrPicture":
        """Grey, BGR or BGRA, 8 or 16 bits; transparency is dropped, as decoders do."""
        if pixels.dtype == np.uint16:
            pixels = (pixels >> 8).astype(np.uint8)
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
            raise UnprocessableError(
                f"a picture has 8 or 16 bits and 1, 3 or 4 channels; found {pixels.dtype} "
                f"of shape {pixels.shape}"
            )
        if pixels.size == 0:
            raise UnprocessableError(f"the picture has no pixels: shape {pixels.shape}")
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        if channels == 1:
            return cls(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR).astype(np.uint8, copy=False))
        if channels == 4:
            return cls(np.ascontiguousarray(pixels[:, :, :3]))
        if channels == 3:
            return cls(pixels)
        raise UnprocessableError(f"a picture has 1, 3 or 4 channels, not {channels}")

    @classmethod
    def from_bytes(cls, data: bytes, max_pixels: int = 50_000_000) -> "BgrPicture":
        """A JPEG or PNG file; its header is checked before any pixel is decoded."""
        size_wh = image_size(data)
        if size_wh is None:
            raise MalformedError("the image is neither JPEG nor PNG, or its header is broken")
        if size_wh[0] * size_wh[1] > max_pixels:
            raise TooLargeError(
                f"the image is {size_wh[0]}x{size_wh[1]}, over the limit of {max_pixels} pixels"
            )
        try:
            bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error as error:
            raise MalformedError("the image cannot be decoded") from error
        if bgr is None:
            raise MalformedError("the image cannot be decoded")
        return cls.from_array(bgr)

    @property
    def size_wh(self) -> tuple[int, int]:
        return self.bgr.shape[1], self.bgr.shape[0]

    def write_tensor(
        self, spec: InputSpec, out: AnyArray, scratch: Scratch | None = None
    ) -> Letterbox:
        scratch = scratch or Scratch()
        letterbox = fit(self.size_wh, spec.size_wh, spec.placement)
        width, height = spec.size_wh
        key = ("bgr", letterbox.input_wh, letterbox.content_wh, letterbox.offset_xy, spec.pad)
        canvas = scratch.get(key, lambda: np.full((height, width, 3), spec.pad, np.uint8))
        (left, top), (wide, high) = letterbox.offset_xy, letterbox.content_wh
        _resize(self.bgr, canvas[top : top + high, left : left + wide])
        small = canvas
        if spec.colour == "rgb":
            small = scratch.get(
                ("small", (height, width)), lambda: np.empty((height, width, 3), np.uint8)
            )
            cv2.cvtColor(canvas, cv2.COLOR_BGR2RGB, dst=small)
        write_values(small, spec, out, scratch)
        return letterbox


def picture_of(video_frame: av.VideoFrame) -> Picture:
    """The frame as a model's picture, without changing its colours first."""
    if video_frame.format.name != "bgr24":
        return YuvPicture(video_frame)
    [plane] = video_frame.planes
    width, height = video_frame.width, video_frame.height
    rows = _bytes_of(plane).reshape(height, plane.line_size)[:, : 3 * width]
    return BgrPicture(rows.reshape(height, width, 3))


def write_values(small: UInt8Array, spec: InputSpec, out: AnyArray, scratch: Scratch) -> None:
    """Pixels (H, W, 3), already in the model's colour order, as the model's values."""
    if out.shape != spec.shape:
        raise ValueError(f"the input tensor has shape {out.shape}, expected {spec.shape}")
    if spec.layout == "nchw":
        # Separate channels as bytes first: splitting 8-bit pixels is vectorised, and the
        # conversion to floating point then runs over contiguous memory, three times faster
        # than reading every third byte.
        shape = spec.shape
        values = scratch.get(("channels", shape), lambda: np.empty(shape, np.uint8))
        cv2.split(small, [values[0], values[1], values[2]])
    else:
        values = small
    if spec.dtype == "uint8":
        np.copyto(out, values)
        return
    target = out
    if out.dtype != np.float32:
        target = scratch.get(("float", spec.shape), lambda: np.empty(spec.shape, np.float32))
    if spec.mean == (0.0, 0.0, 0.0) and len(set(spec.std)) == 1:
        gain = spec.scale / spec.std[0]
        if gain == 1.0:
            np.copyto(target, values)
        else:
            # Two passes over the floats are faster than one that converts on the way.
            np.copyto(target, values)
            np.multiply(target, np.float32(gain), out=target)
    else:
        axis_shape = (3, 1, 1) if spec.layout == "nchw" else (1, 1, 3)
        std = np.array(spec.std, np.float32).reshape(axis_shape)
        mean = np.array(spec.mean, np.float32).reshape(axis_shape)
        np.multiply(values, np.float32(spec.scale) / std, out=target, casting="unsafe")
        np.subtract(target, mean / std, out=target)
    if target is not out:
        np.copyto(out, target, casting="same_kind")


def plane_views(video_frame: av.VideoFrame) -> Planes:
    """Y, U and V of a planar 8-bit frame as arrays over its memory, without line padding.

    The frame must outlive the views; writing needs a frame of one's own (`copy_yuv420p`).
    """
    luma, u, v = (
        _bytes_of(plane).reshape(plane.height, plane.line_size)[:, : plane.width]
        for plane in video_frame.planes
    )
    return luma, u, v


def copy_yuv420p(video_frame: av.VideoFrame) -> av.VideoFrame:
    """A new even-sized yuv420p frame with the same picture and media time, free to draw on.

    An odd last row or column is cropped, because encoders of 4:2:0 want even sides. The
    values are of limited range whatever the source's were.
    """
    width = video_frame.width - video_frame.width % 2
    height = video_frame.height - video_frame.height % 2
    if width == 0 or height == 0:
        copy = video_frame.reformat(max(width, 2), max(height, 2), "yuv420p")
    else:
        copy = av.VideoFrame(width, height, "yuv420p")
        source = video_frame
        if source.format.name not in ("yuv420p", "yuvj420p"):
            source = source.reformat(format="yuv420p")
        full_range = is_full_range(source)
        tables = (LIMITED_LUMA, LIMITED_CHROMA, LIMITED_CHROMA)
        for plane, own, table in zip(plane_views(source), plane_views(copy), tables, strict=True):
            part = plane[: own.shape[0], : own.shape[1]]
            if full_range:
                cv2.LUT(part, table, dst=own)
            else:
                np.copyto(own, part)
    copy.pts = video_frame.pts
    if video_frame.time_base is not None:
        copy.time_base = video_frame.time_base
    return copy


def is_full_range(video_frame: av.VideoFrame) -> bool:
    """Whether luma runs over 0..255 (JPEG) and not 16..235 (video)."""
    return (
        video_frame.format.name in FULL_RANGE_FORMATS or video_frame.color_range == ColorRange.JPEG
    )


def jpeg_bytes(video_frame: av.VideoFrame, width: int, quality: int) -> bytes:
    """The picture as a JPEG file, `width` wide where that is less than its own and not 0."""
    width = min(width or video_frame.width, video_frame.width)
    height = max(1, round(video_frame.height * width / video_frame.width))
    bgr = video_frame.reformat(width, height, "bgr24").to_ndarray()
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "a JPEG is made of any picture"
    return data.tobytes()


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from the header of a JPEG or PNG; None when it is neither."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and len(data) >= 24:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    for _ in range(SEGMENTS_AT_MOST):
        if at + 9 > len(data) or data[at] != 0xFF:
            break
        marker = data[at + 1]
        # Start-of-frame markers carry the size; C4, C8 and CC in their range are not frames.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return (
                int.from_bytes(data[at + 7 : at + 9], "big"),
                int.from_bytes(data[at + 5 : at + 7], "big"),
            )
        # A marker may be preceded by any number of fill bytes.
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _as_planar(video_frame: av.VideoFrame) -> av.VideoFrame:
    if video_frame.format.name in PLANAR_FORMATS:
        return video_frame
    return video_frame.reformat(format="yuv420p")


def _nv12_views(video_frame: av.VideoFrame) -> tuple[UInt8Array, UInt8Array]:
    """Y (H, W) and UV (H/2, W/2, 2), the halves rounded up."""
    luma, chroma = video_frame.planes
    width, height = video_frame.width, video_frame.height
    half_width, half_height = (width + 1) // 2, (height + 1) // 2
    pairs = _bytes_of(chroma).reshape(half_height, -1)[:, : 2 * half_width]
    return (
        _bytes_of(luma).reshape(height, luma.line_size)[:, :width],
        pairs.reshape(half_height, half_width, 2),
    )


def _bytes_of(plane: VideoPlane) -> UInt8Array:
    """A plane's lines with their padding; decoders may leave more bytes behind the last."""
    data = np.frombuffer(cast("bytes", plane), np.uint8)
    return data[: plane.line_size * plane.height]


def _grey_i420(width: int, height: int, pad: int) -> UInt8Array:
    i420 = np.full((height * 3 // 2, width), 128, np.uint8)
    i420[:height] = LIMITED_LUMA[pad]
    return i420


def _resize(source: UInt8Array, part: UInt8Array) -> None:
    """Scale into a part of a larger buffer.

    Linear at every ratio: it is what the models saw in training, and averaging over areas
    takes 5 ms for a 1080p frame where this takes 0.2 ms.
    """
    cv2.resize(source, (part.shape[1], part.shape[0]), dst=part)
