"""Small typed stand-ins for parts that tests need to control: a detector with a chosen delay,
failure or answer. Nothing of the code under test is patched."""

import threading
from collections.abc import Callable, Sequence

import av
import numpy as np

from server.clock import NS_PER_S, now_ns
from server.detections import Detected, Detections, EngineReport
from server.frame import Frame, Stamps
from server.inference import Begun
from server.pixels import Picture


def grey_video_frame(width: int = 64, height: int = 48, luma: int = 90) -> av.VideoFrame:
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    planes[:height] = luma
    return av.VideoFrame.from_ndarray(planes, format="yuv420p")


def decoded_frame(seq: int = 0) -> Frame:
    at_ns = now_ns()
    return Frame(grey_video_frame(), seq, seq * 3000, Stamps(at_ns, at_ns, at_ns))


class ManualClock:
    """Monotonic nanoseconds that pass when told."""

    def __init__(self) -> None:
        self.at_ns = 1_000 * NS_PER_S

    def __call__(self) -> int:
        return self.at_ns

    def advance(self, seconds: float) -> None:
        self.at_ns += int(seconds * NS_PER_S)


class FakeDetector:
    """Finds one box in the middle of every picture; fails or waits when told to."""

    def __init__(self, *, max_batch: int = 1, name: str = "fake") -> None:
        self._max_batch = max_batch
        self._name = name
        self.failure: Exception | None = None
        self.go_on = threading.Event()
        self.go_on.set()
        self.entered = threading.Event()
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self.closed = False

    @property
    def names(self) -> tuple[str, ...]:
        return (self._name,)

    @property
    def max_batch(self) -> int:
        return self._max_batch

    def detect(self, pictures: Sequence[Picture]) -> list[Detected]:
        self.batches.append(len(pictures))
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.go_on.wait(20), "the test never let the detector go on"
        if self.failure is not None:
            raise self.failure
        answers = []
        for picture in pictures:
            width, height = picture.size_wh
            box = np.array([[width / 4, height / 4, width / 2, height / 2]], np.float32)
            found = Detections(box, np.ones(1, np.float32), np.zeros(1, np.int32), (width, height))
            at_ns = now_ns()
            answers.append(Detected(found, at_ns, at_ns, at_ns))
        return answers

    def begin(self, picture: Picture, on_done: Callable[[], None]) -> Begun | None:
        """Never beside another."""
        return None

    def reports(self) -> tuple[EngineReport, ...]:
        return (EngineReport(self._name, "fake", "fp32", (64, 48), 1, "fake"),)

    def close(self) -> None:
        self.closed = True
