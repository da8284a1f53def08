"""An engine that fails is replaced by the next way, and the stream hears boxes, not errors."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.detector.engine import Engine, EngineChain, FeedPlan
from server.detector.providers import Way
from server.errors import ModelError
from tests.detector.graphs import AnyArray, write_model
from tests.detector.test_families import NAMES, even_picture, load, yolo26

pytestmark = pytest.mark.unit

FEED = FeedPlan("images", (3, 64, 64), 1, True, {}, {}, ("output0",))


class FailingEngine(Engine):
    """A real engine that can be told to fail as a lost driver does."""

    lost = False

    def run(self, count: int, run_options: Any = None) -> dict[str, AnyArray]:
        if self.lost:
            raise RuntimeError("CUDA failure 999:\n  the driver is gone")
        return super().run(count, run_options)


@pytest.fixture
def way(tmp_path: Path) -> Way:
    path = write_model(tmp_path / "model.onnx", yolo26(), metadata=NAMES)
    return Way("cpu", "fp32", path, 1)


def three(way: Way) -> list[Way]:
    """Three ways of one file; the names of the precisions only tell them apart."""
    return [replace(way, precision=name) for name in ("fp16", "bf16", "fp32")]


def chain_of(
    ways: list[Way], accept: Callable[[Engine], str] = lambda _: ""
) -> tuple[EngineChain, list[FailingEngine]]:
    made: list[FailingEngine] = []

    def make(way: Way, feed: FeedPlan) -> Engine:
        made.append(FailingEngine(way, feed))
        return made[-1]

    return EngineChain.start(ways, FEED, accept, make), made


def test_first_way_that_loads_is_used(way: Way) -> None:
    missing = replace(way, path=way.path.with_name("missing.onnx"), precision="fp16")
    chain, _ = chain_of([missing, way])
    assert chain.engine.way == way
    assert chain.fallback.startswith("cpu fp16: missing.onnx")


def test_way_that_is_not_accepted_is_passed_over_with_the_reason(way: Way) -> None:
    half, _, full = three(way)
    chain, _ = chain_of([half, full], lambda engine: "too far off" if engine.way is half else "")
    assert chain.engine.way is full
    assert chain.fallback == "cpu fp16: too far off"


def test_failure_at_run_time_goes_on_with_the_next_way_and_the_same_picture(way: Way) -> None:
    chain, made = chain_of(three(way))
    chain.engine.input.fill(0.25)
    made[0].lost = True
    outputs = chain.run(1)
    assert outputs["output0"].shape == (1, 30, 6)
    assert chain.engine.way.precision == "bf16"
    assert (chain.engine.input == 0.25).all()
    assert chain.fallback == (
        "cpu fp16: failed while running: CUDA failure 999: the driver is gone"
    )


def test_when_no_way_is_left_every_run_says_so(way: Way) -> None:
    chain, made = chain_of(three(way)[:2])
    for engine_index in range(2):
        made[engine_index].lost = True
        if engine_index == 0:
            chain.run(1)
    for _ in range(2):
        with pytest.raises(ModelError, match="the driver is gone"):
            chain.run(1)
    made[1].lost = False
    assert chain.run(1)["output0"].shape == (1, 30, 6)


def test_detector_reports_the_fallback_and_still_finds(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx", yolo26(), metadata=NAMES)
    detector = load(path)
    chain, made = chain_of(three(Way("cpu", "fp32", path, 1)))
    detector._chain = chain
    made[0].lost = True
    [found] = detector.detect([even_picture()])
    assert len(found.detections) == 1
    assert detector.reports()[0].precision == "bf16"
    assert "driver is gone" in detector.reports()[0].fallback


def test_provider_that_does_not_start_is_not_mistaken_for_one_that_does(way: Way) -> None:
    with pytest.raises(ModelError, match=r"model\.onnx: cuda: not part of"):
        Engine(replace(way, provider="cuda"), FEED)


def test_input_is_one_reused_buffer(way: Way) -> None:
    chain, _ = chain_of([way])
    before = chain.engine.input
    chain.run(1)
    assert chain.engine.input is before
    assert before.shape == (1, 3, 64, 64)
    assert before.dtype == np.float32
