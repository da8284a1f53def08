"""A thread that delivers the pictures of one source until it is told to stop."""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from server.clock import now_ns
from server.frame import Stamps
from server.pull.media_clock import TICKS_PER_S

if TYPE_CHECKING:
    from av import VideoFrame

logger = logging.getLogger(__name__)

TIME_BASE = Fraction(1, TICKS_PER_S)

# Called on the thread with each picture, its media time in 1/90000 s and its instants; it must
# not wait.
Take = Callable[["VideoFrame", int, Stamps], None]


@dataclass(slots=True)
class ReaderCounters:
    """Written on the thread, read on any."""

    state: str = "idle"
    """`idle`, `connecting`, `playing`, `waiting` (for the next try), `ended`."""
    connects: int = 0
    attempts: int = 0
    pictures: int = 0
    decoder: str = ""
    last_error: str = ""
    dropped: dict[str, int] = field(default_factory=lambda: {"late": 0, "corrupt": 0})


class PictureThread(ABC):
    """Started once; what it does is `_run`, which looks at `_stopped`. May be left behind: it
    then ends by its own deadline."""

    def __init__(self, name: str, take: Take) -> None:
        self.counters = ReaderCounters()
        self._take = take
        self._stopped = threading.Event()
        # A daemon as the last resort: a name server that hangs must not hold the process open.
        self._thread = threading.Thread(target=self._live, name=f"pull {name}", daemon=True)

    @property
    def name(self) -> str:
        return self._thread.name

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def request_stop(self) -> None:
        """Let the thread end: at once between pictures, else by its deadline. Idempotent."""
        self._stopped.set()

    def join(self, timeout_s: float) -> bool:
        """Whether the thread ended in time; not for the loop."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _live(self) -> None:
        try:
            self._run()
        except Exception as error:
            # The top of the thread: nobody else would hear of it.
            logger.exception("%s failed", self.name)
            self.counters.last_error = f"failed: {type(error).__name__}"
        finally:
            self.counters.state = "ended"

    @abstractmethod
    def _run(self) -> None:
        """On the thread, until it is told to stop."""

    def _hand_over(
        self, picture: "VideoFrame", ticks: int, received_at_ns: int, read_at_ns: int
    ) -> None:
        """On the thread: a picture decoded now, in media time of 1/90000 s."""
        picture.pts, picture.time_base = ticks, TIME_BASE
        self.counters.pictures += 1
        stamps = Stamps(
            received_at_ns=received_at_ns, assembled_at_ns=read_at_ns, decoded_at_ns=now_ns()
        )
        self._take(picture, ticks & 0xFFFFFFFF, stamps)
