"""Conversion of the real files of ../shared/models, where they are."""

from pathlib import Path

import pytest

from server.errors import ModelError
from tools.convert.check import convert_file
from tools.convert.graph import load_plain

SHARED_MODELS = Path(__file__).parents[2].parent / "shared" / "models"
pytestmark = [
    pytest.mark.service,
    pytest.mark.skipif(not SHARED_MODELS.is_dir(), reason="needs ../shared/models"),
]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("yolox_nano.onnx", "yolox"),
        ("yolo26n_320.onnx", "yolo26"),
        ("nanodet_m.onnx", "nanodet"),
        ("yunet_2026may.onnx", "yunet"),
        ("ultralight-face-version-RFB-320.onnx", "ssd"),
    ],
)
def test_real_file_halves_and_finds_the_same_boxes(name: str, family: str, tmp_path: Path) -> None:
    source, target = SHARED_MODELS / name, tmp_path / name
    _, comparison = convert_file(source, target)
    assert comparison.detector == family
    assert comparison.boxes > 0
    assert comparison.missing == 0
    assert comparison.confidence_largest < 0.03
    assert comparison.iou_least > 0.97
    assert target.stat().st_size < 0.6 * source.stat().st_size


def test_real_quantised_file_is_refused() -> None:
    with pytest.raises(ModelError, match="already quantised"):
        load_plain(SHARED_MODELS / "yolo11n_int8.onnx")
