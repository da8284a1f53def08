"""Reads the bar code of returned pictures on the decoder thread, as soon as they are decoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench import barcode
from bench.planes import plane_view
from server.clock import now_ns

if TYPE_CHECKING:
    from av import VideoFrame

    from server.rtc.decoding import DecodedFrame

NS_PER_US: Final = 1_000


@dataclass(frozen=True, slots=True)
class Returned:
    """One picture that came back, seen for the first time."""

    number: int
    handed_at_ns: int
    received_at_ns: int
    """Its first packet arrived."""
    read_at_ns: int
    """Decoded and its bar code read: the end of the way from glass to glass."""
    copy: int
    """The strip it was read from: 0 at the top, 1 at the bottom."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A returned picture itself, to look at what is drawn on it. Read-only: the decoder's."""

    number: int
    video_frame: "VideoFrame"


@dataclass(frozen=True, slots=True)
class EyeStatistics:
    """What came back, counted since the start."""

    pictures: int
    unreadable: int
    """Neither strip passed its checksum."""
    misread: int
    """The checksum fits, but no picture with this number was sent at this instant."""
    repeated: int
    """A picture that came back before, or came back after a newer one."""


class Eye:
    """`see` runs on the decoder thread, its only writer; the loop may read at any time.

    `handed_at_ns` is the camera's log by frame number. The log of returned pictures is bounded
    by it: each number is taken once. `on_first` is called on the decoder thread.
    """

    def __init__(self, handed_at_ns: Sequence[int], on_first: Callable[[], None]) -> None:
        self._handed_at_ns = handed_at_ns
        self._on_first = on_first
        self._pictures = 0
        self._unreadable = 0
        self._misread = 0
        self._repeated = 0
        self._newest = -1
        self.returned: list[Returned] = []
        self.kept: list[Kept] = []
        self._keep = 0
        self._every = 1
        self._next_kept = 0

    def keep(self, count: int, every: int) -> None:
        """On the loop, once: hold on to so many of the pictures to come, one of `every`."""
        self._every = every
        self._keep = count

    def see(self, decoded: "DecodedFrame") -> None:
        """The sink of the incoming track."""
        self._pictures += 1
        reading = barcode.read(plane_view(decoded.video_frame, 0))
        read_at_ns = now_ns()
        if reading is None:
            self._unreadable += 1
            return
        number = barcode.unwrap(reading.mark.number, max(0, self._newest), barcode.NUMBER_BITS)
        if not 0 <= number < len(self._handed_at_ns):
            self._misread += 1
            return
        handed_at_ns = self._handed_at_ns[number]
        if handed_at_ns // NS_PER_US % (1 << barcode.TIME_BITS) != reading.mark.time_us:
            self._misread += 1
            return
        if number <= self._newest:
            self._repeated += 1
            return
        self._newest = number
        self.returned.append(
            Returned(number, handed_at_ns, decoded.received_at_ns, read_at_ns, reading.copy)
        )
        if len(self.returned) == 1:
            self._on_first()
        if len(self.kept) < self._keep and number >= self._next_kept:
            self._next_kept = number + self._every
            self.kept.append(Kept(number, decoded.video_frame))

    def statistics(self) -> EyeStatistics:
        """A snapshot; two of them subtract to a window."""
        return EyeStatistics(self._pictures, self._unreadable, self._misread, self._repeated)
