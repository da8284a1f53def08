"""From settings to a warm, checked detector.

Steps for each model: outline of the file, interface and one grey run on the reference
session (which also shows real shapes), family, names, then the ways to run it until one
loads, answers and agrees with the reference.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from server.detector.aspects import AspectDetector
from server.detector.composite import CompositeDetector, Part
from server.detector.engine import (
    NUMPY_TYPES,
    Engine,
    EngineChain,
    FeedPlan,
    host,
    open_session,
    read_interface,
    reference_way,
    runtime_version,
)
from server.detector.model import BoxRules, ModelDetector
from server.detector.names import names_and_map, parse_names, read_labels
from server.detector.onnx_outline import read_outline
from server.detector.parity import (
    Difference,
    ParityCache,
    built_in_pictures,
    cache_key,
    compare,
    cut_to_shape,
)
from server.detector.providers import Host, ModelFile, ways_to_run
from server.detector.recognise import recognise
from server.detector.reshape import with_input_size
from server.detector.sidecar import (
    apply_input,
    check_input,
    literal,
    read_sidecar,
    sidecar_path,
)
from server.detector.spec import (
    AnyArray,
    Facts,
    Head,
    Sidecar,
    TensorInfo,
    full_precision_path,
)
from server.errors import ModelError, ParityError
from server.geometry import InputSpec, Layout
from server.memory import give_back_memory
from server.model_registry import DEFAULT_CACHE_DIR, resolve_model
from server.settings import DetectorSettings

logger = logging.getLogger(__name__)

# Sizes for models that leave theirs open. Faces are small, so YuNet gets a camera's shape.
OPEN_INPUT_WH = {"yunet": (640, 480)}
DEFAULT_INPUT_WH = (640, 640)
MAX_BATCH = 64
# Padding beside the picture weighs on the boxes at its edge: there a shape may differ more than
# an engine may.
MAX_SHAPE_DIFFERENCE = 0.35
GREY = 114


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What is known of a model once its reference session has answered."""

    file: ModelFile
    head: Head
    spec: InputSpec
    names: tuple[str, ...]
    class_map: tuple[int, ...] | None
    feed: FeedPlan
    sidecar: Sidecar
    reference: Engine


def load_detector(
    settings: DetectorSettings, expected_sizes: Sequence[tuple[int, int]] = ()
) -> Part | CompositeDetector:
    """The detector of the settings; ModelError with one clear line when it cannot be.

    `expected_sizes` are those of the pictures to come, as far as they are known: what fits them
    is prepared in the background.

    Takes seconds at most and belongs off the event loop. The result is used and closed by
    one thread.
    """
    machine = host()
    cache_dir = Path(settings.cache_dir or DEFAULT_CACHE_DIR).expanduser()
    paths = model_paths(settings.model, settings.cache_dir)
    labels = settings.labels.split("+") if settings.labels else []
    if len(labels) > len(paths):
        raise ModelError(f"labels: {len(labels)} files for {len(paths)} models")
    parts: list[Part] = []
    for index, path in enumerate(paths):
        label_path = Path(labels[index]).expanduser() if index < len(labels) else None
        loading = _Loading(path, label_path, settings, machine, cache_dir)
        parts.append(
            _with_shapes(loading, expected_sizes) if settings.fit_shape else loading.load(path)
        )
    give_back_memory()
    return parts[0] if len(parts) == 1 else CompositeDetector(parts, settings.max_boxes)


def model_paths(model: str, cache_dir: str = "") -> list[Path]:
    """The files of `a.onnx+b.onnx`; a single file whose name has a plus wins."""
    if "+" in model and Path(model).expanduser().is_file():
        return [Path(model).expanduser()]
    names = [name.strip() for name in model.split("+")]
    if not all(names):
        raise ModelError(f"model: {model!r} names no file on one side of a plus")
    return [resolve_model(name, cache_dir) for name in names]


@dataclass(frozen=True, slots=True)
class _Loading:
    """What loading a model and its shapes needs, more than once."""

    path: Path
    label_path: Path | None
    settings: DetectorSettings
    machine: Host
    cache_dir: Path

    @property
    def rules(self) -> BoxRules:
        return BoxRules(self.settings.confidence_floor, self.settings.iou, self.settings.max_boxes)

    def read(self, path: Path) -> LoadedModel:
        return _read_model(path, self.label_path, self.settings, self.machine)

    def load(self, path: Path) -> ModelDetector:
        """The model in `path`, on the first engine that loads, answers and agrees."""
        model = self.read(path)
        rules = self.rules
        if model.sidecar.floor is not None:
            rules = replace(rules, floor=max(rules.floor, model.sidecar.floor))
        ways = ways_to_run(
            model.file,
            self.settings.provider,
            self.settings.precision,
            self.settings.threads,
            self.machine,
            self.cache_dir,
            _tensorrt_shapes(model.feed),
        )
        cache = ParityCache(self.cache_dir) if self.settings.parity else None
        chain = EngineChain.start(ways, model.feed, _ParityCheck(model, rules, cache).refusal)
        detector = _detector(model, chain, rules)
        [report] = detector.reports()
        logger.info(
            "%s: %s at %dx%d on %s %s, %d threads%s",
            path.name,
            report.family,
            *report.input_wh,
            report.provider,
            report.precision,
            report.threads,
            f" ({report.fallback})" if report.fallback else "",
        )
        return detector

    def load_shape(self, size_wh: tuple[int, int]) -> ModelDetector:
        """The model with another input size; ModelError where it has no such thing, or where it
        would not find on the built-in pictures what the file itself finds."""
        model = self.read(self.path)
        shaped = self.load(self._shaped_file(model.feed.name, size_wh))
        rules = replace(self.rules, floor=min(self.rules.floor, 0.05), max_boxes=300)
        square = _detector(model, EngineChain(model.reference, model.feed), rules)
        pictures = [cut_to_shape(picture, size_wh) for picture in built_in_pictures()]
        difference = compare(
            [found.detections for found in square.detect(pictures)],
            [found.detections for found in shaped.detect(pictures)],
        )
        if difference.confidence > MAX_SHAPE_DIFFERENCE:
            raise ParityError(f"{self.path.name} at {size_wh[0]}x{size_wh[1]}: {difference}")
        return shaped

    def _shaped_file(self, input_name: str, size_wh: tuple[int, int]) -> Path:
        return self._derived(
            self.path,
            f"{size_wh[0]}x{size_wh[1]}",
            lambda content: with_input_size(content, input_name, size_wh),
        )

    def _derived(self, path: Path, kind: str, change: Callable[[bytes], bytes]) -> Path:
        """A changed copy of a model file in the cache, made once per content."""
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:12]
        folder = self.cache_dir / "derived"
        file = folder / f"{path.stem[:60]}-{digest}-{kind}.onnx"
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{os.getpid()}")
            partial.write_bytes(change(content))
            partial.replace(file)
        return file


def _with_shapes(loading: _Loading, expected: Sequence[tuple[int, int]]) -> Part:
    """The model, in the shapes its pictures will need where that can gain anything."""
    detector = loading.load(loading.path)
    [report] = detector.reports()
    # On a GPU, pictures of many shapes in one batch are worth more than less padding. A file
    # with a sidecar is one its owner has taken into his own hands.
    gains = report.provider in ("cpu", "openvino") and detector.input_spec.layout == "nchw"
    plain = detector.input_spec.placement != "stretch" and sidecar_path(loading.path) is None
    if gains and plain and detector.max_batch == 1:
        return AspectDetector(detector, loading.load_shape, expected)
    return detector


def _detector(model: LoadedModel, chain: EngineChain, rules: BoxRules) -> ModelDetector:
    return ModelDetector(
        model.file.path.stem, chain, model.head, model.spec, model.names, model.class_map, rules
    )


def _read_model(
    path: Path, label_path: Path | None, settings: DetectorSettings, machine: Host
) -> LoadedModel:
    outline = read_outline(path)
    sidecar = read_sidecar(path)
    file = ModelFile(
        path,
        outline.is_half,
        _original_of(path) if outline.is_half else None,
        outline.is_dynamically_quantised,
    )
    reference = reference_way(file.full(), settings.threads or machine.cores)
    inputs, outputs, metadata = read_interface(open_session(reference, {}, optimised=False))
    picture, others = _picture_input(inputs, path)
    family = sidecar.family or metadata.get("sightline.family") or metadata.get("family")
    overrides = _input_overrides(metadata, sidecar)
    input_wh = _input_wh(picture, overrides, metadata, outputs)
    feed = _feed(picture, others, outputs, input_wh, settings.max_batch, path)
    engine = Engine(reference, feed, optimised=False)
    engine.input.fill(GREY / 255 if engine.input.dtype.kind == "f" else GREY)
    named = read_labels(label_path) if label_path else sidecar.names
    if named is None:
        named = parse_names(literal(metadata["names"])) if "names" in metadata else None
    facts = Facts(
        model=path.name,
        inputs=inputs,
        outputs=engine.warm_up(runs=1),
        input_wh=input_wh,
        metadata=metadata,
        names=named,
        sidecar=sidecar,
        family=family,
    )
    head = recognise(facts)
    try:
        names, class_map = names_and_map(named, head.class_count, head.family)
    except ModelError as error:
        raise ModelError(f"{path.name}: {error}") from error
    spec = apply_input(head.input_spec(input_wh), overrides)
    layout: Layout = "nhwc" if feed.shape[-1] == 3 else "nchw"
    spec = replace(spec, layout=layout)
    return LoadedModel(file, head, spec, names, class_map, feed, sidecar, engine)


def _original_of(path: Path) -> Path | None:
    original = full_precision_path(path)
    if original is None or not original.is_file():
        return None
    read_outline(original)
    return original


def _picture_input(inputs: Sequence[TensorInfo], path: Path) -> tuple[TensorInfo, list[TensorInfo]]:
    """The input that takes the picture, and the others."""
    pictures = [
        info
        for info in inputs
        if len(info.shape) == 4
        and 3 in (info.shape[1], info.shape[3])
        and info.dtype in ("tensor(float)", "tensor(float16)", "tensor(uint8)")
    ]
    if len(pictures) != 1:
        found = ", ".join(map(str, inputs)) or "none"
        raise ModelError(
            f"{path.name}: a detector takes one picture of Nx3xHxW or NxHxWx3 as float, float16 "
            f"or uint8; its inputs are {found}"
        )
    return pictures[0], [info for info in inputs if info is not pictures[0]]


def _input_overrides(metadata: Mapping[str, str], sidecar: Sidecar) -> Mapping[str, Any]:
    """`sightline.input` of the metadata, with the sidecar's keys over it."""
    text = metadata.get("sightline.input")
    own = check_input(literal(text), "metadata sightline.input") if text else {}
    return {**own, **sidecar.input}


def _input_wh(
    picture: TensorInfo,
    overrides: Mapping[str, Any],
    metadata: Mapping[str, str],
    outputs: Sequence[TensorInfo],
) -> tuple[int, int]:
    """Width and height: the file's where it fixes them, else the first of what is said."""
    _, *dims = picture.shape
    height, width = dims[1:] if dims[0] == 3 else dims[:2]
    said: object = overrides.get("size")
    if said is None and "imgsz" in metadata:
        said = literal(metadata["imgsz"])
        # Ultralytics writes height before width.
        said = said[::-1] if isinstance(said, list) else said
    if not (isinstance(said, list) and len(said) == 2 and all(isinstance(s, int) for s in said)):
        family = "yunet" if any(info.name == "kps_8" for info in outputs) else ""
        said = OPEN_INPUT_WH.get(family, DEFAULT_INPUT_WH)
    sizes = [
        dim if isinstance(dim, int) else asked
        for dim, asked in zip((width, height), said, strict=True)
    ]
    if not all(1 <= side <= 8192 for side in sizes):
        raise ModelError(f"the model's input of {sizes[0]}x{sizes[1]} is outside 1..8192")
    return sizes[0], sizes[1]


def _feed(
    picture: TensorInfo,
    others: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    input_wh: tuple[int, int],
    max_batch: int,
    path: Path,
) -> FeedPlan:
    batch, *dims = picture.shape
    fixed_batch = isinstance(batch, int)
    count = batch if isinstance(batch, int) else max_batch
    if not 1 <= count <= MAX_BATCH:
        raise ModelError(f"{path.name}: a batch of {count} is outside 1..{MAX_BATCH}")
    width, height = input_wh
    channels_first = dims[0] == 3
    shape = (3, height, width) if channels_first else (height, width, 3)
    # Known shapes let every provider plan its memory once and OpenVINO compile once.
    values = zip(picture.shape, (count, *shape), strict=True)
    dimensions = {name: value for name, value in values if isinstance(name, str)}
    if count > 1 and isinstance(batch, str):
        dimensions.pop(batch, None)
    return FeedPlan(
        name=picture.name,
        shape=shape,
        batch=count,
        fixed_batch=fixed_batch,
        constants={info.name: _constant(info, count, input_wh, path) for info in others},
        dimensions=dimensions,
        outputs=tuple(info.name for info in outputs),
    )


def _constant(info: TensorInfo, count: int, input_wh: tuple[int, int], path: Path) -> AnyArray:
    """A value for an input beside the picture: some models want to be told its size.

    They scale their boxes by it; told the input's own size, they answer in input pixels.
    """
    width, height = input_wh
    known = {
        "orig_target_sizes": (width, height),
        "orig_size": (width, height),
        "target_sizes": (height, width),
        "im_shape": (height, width),
        "scale_factor": (1, 1),
    }
    if info.name not in known or info.dtype not in NUMPY_TYPES:
        raise ModelError(
            f"{path.name}: input {info} is not known; besides the picture we can give "
            f"{', '.join(known)}"
        )
    return np.tile(np.array(known[info.name], NUMPY_TYPES[info.dtype]), (count, 1))


def _tensorrt_shapes(feed: FeedPlan) -> tuple[str, str] | None:
    if feed.fixed_batch:
        return None
    size = "x".join(map(str, feed.shape))
    return f"{feed.name}:1x{size}", f"{feed.name}:{feed.batch}x{size}"


class _ParityCheck:
    """Compares engines with a model's reference."""

    def __init__(self, model: LoadedModel, rules: BoxRules, cache: ParityCache | None) -> None:
        """Without a cache nothing is checked."""
        self._model = model
        self._rules = rules
        self._cache = cache

    def refusal(self, engine: Engine) -> str:
        """Why the engine is passed over; empty when it may be used.

        An FP16 file that disagrees with its FP32 original is at fault itself: ParityError.
        """
        model, way = self._model, engine.way
        full = model.file.full()
        if self._cache is None or (way.provider == "cpu" and way.path == full):
            return ""
        paths = [way.path] if way.path == full else [way.path, full]
        key = cache_key(
            paths, runtime_version(), way.provider, way.precision, model.spec, model.head.family
        )
        difference = self._cache.find(key)
        if difference is None:
            difference = self._measure(engine)
            if difference.acceptable:
                self._cache.keep(key, difference)
        if difference.acceptable:
            return ""
        if way.path == model.file.path != full:
            raise ParityError(f"{way.path.name}: {difference}")
        return str(difference)

    def _measure(self, engine: Engine) -> Difference:
        # Below the floor too: a box may sink through it in one engine and not in the other.
        rules = BoxRules(min(self._rules.floor, 0.05), self._rules.iou, 300)
        pictures = built_in_pictures()
        answers = []
        for each in (self._model.reference, engine):
            detector = _detector(self._model, EngineChain(each, self._model.feed), rules)
            answers.append([found.detections for found in detector.detect(pictures)])
            if detector.statistics().not_finite:
                return Difference(1.0, 0.0, 0)
        return compare(answers[0], answers[1])
