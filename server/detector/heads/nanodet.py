"""NanoDet and NanoDet-Plus: class scores and, per side of the box, a distribution over bins.

The distance of a side is the mean of its distribution, in cells. NanoDet gives class and
distance outputs per stride, NanoDet-Plus one output with both side by side.
"""

from dataclasses import dataclass

import numpy as np

from server.detector.heads.grids import cell_count, cells, strides_for
from server.detector.spec import AnyArray, Candidates, Facts, Tensors
from server.geometry import Float32Array, InputSpec

FAMILY = "nanodet"
SHAPE = "per stride classes N x C and distances N x 4(bins + 1), or one N x (C + 4(bins + 1))"
STRIDES = (8, 16, 32)
USUAL_BINS = (8, 11, 17)


@dataclass(frozen=True, slots=True, eq=False)
class NanoDetHead:
    levels: tuple[tuple[str, str], ...]
    """Class and distance outputs by level; empty for the joined output."""
    joined: str
    class_count: int
    bins: int
    centres: Float32Array
    strides: Float32Array
    logits: bool
    """Whether class scores still need the sigmoid."""
    family: str = FAMILY
    overlapping: bool = True

    def input_spec(self, input_wh: tuple[int, int]) -> InputSpec:
        return InputSpec(
            input_wh,
            colour="bgr",
            scale=1.0,
            mean=(103.53, 116.28, 123.675),
            std=(57.375, 57.12, 58.395),
        )

    def decode(self, outputs: Tensors, item: int, floor: float) -> Candidates:
        if self.joined:
            rows = outputs[self.joined][item]
            scores, distances = rows[:, : self.class_count], rows[:, self.class_count :]
        else:
            scores = np.concatenate([outputs[name][item] for name, _ in self.levels])
            distances = np.concatenate([outputs[name][item] for _, name in self.levels])
        best = scores.max(axis=1)
        if self.logits:
            best = 1 / (1 + np.exp(-np.clip(best, -30, 30)))
        kept = np.flatnonzero(best >= floor)
        # Distances and classes are worked out for the few boxes that stay.
        class_id = scores[kept].argmax(axis=1).astype(np.int32)
        reach = mean_distance(distances[kept], self.bins) * self.strides[kept]
        centre = self.centres[kept]
        xyxy_input = np.concatenate((centre - reach[:, :2], centre + reach[:, 2:]), axis=1)
        return Candidates(xyxy_input, best[kept], class_id)


def mean_distance(distances: AnyArray, bins: int) -> Float32Array:
    """Means (N, 4) of the four softmax distributions over 0..bins-1 in each row."""
    four = distances.reshape(-1, 4, bins)
    weight = np.exp(four - four.max(axis=2, keepdims=True))
    mean: Float32Array = (weight @ np.arange(bins, dtype=np.float32)) / weight.sum(axis=2)
    return mean


def recognise(facts: Facts) -> NanoDetHead | None:
    arrays = {name: array for name, array in facts.outputs.items() if array.ndim == 3}
    if len(arrays) != len(facts.outputs):
        return None
    if len(arrays) == 1:
        return _joined(facts)
    if len(arrays) % 2:
        return None
    half = len(arrays) // 2
    strides = tuple(8 << level for level in range(half))
    by_level: list[tuple[str, str]] = []
    for stride in strides:
        count = cell_count(facts.input_wh, (stride,))
        names = [name for name, array in arrays.items() if array.shape[1] == count]
        if len(names) != 2:
            return None
        by_level.append((names[0], names[1]))
    # Distances come second in the original export; their width must be the same everywhere.
    widths = {(arrays[a].shape[2], arrays[b].shape[2]) for a, b in by_level}
    if len(widths) != 1:
        return None
    class_count, sides = widths.pop()
    if sides % 4 or sides < 16:
        return None
    scores = np.concatenate([arrays[name][0] for name, _ in by_level])
    centres, sizes = cells(facts.input_wh, strides)
    return NanoDetHead(
        levels=tuple(by_level),
        joined="",
        class_count=class_count,
        bins=sides // 4,
        centres=(centres + np.float32(0.5)) * sizes,
        strides=sizes,
        logits=_are_logits(scores),
    )


def _joined(facts: Facts) -> NanoDetHead | None:
    """NanoDet-Plus: told from YOLO heads of the same rows by its classes or its family."""
    [(name, output)] = facts.outputs.items()
    strides = strides_for(facts.input_wh, output.shape[1])
    if strides is None:
        return None
    columns = output.shape[2]
    if facts.names is not None:
        counts = [len(facts.names)]
    else:
        counts = [columns - 4 * bins for bins in USUAL_BINS] if columns >= 80 else []
        counts = [80] if 80 in counts else counts[:1] if facts.family == FAMILY else []
    for class_count in counts:
        sides = columns - class_count
        if class_count > 0 and sides >= 16 and sides % 4 == 0:
            places, sizes = cells(facts.input_wh, strides)
            return NanoDetHead(
                levels=(),
                joined=name,
                class_count=class_count,
                bins=sides // 4,
                # NanoDet-Plus puts a cell's centre on its corner.
                centres=places * sizes,
                strides=sizes,
                logits=_are_logits(output[0, :, :class_count]),
            )
    return None


def _are_logits(scores: AnyArray) -> bool:
    return bool(scores.min() < 0 or scores.max() > 1)
