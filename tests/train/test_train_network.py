"""Assignment, losses, the loop and the export; they need torch (extra `train`)."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `train`)")

from tests.train.pictures import corpus, picture  # noqa: E402
from tools.train import export, loop, loss, model, optim  # noqa: E402
from tools.train.assign import Assignment, Targets, assign, pairwise_iou  # noqa: E402
from tools.train.augment import Recipe, compose  # noqa: E402

pytestmark = pytest.mark.unit

TINY = model.Architecture(
    classes=3, stem=8, widths=(16, 24, 32), depths=(1, 1, 1), neck=16, head=16
)
PLAN = loop.Plan(
    steps=6,
    batch=4,
    size=64,
    early_size=64,
    final_size=64,
    warmup=2,
    save_every=3,
    evaluate_every=100,
)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def targets(rows: list[tuple[int, list[float], int, float]]) -> Targets:
    return Targets(
        torch.tensor([r[0] for r in rows], dtype=torch.int64),
        torch.tensor([r[1] for r in rows], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([r[2] for r in rows], dtype=torch.int64),
        torch.tensor([r[3] for r in rows], dtype=torch.float32),
    )


def answers(count: int = 1, size: int = 64):
    """Even scores, boxes of one stride around every centre, and the centres."""
    centres, strides = model.cells(size, size)
    boxes = torch.cat((centres - strides, centres + strides), 1)[None].repeat(count, 1, 1)
    return torch.full((count, len(centres), 3), 0.1), boxes, centres


def test_cells_run_over_the_strides_row_by_row() -> None:
    centres, strides = model.cells(64, 64)
    assert len(centres) == 64 + 16 + 4
    assert centres[:2].tolist() == [[4.0, 4.0], [12.0, 4.0]]
    assert strides[[0, 64, 80], 0].tolist() == [8.0, 16.0, 32.0]


def test_positive_cells_lie_in_their_object_and_the_best_is_asked_for_its_overlap() -> None:
    scores, boxes, centres = answers()
    wanted = targets([(0, [8.0, 8.0, 40.0, 40.0], 1, 1.0)])
    found = assign(scores, boxes, centres, wanted, top=5)
    assert 0 < len(found.cell) <= 5
    at = centres[found.cell]
    assert ((at > 8) & (at < 40)).all()
    overlap = pairwise_iou(wanted.boxes, boxes[0, found.cell])
    assert float(found.score.max()) == pytest.approx(float(overlap.max()), rel=1e-4)


def test_a_cell_wanted_twice_answers_for_the_object_it_overlaps_most() -> None:
    scores, boxes, centres = answers()
    small, large = [16.0, 16.0, 32.0, 32.0], [0.0, 0.0, 64.0, 64.0]
    found = assign(scores, boxes, centres, targets([(0, large, 0, 1.0), (0, small, 1, 1.0)]), 50)
    assert len(set(found.cell.tolist())) == len(found.cell), "one object per cell"
    cell = int(pairwise_iou(torch.tensor(small), boxes[0]).argmax())
    assert found.target[found.cell == cell].tolist() == [1]


def test_objects_of_one_picture_do_not_take_cells_of_another() -> None:
    scores, boxes, centres = answers(count=3)
    found = assign(scores, boxes, centres, targets([(2, [8.0, 8.0, 40.0, 40.0], 0, 1.0)]))
    assert set(found.picture.tolist()) == {2}


def test_a_box_smaller_than_a_cell_still_gets_one() -> None:
    scores, boxes, centres = answers()
    found = assign(scores, boxes, centres, targets([(0, [7.0, 7.0, 9.0, 9.0], 0, 1.0)]))
    assert len(found.cell) > 0


def test_a_batch_without_objects_has_no_positives() -> None:
    scores, boxes, centres = answers()
    assert len(assign(scores, boxes, centres, targets([])).cell) == 0


def batch_of(*pictures) -> loss.Batch:
    recipe = Recipe(size=64, whole=1.0, colour=0.0, degrade=0.0)
    rng = np.random.default_rng(0)
    return loop.collate([compose([p], recipe, rng) for p in pictures], CPU)


def nothing() -> Assignment:
    none = torch.zeros(0, dtype=torch.int64)
    return Assignment(none, none, none, torch.zeros(0))


def test_an_unlabelled_class_of_weight_zero_gives_no_gradient() -> None:
    batch = batch_of(picture([], [], background=(1.0, 0.0, 0.3)))
    centres, _ = model.cells(64, 64)
    logits = torch.zeros(1, len(centres), 3, requires_grad=True)
    boxes = answers()[1]
    loss.losses(logits, boxes, batch, centres).total.backward()
    assert logits.grad is not None
    in_picture = batch.tile_of_cell[0] == 0
    pulled = logits.grad[0, in_picture].abs().sum(0)
    assert pulled[1] == 0, "nobody looked for this class here"
    assert pulled[0] > 0
    assert float(pulled[2] / pulled[0]) == pytest.approx(0.3, rel=1e-4)


def test_padding_is_background_whatever_the_picture_knows() -> None:
    batch = batch_of(picture([], [], background=(0.0, 0.0, 0.0), size_wh=(64, 64)))
    centres, _ = model.cells(64, 64)
    inside = loss.class_weights(batch, nothing(), centres)
    assert (inside == 0).all()
    half = dataclasses.replace(batch, tile_of_cell=torch.ones_like(batch.tile_of_cell))
    assert (loss.class_weights(half, nothing(), centres) == 1).all()


def test_a_region_to_ignore_is_silent_for_its_class_only() -> None:
    one = picture([], [], ignored=[(0, 0, 32, 64)], size_wh=(64, 64))
    batch = batch_of(one)
    centres, _ = model.cells(64, 64)
    weights = loss.class_weights(batch, nothing(), centres)[0]
    # The placement may mirror the picture, so the region is read from the batch.
    x1, _, x2, _ = batch.ignored_boxes[0].tolist()
    there = (centres[:, 0] >= x1) & (centres[:, 0] < x2)
    assert (weights[there, 0] == 0).all()
    assert (weights[~there, 0] == 1).all()
    assert (weights[:, 1:] == 1).all()


def test_a_soft_target_pulls_as_much_as_it_is_trusted() -> None:
    def pull(trust: float) -> float:
        one = picture([(8, 8, 56, 56)], [1], [trust], (0.0, 0.0, 0.0), size_wh=(64, 64))
        centres, _ = model.cells(64, 64)
        logits = torch.zeros(1, len(centres), 3, requires_grad=True)
        batch = batch_of(one)
        boxes = answers()[1].clone().requires_grad_()
        found = assign(logits.detach().sigmoid(), boxes.detach(), centres, batch.targets)
        weights = loss.class_weights(batch, found, centres)
        return float(weights[0, found.cell, 1].mean())

    assert pull(0.6) == pytest.approx(0.6)
    assert pull(1.0) == pytest.approx(1.0)


def test_generalised_iou_is_one_for_equal_boxes_and_negative_far_apart() -> None:
    a = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    far = torch.tensor([[90.0, 90.0, 100.0, 100.0]])
    assert float(loss.generalised_iou(a, a)) == pytest.approx(1.0, abs=1e-4)
    assert float(loss.generalised_iou(a, far)) < -0.9


@pytest.mark.parametrize("branched", [False, True])
def test_a_fused_network_answers_the_same(branched: bool) -> None:
    torch.manual_seed(0)
    network = model.Detector(dataclasses.replace(TINY, branched=branched))
    # The same network once fused, whatever it was trained as.
    plain = model.parameters_of(model.Detector(TINY).fuse())
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
    network.eval()
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        logits, boxes = network(x)
        fused_logits, fused_boxes = network.fuse()(x)
    assert torch.allclose(logits, fused_logits, atol=1e-4)
    assert torch.allclose(boxes, fused_boxes, atol=1e-2)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    assert model.parameters_of(network) == plain


def test_orthogonalised_steps_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(optim.orthogonalise(torch.randn(16, 72)))
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3


def test_the_rate_rises_stays_and_falls_by_steps_alone() -> None:
    plan = dataclasses.replace(PLAN, steps=100, warmup=10, cooldown=0.4)
    rates = [loop.learning_rate(step, plan) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:60] == [1.0] * 50
    assert all(a > b for a, b in itertools.pairwise(rates[61:]))
    assert rates[-1] < 0.02


def train(trainer: loop.Trainer, steps: int) -> loop.Trainer:
    feed = loop.Feed(trainer.corpus, trainer.plan, trainer.step)
    try:
        for _ in range(steps):
            trainer.train_step(feed.next())
    finally:
        feed.close()
    return trainer


def test_a_resumed_run_ends_in_the_state_of_an_unbroken_one(tmp_path: Path) -> None:
    whole = train(loop.Trainer(TINY, PLAN, corpus(), CPU), 6)
    first = train(loop.Trainer(TINY, PLAN, corpus(), CPU), 3)
    loop.save(first.state(), tmp_path / "last.pt", tmp_path / "copy")
    state = torch.load(tmp_path / "copy" / "last.pt", weights_only=True)
    second = loop.Trainer(TINY, PLAN, corpus(), CPU)
    second.restore(state)
    train(second, 3)
    assert second.step == whole.step == 6
    for name, value in whole.average.state_dict().items():
        assert torch.equal(value, second.average.state_dict()[name]), name
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name


def test_a_few_steps_on_a_few_pictures_bring_the_loss_down() -> None:
    plan = dataclasses.replace(PLAN, steps=40, batch=4, mosaic=0.0, whole=1.0, rate=0.01)
    trainer = loop.Trainer(TINY, plan, corpus(), CPU)
    feed = loop.Feed(trainer.corpus, plan, 0)
    try:
        values = [trainer.train_step(feed.next())["loss"] for _ in range(40)]
    finally:
        feed.close()
    assert np.mean(values[-5:]) < 0.6 * np.mean(values[:5]), values


def test_a_run_writes_checkpoints_and_progress(tmp_path: Path) -> None:
    trainer = loop.Trainer(TINY, PLAN, corpus(), CPU)
    loop.run(trainer, tmp_path, None, stop_at=4)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 4
    assert '"loss"' in (tmp_path / "progress.jsonl").read_text()


def test_suppression_keeps_the_best_of_each_class_and_frees_what_a_dropped_box_covered() -> None:
    # In a row, each overlapping the next by more than the limit: 0 kills 1, so 2 lives.
    row = [[0.0, 0, 10, 10], [2.0, 0, 12, 10], [4.0, 0, 14, 10], [0.0, 0, 10, 10]]
    boxes = torch.tensor([row])
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    classes = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    kept = export.suppress(export.alike(boxes, classes), scores, overlap=0.6)
    assert kept[0].tolist() == pytest.approx([0.9, 0.0, 0.7, 0.6])


def test_a_box_is_moved_to_the_mean_of_those_of_its_class_that_lie_nearly_where_it_does() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [2.0, 0, 12, 10], [9.0, 0, 19, 10], [1.0, 0, 11, 10]]])
    scores = torch.tensor([[0.9, 0.6, 0.5, 0.4]])
    classes = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    moved = export.agreed(boxes, export.alike(boxes, classes), scores, overlap=0.6)
    # Of overlap 2/3: 2 px to the right, weighted 0.6 * 2/3 beside its own 0.9.
    assert moved[0, 0].tolist() == pytest.approx([8 / 13, 0, 10 + 8 / 13, 10])
    assert moved[0, 2:].tolist() == boxes[0, 2:].tolist()


@pytest.mark.parametrize("half", [False, True])
def test_the_exported_file_answers_as_the_network_does(tmp_path: Path, half: bool) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed (extra `train`)")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    trainer = train(loop.Trainer(TINY, PLAN, corpus(), CPU), 3)
    # Three steps leave all scores nearly equal; spread them so that rows have one order.
    torch.nn.init.normal_(trainer.average.head.class_out.weight, std=3.0)
    loop.save(trainer.state(), tmp_path / "last.pt")
    deployment = export.Deployment(size=64, half=half, rows=20)
    digest = export.export(tmp_path / "last.pt", tmp_path / "m.onnx", deployment)
    assert len(digest) == 64
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    meta = session.get_modelmeta().custom_metadata_map
    assert meta["sightline.family"] == "sightline"
    assert "person" in meta["names"]
    network, _ = export.load_checkpoint(tmp_path / "last.pt")
    x = torch.rand(3, 3, 64, 64)
    reference = export.Deployed(network, dataclasses.replace(deployment, half=False))
    with torch.no_grad():
        wanted = reference(x).numpy()
    given = session.run(None, {"images": x.numpy()})[0]
    assert given.shape == (3, 20, 6)
    # In half precision rows of nearly equal scores may change places: sorted scores are compared.
    tolerance = 5e-2 if half else 1e-4
    assert np.allclose(np.sort(given[..., 4]), np.sort(wanted[..., 4]), atol=tolerance)
    if not half:
        assert np.allclose(given, wanted, atol=1e-2)
