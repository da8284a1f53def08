"""Files become detectors, or are refused with one line that says why."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from server.detector import parity
from server.detector.composite import CompositeDetector
from server.detector.engine import host
from server.detector.heads.end2end import EndToEndHead
from server.detector.load import load_detector, model_paths
from server.detector.model import ModelDetector
from server.detector.onnx_outline import read_outline
from server.errors import ModelError, ParityError, UnknownModelError
from server.pixels import BgrPicture
from tests.detector.graphs import settings_for, write_model
from tests.detector.test_families import (
    FOUND,
    NAMES,
    XYXY,
    even_picture,
    load,
    rows,
    yolo26,
    yolov8,
    yunet,
)

pytestmark = pytest.mark.unit


def tiny(path: Path, **options: Any) -> Path:
    return write_model(path, yolo26(), **({"metadata": NAMES} | options))


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 1500
    return text


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_cut_off_file_is_refused(tmp_path: Path, share: float) -> None:
    whole = tiny(tmp_path / "whole.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError) as error:
        load(path)
    assert "cut.onnx" in one_line(error)


@pytest.mark.parametrize(
    "content",
    [b"\0" * 100, b"<html>404</html>", b"\x08\x08\x12\x00", b"PK\x03\x04" + b"x" * 50, b"\xff" * 9],
)
def test_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError) as error:
        load(path)
    assert "model.onnx" in one_line(error)


@given(st.binary(max_size=300))
def test_random_bytes_never_surprise_the_outline(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        read_outline(path)


@given(st.integers(0, 10**6), st.integers(0, 255))
@hypothesis_settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_one_changed_byte_gives_a_detector_or_a_refusal(
    tmp_path_factory: Any, place: int, value: int
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    data = bytearray(tiny(folder / "model.onnx").read_bytes())
    data[place % len(data)] = value
    (folder / "model.onnx").write_bytes(data)
    # Anything but a refusal in one line or boxes fails the test.
    with contextlib.suppress(ModelError):
        load(folder / "model.onnx").detect([even_picture()])


def test_external_data_is_refused(tmp_path: Path) -> None:
    model = onnx.load(str(tiny(tmp_path / "inside.onnx")))
    path = tmp_path / "outside.onnx"
    onnx.save(
        model,
        str(path),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    with pytest.raises(ModelError, match="its weights lie in other files"):
        load(path)


def test_outline_counts_half_weights_and_finds_dynamic_quantisation(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT16, [64], np.zeros(64, np.float16))
    small = helper.make_tensor("s", TensorProto.FLOAT, [2], [0, 1])
    node = helper.make_node("ConvInteger", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [], [], [weight, small])
    path = tmp_path / "half.onnx"
    onnx.save(helper.make_model(graph), str(path))
    outline = read_outline(path)
    assert outline.is_half
    assert outline.is_dynamically_quantised
    assert not read_outline(tiny(tmp_path / "full.onnx")).is_half


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.onnx", tmp_path):
        with pytest.raises(ModelError) as error:
            load(path)
        one_line(error)


def test_model_nobody_recognises_is_refused_with_what_was_found(tmp_path: Path) -> None:
    outputs = {"embedding": np.zeros((1, 512), np.float32)}
    with pytest.raises(UnknownModelError) as error:
        load(write_model(tmp_path / "model.onnx", outputs))
    text = one_line(error)
    assert "embedding 1x512" in text
    assert "images 1x3x64x64" in text
    assert "yolo26: N x 6" in text


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 1, 64, 64), "Nx3xHxW"), ((1, 3, 64), "Nx3xHxW"), ((100, 3, 64, 64), "batch of 100")],
)
def test_inputs_that_take_no_colour_picture_are_refused(
    tmp_path: Path, shape: tuple[int, ...], message: str
) -> None:
    path = tmp_path / "model.onnx"
    value = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    answer = helper.make_tensor_value_info("output0", TensorProto.FLOAT, shape)
    node = helper.make_node("Relu", ["images"], ["output0"])
    graph = helper.make_graph([node], "g", [value], [answer])
    opsets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    with pytest.raises(ModelError, match=message):
        load(path)


def test_input_that_we_cannot_fill_is_refused_by_name(tmp_path: Path) -> None:
    path = tiny(tmp_path / "model.onnx", more_inputs={"prompt": ((1, 8), np.int64)})
    with pytest.raises(ModelError, match="prompt 1x8"):
        load(path)


def test_endless_graph_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.detector.engine.FIRST_RUN_TIMEOUT_S", 0.3)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Relu", ["carried"], ["carried_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, [1, 3, 64, 64]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_out", TensorProto.FLOAT, [1, 3, 64, 64]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["rounds", "yes", "images"], ["output0"], body=body)],
        "endless",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 3, 64, 64])],
        [
            helper.make_tensor("rounds", TensorProto.INT64, [], [2**62]),
            helper.make_tensor("yes", TensorProto.BOOL, [], [1]),
        ],
    )
    path = tmp_path / "model.onnx"
    opsets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    with pytest.raises(ModelError, match="no answer within"):
        load(path)


def test_open_dimensions_take_the_size_that_is_said(tmp_path: Path) -> None:
    shape = ("batch", 3, "height", "width")
    path = tiny(tmp_path / "model.onnx", input_shape=shape, batch_dim="batch")
    assert load(path).reports()[0].input_wh == (640, 640)
    said = {**NAMES, "imgsz": "[96, 64]"}  # height first
    path = tiny(tmp_path / "said.onnx", input_shape=shape, batch_dim="batch", metadata=said)
    assert load(path).reports()[0].input_wh == (64, 96)
    (tmp_path / "said.yaml").write_text("input: {size: [128, 32]}")
    assert load(path).reports()[0].input_wh == (128, 32)


def test_open_batch_runs_several_pictures_at_once(tmp_path: Path) -> None:
    shape = ("batch", 3, 64, 64)
    path = tiny(tmp_path / "model.onnx", input_shape=shape, batch_dim="batch")
    assert load(path).max_batch == 1
    detector = load(path, max_batch=4)
    assert detector.max_batch == 4
    pictures = [even_picture(side) for side in (128, 64, 32, 128, 256, 64)]
    found = detector.detect(pictures)
    assert [detected.detections.size_wh[0] for detected in found] == [128, 64, 32, 128, 256, 64]
    scale = np.array([side / 64 for side in (128, 64, 32, 128, 256, 64)])[:, None]
    corners = np.stack([detected.detections.xyxy[0] for detected in found])
    np.testing.assert_allclose(corners, np.array(XYXY) * scale, atol=0.01)


def test_fixed_batch_is_filled_up(tmp_path: Path) -> None:
    path = tiny(tmp_path / "model.onnx", input_shape=(2, 3, 64, 64), batch_dim=2)
    detector = load(path)
    assert detector.max_batch == 2
    found = detector.detect([even_picture()] * 3)
    assert [len(detected.detections) for detected in found] == [1, 1, 1]


def test_no_pictures_give_no_answers(tmp_path: Path) -> None:
    assert load(tiny(tmp_path / "model.onnx")).detect([]) == []


@pytest.mark.parametrize("side", [16, 1, 7680])
def test_tiny_and_huge_pictures_are_detected(tmp_path: Path, side: int) -> None:
    [found] = load(tiny(tmp_path / "model.onnx")).detect([even_picture(side)])
    np.testing.assert_allclose(found.detections.xyxy[0], np.array(XYXY) * side / 64, rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, np.uint8])
@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 64, 64, 3)])
def test_inputs_of_other_types_and_layouts_are_fed(
    tmp_path: Path, dtype: Any, shape: tuple[int, ...]
) -> None:
    detector = load(tiny(tmp_path / "model.onnx", dtype=dtype, input_shape=shape))
    [found] = detector.detect([even_picture()])
    np.testing.assert_allclose(found.detections.xyxy, [FOUND], atol=0.01)


def test_metadata_of_our_own_models_sets_the_input(tmp_path: Path) -> None:
    metadata = {
        "names": json.dumps(["zero", "one", "two"]),
        "sightline.family": "sightline",
        "sightline.input": json.dumps(
            {"colour": "bgr", "scale": 0.5, "placement": "stretch", "mean": [1, 2, 3]}
        ),
    }
    outputs = {"detections": rows(300, 6, 0, (*XYXY, 0.8, 1))}
    detector = load(write_model(tmp_path / "model.onnx", outputs, metadata=metadata))
    spec = detector.input_spec
    assert (spec.colour, spec.scale, spec.placement, spec.mean) == (
        "bgr",
        0.5,
        "stretch",
        (1.0, 2.0, 3.0),
    )
    assert detector.names == ("zero", "one", "two")
    assert detector.reports()[0].family == "sightline"


def test_sidecar_overrules_family_names_input_and_floor(tmp_path: Path) -> None:
    # 84 rows of seven columns are a YOLOX of two classes unless somebody says otherwise.
    outputs = {"output0": np.ascontiguousarray(yolov8()["output0"].transpose(0, 2, 1))}
    path = write_model(tmp_path / "model.onnx", outputs)
    assert load(path).reports()[0].family == "yolox"
    sidecar = tmp_path / "model.yaml"
    sidecar.write_text(
        "family: yolo11\nnames: {0: cat, 1: dog, 2: cow}\nconfidence: 0.5\n"
        "input: {placement: stretch, colour: bgr, std: [2, 2, 2]}"
    )
    detector = load(path)
    assert detector.reports()[0].family == "yolov8"
    assert detector.names == ("cat", "dog", "cow")
    assert (detector.input_spec.placement, detector.input_spec.std) == ("stretch", (2.0, 2.0, 2.0))
    [found] = detector.detect([even_picture()])
    assert len(found.detections) == 1
    sidecar.write_text("family: yolov8\nconfidence: 0.9")
    [found] = load(path).detect([even_picture()])
    assert len(found.detections) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("famly: yolox", "unknown famly; known are confidence, decoded, family"),
        ("[1, 2]", "holds no keys"),
        ("names: 7", "neither a list nor a mapping"),
        ("names: {a: b}", "neither a list nor a mapping"),
        ("confidence: 3", "not a number of 0..1"),
        ("decoded: 1", "neither true nor false"),
        ("family: [a]", "not a word"),
        ("family: resnet", "not known; known are yunet"),
        ("input: {size: [1, 2, 3]}", "size"),
        ("input: {std: [0, 1, 1]}", "std"),
        ("input: {pad: 256}", "pad"),
        ("input: {colour: cmyk}", "colour"),
        ("input: {width: 3}", "unknown width"),
        ("a: b: c", "not readable as YAML"),
        ("!!python/object/apply:os.system [ls]", "not readable as YAML"),
    ],
)
def test_wrong_sidecar_is_refused_by_key(tmp_path: Path, text: str, message: str) -> None:
    path = tiny(tmp_path / "model.onnx")
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(ModelError) as error:
        load(path)
    assert message in one_line(error)


def test_empty_sidecar_changes_nothing(tmp_path: Path) -> None:
    path = tiny(tmp_path / "model.onnx")
    (tmp_path / "model.yaml").write_text("# nothing yet\n")
    assert load(path).names == ("zero", "one", "two")


def test_labels_file_wins_and_must_fit(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx", yolov8())
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\n\n")
    assert load(path, labels=str(labels)).names == ("a", "b", "c")
    labels.write_text("a\nb\n")
    with pytest.raises(ModelError, match=r"yolov8|class names"):
        load(path, labels=str(labels))
    labels.write_text("a\n\nb\n")
    with pytest.raises(ModelError, match="empty line"):
        load(path, labels=str(labels))
    with pytest.raises(ModelError, match="cannot be read"):
        load(path, labels=str(tmp_path / "none.txt"))


def composite(tmp_path: Path, **changes: Any) -> CompositeDetector:
    objects = tiny(tmp_path / "objects.onnx")
    faces = write_model(tmp_path / "faces.onnx", yunet())
    detector = load_detector(
        settings_for(Path(f"{objects}+{faces}"), tmp_path / "cache", **changes)
    )
    assert isinstance(detector, CompositeDetector)
    return detector


def test_objects_and_faces_come_together_with_their_own_names(tmp_path: Path) -> None:
    detector = composite(tmp_path)
    assert detector.names == ("zero", "one", "two", "face")
    assert [report.model for report in detector.reports()] == ["objects", "faces"]
    first, second = detector.detect([even_picture(), even_picture(64)])
    names = [detector.names[class_id] for class_id in first.detections.class_id]
    assert sorted(names) == ["face", "one"]
    landmarks = first.detections.landmarks
    assert landmarks is not None
    assert landmarks.shape == (2, 5, 2)
    assert np.isnan(landmarks[names.index("one")]).all()
    assert np.isfinite(landmarks[names.index("face")]).all()
    assert second.detections.size_wh == (64, 64)
    assert first.prepared_at_ns <= first.inferred_at_ns <= first.boxed_at_ns
    detector.close()


def test_each_model_keeps_its_own_floor(tmp_path: Path) -> None:
    (tmp_path / "faces.yaml").write_text("confidence: 0.9")
    detector = composite(tmp_path)
    [found] = detector.detect([even_picture()])
    assert [detector.names[k] for k in found.detections.class_id] == ["one"]


def test_merged_boxes_are_limited_and_sorted(tmp_path: Path) -> None:
    [found] = composite(tmp_path, max_boxes=1).detect([even_picture()])
    assert len(found.detections) == 1


def test_models_are_joined_by_plus_unless_the_file_is_called_so(tmp_path: Path) -> None:
    a, b = tiny(tmp_path / "a.onnx"), tiny(tmp_path / "b.onnx")
    assert model_paths(f"{a}+{b}") == [a, b]
    plus = tiny(tmp_path / "a+b.onnx")
    assert model_paths(str(plus)) == [plus]
    with pytest.raises(ModelError, match="one side of a plus"):
        model_paths(f"{a}+")


def test_broken_picture_costs_its_own_boxes_only(tmp_path: Path) -> None:
    class Broken:
        size_wh = (10, 10)

        def write_tensor(self, *_: Any) -> Any:
            raise ValueError("no pixels")

    detector = load(tiny(tmp_path / "model.onnx"))
    broken, good = detector.detect([Broken(), even_picture()])
    assert (len(broken.detections), len(good.detections)) == (0, 1)
    assert detector.statistics().unreadable == 1


def test_half_file_that_disagrees_with_its_original_is_refused_with_the_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where nothing computes half precision the half file would not be looked at.
    able = dataclasses.replace(host(), native_bf16=True)
    monkeypatch.setattr("server.detector.load.host", lambda: able)
    original = tiny(tmp_path / "model.onnx")
    other = yolo26()
    other["output0"][0, 0, 4] = 0.3
    half = write_model(tmp_path / "model.fp16.onnx", other, metadata=NAMES, dtype=np.float16)
    padded = onnx.load(str(half))
    # Weights enough for the outline to call the file half precision.
    weight = np.zeros(4096, np.float16)
    padded.graph.initializer.append(onnx.numpy_helper.from_array(weight, "unused"))
    onnx.save(padded, str(half))
    with pytest.raises(ParityError, match=r"differs by up to 0\.500"):
        load(half, parity=True, provider="openvino")
    assert load(original, parity=True, provider="openvino").reports()[0].family == "yolo26"
    assert load(half, parity=False).names == ("zero", "one", "two")


def test_parity_figure_counts_missing_extra_and_shifted_boxes() -> None:
    def found(*boxes: tuple[float, float]) -> Any:
        from server.detections import Detections

        return Detections(
            xyxy=np.array([[x, 0, x + 10, 10] for x, _ in boxes], np.float32).reshape(-1, 4),
            confidence=np.array([confidence for _, confidence in boxes], np.float32),
            class_id=np.zeros(len(boxes), np.int32),
            size_wh=(640, 480),
        )

    same = parity.compare([found((0, 0.9), (50, 0.5))], [found((1, 0.85), (50, 0.5))])
    assert same.confidence == pytest.approx(0.05, abs=1e-6)
    assert same.least_iou == pytest.approx(9 / 11)
    assert same.boxes == 4
    assert parity.compare([found((0, 0.9))], [found()]).confidence == pytest.approx(0.9)
    assert parity.compare([found()], [found((0, 0.7))]).confidence == pytest.approx(0.7)
    assert parity.compare([found((0, 0.2))], [found()]).acceptable
    assert not parity.compare([found((0, 0.9))], [found((8, 0.9))]).acceptable


def test_parity_results_are_remembered_until_the_file_changes(tmp_path: Path) -> None:
    cache = parity.ParityCache(tmp_path / "cache")
    model = tiny(tmp_path / "model.onnx")
    key = parity.cache_key([model], "bf16")
    assert cache.find(key) is None
    cache.keep(key, parity.Difference(0.01, 0.99, 7))
    assert parity.ParityCache(tmp_path / "cache").find(key) == parity.Difference(0.01, 0.99, 7)
    model.write_bytes(model.read_bytes() + b"\0")
    assert parity.cache_key([model], "bf16") != key
    (tmp_path / "cache" / parity.CACHE_NAME).write_text("{broken")
    assert cache.find(key) is None
    assert parity.ParityCache(None).find(key) is None


def test_built_in_pictures_are_there_and_small() -> None:
    pictures = parity.built_in_pictures()
    assert len(pictures) == 3
    assert all(isinstance(picture, BgrPicture) for picture in pictures)
    sizes = [path.stat().st_size for path in parity.PICTURE_DIR.glob("*.jpg")]
    assert max(sizes) <= 40 * 1024


def test_closed_detector_holds_no_session(tmp_path: Path) -> None:
    detector = load(tiny(tmp_path / "model.onnx"))
    detector.close()
    detector.close()
    assert isinstance(detector, ModelDetector)
    assert detector._chain is None


def test_rows_that_name_no_class_are_left_out() -> None:
    rows = np.full((1, 4, 6), 0.9, np.float32)
    rows[0, :, 5] = [0, 1e20, np.nan, 2]
    found = EndToEndHead("rows", 3).decode({"rows": rows}, 0, 0.5)
    assert found.class_id.tolist() == [0, 2]
