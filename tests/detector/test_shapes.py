"""A model in the shape of its pictures: real loading of tiny convolutions and, where present, of
the real files."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from server.detector.aspects import AspectDetector, fitting_size
from server.detector.load import load_detector
from server.detector.parity import built_in_pictures, cut_to_shape
from server.detector.reshape import with_input_size
from server.errors import ModelError
from server.pixels import BgrPicture
from server.settings import DetectorSettings
from tests.detector.graphs import write_model

pytestmark = pytest.mark.unit

DEADLINE_S = 60.0
REAL = Path(__file__).parents[3] / "shared" / "models"


def write_grid_model(path: Path, side: int = 128) -> Path:
    """A YOLOX-shaped network of one pooling per stride: fully convolutional, as real ones are.

    Every cell answers with objectness of the picture's brightness there, so what it finds
    depends on the picture and on nothing else.
    """
    nodes, outputs = [], []
    for stride in (8, 16, 32):
        name = f"s{stride}"
        nodes += [
            helper.make_node(
                "AveragePool", ["images"], [f"{name}_mean"],
                kernel_shape=[stride, stride], strides=[stride, stride],
            ),
            helper.make_node("Conv", [f"{name}_mean", "weights", "bias"], [f"{name}_rows"]),
            helper.make_node("Reshape", [f"{name}_rows", "rows"], [f"{name}_flat"]),
        ]  # fmt: skip
        outputs.append(f"{name}_flat")
    nodes.append(helper.make_node("Concat", outputs, ["joined"], axis=2))
    nodes.append(helper.make_node("Transpose", ["joined"], ["output"], perm=[0, 2, 1]))
    weights = np.zeros((7, 3, 1, 1), np.float32)
    weights[4] = 2 / (3 * 255)  # objectness: how much brighter than grey, so padding is nothing
    bias = np.array([0.5, 0.5, 1.0, 1.0, -1.0, 0.9, 0.1], np.float32)
    cells = sum((side // stride) ** 2 for stride in (8, 16, 32))
    graph = helper.make_graph(
        nodes,
        "grid",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, cells, 7])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(bias, "bias"),
            numpy_helper.from_array(np.array([1, 7, -1], np.int64), "rows"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model.metadata_props.add(key="names", value="{0: 'bright', 1: 'dim'}")
    onnx.save(model, str(path))
    return path


def settings(path: Path, tmp_path: Path, *, fit_shape: bool = True) -> DetectorSettings:
    return DetectorSettings(
        model=str(path), provider="cpu", cache_dir=str(tmp_path / "cache"), fit_shape=fit_shape
    )


def picture_with_a_spot(width: int, height: int) -> BgrPicture:
    bgr = np.zeros((height, width, 3), np.uint8)
    bgr[height // 2 : height * 3 // 4, width // 2 : width * 3 // 4] = 255
    return BgrPicture(bgr)


@pytest.mark.parametrize(
    ("picture_wh", "square_wh", "shape_wh"),
    [
        ((640, 480), (416, 416), (416, 320)),
        ((1280, 720), (416, 416), (416, 256)),
        ((720, 1280), (416, 416), (256, 416)),
        ((500, 500), (416, 416), (416, 416)),
        ((640, 480), (640, 640), (640, 480)),
        ((4000, 10), (416, 416), (416, 32)),
    ],
)
def test_the_shape_is_the_smallest_on_the_grid_that_holds_the_picture(
    picture_wh: tuple[int, int], square_wh: tuple[int, int], shape_wh: tuple[int, int]
) -> None:
    assert fitting_size(picture_wh, square_wh) == shape_wh


def test_a_convolutional_model_gets_a_shape_that_finds_the_same(tmp_path: Path) -> None:
    model = write_grid_model(tmp_path / "grid.onnx")
    plain = load_detector(settings(model, tmp_path, fit_shape=False))
    shaped = load_detector(settings(model, tmp_path))
    assert isinstance(shaped, AspectDetector)
    picture = picture_with_a_spot(640, 480)
    [expected] = plain.detect([picture])
    assert len(expected.detections)
    [before] = shaped.detect([picture])
    np.testing.assert_allclose(before.detections.xyxy, expected.detections.xyxy)
    assert shaped.wait_shape(picture.size_wh, DEADLINE_S)
    [after] = shaped.detect([picture])
    np.testing.assert_allclose(after.detections.xyxy, expected.detections.xyxy, atol=1e-3)
    np.testing.assert_allclose(
        after.detections.confidence, expected.detections.confidence, atol=1e-4
    )
    [report] = shaped.reports()
    assert (report.model, report.input_wh) == ("grid", (128, 96))
    shaped.close()
    plain.close()


def test_pictures_of_several_shapes_in_one_call_keep_their_order(tmp_path: Path) -> None:
    model = write_grid_model(tmp_path / "grid.onnx")
    shaped = load_detector(settings(model, tmp_path), expected_sizes=[(640, 480)])
    assert isinstance(shaped, AspectDetector)
    assert shaped.wait_shape((640, 480), DEADLINE_S)
    pictures = [picture_with_a_spot(*size) for size in ((640, 480), (256, 256), (320, 240))]
    answers = shaped.detect(pictures)
    assert [answer.detections.size_wh for answer in answers] == [
        (640, 480),
        (256, 256),
        (320, 240),
    ]
    assert all(len(answer.detections) for answer in answers)
    shaped.close()


def test_a_model_that_holds_its_size_stays_at_it(tmp_path: Path) -> None:
    rows = np.zeros((1, 30, 6), np.float32)
    rows[0, 0] = (10, 10, 40, 40, 0.9, 0)
    model = write_model(tmp_path / "fixed.onnx", {"output0": rows}, (1, 3, 128, 128))
    content = model.read_bytes()
    (tmp_path / "fixed.onnx").write_bytes(content)
    shaped = load_detector(settings(model, tmp_path))
    assert isinstance(shaped, AspectDetector)
    # Its boxes are the same numbers whatever the input: in the other shape they lie elsewhere.
    shaped.wait_shape((640, 480), DEADLINE_S)
    [answer] = shaped.detect([picture_with_a_spot(640, 480)])
    assert len(answer.detections) == 1
    shaped.close()
    shaped.close()


def test_what_is_not_an_onnx_file_is_not_rewritten() -> None:
    for content in (b"\xff" * 40, b"\x3a\x05ab", b""):
        with pytest.raises(ModelError):
            with_input_size(content, "images", (64, 64))


def test_only_the_sizes_of_the_file_change(tmp_path: Path) -> None:
    path = write_grid_model(tmp_path / "grid.onnx")
    before = onnx.load(str(path))
    after = onnx.load_from_string(with_input_size(path.read_bytes(), "images", (96, 64)))
    dims = after.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [1, 3, 64, 96]
    assert after.graph.node == before.graph.node
    assert after.graph.initializer == before.graph.initializer
    assert after.metadata_props == before.metadata_props
    onnx.checker.check_model(after)
    with pytest.raises(ModelError, match="no input other"):
        with_input_size(path.read_bytes(), "other", (96, 64))


def test_a_picture_is_cut_to_the_proportions_of_the_shape() -> None:
    for picture in built_in_pictures():
        width, height = cut_to_shape(picture, (416, 256)).size_wh
        assert width / height == pytest.approx(416 / 256, rel=0.02)
        assert width == picture.size_wh[0] or height == picture.size_wh[1]


@pytest.mark.skipif(not REAL.is_dir(), reason="the folder shared/ is not beside the checkout")
def test_the_real_yolox_runs_in_the_shape_of_a_camera(tmp_path: Path) -> None:
    path = REAL / "yolox_nano.onnx"
    shaped = load_detector(settings(path, tmp_path), expected_sizes=[(640, 480)])
    assert isinstance(shaped, AspectDetector)
    assert shaped.wait_shape((640, 480), DEADLINE_S)
    shaped.close()


def test_pictures_of_two_shapes_are_looked_at_side_by_side_and_of_no_more(tmp_path: Path) -> None:
    detector = load_detector(settings(write_grid_model(tmp_path / "grid.onnx"), tmp_path))
    assert isinstance(detector, AspectDetector)
    asked: list[tuple[int, int]] = []
    pictures = [picture_with_a_spot(*size) for size in ((128, 128), (128, 96), (128, 64))]
    for picture in pictures:
        assert detector.wait_shape(picture.size_wh, DEADLINE_S)
        part = detector._for(picture.size_wh)
        size = part.input_spec.size_wh
        part.begin = lambda *_, size=size: asked.append(size)  # type: ignore[method-assign]
    for _ in range(2):
        for picture in pictures:
            assert detector.begin(picture, lambda: None) is None
    assert asked == [(128, 128), (128, 96)] * 2
    detector.close()
