"""Ways to run a model are chosen by what the machine offers, best first, with the reason."""

import json
from pathlib import Path

import pytest

from server.detector.providers import Host, ModelFile, Way, available_cores, ways_to_run

pytestmark = pytest.mark.unit

CPU = Host(("CPUExecutionProvider",), 4, False)
OPENVINO = Host(("OpenVINOExecutionProvider", "CPUExecutionProvider"), 2, True)
OLD_OPENVINO = Host(OPENVINO.ort_providers, 2, False)
CUDA = Host(
    ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"), 16, True
)
WINDOWS = Host(("DmlExecutionProvider", "CPUExecutionProvider"), 8, False)
MAC = Host(("CoreMLExecutionProvider", "CPUExecutionProvider"), 8, False)


@pytest.fixture
def model(tmp_path: Path) -> ModelFile:
    (tmp_path / "model.onnx").touch()
    return ModelFile(tmp_path / "model.onnx", is_half=False)


@pytest.fixture
def with_half(model: ModelFile) -> ModelFile:
    model.path.with_name("model.fp16.onnx").touch()
    return model


def ways(
    model: ModelFile, host: Host, provider: str = "auto", precision: str = "auto"
) -> tuple[Way, ...]:
    return ways_to_run(model, provider, precision, 0, host, Path("/cache"))


def kinds(found: tuple[Way, ...]) -> list[tuple[str, str]]:
    return [(way.provider, way.precision) for way in found]


@pytest.mark.parametrize(
    ("host", "provider", "precision", "expected"),
    [
        (CPU, "auto", "auto", [("cpu", "fp32")]),
        (OPENVINO, "auto", "auto", [("openvino", "bf16"), ("openvino", "fp32"), ("cpu", "fp32")]),
        (OPENVINO, "auto", "fp32", [("openvino", "fp32"), ("cpu", "fp32")]),
        (OPENVINO, "cpu", "auto", [("cpu", "fp32")]),
        (OLD_OPENVINO, "openvino", "auto", [("openvino", "fp32"), ("cpu", "fp32")]),
        (CUDA, "auto", "auto", [("cuda", "fp32"), ("cpu", "fp32")]),
        (CUDA, "tensorrt", "auto", [("tensorrt", "fp16"), ("cuda", "fp32"), ("cpu", "fp32")]),
        (CUDA, "tensorrt", "fp32", [("tensorrt", "fp32"), ("cuda", "fp32"), ("cpu", "fp32")]),
        (WINDOWS, "auto", "auto", [("directml", "fp32"), ("cpu", "fp32")]),
        (MAC, "auto", "auto", [("coreml", "fp32"), ("cpu", "fp32")]),
        (CPU, "cuda", "auto", [("cpu", "fp32")]),
    ],
)
def test_ways_go_from_the_best_to_plain_cpu(
    model: ModelFile,
    host: Host,
    provider: str,
    precision: str,
    expected: list[tuple[str, str]],
) -> None:
    assert kinds(ways(model, host, provider, precision)) == expected


@pytest.mark.parametrize("host", [CUDA, WINDOWS, MAC])
def test_devices_run_the_half_file_beside_the_model(with_half: ModelFile, host: Host) -> None:
    first = ways(with_half, host)[0]
    assert (first.precision, first.path.name) == ("fp16", "model.fp16.onnx")
    assert ways(with_half, host, precision="fp32")[0].path.name == "model.onnx"


def test_half_file_itself_runs_in_half_on_a_device_and_its_original_on_the_cpu(
    with_half: ModelFile,
) -> None:
    half = ModelFile(with_half.path.with_name("model.fp16.onnx"), True, with_half.path)
    device, cpu = ways(half, CUDA)
    assert (device.precision, device.path) == ("fp16", half.path)
    assert (cpu.precision, cpu.path) == ("fp32", with_half.path)


def test_tensorrt_halves_the_full_file_and_keeps_its_engines(with_half: ModelFile) -> None:
    shapes = ("images:1x3x640x640", "images:8x3x640x640")
    way = ways_to_run(with_half, "tensorrt", "auto", 0, CUDA, Path("/cache"), shapes)[0]
    assert way.path == with_half.path
    name, options = way.ort_provider
    assert name == "TensorrtExecutionProvider"
    assert options == {
        "device_id": "0",
        "trt_fp16_enable": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(Path("/cache/tensorrt")),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(Path("/cache/tensorrt")),
        "trt_profile_min_shapes": "images:1x3x640x640",
        "trt_profile_opt_shapes": "images:8x3x640x640",
        "trt_profile_max_shapes": "images:8x3x640x640",
    }
    assert ways(with_half, CUDA, "tensorrt", "fp32")[0].options["trt_fp16_enable"] == "0"


def test_cuda_searches_no_algorithms_while_a_stream_waits(model: ModelFile) -> None:
    assert ways(model, CUDA)[0].options["cudnn_conv_algo_search"] == "HEURISTIC"


def test_openvino_gets_its_precision_as_json_text(model: ModelFile) -> None:
    half, full, _ = ways(model, OPENVINO)
    config = json.loads(half.options["load_config"])["CPU"]
    assert config["INFERENCE_PRECISION_HINT"] == "bf16"
    assert config["INFERENCE_NUM_THREADS"] == "2"
    assert json.loads(full.options["load_config"])["CPU"]["INFERENCE_PRECISION_HINT"] == "f32"


@pytest.mark.parametrize(
    ("host", "provider", "precision", "reason"),
    [
        (CPU, "cuda", "auto", "cuda is not in this onnxruntime"),
        (CPU, "tensorrt", "auto", "RUNTIME=gpu` brings it; TensorRT"),
        (OPENVINO, "openvino", "fp16", "BF16, not FP16"),
        (OLD_OPENVINO, "openvino", "bf16", "bf16 cannot be computed here"),
        (CPU, "cpu", "fp16", "fp16 cannot be computed here"),
        (CUDA, "cuda", "fp16", "no FP16 file beside model.onnx"),
        (CUDA, "cuda", "bf16", "cuda has no bf16"),
        (CPU, "auto", "auto", ""),
        (OPENVINO, "auto", "auto", ""),
        (CUDA, "auto", "auto", ""),
    ],
)
def test_what_is_not_as_asked_has_its_reason(
    model: ModelFile, host: Host, provider: str, precision: str, reason: str
) -> None:
    note = ways(model, host, provider, precision)[0].note
    assert reason in note
    assert bool(note) == bool(reason)


def test_dynamically_quantised_file_stays_off_openvino(model: ModelFile) -> None:
    quantised = ModelFile(model.path, False, dynamically_quantised=True)
    [way] = ways(quantised, OPENVINO)
    assert (way.provider, way.note) == ("cpu", "OpenVINO takes no dynamically quantised file")


def test_threads_are_those_asked_for_or_the_cores_up_to_eight(model: ModelFile) -> None:
    assert ways(model, OPENVINO)[0].threads == 2
    assert ways(model, CUDA)[-1].threads == 8
    assert ways_to_run(model, "cpu", "auto", 3, CUDA)[0].threads == 3
    assert available_cores() >= 1
