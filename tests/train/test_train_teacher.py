"""What a stronger detector teaches: its maps and its answers at every cell of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `train`)")
onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra `train`)")
pytest.importorskip("onnxruntime")

from tools.train import loop, loss, model, teacher  # noqa: E402

pytestmark = pytest.mark.unit

NAMES = ("face", "dog", "person")
DOG, PERSON = 16, 0
CPU = torch.device("cpu")


def yolox(path: Path) -> Path:
    """A file with YOLOX-nano's tensors: at every cell a box of two strides around the cell's
    middle, sure to 0.8 of an object, which is a person by 0.5 and a dog by the picture's blue."""
    nodes, constants = [], []
    width = 85

    def constant(name: str, values: Any) -> str:
        constants.append(onnx.numpy_helper.from_array(values.numpy(), name))
        return name

    def convolve(source: str, target: str, weight: Any, bias: Any, stride: int):
        inputs = [source, constant(f"{target}.w", weight), constant(f"{target}.b", bias)]
        nodes.append(
            onnx.helper.make_node(
                "Conv",
                inputs,
                [target],
                kernel_shape=list(weight.shape[2:]),
                strides=[stride, stride],
            )
        )

    bias = torch.zeros(width)
    bias[:2], bias[2:4] = 0.5, 0.6931472
    bias[4], bias[5 + PERSON] = 0.8, 0.5
    weight = torch.zeros(width, 3, 1, 1)
    weight[5 + DOG, 0] = 1 / 255
    ends = zip(model.STRIDES, teacher.YOLOX_NANO_MAPS, teacher.YOLOX_NANO_ANSWERS, strict=True)
    for stride, seen, answer in ends:
        mean = torch.eye(3)[:, :, None, None].repeat(1, 1, stride, stride) / stride**2
        convolve("images", seen, mean, torch.zeros(3), stride)
        convolve(seen, answer, weight, bias, 1)
        flat = constant(f"{answer}.shape", torch.tensor([1, width, -1]))
        nodes.append(onnx.helper.make_node("Reshape", [answer, flat], [f"{answer}.flat"]))
    flats = [f"{answer}.flat" for answer in teacher.YOLOX_NANO_ANSWERS]
    nodes.append(onnx.helper.make_node("Concat", flats, ["output"], axis=2))
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "made",
        [value("images", onnx.TensorProto.FLOAT, [1, 3, 64, 64])],
        [value("output", onnx.TensorProto.FLOAT, [1, width, 84])],
        constants,
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    made.ir_version = 8
    onnx.save(made, str(path))
    return path


def test_a_teacher_answers_for_our_cells_and_classes(tmp_path: Path) -> None:
    taught = teacher.Teacher(yolox(tmp_path / "yolox.onnx"), NAMES, threads=1)
    pictures = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    pictures[1, 2] = 255
    lesson = taught.look(pictures)
    assert taught.widths == (3, 3, 3)
    assert [tuple(m.shape[2:]) for m in lesson.maps] == [(8, 12), (4, 6), (2, 3)]
    assert lesson.known.tolist() == [0.0, 1.0, 1.0]
    assert torch.allclose(lesson.scores[..., 0], torch.zeros(()))
    assert torch.allclose(lesson.scores[..., 2], torch.full((), 0.4), atol=1e-2)
    # The dog is in the second picture alone: channels were turned from RGB to BGR.
    assert torch.allclose(lesson.scores[0, :, 1], torch.zeros(()), atol=1e-2)
    assert torch.allclose(lesson.scores[1, :, 1], torch.full((), 0.8), atol=1e-2)
    centres, strides = model.cells(64, 96)
    wanted = torch.cat((centres - strides, centres + strides), 1)
    assert torch.allclose(lesson.boxes[0], wanted, atol=0.5)


def answers() -> tuple[Any, Any]:
    """A teacher's scores (1, 2, 3) and boxes: sure of a dog in the first cell, of nothing else."""
    scores = torch.tensor([[[0.0, 0.9, 0.02], [0.0, 0.01, 0.02]]])
    return scores, torch.tensor([[[0.0, 0, 10, 10], [20.0, 20, 30, 30]]])


def test_who_answers_as_the_teacher_does_loses_nothing_and_stays() -> None:
    scores, boxes = answers()
    logits = torch.logit(scores.clamp(1e-6)).requires_grad_()
    lost = loss.agreement(logits, boxes, scores, boxes, torch.tensor([0.0, 1.0, 1.0]))
    lost.backward()
    assert float(lost.detach()) == pytest.approx(0.0, abs=1e-4)
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-5


def test_a_class_the_teacher_does_not_know_is_not_taught() -> None:
    scores, boxes = answers()
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    loss.agreement(logits, boxes, scores, boxes, torch.tensor([0.0, 1.0, 1.0])).backward()
    assert logits.grad is not None
    assert logits.grad[..., 0].abs().max() == 0
    assert float(logits.grad[0, 0, 1]) < 0 < float(logits.grad[0, 1, 1])


def test_boxes_are_taught_where_the_teacher_is_sure() -> None:
    scores, boxes = answers()
    ours = (boxes + torch.tensor([2.0, 0, 2, 0])).requires_grad_()
    loss.agreement(torch.zeros(1, 2, 3), ours, scores, boxes, torch.ones(3)).backward()
    assert ours.grad is not None
    assert ours.grad[0, 0].abs().max() > 0
    assert ours.grad[0, 1].abs().max() == 0


def test_a_taught_step_weighs_what_the_plan_asks(tmp_path: Path) -> None:
    from tests.train.pictures import corpus

    architecture = model.Architecture(
        classes=3, stem=8, widths=(16, 24, 32), depths=(1, 1, 1), neck=16, head=16
    )
    taught = teacher.Teacher(yolox(tmp_path / "yolox.onnx"), corpus().names, threads=1)

    def first(agreement: float) -> dict[str, float]:
        plan = loop.Plan(steps=2, batch=2, early_size=64, imitation=0.0, agreement=agreement)
        trainer = loop.Trainer(architecture, plan, corpus(), CPU, taught)
        feed = loop.Feed(trainer.corpus, plan, 0)
        try:
            return trainer.train_step(feed.next())
        finally:
            feed.close()

    without, with_it = first(0.0), first(0.5)
    assert without["agree"] == pytest.approx(with_it["agree"])
    assert with_it["loss"] - without["loss"] == pytest.approx(0.5 * with_it["agree"], rel=1e-2)
