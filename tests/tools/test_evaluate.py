"""The whole evaluation of a tiny real model whose accuracy is known by construction."""

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tools.evaluate.__main__ import main
from tools.evaluate.figures import FIGURES, PAPER_FIGURES

pytestmark = pytest.mark.unit

SIDE = 64
# What the model says of every picture: x1 y1 x2 y2 confidence class.
ROWS = [[8, 8, 40, 40, 0.9, 0], [0, 0, 16, 16, 0.7, 1], [30, 30, 60, 60, 0.4, 0]]


def write_model(path: Path, size: int | str = SIDE) -> None:
    """An end-to-end head that finds ROWS in every picture, behind a convolution that adds 0."""
    constants: dict[str, np.ndarray] = {
        "w": np.zeros((1, 3, 1, 1), np.float32),
        "rows": np.array([ROWS], np.float32),
        "shape": np.array([1, 1, 1], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["c"]),
        helper.make_node("GlobalMaxPool", ["c"], ["m"]),
        helper.make_node("Reshape", ["m", "shape"], ["zero"]),
        helper.make_node("Add", ["rows", "zero"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "known",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, size, size))],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, (1, len(ROWS), 6))],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(
        model, {"names": "{0: 'person', 1: 'dog'}", "task": "detect", "end2end": "True"}
    )
    onnx.save(model, str(path))


def write_data(folder: Path) -> None:
    """Two pictures: in one the first row is right, in the other nothing is."""
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(1)
    for name in ("a.png", "b.png"):
        pixels = random.integers(0, 255, (SIDE, SIDE, 3), np.uint8)
        cv2.imwrite(str(folder / "images" / name), pixels)
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "person"}, {"id": 17, "name": "cat"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [8, 8, 32, 32], "iscrowd": 0},
            {"image_id": 2, "category_id": 1, "bbox": [50, 2, 12, 12], "iscrowd": 0},
        ],
    }
    (folder / "instances.json").write_text(json.dumps(content))


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    write_model(tmp_path / "known.onnx")
    write_data(tmp_path / "data")
    return tmp_path / "known.onnx", tmp_path / "data"


def _run(
    capsys: pytest.CaptureFixture[str], model: Path, data: Path, *flags: str
) -> tuple[int, dict, str]:
    status = main(["--model", str(model), "--data", str(data), "--json", *flags])
    captured = capsys.readouterr()
    return status, json.loads(captured.out.splitlines()[-1]), captured.err


def test_known_model_gets_the_accuracy_it_must_have(
    made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    status, answer, progress = _run(capsys, *made)
    assert status == 0
    (row,) = answer["runs"]
    # By confidence: 0.9 right (picture a), 0.9 wrong (b), 0.4 wrong twice; one of two found.
    # COCO keeps the order of pictures among equals, so precision is 1 up to recall 0.5.
    expected = pytest.approx(100 * 51 / 101, abs=0.01)
    assert (row["mAP50"], row["mAP50-95"]) == (expected, expected)
    assert row["classes"] == 1  # the model knows no cats
    assert row["by_class"].keys() == {"person"}
    assert row["best_F1"] == 50.0
    assert row["total_p50_ms"] > 0
    assert "2.0/2.0 pictures" in progress


def test_report_holds_everything_and_loads_nothing(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    status, answer, _ = _run(capsys, *made, "--precision", "fp32,fp16", "--out", str(out))
    assert status == 0
    text = (out / "report.html").read_text(encoding="utf-8")
    assert answer["report"] == str(out / "report.html")
    assert "http" not in text
    assert not re.search(r"(?:src|href)=\"(?!data:)", text)
    assert not re.search(r"@import|url\(", text)
    assert text.count("data:image/svg+xml;base64,") == 2 * len(FIGURES)
    assert len(PAPER_FIGURES) == 5
    for kind in FIGURES:
        assert kind.title in text
        assert (out / f"{kind.key}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        for ending in (".svg", "-dark.svg"):
            drawn = (out / f"{kind.key}{ending}").read_text(encoding="utf-8")
            assert "<image" not in drawn
            assert 'href="http' not in drawn
    assert "prefers-color-scheme: dark" in text
    with (out / "runs.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["precision"] for row in rows] == ["fp32", "fp16"]
    assert float(rows[0]["mAP50"]) == pytest.approx(50.5, abs=0.01)
    saved = json.loads((out / "runs.json").read_text(encoding="utf-8"))["runs"]
    assert len(saved[0]["curves"]["f1"]) == len(saved[0]["curves"]["confidence"]) == 101


def test_half_precision_is_compared_with_full(
    made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, answer, _ = _run(capsys, *made, "--precision", "fp32,fp16")
    (row,) = answer["against_fp32"]
    assert row["precision"] == "fp16"
    assert row["mAP50-95"] == 0.0
    assert row["largest_mAP_gap"] == 0.0


def test_emulated_half_precision_is_not_timed(
    made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from server.detector.engine import host
    from tools.evaluate.choose import HALF_DEVICES

    if any(host().has(name) for name in HALF_DEVICES):
        pytest.skip("this machine computes FP16 itself")
    _, answer, _ = _run(capsys, *made, "--precision", "fp16")
    (row,) = answer["runs"]
    assert row["total_p50_ms"] is None
    assert "emulated" in row["note"]


def test_open_input_is_fixed_to_each_size(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "open.onnx", "side")
    status, answer, _ = _run(capsys, tmp_path / "open.onnx", made[1], "--sizes", "32,64")
    assert status == 0
    assert [row["input"] for row in answer["runs"]] == ["32x32", "64x64"]
    status, answer, _ = _run(capsys, *made, "--sizes", "32")
    assert status == 1
    assert "fixed at 64x64" in answer["error"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--precision", "fp64"), "not a list of fp32, fp16, bf16"),
        (("--classes", "horse"), "no class horse; it has person, cat"),
        (("--classes", "cat"), "knows none of the classes"),
    ],
)
def test_wrong_use_is_one_clear_line(
    flags: tuple[str, ...],
    expected: str,
    made: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, answer, messages = _run(capsys, *made, *flags)
    assert status == 1
    assert expected in answer["error"]
    assert messages.count("\n") == 1


def test_limit_and_missing_folder(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, answer, _ = _run(capsys, *made, "--limit", "1")
    assert answer["runs"][0]["pictures"] == 1
    status, answer, _ = _run(capsys, made[0], tmp_path / "nothing")
    assert status == 1
    assert "no such folder" in answer["error"]
