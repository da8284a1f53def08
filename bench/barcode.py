"""The bar code that carries an instant and a frame number through codecs, scalers and servers.

64 bits as black and white cells of the luma plane: 32 bits of microseconds, 16 bits of frame
number, 16 bits of checksum; 32 cells in a row, two rows in a strip. The same strip stands at
the top and at the bottom of the picture, because a server draws boxes on what comes back and
seldom on both. The geometry is in fractions of the picture, so a scaled picture still reads.

Pure: numpy on arrays the caller owns, no clock, no state.
"""

import binascii
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
IndexArray = npt.NDArray[np.intp]

COLUMNS: Final = 32
ROWS: Final = 2
BITS: Final = COLUMNS * ROWS
TIME_BITS: Final = 32
NUMBER_BITS: Final = 16
# 48 rows of cells from top to bottom: 10 lines each at 480, 5 at 240. The two strips take 8 %
# of the picture, which leaves the detector its picture and the encoder its bits.
ROWS_IN_PICTURE: Final = 48
# Not the ends of the range: sharper edges ring more and cost the encoder more bits, and 160
# steps apart is far beyond what a quantiser moves.
BLACK: Final = 48
WHITE: Final = 208
THRESHOLD: Final = (BLACK + WHITE) // 2
NEUTRAL_CHROMA: Final = 128
# Below this a cell has fewer than 2 lines and the middle of one is no longer all its own.
SMALLEST_WH: Final = (128, 96)
# Points taken from each cell, per axis, as fractions of its side: away from the edges, where
# codecs and scalers smear.
PROBES: Final = (0.35, 0.5, 0.65)


@dataclass(frozen=True, slots=True)
class Mark:
    """What one strip says. Both fields wrap; `unwrap` finds the number that was meant."""

    time_us: int
    number: int


@dataclass(frozen=True, slots=True)
class Reading:
    """A mark that was found, and where."""

    mark: Mark
    copy: int
    """0 the strip at the top, 1 the strip at the bottom."""


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    column_of_x: IndexArray
    row_edges: tuple[tuple[int, int, int], tuple[int, int, int]]
    probe_xs: IndexArray
    probe_ys: tuple[IndexArray, IndexArray]


def encode_bits(mark: Mark) -> UInt8Array:
    """The 64 cells of a mark as 0 and 1, row after row."""
    payload = (mark.time_us % (1 << TIME_BITS)).to_bytes(4, "big")
    payload += (mark.number % (1 << NUMBER_BITS)).to_bytes(2, "big")
    # The checksum starts at all ones: neither a black nor a white strip is a valid mark.
    payload += binascii.crc_hqx(payload, 0xFFFF).to_bytes(2, "big")
    return np.unpackbits(np.frombuffer(payload, np.uint8))


def decode_bits(bits: npt.NDArray[np.bool_] | UInt8Array) -> Mark | None:
    """The mark in 64 cells, or None when the checksum says that they are not one."""
    payload = np.packbits(bits).tobytes()
    if binascii.crc_hqx(payload[:6], 0xFFFF) != int.from_bytes(payload[6:], "big"):
        return None
    return Mark(int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:6], "big"))


def stamp(luma: UInt8Array, mark: Mark) -> None:
    """Write both strips into a writable (height, width) luma plane, in place."""
    height, width = luma.shape
    layout = _layout(width, height)
    values = np.where(encode_bits(mark), np.uint8(WHITE), np.uint8(BLACK)).reshape(ROWS, COLUMNS)
    lines = values[:, layout.column_of_x]
    for begin, middle, end in layout.row_edges:
        luma[begin:middle] = lines[0]
        luma[middle:end] = lines[1]


def read(luma: UInt8Array) -> Reading | None:
    """The mark in a (height, width) luma plane: the upper copy, else the lower one, else None."""
    height, width = luma.shape
    if width < SMALLEST_WH[0] or height < SMALLEST_WH[1]:
        return None
    layout = _layout(width, height)
    count = len(PROBES)
    threshold = THRESHOLD * count * count
    for copy, probe_ys in enumerate(layout.probe_ys):
        probes = luma[probe_ys[:, None], layout.probe_xs]
        cells = probes.reshape(ROWS, count, COLUMNS, count).sum(axis=(1, 3), dtype=np.uint32)
        mark = decode_bits(cells > threshold)
        if mark is not None:
            return Reading(mark, copy)
    return None


def clear_chroma(u: UInt8Array, v: UInt8Array) -> None:
    """Grey under both strips, once per source picture: colour would cost bits for nothing."""
    height = u.shape[0]
    lines = _strip_lines(height)
    for plane in (u, v):
        plane[:lines] = NEUTRAL_CHROMA
        plane[height - lines :] = NEUTRAL_CHROMA


def unwrap(value: int, near: int, bits: int) -> int:
    """The number closest to `near` whose lowest bits are `value`."""
    span = 1 << bits
    return near + (value - near + span // 2) % span - span // 2


def _strip_lines(height: int) -> int:
    return -(-height * ROWS // ROWS_IN_PICTURE)


@lru_cache(maxsize=16)
def _layout(width: int, height: int) -> _Layout:
    if width < SMALLEST_WH[0] or height < SMALLEST_WH[1]:
        raise ValueError(
            f"a bar code needs a picture of at least {SMALLEST_WH[0]}x{SMALLEST_WH[1]}; "
            f"this one is {width}x{height}"
        )
    cell_w, cell_h = width / COLUMNS, height / ROWS_IN_PICTURE
    probe_xs = np.array(
        [int((column + at) * cell_w) for column in range(COLUMNS) for at in PROBES], np.intp
    )
    tops = (0.0, height - ROWS * cell_h)
    probe_ys = [
        np.array([int(top + (row + at) * cell_h) for row in range(ROWS) for at in PROBES], np.intp)
        for top in tops
    ]
    edges = [(round(top), round(top + cell_h), round(top + ROWS * cell_h)) for top in tops]
    return _Layout(
        column_of_x=np.minimum((np.arange(width) / cell_w).astype(np.intp), COLUMNS - 1),
        row_edges=(edges[0], edges[1]),
        probe_xs=probe_xs,
        probe_ys=(probe_ys[0], probe_ys[1]),
    )
