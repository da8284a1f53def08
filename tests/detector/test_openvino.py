"""OpenVINO by its own interface: the answers of onnxruntime, and other threads run meanwhile."""

import ctypes
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from server.detector.engine import Engine, FeedPlan, host
from server.detector.openvino import OpenVinoSession, library
from server.detector.providers import ModelFile, Way, ways_to_run
from tests.detector.graphs import AnyArray, Dim, write_model

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(not host().has("openvino"), reason="this onnxruntime has no OpenVINO"),
]

ANSWER = np.arange(6, dtype=np.float32).reshape(1, 2, 3)


def openvino_way(path: Path) -> Way:
    return ways_to_run(ModelFile(path, is_half=False), "openvino", "fp32", 1, host())[0]


def plan(
    batch: int = 1,
    dimensions: Mapping[str, int] | None = None,
    constants: Mapping[str, AnyArray] | None = None,
    outputs: Sequence[str] = ("output0",),
) -> FeedPlan:
    fixed = batch == 1
    return FeedPlan(
        "images", (3, 64, 64), batch, fixed, constants or {}, dimensions or {}, tuple(outputs)
    )


def write_convolutions(path: Path, count: int) -> Path:
    """So many of them, one after the other, each with weights of its own."""
    weights, nodes, last = [], [], "images"
    for number in range(count):
        values = np.random.default_rng(number).normal(0, 0.2, (3, 3, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{number}"))
        nodes.append(helper.make_node("Conv", [last, f"w{number}"], [f"c{number}"], pads=[1] * 4))
        nodes.append(helper.make_node("Sigmoid", [f"c{number}"], [f"s{number}"]))
        last = f"s{number}"
    nodes.append(helper.make_node("Identity", [last], ["output0"]))
    shape = [1, 3, 64, 64]
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, shape)],
        weights,
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


def test_this_release_is_one_we_know() -> None:
    """Red after an update of onnxruntime: compare its header with our numbers of types."""
    assert library() is not None


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
def test_pictures_of_each_type_are_taken(tmp_path: Path, dtype: npt.DTypeLike) -> None:
    path = write_model(tmp_path / "model.onnx", {"output0": ANSWER}, dtype=dtype)
    engine = Engine(openvino_way(path), plan())
    assert isinstance(engine._session, OpenVinoSession)
    assert engine.input.dtype == dtype
    assert (engine.run(1)["output0"] == ANSWER).all()


def test_a_picture_that_does_not_lie_in_one_piece_is_taken_as_it_is(tmp_path: Path) -> None:
    path = write_convolutions(tmp_path / "model.onnx", 1)
    session = Engine(openvino_way(path), plan())._session
    assert isinstance(session, OpenVinoSession)
    picture = np.random.default_rng(2).random((1, 64, 64, 3), np.float32).transpose(0, 3, 1, 2)
    [whole] = session.run(["output0"], {"images": picture.copy(order="C")})
    for _ in range(20):
        [parts] = session.run(["output0"], {"images": picture})
        np.testing.assert_array_equal(parts, whole)


def test_real_numbers_are_those_of_onnxruntime(tmp_path: Path) -> None:
    path = write_convolutions(tmp_path / "model.onnx", 4)
    engines = [Engine(way, plan()) for way in (openvino_way(path), Way("cpu", "fp32", path, 1))]
    for engine in engines:
        engine.input[...] = np.random.default_rng(1).random(engine.input.shape)
    ours, theirs = (engine.run(1)["output0"] for engine in engines)
    assert ours.std() > 0.001
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


@pytest.mark.parametrize("shape", [("n", 3, 64, 64), (1, 3, "h", "w")])
def test_open_sizes_are_closed(tmp_path: Path, shape: Sequence[Dim]) -> None:
    path = write_model(tmp_path / "model.onnx", {"output0": ANSWER}, shape, batch_dim=shape[0])
    engine = Engine(openvino_way(path), plan())
    assert engine.run(1)["output0"].shape == ANSWER.shape


def test_batch_of_any_size_up_to_its_limit(tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "model.onnx", {"output0": ANSWER}, ("n", 3, 64, 64), batch_dim="n"
    )
    engine = Engine(openvino_way(path), plan(batch=3))
    assert isinstance(engine._session, OpenVinoSession)
    for count in (3, 1, 2):
        assert engine.run(count)["output0"].shape == (count, 2, 3)


def test_inputs_beside_the_picture_are_given(tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "model.onnx",
        {"output0": ANSWER},
        more_inputs={"orig_target_sizes": ((1, 2), np.int64)},
    )
    sizes = {"orig_target_sizes": np.array([[64, 64]], np.int64)}
    engine = Engine(openvino_way(path), plan(constants=sizes))
    assert (engine.run(1)["output0"] == ANSWER).all()


def test_answers_outlive_the_next_run(tmp_path: Path) -> None:
    engine = Engine(openvino_way(write_convolutions(tmp_path / "model.onnx", 1)), plan())
    first = engine.run(1)["output0"]
    kept = first.copy()
    engine.input.fill(1)
    assert not np.array_equal(engine.run(1)["output0"], kept)
    assert np.array_equal(first, kept)


def test_what_openvino_alone_has_no_use_for_goes_by_way_of_onnxruntime(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    nodes = [
        helper.make_node("ReduceMax", ["images"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["output0"], to=TensorProto.DOUBLE),
    ]
    graph = helper.make_graph(
        nodes,
        "double",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info("output0", TensorProto.DOUBLE, [])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    engine = Engine(openvino_way(path), plan())
    assert not isinstance(engine._session, OpenVinoSession)
    engine.input[0, 0, 0, 0] = 7
    assert engine.run(1)["output0"] == 7


def test_other_threads_run_while_a_model_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = library()
    assert openvino is not None
    ticks = 0
    over = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not over.wait(0.001):
            ticks += 1

    during: dict[str, int] = {}
    call = openvino.call

    def counted(name: str, *arguments: Any) -> None:
        before = ticks
        call(name, *arguments)
        during[name] = ticks - before

    monkeypatch.setattr(openvino, "call", counted)
    way = openvino_way(write_convolutions(tmp_path / "model.onnx", 150))
    thread = threading.Thread(target=tick)
    thread.start()
    try:
        OpenVinoSession(openvino, way, plan().input_shapes(), plan().outputs)
    finally:
        over.set()
        thread.join()
    assert during["ov_core_compile_model"] >= 3


def test_errors_are_openvinos_own_words(tmp_path: Path) -> None:
    openvino = library()
    assert openvino is not None
    with pytest.raises(RuntimeError, match="missing"):
        openvino.call(
            "ov_core_read_model",
            openvino.core,
            str(tmp_path / "missing.onnx").encode(),
            None,
            ctypes.byref(ctypes.c_void_p()),
        )
