"""The detector all compared servers share: the product's own, as a function of a BGR picture.

Peers differ in how a picture gets to it and back, and in nothing else.
"""

import argparse
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
import psutil

from server.detections import Detections
from server.detector.load import load_detector
from server.model_registry import chosen_model
from server.pixels import BgrPicture
from server.settings import DetectorSettings

BgrArray = npt.NDArray[np.uint8]

CONFIDENCE: Final = 0.35
"""What the product shows by default."""
COLOUR_BGR: Final = (0, 255, 0)
LINE: Final = 2
WARM_UPS: Final = 3


@dataclass(frozen=True, slots=True)
class Found:
    """One box, in pixels of the picture."""

    xyxy: tuple[float, float, float, float]
    confidence: float
    class_id: int
    name: str


class Finder:
    """May be called from any thread; one call at a time, the others wait."""

    def __init__(self, settings: DetectorSettings, size_wh: tuple[int, int]) -> None:
        """Loads the model and warms it up. Raises `SightlineError` when it cannot be had."""
        self._lock = threading.Lock()
        self._detector = load_detector(settings, [size_wh])
        self.calls = 0
        self.boxes = 0
        width, height = size_wh
        grey = np.full((height, width, 3), 114, np.uint8)
        for _ in range(WARM_UPS):
            self.find(grey)
        self.calls = self.boxes = 0

    def find(self, bgr: BgrArray) -> list[Found]:
        """What is seen with at least the confidence that is shown, best first."""
        with self._lock:
            (detected,) = self._detector.detect([BgrPicture(bgr)])
            names = self._detector.names
            shown = detected.detections.select(CONFIDENCE)
            self.calls += 1
            self.boxes += len(shown)
        return _as_list(shown, names)

    def annotate(self, bgr: npt.NDArray[Any]) -> BgrArray:
        """The same picture with its boxes drawn into it, as the usual handler does."""
        picture: BgrArray = bgr
        draw(picture, self.find(picture))
        return picture

    def report(self) -> dict[str, Any]:
        """What really runs, and how much it was used: proof that it is."""
        engine = self._detector.reports()[0]
        return {
            "model": engine.model,
            "provider": engine.provider,
            "precision": engine.precision,
            "threads": engine.threads,
            "calls": self.calls,
            "boxes": self.boxes,
        }

    def close(self) -> None:
        with self._lock:
            self._detector.close()


def draw(bgr: BgrArray, found: Sequence[Found]) -> None:
    """Boxes with their names, in place."""
    for box in found:
        x1, y1, x2, y2 = map(round, box.xyxy)
        cv2.rectangle(bgr, (x1, y1), (x2, y2), COLOUR_BGR, LINE)
        text = f"{box.name} {box.confidence:.2f}"
        at = (x1, max(12, y1 - 4))
        cv2.putText(bgr, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, COLOUR_BGR, 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every peer server is started with."""
    defaults = DetectorSettings()
    add = parser.add_argument
    add("--port", type=int, required=True)
    add("--model", default=defaults.model)
    add("--provider", default=defaults.provider)
    add("--precision", default=defaults.precision)
    add("--threads", type=int, default=defaults.threads)
    add("--width", type=int, default=640)
    add("--height", type=int, default=480)


def made_from(options: argparse.Namespace) -> Finder:
    """The finder of a server's arguments."""
    settings = DetectorSettings(
        model=chosen_model(options.model),
        provider=options.provider,
        precision=options.precision,
        threads=options.threads,
    )
    return Finder(settings, (options.width, options.height))


def statistics(finder: Finder) -> dict[str, Any]:
    """The part of `/api/stats` that the bench reads."""
    process = psutil.Process()
    times = process.cpu_times()
    return {
        "stages_ms": {},
        "loop_lag_ms": None,
        "detector": finder.report(),
        "process": {
            "cpu_s": times.user + times.system,
            "resident_mib": process.memory_info().rss / 2**20,
            "threads": process.num_threads(),
        },
    }


def _as_list(detections: Detections, names: Sequence[str]) -> list[Found]:
    return [
        Found(
            (float(x1), float(y1), float(x2), float(y2)),
            float(confidence),
            int(class_id),
            names[class_id] if class_id < len(names) else f"class{class_id}",
        )
        for (x1, y1, x2, y2), confidence, class_id in zip(
            detections.xyxy.tolist(),
            detections.confidence.tolist(),
            detections.class_id.tolist(),
            strict=True,
        )
    ]
