"""Engines that work beside each other: the same answers, and no trouble when there are none."""

import json
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.detector.engine import Engine, FeedPlan, host
from server.detector.lanes import LANES, Lanes
from server.detector.load import load_detector
from server.detector.parity import built_in_pictures
from server.detector.providers import ModelFile, ways_to_run
from server.errors import ModelError
from server.pixels import Picture
from tests.detector.graphs import settings_for, write_model
from tests.detector.test_real_models import model_path

pytestmark = pytest.mark.unit

DEADLINE_S = 20.0
ANSWER = np.arange(6, dtype=np.float32).reshape(1, 2, 3)

needs_openvino = pytest.mark.skipif(
    not host().has("openvino"), reason="this onnxruntime has no OpenVINO"
)


class FakeEngine:
    """Gives what it is fed, or fails."""

    def __init__(self) -> None:
        self.input = np.zeros((1, 2), np.float32)
        self.failure: Exception | None = None

    def warm_up(self) -> None: ...

    def run(self, count: int) -> dict[str, Any]:
        if self.failure is not None:
            raise self.failure
        return {"out": self.input[:count].copy()}


def soon(find: Callable[[], Any]) -> Any:
    """What is found at last; it is made on another thread."""
    until = time.monotonic() + DEADLINE_S
    while (found := find()) is None:
        assert time.monotonic() < until, "it never came"
        time.sleep(0.005)
    return found


def lane_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "inference lane"]


def test_a_lane_tells_when_it_is_done_and_gives_what_its_engine_gave() -> None:
    lanes, told = Lanes(FakeEngine), threading.Event()  # type: ignore[arg-type]
    lane = soon(lanes.free)
    lane.engine.input[...] = 7
    lane.start(told.set)
    assert told.wait(DEADLINE_S)
    assert lane.done
    outputs, _ = lane.wait()
    assert (outputs["out"] == 7).all()
    lane.engine.failure = RuntimeError("out of memory")
    lane.start(told.set)
    with pytest.raises(RuntimeError, match="out of memory"):
        lane.wait()
    lanes.give_back(lane)
    lanes.close()


def test_there_are_so_many_and_each_has_one_user() -> None:
    lanes = Lanes(FakeEngine)  # type: ignore[arg-type]
    taken = [soon(lanes.free) for _ in range(LANES)]
    assert len(set(taken)) == LANES
    assert lanes.free() is None
    lanes.give_back(taken[0])
    assert lanes.free() is taken[0]
    before = len(lane_threads())
    lanes.close()
    for lane in taken:
        lanes.give_back(lane)
    soon(lambda: True if len(lane_threads()) == before - LANES else None)


@pytest.mark.parametrize("error", [ModelError("cannot be halved"), RuntimeError("no memory")])
def test_where_none_can_be_made_there_are_none(error: Exception) -> None:
    asked = threading.Event()

    def fail() -> Engine:
        asked.set()
        raise error

    lanes = Lanes(fail)
    assert lanes.free() is None
    assert asked.wait(DEADLINE_S)
    soon(lambda: None if any(t.name == "lanes" for t in threading.enumerate()) else True)
    asked.clear()
    assert lanes.free() is None
    assert not asked.is_set(), "it is tried once"


@pytest.mark.parametrize(
    ("provider", "threads"), [("cpu", 2), pytest.param("openvino", 1, marks=needs_openvino)]
)
def test_what_cannot_work_in_halves_says_so(tmp_path: Path, provider: str, threads: int) -> None:
    path = write_model(tmp_path / "model.onnx", {"output0": ANSWER})
    way = ways_to_run(ModelFile(path, is_half=False), provider, "fp32", threads, host())[0]
    engine = Engine(way, FeedPlan("images", (3, 64, 64), 1, True, {}, {}, ("output0",)))
    with pytest.raises(ModelError, match="not in halves"):
        engine.half()


@needs_openvino
def test_a_half_has_half_of_the_threads(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx", {"output0": ANSWER})
    way = ways_to_run(ModelFile(path, is_half=False), "openvino", "fp32", 5, host())[0]
    half = Engine(way, FeedPlan("images", (3, 64, 64), 1, True, {}, {}, ("output0",))).half()
    assert half.way.threads == 2
    before, after = (json.loads(each.options["load_config"])["CPU"] for each in (way, half.way))
    assert after == before | {"INFERENCE_NUM_THREADS": "2"}
    assert (half.run(1)["output0"] == ANSWER).all()


@needs_openvino
def test_pictures_side_by_side_have_the_boxes_of_those_alone(tmp_path: Path) -> None:
    path = model_path("yolo26n_320.onnx")
    detector = load_detector(settings_for(path, tmp_path, provider="openvino", threads=2))
    pictures: list[Picture] = list(built_in_pictures()[:2])
    alone = detector.detect(pictures[:1]) + detector.detect(pictures[1:])
    told = threading.Semaphore(0)
    begun = [soon(partial(detector.begin, each, told.release)) for each in pictures]
    assert detector.begin(pictures[0], told.release) is None
    for _ in begun:
        assert told.acquire(timeout=DEADLINE_S)
    assert all(each.done for each in begun)
    for each, expected in zip([each.wait() for each in begun], alone, strict=True):
        assert len(expected.detections)
        assert (each.detections.xyxy == expected.detections.xyxy).all()
        assert (each.detections.confidence == expected.detections.confidence).all()
        assert (each.detections.class_id == expected.detections.class_id).all()
        assert each.prepared_at_ns <= each.inferred_at_ns <= each.boxed_at_ns
    again = soon(lambda: detector.begin(pictures[0], told.release))
    again.wait()
    detector.close()


@needs_openvino
def test_an_engine_that_fails_beside_another_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model_path("yolo26n_320.onnx")
    detector = load_detector(settings_for(path, tmp_path, provider="openvino", threads=2))
    [picture] = built_in_pictures()[:1]
    soon(lambda: detector.begin(picture, lambda: None)).wait()

    def fail(self: Engine, count: int, run_options: Any = None) -> None:
        raise RuntimeError("the device is lost")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "run", fail)
        begun = [soon(lambda: detector.begin(picture, lambda: None)) for _ in range(LANES)]
        for each in begun:
            with pytest.raises(RuntimeError, match="the device is lost"):
                each.wait()
    assert detector.begin(picture, lambda: None) is None
    assert len(detector.detect([picture])) == 1
    detector.close()
