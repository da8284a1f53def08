"""Half-precision conversion of small real graphs: each rule, and each refusal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from server.errors import ModelError
from server.pixels import BgrPicture
from tools.convert.__main__ import main
from tools.convert.check import Comparison, OutputGap, Tolerance, convert_file
from tools.convert.emulate import emulated
from tools.convert.graph import load_plain
from tools.convert.half import Converted, to_half
from tools.convert.ranges import too_large
from tools.convert.trial import try_model

pytestmark = pytest.mark.unit

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
RANDOM = np.random.default_rng(3)


def _weights(*shape: int) -> np.ndarray:
    return RANDOM.normal(0, 0.2, shape).astype(np.float32)


def _model(
    nodes: Sequence[NodeProto],
    constants: dict[str, np.ndarray],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, tuple[int, Sequence[int | str]]],
    opset: int = 17,
) -> ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "made",
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, kind, s) for n, (kind, s) in outputs.items()],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 8
    return made


def _convert(model: ModelProto, tmp_path: Path, **options: Any) -> Converted:
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path))
    converted = to_half(load_plain(path), **options)
    onnx.checker.check_model(converted.model, full_check=True)
    return converted


def _run(model: ModelProto, **feed: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feed))


def _kinds(model: ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    values = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _input_kind(model: ModelProto, node: NodeProto, position: int) -> int:
    name = node.input[position]
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return tensor.data_type
    return _kinds(model)[name]


def _find(model: ModelProto, op_type: str) -> NodeProto:
    (node,) = [node for node in model.graph.node if node.op_type == op_type]
    return node


CONV = helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1])
LAST = helper.make_node("Conv", ["z", "v"], ["y"])
PICTURE = {"x": (1, 3, 8, 8)}


def _between(
    *nodes: NodeProto, constants: dict[str, np.ndarray] | None = None, opset: int = 17
) -> ModelProto:
    """A convolution, `nodes` from `c` to `z`, and a convolution to the output `y`."""
    weights = {"w": _weights(4, 3, 3, 3), "v": _weights(2, 4, 1, 1)}
    shape = (1, 2, "h", "w")
    made = [CONV, *nodes, LAST]
    return _model(made, weights | (constants or {}), PICTURE, {"y": (FLOAT, shape)}, opset)


def test_weights_are_halved_and_the_outside_stays_float32(tmp_path: Path) -> None:
    model = _between(helper.make_node("Relu", ["c"], ["z"]))
    converted = _convert(model, tmp_path)
    assert (converted.half_nodes, converted.full_nodes, converted.casts) == (3, 0, 2)
    assert {t.data_type for t in converted.model.graph.initializer} == {HALF}
    kinds = _kinds(converted.model)
    assert (kinds["x"], kinds["y"]) == (FLOAT, FLOAT)
    x = RANDOM.random((1, 3, 8, 8)).astype(np.float32)
    (before,), (after,) = _run(model, x=x), _run(converted.model, x=x)
    assert after.dtype == np.float32
    assert after == pytest.approx(before, abs=5e-3)
    assert not np.array_equal(after, before)


def test_half_outside_on_request(tmp_path: Path) -> None:
    model = _between(helper.make_node("Relu", ["c"], ["z"]))
    converted = _convert(model, tmp_path, half_io=True)
    kinds = _kinds(converted.model)
    assert (kinds["x"], kinds["y"], converted.casts) == (HALF, HALF, 0)


def test_output_of_a_half_node_that_others_read_in_float32_keeps_its_name(tmp_path: Path) -> None:
    nodes = [
        CONV,
        helper.make_node("Exp", ["c"], ["e"]),
        helper.make_node("Relu", ["c"], ["z"]),
        LAST,
    ]
    model = _model(
        nodes,
        {"w": _weights(4, 3, 3, 3), "v": _weights(2, 4, 1, 1)},
        PICTURE,
        {"c": (FLOAT, (1, 4, 8, 8)), "e": (FLOAT, (1, 4, 8, 8)), "y": (FLOAT, (1, 2, 8, 8))},
    )
    x = RANDOM.random((1, 3, 8, 8)).astype(np.float32)
    for half_io in (False, True):
        converted = _convert(model, tmp_path, half_io=half_io)
        wanted = np.float16 if half_io else np.float32
        answers = _run(converted.model, x=x.astype(wanted))
        assert [answer.dtype for answer in answers] == [wanted] * 3
        for before, after in zip(_run(model, x=x), answers, strict=True):
            assert after.astype(np.float32) == pytest.approx(before, rel=0.02, abs=0.02)


@pytest.mark.parametrize("opset", [10, 11, 17])
def test_resize_keeps_its_scales_in_float32(opset: int, tmp_path: Path) -> None:
    names = ["c", "scales"] if opset == 10 else ["c", "roi", "scales"]
    constants = {"scales": np.array([1, 1, 2, 2], np.float32), "roi": np.zeros(0, np.float32)}
    model = _between(
        helper.make_node("Resize", names, ["z"], mode="nearest"), constants=constants, opset=opset
    )
    converted = _convert(model, tmp_path)
    resize = _find(converted.model, "Resize")
    assert _input_kind(converted.model, resize, 0) == HALF
    assert _input_kind(converted.model, resize, len(names) - 1) == FLOAT
    x = RANDOM.random((1, 3, 8, 8)).astype(np.float32)
    assert _run(converted.model, x=x)[0].shape == (1, 2, 16, 16)


def test_chain_of_sizes_stays_in_float32(tmp_path: Path) -> None:
    # Shape -> Cast to float -> times 1.5 -> Floor -> Cast to int: 2,049 must stay 2,049.
    nodes = [
        helper.make_node("Shape", ["c"], ["s"]),
        helper.make_node("Cast", ["s"], ["sf"], to=FLOAT),
        helper.make_node("Mul", ["sf", "k"], ["sm"]),
        helper.make_node("Cast", ["sm"], ["si"], to=TensorProto.INT64),
        helper.make_node("Resize", ["c", "", "", "si"], ["z"], mode="nearest"),
    ]
    model = _between(*nodes, constants={"k": np.array([1, 1, 1, 256.125], np.float32)})
    converted = _convert(model, tmp_path)
    assert converted.reasons["sizes and indices"] == 1
    assert _kinds(converted.model)["sm"] == FLOAT
    x = RANDOM.random((1, 3, 8, 8)).astype(np.float32)
    assert _run(converted.model, x=x)[0].shape == (1, 2, 8, 2049)


def test_casts_back_and_forth_are_kept_consistent(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["c"], ["d"], to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["d"], ["f"], to=FLOAT),
        helper.make_node("Relu", ["f"], ["z"]),
    ]
    converted = _convert(_between(*nodes), tmp_path)
    x = RANDOM.random((1, 3, 8, 8)).astype(np.float32)
    assert _run(converted.model, x=x)[0].shape == (1, 2, 8, 8)


def test_ranking_and_decoding_stay_in_float32(tmp_path: Path) -> None:
    nodes = [
        CONV,
        helper.make_node("Reshape", ["c", "flat"], ["r"]),
        helper.make_node("TopK", ["r", "k"], ["scores", "rows"]),
        helper.make_node("Sigmoid", ["scores"], ["y"]),
        helper.make_node("Gather", ["grid", "rows"], ["boxes"]),
    ]
    constants = {
        "w": _weights(4, 3, 3, 3),
        "flat": np.array([1, -1], np.int64),
        "k": np.array([5], np.int64),
        "grid": np.arange(256, dtype=np.float32) * 8 + 0.5,
    }
    outputs = {"y": (FLOAT, (1, 5)), "boxes": (FLOAT, (1, 5))}
    model = _model(nodes, constants, PICTURE, outputs)
    converted = _convert(model, tmp_path)
    assert converted.half_nodes == 1
    kinds = _kinds(converted.model)
    assert {kinds[name] for name in ("scores", "y", "boxes")} == {FLOAT}
    x = RANDOM.random((1, 3, 8, 8)).astype(np.float32)
    assert (_run(converted.model, x=x)[1] % 8 == 0.5).all()


def test_distribution_over_box_offsets_is_summed_in_float32(tmp_path: Path) -> None:
    nodes = [
        CONV,
        helper.make_node("Softmax", ["c"], ["p"], axis=1),
        helper.make_node("Conv", ["p", "bins"], ["y"]),
    ]
    bins = np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)
    model = _model(
        nodes, {"w": _weights(4, 3, 3, 3), "bins": bins}, PICTURE, {"y": (FLOAT, (1, 1, 8, 8))}
    )
    converted = _convert(model, tmp_path)
    assert converted.reasons == {"box decoding": 2}


@pytest.mark.parametrize(
    ("value", "stays"),
    [
        (1e-9, True),  # an epsilon that half precision would turn into 0
        (1e6, True),  # beyond 65,504
        (float("inf"), False),  # infinity is infinity in half precision too
        (0.0, False),
        (0.5, False),
    ],
)
def test_constant_out_of_range_keeps_its_node_in_float32(
    value: float, stays: bool, tmp_path: Path
) -> None:
    node = helper.make_node("Max", ["c", "k"], ["z"])
    converted = _convert(_between(node, constants={"k": np.array([value], np.float32)}), tmp_path)
    assert ("constant out of range" in converted.reasons) == stays


def test_few_tiny_weights_do_no_harm_and_only_tiny_ones_do(tmp_path: Path) -> None:
    relu = helper.make_node("Relu", ["c"], ["z"])
    model = _between(relu)
    weights = _weights(4, 3, 3, 3)
    weights.flat[0] = 1e-9
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    assert not _convert(model, tmp_path).reasons
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights * 1e-7, "w"))
    assert _convert(model, tmp_path).reasons == {"constant out of range": 1}


def test_values_seen_near_the_largest_half_number_stay_in_float32(tmp_path: Path) -> None:
    model = _between(helper.make_node("Relu", ["c"], ["z"]))
    weights = numpy_helper.from_array(np.full((4, 3, 3, 3), 900, np.float32), "w")
    model.graph.initializer[0].CopyFrom(weights)
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path))
    plain = load_plain(path)
    seen = too_large(plain, [{"x": np.ones((1, 3, 8, 8), np.float32)}])
    assert {"c", "z"} <= seen
    converted = to_half(plain, too_large=seen)
    assert converted.reasons["values near the largest half number"] >= 2


def test_control_flow_reads_float32_from_outside(tmp_path: Path) -> None:
    body_out = helper.make_tensor_value_info("t", FLOAT, None)
    then = helper.make_graph([helper.make_node("Neg", ["c"], ["t"])], "then", [], [body_out])
    other_out = helper.make_tensor_value_info("c2", FLOAT, None)
    other = helper.make_graph([helper.make_node("Abs", ["c"], ["c2"])], "else", [], [other_out])
    choice = helper.make_node("If", ["yes"], ["z"], then_branch=then, else_branch=other)
    model = _between(choice, constants={"yes": np.array(True)})
    converted = _convert(model, tmp_path)
    x = RANDOM.random((1, 3, 8, 8)).astype(np.float32)
    assert _run(converted.model, x=x)[0] == pytest.approx(_run(model, x=x)[0], abs=5e-3)


def test_batch_norm_is_folded_before_its_variance_is_rounded_away(tmp_path: Path) -> None:
    norm = helper.make_node("BatchNormalization", ["c", "g", "b", "m", "s"], ["n"], epsilon=1e-8)
    constants = {
        "g": np.full(4, 1e-4, np.float32),
        "b": np.array([1, 2, 3, 4], np.float32),
        "m": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        "s": np.full(4, 2e-8, np.float32),  # nothing in half precision
    }
    model = _between(norm, helper.make_node("Relu", ["n"], ["z"]), constants=constants)
    converted = _convert(model, tmp_path)
    assert not converted.reasons
    assert not [n for n in converted.model.graph.node if n.op_type == "BatchNormalization"]
    x = RANDOM.random((1, 3, 8, 8)).astype(np.float32)
    assert _run(converted.model, x=x)[0] == pytest.approx(_run(model, x=x)[0], abs=0.02)


def test_old_files_that_list_weights_as_inputs_and_constants_as_nodes(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["k"], value_float=0.5)
    model = _between(constant, helper.make_node("Mul", ["c", "k"], ["z"]))
    model.graph.input.append(helper.make_tensor_value_info("w", FLOAT, (4, 3, 3, 3)))
    converted = _convert(model, tmp_path)
    assert [value.name for value in converted.model.graph.input] == ["x"]
    assert not converted.reasons


def test_metadata_survives(tmp_path: Path) -> None:
    model = _between(helper.make_node("Relu", ["c"], ["z"]))
    helper.set_model_props(model, {"names": "{0: 'cup'}", "precision": "fp32"})
    rows = {row.key: row.value for row in _convert(model, tmp_path).model.metadata_props}
    assert rows == {"names": "{0: 'cup'}", "precision": "fp16"}


def test_emulation_rounds_every_result(tmp_path: Path) -> None:
    # 1 + 1e-4 is 1 in half precision, so taking the 1 away again leaves 0.
    nodes = [
        helper.make_node("Add", ["c", "one"], ["a"]),
        helper.make_node("Sub", ["a", "one"], ["z"]),
    ]
    model = _between(*nodes, constants={"one": np.array([1], np.float32)})
    weights = numpy_helper.from_array(np.full((4, 3, 3, 3), 1e-4 / 27, np.float32), "w")
    model.graph.initializer[0].CopyFrom(weights)
    converted = _convert(model, tmp_path, too_large=())
    x = np.ones((1, 3, 8, 8), np.float32)
    assert np.abs(_run(model, x=x)[0]).max() > 1e-6
    assert converted.reasons == {"constant out of range": 1}  # the tiny weights
    half = emulated(converted.model)
    onnx.checker.check_model(half, full_check=True)
    assert np.abs(_run(half, x=x)[0]).max() == 0


def _refused(model: ModelProto | bytes, tmp_path: Path) -> str:
    path = tmp_path / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    with pytest.raises(ModelError) as caught:
        load_plain(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unfit_models_are_refused_with_the_reason(tmp_path: Path) -> None:
    relu = helper.make_node("Relu", ["c"], ["z"])
    assert "not an ONNX file" in _refused(b"\x08\x07nonsense" * 9, tmp_path)
    assert "holds no graph" in _refused(b"", tmp_path)
    whole = _between(relu).SerializeToString()
    assert "model.onnx" in _refused(whole[: len(whole) // 2], tmp_path)

    outside = _between(relu)
    tensor = outside.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    assert "1 weights lie in another file" in _refused(outside, tmp_path)

    quantised = _between(
        helper.make_node("DynamicQuantizeLinear", ["c"], ["q", "qs", "qz"]),
        helper.make_node("DequantizeLinear", ["q", "qs", "qz"], ["z"]),
    )
    assert "already quantised" in _refused(quantised, tmp_path)

    halved = to_half(onnx.shape_inference.infer_shapes(_between(relu))).model
    assert "already half precision" in _refused(halved, tmp_path)

    with pytest.raises(ModelError, match="yolo export"):
        load_plain(tmp_path / "yolo26n.pt")


def test_model_that_does_not_run_is_reported_by_the_trial(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"broken")
    with pytest.raises(ModelError, match="does not run"):
        try_model(path, {})


def test_comparison_names_what_is_over_the_tolerance() -> None:
    good = Comparison(2, "yolox", 100, 0, 0.01, 0.001, 0.95, 0.99, ())
    assert good.problems(Tolerance()) == []
    bad = Comparison(
        2, "yolox", 100, 3, 0.2, 0.1, 0.6, 0.9, (OutputGap("o", 1.0, 0.5, finite=False),)
    )
    assert [problem.split()[0] for problem in bad.problems(Tolerance())] == [
        "output",
        "3",
        "confidence",
        "a",
    ]
    foreign = Comparison(1, "", 0, 0, 0, 0, 1, 1, (OutputGap("o", 1.0, 0.5, finite=True),))
    assert foreign.problems(Tolerance()) == ["output o is off by 50.00%, over 2.00%"]


def _pictures() -> list[BgrPicture]:
    return [BgrPicture(RANDOM.integers(0, 255, (60, 80, 3), np.uint8))]


def test_file_is_written_only_when_the_answers_agree(tmp_path: Path) -> None:
    source, target = tmp_path / "model.onnx", tmp_path / "out" / "model.fp16.onnx"
    onnx.save(_between(helper.make_node("Relu", ["c"], ["z"])), str(source))
    with pytest.raises(ModelError, match="half precision changes the answers"):
        convert_file(source, target, pictures=_pictures(), limit=Tolerance(relative_error=0))
    assert not target.exists()
    _, comparison = convert_file(source, target, pictures=_pictures())
    assert comparison.detector == ""
    assert 0 < comparison.outputs[0].relative_error < 0.005
    assert target.stat().st_size < source.stat().st_size


def test_tool_answers_in_json_and_with_its_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(_between(helper.make_node("Relu", ["c"], ["z"])), str(source))
    assert main([str(source), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["ok"]
    assert Path(answer["path"]) == tmp_path / "model.fp16.onnx"
    assert main([answer["path"], "--json"]) == 1
    assert "already half" in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
