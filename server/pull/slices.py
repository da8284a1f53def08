"""H.264 pictures put together from what FFmpeg's RTSP client hands on, without its parser.

The parser knows that a picture has ended when the next one begins: a whole picture's time late,
100 ms at ten a second. Without it (`fflags=noparse`) every RTP payload comes at once, but without
the marker bit that ends a picture. Two things tell the end nearly as well: a payload smaller than
all pieces that another one followed is a last piece, and a camera cuts each picture into as many
slices as the one before.

A wrong guess costs what the parser costs, because the decoder is told that it may be given parts
of pictures (`flags2=chunks`) and shows one when all of it is there. No asyncio, no clocks.
"""

from collections.abc import Iterator

START = b"\0\0\0\1"
SLICES = frozenset((1, 2, 5))
# Until a cut NAL unit was seen: no sender cuts into pieces as small as this.
SMALL = 1000
# A picture of more bytes is given on in parts.
BYTES_AT_MOST = 8 << 20


class SliceJoiner:
    """Takes payloads in order; gives data for the decoder, each with its media time."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._pts: int | None = None
        self._slices = 0
        self._slices_expected = 1
        # Whether the unit that came last is a slice, and may go on in the next payload.
        self._open = False
        self._last_length = 0
        # The smallest payload that another piece of its unit followed: since the key frame before
        # the last, so that what a lost packet taught is forgotten, and since the last.
        self._piece = SMALL
        self._piece_newly = 0

    def add(self, data: bytes, pts: int | None) -> Iterator[tuple[bytes, int | None]]:
        """The next payload; yields what is complete with it."""
        if not data:
            return
        starts = data.startswith(START)
        if pts != self._pts or (starts and _begins_picture(data) and self._slices):
            if self._slices:
                self._slices_expected = self._slices
            yield from self._flush()
            self._slices = 0
            self._pts = pts
        if starts:
            self._open = _kind(data) in SLICES
            self._slices += self._open
            if begins_key(data) and self._piece_newly:
                self._piece, self._piece_newly = self._piece_newly, 0
        else:
            self._learn(self._last_length)
        self._last_length = len(data)
        self._parts.append(data)
        self._size += len(data)
        ended = self._open and len(data) < self._piece
        if (ended and self._slices >= self._slices_expected) or self._size > BYTES_AT_MOST:
            yield from self._flush()

    def _learn(self, length: int) -> None:
        """A payload of this length was no last piece."""
        newly = self._piece_newly
        self._piece_newly = min(newly, length) if newly else length
        # The first time it may be more than was thought, later only less.
        self._piece = length if self._piece == SMALL else min(self._piece, length)

    def _flush(self) -> Iterator[tuple[bytes, int | None]]:
        if self._parts:
            data, self._parts, self._size = b"".join(self._parts), [], 0
            yield data, self._pts


def _kind(unit: bytes) -> int:
    return unit[len(START)] & 31 if len(unit) > len(START) else 0


def begins_key(data: bytes) -> bool:
    """Whether a payload begins what can be decoded without anything before it."""
    return data.startswith(START) and _kind(data) in (5, 7)


def _begins_picture(unit: bytes) -> bool:
    """An access unit delimiter comes before all else of a picture."""
    return _kind(unit) == 9
