"""One model as a detector: pictures in, boxes in source pixels out.

Loaded on any thread; `detect` and `close` belong to the inference thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from server.clock import now_ns
from server.detections import Detected, Detections, EngineReport
from server.detector.engine import EngineChain
from server.detector.lanes import Lane, Lanes, OnDone
from server.detector.names import apply_map
from server.detector.spec import Head, Tensors
from server.detector.suppress import suppress
from server.geometry import (
    ElementType,
    InputSpec,
    Letterbox,
    best_first,
    input_to_source,
    points_to_source,
)
from server.pixels import Picture, Scratch

ELEMENT_TYPES: dict[str, ElementType] = {
    "float32": "float32",
    "float16": "float16",
    "uint8": "uint8",
}


@dataclass(frozen=True, slots=True)
class BoxRules:
    """Which of a head's boxes stay."""

    floor: float
    iou: float
    max_boxes: int


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """Counts since the model was loaded."""

    pictures: int
    not_finite: int
    """Answers thrown away because an output held NaN or infinity."""
    unreadable: int
    """Pictures that could not be prepared; they got no boxes."""


@dataclass(frozen=True, slots=True)
class BegunPicture:
    """One that is looked at beside another."""

    detector: "ModelDetector"
    lane: Lane
    size_wh: tuple[int, int]
    letterbox: Letterbox | None
    prepared_at_ns: int

    @property
    def done(self) -> bool:
        """Whether `wait` takes no time."""
        return self.lane.done

    def wait(self) -> Detected:
        """Its boxes. Call it once, on the detector's thread; raises what `detect` raises."""
        return self.detector.finish(self)


class ModelDetector:
    """Prepare, run, decode, suppress, scale back."""

    def __init__(
        self,
        name: str,
        chain: EngineChain,
        head: Head,
        spec: InputSpec,
        names: tuple[str, ...],
        class_map: tuple[int, ...] | None,
        rules: BoxRules,
    ) -> None:
        self._name = name
        self._chain: EngineChain | None = chain
        self._lanes = Lanes(lambda: chain.engine.half())
        self._head = head
        self._spec = spec
        self._names = names
        self._class_map = None if class_map is None else np.array(class_map, np.int32)
        self._rules = rules
        self._scratch = Scratch()
        self._pictures = self._not_finite = self._unreadable = 0

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    @property
    def max_batch(self) -> int:
        return len(self._running().engine.input)

    @property
    def input_spec(self) -> InputSpec:
        """How pictures are fed, for the bench and for reports."""
        return self._spec

    def detect(self, pictures: Sequence[Picture]) -> list[Detected]:
        """Boxes per picture, best first; the stage instants are those of its batch."""
        step = self.max_batch
        found: list[Detected] = []
        for first in range(0, len(pictures), step):
            found += self._detect_batch(pictures[first : first + step])
        return found

    def begin(self, picture: Picture, on_done: OnDone) -> "BegunPicture | None":
        """Look at a picture beside another, with half the threads, and call `on_done` on a foreign
        thread when that has been done. None where no more can be looked at that way (yet)."""
        lane = self._lanes.free() if self.max_batch == 1 else None
        if lane is None:
            return None
        tensor = lane.engine.input
        spec = replace(self._spec, dtype=ELEMENT_TYPES[tensor.dtype.name])
        letterbox = self._prepare(picture, spec, tensor[0])
        begun = BegunPicture(self, lane, picture.size_wh, letterbox, now_ns())
        lane.start(on_done)
        return begun

    def finish(self, begun: "BegunPicture") -> Detected:
        """For `BegunPicture.wait`."""
        try:
            outputs, inferred_at_ns = begun.lane.wait()
        except Exception:
            # What comes next goes the usual way, which knows what to do with an engine that fails.
            begun.lane.close()
            raise
        self._lanes.give_back(begun.lane)
        [detected] = self._detected(
            [begun.size_wh], [begun.letterbox], outputs, begun.prepared_at_ns, inferred_at_ns
        )
        return detected

    def reports(self) -> tuple[EngineReport, ...]:
        chain = self._running()
        way = chain.engine.way
        return (
            EngineReport(
                model=self._name,
                provider=way.provider,
                precision=way.precision,
                input_wh=self._spec.size_wh,
                threads=way.threads,
                family=self._head.family,
                fallback=chain.fallback,
            ),
        )

    def statistics(self) -> ModelStatistics:
        return ModelStatistics(self._pictures, self._not_finite, self._unreadable)

    def close(self) -> None:
        """Free the session and its memory; the detector is of no use afterwards."""
        self._lanes.close()
        self._chain = None

    def _running(self) -> EngineChain:
        assert self._chain is not None, "the detector is closed"
        return self._chain

    def _detect_batch(self, pictures: Sequence[Picture]) -> list[Detected]:
        chain = self._running()
        tensor = chain.engine.input
        spec = replace(self._spec, dtype=ELEMENT_TYPES[tensor.dtype.name])
        letterboxes = [
            self._prepare(picture, spec, tensor[index]) for index, picture in enumerate(pictures)
        ]
        prepared_at_ns = now_ns()
        outputs = chain.run(len(pictures))
        sizes = [picture.size_wh for picture in pictures]
        return self._detected(sizes, letterboxes, outputs, prepared_at_ns, now_ns())

    def _detected(
        self,
        sizes: Sequence[tuple[int, int]],
        letterboxes: Sequence[Letterbox | None],
        outputs: Tensors,
        prepared_at_ns: int,
        inferred_at_ns: int,
    ) -> list[Detected]:
        self._pictures += len(sizes)
        usable = all_finite(outputs)
        if not usable:
            self._not_finite += len(sizes)
        return [
            Detected(
                self._boxes(outputs, index, letterbox)
                if usable and letterbox is not None
                else Detections.empty(size_wh),
                prepared_at_ns,
                inferred_at_ns,
                now_ns(),
            )
            for index, (size_wh, letterbox) in enumerate(zip(sizes, letterboxes, strict=True))
        ]

    def _prepare(
        self, picture: Picture, spec: InputSpec, tensor: "np.ndarray[tuple[int, ...], np.dtype]"
    ) -> Letterbox | None:
        try:
            return picture.write_tensor(spec, tensor, self._scratch)
        except (ValueError, cv2.error):
            # One stream's broken frame must not cost the others of the batch their boxes.
            self._unreadable += 1
            tensor.fill(0)
            return None

    def _boxes(self, outputs: Tensors, item: int, letterbox: Letterbox) -> Detections:
        rules = self._rules
        found = self._head.decode(outputs, item, rules.floor)
        class_id, confidence = found.class_id, found.confidence
        if self._class_map is not None:
            class_id = apply_map(class_id, self._class_map)
        rows = np.flatnonzero((class_id >= 0) & (class_id < len(self._names)))
        if self._head.overlapping:
            kept = suppress(
                found.xyxy_input[rows], confidence[rows], class_id[rows], rules.iou, rules.max_boxes
            )
        else:
            kept = best_first(confidence[rows], rules.max_boxes)
        rows = rows[kept]
        xyxy = input_to_source(found.xyxy_input[rows], letterbox)
        # What lies wholly in the padding has no area left.
        visible = (xyxy[:, 2:] > xyxy[:, :2]).all(axis=1)
        rows, xyxy = rows[visible], xyxy[visible]
        landmarks = None
        if found.landmarks_input is not None:
            landmarks = points_to_source(found.landmarks_input[rows], letterbox)
        return Detections(
            xyxy=xyxy,
            confidence=np.minimum(confidence[rows], np.float32(1)),
            class_id=class_id[rows],
            size_wh=letterbox.source_wh,
            landmarks=landmarks,
        )


def all_finite(outputs: Tensors) -> bool:
    """Whether no output holds NaN or infinity; a sum meets every value once and keeps both."""
    return all(
        bool(np.isfinite(array.sum(dtype=np.float32)))
        for array in outputs.values()
        if array.dtype.kind == "f"
    )
