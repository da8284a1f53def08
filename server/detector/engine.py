"""onnxruntime behind one door: a session, its buffers, and the next way when it fails.

Made on any thread, then used and closed by the inference thread alone. Options and shapes
are decided elsewhere (`providers.py`, `load.py`); errors leave as ModelError in one line.
"""

import contextlib
import io
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from server.detector.openvino import OpenVinoSession, library
from server.detector.providers import (
    Host,
    Way,
    available_cores,
    has_native_bf16,
    with_half_the_threads,
)
from server.detector.spec import AnyArray, TensorInfo
from server.errors import ModelError

logger = logging.getLogger(__name__)

# onnxruntime's own exceptions share no base class but Exception.
ORT_ERRORS: tuple[type[Exception], ...] = (
    *(
        value
        for value in vars(ort_state).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ),
    RuntimeError,
    ValueError,
    OSError,
    MemoryError,
)
# What fails is raised and told by us; onnxruntime would print it a second time.
QUIET = 4
FIRST_RUN_TIMEOUT_S = 30.0
TENSORRT_BUILD_TIMEOUT_S = 1200.0
WARM_UP_RUNS = 2
NUMPY_TYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


@dataclass(frozen=True, slots=True)
class FeedPlan:
    """What an engine is fed: the picture tensor, and constants of models that want the size."""

    name: str
    shape: tuple[int, int, int]
    batch: int
    """Most pictures of one run."""
    fixed_batch: bool
    """Whether a run always takes `batch` pictures, needed or not."""
    constants: Mapping[str, AnyArray]
    """Further inputs, one row per picture."""
    dimensions: Mapping[str, int]
    """Values for the open dimensions that have names."""
    outputs: tuple[str, ...]
    """Their names, in the model's order."""

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """By name; -1 for a batch of any size up to `batch`."""
        rows = self.batch if self.fixed_batch or self.batch == 1 else -1
        shapes = {self.name: self.shape}
        shapes |= {name: value.shape[1:] for name, value in self.constants.items()}
        return {name: (rows, *shape) for name, shape in shapes.items()}


def host() -> Host:
    """What this machine and this onnxruntime offer."""
    return Host(tuple(ort.get_available_providers()), available_cores(), has_native_bf16())


def runtime_version() -> str:
    """Part of the key of every cached result."""
    return f"onnxruntime {ort.__version__}"


def open_session(way: Way, dimensions: Mapping[str, int], *, optimised: bool = True) -> Any:
    """An onnxruntime session that really runs on the way's provider; ModelError otherwise.

    It keeps the interpreter's lock for as long as that takes: half as long if not `optimised`,
    which will do for what runs a few times.
    """
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = way.threads
    options.inter_op_num_threads = 1
    # Idle threads that spin take the cores from decoding and encoding between frames.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if way.provider == "openvino" or not optimised:
        # OpenVINO optimises the graph itself: the same speed, sooner there.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name, value in dimensions.items():
        options.add_free_dimension_override_by_name(name, value)
    name, provider_options = way.ort_provider
    if name not in ort.get_available_providers():
        raise ModelError(f"{way.path.name}: {way.provider}: not part of this onnxruntime")
    if way.provider in ("cuda", "tensorrt"):
        _load_cuda()
    try:
        session = ort.InferenceSession(str(way.path), options, providers=[(name, provider_options)])
    except ORT_ERRORS as error:
        raise ModelError(f"{way.path.name}: {way.provider}: {one_line(error)}") from error
    session.disable_fallback()
    # A provider that cannot start is replaced by the CPU's without an exception.
    if session.get_providers()[0] != name:
        raise ModelError(f"{way.path.name}: {way.provider}: the provider did not start")
    return session


@cache
def _load_cuda() -> None:
    """Find CUDA and cuDNN where pip put them: the extra `gpu` brings both as packages, which the
    system's loader does not know. What it prints of missing ones goes to the log."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        ort.preload_dlls(directory="")
    if text := " ".join(said.getvalue().split()):
        logger.info("CUDA libraries: %s", text[:500])


def read_interface(
    session: Any,
) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...], dict[str, str]]:
    """Declared inputs, outputs and metadata."""

    def infos(args: Sequence[Any]) -> tuple[TensorInfo, ...]:
        return tuple(TensorInfo(arg.name, tuple(arg.shape or ()), arg.type) for arg in args)

    try:
        metadata = dict(session.get_modelmeta().custom_metadata_map)
        return infos(session.get_inputs()), infos(session.get_outputs()), metadata
    except UnicodeDecodeError as error:
        raise ModelError(f"a name or a text in the model is not UTF-8: {error.reason}") from error


class Engine:
    """One session and its reused input. Owned by one thread at a time."""

    def __init__(self, way: Way, feed: FeedPlan, *, optimised: bool = True) -> None:
        self.way = way
        self._feed = feed
        self._session: Any = _openvino_session(way, feed)
        if self._session is not None:
            dtype = self._session.input_types[feed.name]
        else:
            self._session = open_session(way, feed.dimensions, optimised=optimised)
            by_name = {arg.name: arg for arg in self._session.get_inputs()}
            if feed.name not in by_name:
                raise ModelError(f"{way.path.name}: has no input {feed.name}")
            dtype = NUMPY_TYPES[by_name[feed.name].type]
        self.input: AnyArray = np.zeros((feed.batch, *feed.shape), dtype)
        """Filled by the caller up to the number of pictures, then `run`."""
        self._on_device = _DeviceFeed(self._session, feed) if way.provider == "cuda" else None

    def half(self) -> "Engine":
        """Another of its kind with half the threads, to work beside one like it; ModelError where
        that cannot be had without keeping the interpreter."""
        way = with_half_the_threads(self.way)
        if way is None or not isinstance(self._session, OpenVinoSession):
            raise ModelError(f"{self.way.path.name}: {self.way.provider}: not in halves")
        return Engine(way, self._feed)

    def run(self, count: int, run_options: Any = None) -> dict[str, AnyArray]:
        """Outputs by name for the first `count` pictures of `input`, floats as float32."""
        rows = self._feed.batch if self._feed.fixed_batch else count
        if self._on_device is not None:
            arrays = self._on_device.run(self.input[:rows], run_options)
        else:
            feeds = {self._feed.name: self.input[:rows]}
            feeds |= {name: value[:rows] for name, value in self._feed.constants.items()}
            arrays = self._session.run(self._feed.outputs, feeds, run_options)
        return {
            name: array.astype(np.float32) if array.dtype == np.float16 else array
            for name, array in zip(self._feed.outputs, arrays, strict=True)
        }

    def warm_up(self, runs: int = WARM_UP_RUNS) -> dict[str, AnyArray]:
        """Run a few times on what `input` holds; bounded in time, unlike `run`."""
        tensorrt = self.way.provider == "tensorrt"
        timeout_s = TENSORRT_BUILD_TIMEOUT_S if tensorrt else FIRST_RUN_TIMEOUT_S
        run_options = ort.RunOptions()
        run_options.log_severity_level = QUIET

        def give_up() -> None:
            run_options.terminate = True

        timer = threading.Timer(timeout_s, give_up)
        timer.daemon = True
        timer.start()
        outputs: dict[str, AnyArray] = {}
        try:
            for _ in range(runs):
                outputs = self.run(self._feed.batch, run_options)
        except ORT_ERRORS as error:
            why = (
                f"no answer within {timeout_s:.0f} s" if run_options.terminate else one_line(error)
            )
            raise ModelError(
                f"{self.way.path.name}: {self.way.provider} failed its first run: {why}"
            ) from error
        finally:
            timer.cancel()
        return outputs


def _openvino_session(way: Way, feed: FeedPlan) -> OpenVinoSession | None:
    """None for other providers, and for what only onnxruntime can hand to OpenVINO: in parts."""
    openvino = library() if way.provider == "openvino" else None
    if openvino is None:
        return None
    try:
        return OpenVinoSession(openvino, way, feed.input_shapes(), feed.outputs)
    except RuntimeError as error:
        logger.info("%s: OpenVINO alone does not take it: %s", way.path.name, one_line(error))
        return None


class _DeviceFeed:
    """Input kept in GPU memory and updated in place; outputs come back in one copy."""

    def __init__(self, session: Any, feed: FeedPlan) -> None:
        self._session = session
        self._feed = feed
        self._inputs: dict[int, tuple[Any, Any]] = {}

    def run(self, pictures: AnyArray, run_options: Any) -> list[AnyArray]:
        binding, device_input = self._binding(pictures)
        device_input.update_inplace(np.ascontiguousarray(pictures))
        self._session.run_with_iobinding(binding, run_options)
        arrays: list[AnyArray] = binding.copy_outputs_to_cpu()
        return arrays

    def _binding(self, pictures: AnyArray) -> tuple[Any, Any]:
        # One binding per batch size in use: at most `feed.batch` of them.
        count = len(pictures)
        if count not in self._inputs:
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(pictures), "cuda", 0)
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(self._feed.name, value)
            for name, constant in self._feed.constants.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(constant[:count]))
            for output in self._session.get_outputs():
                binding.bind_output(output.name, "cuda")
            self._inputs[count] = binding, value
        return self._inputs[count]


class EngineChain:
    """The engine in use and the ways behind it, taken in turn when one fails.

    A failing run costs the time of loading the next way, never an exception, unless no way
    is left; then every run raises ModelError.
    """

    def __init__(
        self,
        engine: Engine,
        feed: FeedPlan,
        waiting: Sequence[Way] = (),
        make: Callable[[Way, FeedPlan], Engine] = Engine,
        notes: Sequence[str] = (),
    ) -> None:
        self._engine = engine
        self._feed = feed
        self._waiting = list(waiting)
        self._make = make
        self._notes = list(notes)

    @classmethod
    def start(
        cls,
        ways: Sequence[Way],
        feed: FeedPlan,
        accept: Callable[[Engine], str] = lambda _: "",
        make: Callable[[Way, FeedPlan], Engine] = Engine,
    ) -> "EngineChain":
        """Warm the first way that loads, runs and is accepted (`accept` gives "" or why not)."""
        waiting, notes = list(ways), list[str]()
        engine = _start_next(waiting, feed, make, notes, accept)
        return cls(engine, feed, waiting, make, notes)

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def fallback(self) -> str:
        """Why it is not what was asked for; empty when it is."""
        return "; ".join(part for part in (*self._notes, self._engine.way.note) if part)

    def run(self, count: int) -> dict[str, AnyArray]:
        """As `Engine.run`; a failure moves on to the next way and runs the same pictures."""
        while True:
            try:
                return self._engine.run(count)
            except ORT_ERRORS as error:
                failed = self._engine
                self._notes.append(_note(failed.way, f"failed while running: {one_line(error)}"))
                if not self._waiting:
                    raise ModelError(self._notes[-1]) from error
                pictures = failed.input
                self._engine = _start_next(self._waiting, self._feed, self._make, self._notes)
                # By value: another file may want another floating-point type.
                self._engine.input[...] = pictures
                logger.warning(
                    "%s; going on with %s %s",
                    self._notes[-1],
                    self._engine.way.provider,
                    self._engine.way.precision,
                )


def _start_next(
    waiting: list[Way],
    feed: FeedPlan,
    make: Callable[[Way, FeedPlan], Engine],
    notes: list[str],
    accept: Callable[[Engine], str] = lambda _: "",
) -> Engine:
    """A warm engine of the first usable way; takes it and those before it off the list."""
    while waiting:
        way = waiting.pop(0)
        try:
            engine = make(way, feed)
            engine.warm_up()
        except ModelError as error:
            notes.append(_note(way, str(error)))
            continue
        refusal = accept(engine)
        if not refusal:
            return engine
        notes.append(_note(way, refusal))
    raise ModelError(notes[-1])


def _note(way: Way, why: str) -> str:
    return f"{way.provider} {way.precision}: {why}"


def one_line(error: BaseException) -> str:
    """An onnxruntime message without its source paths and line breaks."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def reference_way(path: Path, threads: int) -> Way:
    """FP32 on onnxruntime's own CPU provider: what every other way is compared with."""
    return Way("cpu", "fp32", path, threads)
