"""Which ways there are to run a model here, best first: provider, options, precision, file.

Pure: what the machine offers comes in as `Host`, so that the choices for CUDA, TensorRT,
CoreML and DirectML are tested on machines that have none of them.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from server.detector.spec import half_precision_path

ORT_NAMES = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
# TensorRT is not tried unasked: it builds for minutes when it first meets a model.
AUTO_ORDER = ("cuda", "coreml", "directml", "openvino", "cpu")
INSTALL_HINTS = {
    "tensorrt": "`make environment RUNTIME=gpu` brings it; TensorRT itself comes from NVIDIA",
    "cuda": "`make environment RUNTIME=gpu` brings it",
    "coreml": "it is part of onnxruntime on macOS",
    "directml": "install onnxruntime-directml (Windows)",
    "openvino": "`make environment RUNTIME=openvino` brings it",
}
MAX_AUTO_THREADS = 8


@dataclass(frozen=True, slots=True)
class Host:
    """What this machine and this onnxruntime offer."""

    ort_providers: tuple[str, ...]
    cores: int
    native_bf16: bool

    def has(self, provider: str) -> bool:
        return ORT_NAMES[provider] in self.ort_providers


@dataclass(frozen=True, slots=True)
class ModelFile:
    """The file asked for, and what its relatives are."""

    path: Path
    is_half: bool
    original: Path | None = None
    """The FP32 file beside an FP16 one."""
    dynamically_quantised: bool = False

    def half(self) -> Path | None:
        """The FP16 file: itself, or one beside it that tools.convert made."""
        if self.is_half:
            return self.path
        beside = half_precision_path(self.path)
        return beside if beside.is_file() else None

    def full(self) -> Path:
        """The file to compute in FP32: the original where there is one."""
        return self.original or self.path


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run a model."""

    provider: str
    precision: str
    path: Path
    threads: int
    options: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    """Why it is not what was asked for; empty when it is."""

    @property
    def ort_provider(self) -> tuple[str, dict[str, str]]:
        return ORT_NAMES[self.provider], dict(self.options)


def ways_to_run(
    model: ModelFile,
    provider: str,
    precision: str,
    threads: int,
    host: Host,
    cache_dir: Path | None = None,
    shapes: tuple[str, str] | None = None,
) -> tuple[Way, ...]:
    """Every way from the one asked for down to plain FP32 on the CPU, which always ends it.

    `shapes` are the smallest and largest input of an open batch in TensorRT's own notation.
    """
    threads = threads or min(host.cores, MAX_AUTO_THREADS)
    asked = [] if provider == "auto" else [provider]
    order = [*asked, *(name for name in AUTO_ORDER if name not in asked)]
    # A CPU provider that was asked for is not replaced by a device that was not.
    if provider in ("cpu", "openvino"):
        order = [name for name in order if name in ("openvino", "cpu")]
    if provider == "cpu":
        order = ["cpu"]
    ways: list[Way] = []
    missing = ""
    for name in order:
        if not host.has(name):
            if name in asked:
                offered = ", ".join(host.ort_providers)
                missing = f"{name} is not in this onnxruntime ({offered}): {INSTALL_HINTS[name]}"
            continue
        for way in _ways_with(name, model, precision, threads, host, cache_dir, shapes):
            note = "; ".join(part for part in (missing, way.note) if part)
            ways.append(Way(way.provider, way.precision, way.path, threads, way.options, note))
    return tuple(ways)


def _ways_with(
    name: str,
    model: ModelFile,
    precision: str,
    threads: int,
    host: Host,
    cache_dir: Path | None,
    shapes: tuple[str, str] | None,
) -> list[Way]:
    if name == "openvino" and model.dynamically_quantised:
        # The provider works seconds on such a graph and then finds it invalid.
        return []
    if name == "openvino":
        return _openvino_ways(model, precision, threads, host)
    if name == "cpu":
        note = _cpu_note(precision)
        if model.dynamically_quantised and host.has("openvino"):
            note = "OpenVINO takes no dynamically quantised file"
        return [Way(name, "fp32", model.full(), threads, {}, note)]
    half = model.half()
    wants_half = precision in ("auto", "fp16")
    note = f"{name} has no {precision} here" if precision == "bf16" else ""
    if name == "tensorrt":
        way = Way(name, "fp32", model.full(), threads, _tensorrt(False, cache_dir, shapes), note)
        if not wants_half:
            return [way]
        # TensorRT halves an FP32 file itself and keeps what would overflow.
        options = _tensorrt(True, cache_dir, shapes)
        return [Way(name, "fp16", model.full(), threads, options)]
    options = _device_options(name)
    if wants_half and half is not None:
        return [Way(name, "fp16", half, threads, options)]
    if precision == "fp16":
        note = f"no FP16 file beside {model.path.name}: run python -m tools.convert"
    return [Way(name, "fp32", model.full(), threads, options, note)]


def _openvino_ways(model: ModelFile, precision: str, threads: int, host: Host) -> list[Way]:
    """BF16 where the CPU has it, and FP32 behind it."""
    full = Way(
        "openvino",
        "fp32",
        model.full(),
        threads,
        _openvino("f32", threads),
        _cpu_note(precision),
    )
    if precision == "fp32":
        return [full]
    if not host.native_bf16:
        return [full]
    note = "the CPU computes half precision as BF16, not FP16" if precision == "fp16" else ""
    half = Way("openvino", "bf16", model.path, threads, _openvino("bf16", threads), note)
    return [half, full]


def _cpu_note(precision: str) -> str:
    if precision in ("auto", "fp32"):
        return ""
    return f"{precision} cannot be computed here, so FP32 is"


def _openvino(hint: str, threads: int) -> dict[str, str]:
    """Options of the OpenVINO provider; `load_config` is the JSON text itself, not a path."""
    config = {
        "CPU": {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            # Threads tied to a core wait for whatever else runs there: encoding, decoding.
            "ENABLE_CPU_PINNING": "NO",
        }
    }
    return {"device_type": "CPU", "load_config": json.dumps(config)}


def _device_options(name: str) -> dict[str, str]:
    if name == "cuda":
        # HEURISTIC picks convolution algorithms in milliseconds; EXHAUSTIVE tries them all
        # again for every new shape, which would stall a stream when the batch grows.
        return {
            "device_id": "0",
            "cudnn_conv_algo_search": "HEURISTIC",
            "cudnn_conv_use_max_workspace": "1",
            "do_copy_in_default_stream": "1",
        }
    if name == "coreml":
        return {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"}
    return {"device_id": "0"}


def _tensorrt(half: bool, cache_dir: Path | None, shapes: tuple[str, str] | None) -> dict[str, str]:
    options = {"device_id": "0", "trt_fp16_enable": "1" if half else "0"}
    if cache_dir is not None:
        folder = str(cache_dir / "tensorrt")
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": folder,
        }
    if shapes is not None:
        options |= {
            "trt_profile_min_shapes": shapes[0],
            "trt_profile_opt_shapes": shapes[1],
            "trt_profile_max_shapes": shapes[1],
        }
    return options


def with_half_the_threads(way: Way) -> Way | None:
    """For an engine that works beside another like it; None where there is one thread."""
    if way.provider != "openvino" or way.threads < 2:
        return None
    config = json.loads(way.options["load_config"])
    config["CPU"]["INFERENCE_NUM_THREADS"] = str(way.threads // 2)
    options = {**way.options, "load_config": json.dumps(config)}
    return replace(way, threads=way.threads // 2, options=options)


def available_cores() -> int:
    """Cores this process may use; a container's affinity counts, the machine's size does not."""
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity is None:  # macOS, Windows
        return os.cpu_count() or 1
    return len(affinity(0))


def has_native_bf16() -> bool:
    """Whether the CPU multiplies BF16 itself (AVX-512 BF16 or AMX); False where not known."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags
