"""The model at the shape of the picture, instead of a square that is a quarter grey.

A 640x480 picture in a square input leaves 25 % of the arithmetic to padding, a 16:9 one 44 %.
Where the network allows it (`reshape.py`), a variant whose input fits the picture's shape is
made on a thread of its own the first time such a picture comes; until it stands, and where it
cannot be had, the square one answers. A variant must find what the square one finds on the
built-in pictures, or it is not used.
"""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from server.detections import Detected, EngineReport
from server.detector.lanes import OnDone
from server.detector.model import BegunPicture, ModelDetector, ModelStatistics
from server.geometry import fit
from server.memory import give_back_memory
from server.pixels import Picture

logger = logging.getLogger(__name__)

# The coarsest grid of the families we know; an input must be a multiple of it.
MULTIPLE = 32
VARIANTS_AT_MOST = 4
# A shape whose pictures are looked at two at a time holds the network twice more.
SIDE_BY_SIDE_SHAPES = 2
JOIN_TIMEOUT_S = 2.0

Size = tuple[int, int]
MakeVariant = Callable[[Size], ModelDetector]
"""Called on the builder's thread; raises ModelError where the model cannot take that size."""


class AspectDetector:
    """One model in the shapes its pictures need. Thread rules as those of `ModelDetector`.

    Bound: VARIANTS_AT_MOST shapes beside the square one; further shapes use the square one.
    Shapes of the `expected` picture sizes are made at once.
    """

    def __init__(
        self, square: ModelDetector, make_variant: MakeVariant, expected: Sequence[Size] = ()
    ) -> None:
        self._square = square
        self._make_variant = make_variant
        self._by_size: dict[Size, ModelDetector] = {}
        self._side_by_side: list[ModelDetector] = []
        self._wanted: set[Size] = set()
        self._last_size = square.input_spec.size_wh
        self._requests: queue.SimpleQueue[Size | None] = queue.SimpleQueue()
        self._builder: threading.Thread | None = None
        self._closed = False
        # Set once the network has shown that it takes no other size.
        self._refuses = False
        self._built = threading.Condition()
        for picture_wh in expected:
            self._for(picture_wh)

    @property
    def names(self) -> tuple[str, ...]:
        return self._square.names

    @property
    def max_batch(self) -> int:
        return self._square.max_batch

    def detect(self, pictures: Sequence[Picture]) -> list[Detected]:
        """Boxes per picture; pictures of one shape run together."""
        by_detector: dict[ModelDetector, list[int]] = {}
        for index, picture in enumerate(pictures):
            by_detector.setdefault(self._for(picture.size_wh), []).append(index)
        answers: dict[int, Detected] = {}
        for detector, indices in by_detector.items():
            self._last_size = detector.input_spec.size_wh
            found = detector.detect([pictures[index] for index in indices])
            answers.update(zip(indices, found, strict=True))
        return [answers[index] for index in range(len(pictures))]

    def begin(self, picture: Picture, on_done: OnDone) -> BegunPicture | None:
        """As that of `ModelDetector`, for pictures of the first SIDE_BY_SIDE_SHAPES."""
        detector = self._for(picture.size_wh)
        if detector not in self._side_by_side:
            if len(self._side_by_side) == SIDE_BY_SIDE_SHAPES:
                return None
            self._side_by_side.append(detector)
        self._last_size = detector.input_spec.size_wh
        return detector.begin(picture, on_done)

    def reports(self) -> tuple[EngineReport, ...]:
        """The engine of the shape used last."""
        [own] = self._square.reports()
        [used] = self._by_size.get(self._last_size, self._square).reports()
        return (replace(used, model=own.model, input_wh=self._last_size),)

    def statistics(self) -> ModelStatistics:
        """Counts over all shapes."""
        counts = [part.statistics() for part in (self._square, *self._by_size.values())]
        return ModelStatistics(
            sum(count.pictures for count in counts),
            sum(count.not_finite for count in counts),
            sum(count.unreadable for count in counts),
        )

    def wait_shape(self, picture_wh: Size, timeout_s: float) -> bool:
        """Whether pictures of that size run in their own shape by then; benches and tests."""
        size = fitting_size(picture_wh, self._square.input_spec.size_wh)
        if size == self._square.input_spec.size_wh:
            return True
        self._for(picture_wh)
        with self._built:
            self._built.wait_for(lambda: size in self._by_size or self._refuses, timeout_s)
            return size in self._by_size

    def close(self) -> None:
        """Free all shapes; one that is being made is dropped when it is done."""
        self._closed = True
        self._requests.put(None)
        if self._builder is not None:
            self._builder.join(JOIN_TIMEOUT_S)
        for detector in (self._square, *self._by_size.values()):
            detector.close()
        self._by_size.clear()
        self._side_by_side.clear()

    def _for(self, picture_wh: Size) -> ModelDetector:
        size = fitting_size(picture_wh, self._square.input_spec.size_wh)
        if size == self._square.input_spec.size_wh:
            return self._square
        detector = self._by_size.get(size)
        if detector is not None:
            return detector
        is_new = size not in self._wanted and len(self._wanted) < VARIANTS_AT_MOST
        if is_new and not self._refuses:
            self._wanted.add(size)
            self._requests.put(size)
            if self._builder is None:
                self._builder = threading.Thread(target=self._build, name="aspects", daemon=True)
                self._builder.start()
        return self._square

    def _build(self) -> None:
        """On the builder's thread, which must never end the detector that serves meanwhile."""
        while (size := self._requests.get()) is not None:
            if self._refuses:
                continue
            detector: ModelDetector | None
            try:
                detector = self._make_variant(size)
            except Exception as error:
                # Most models that cannot be reshaped say so in a way of their own.
                logger.info("The model keeps its own input size: it takes no %dx%d", *size)
                logger.debug("%dx%d: %s", *size, " ".join(str(error).split())[:500])
                detector = None
            with self._built:
                if detector is None:
                    self._refuses = True
                elif self._closed:
                    detector.close()
                else:
                    self._by_size[size] = detector
                self._built.notify_all()
            give_back_memory()


def fitting_size(picture_wh: Size, square_wh: Size) -> Size:
    """The smallest input on the model's grid that holds the picture at the square's scale."""
    width, height = fit(picture_wh, square_wh).content_wh
    return (
        min(square_wh[0], -(-width // MULTIPLE) * MULTIPLE),
        min(square_wh[1], -(-height // MULTIPLE) * MULTIPLE),
    )
