"""The training loop: by steps, never by the clock, so it may be paused, killed and resumed.

Step k draws its pictures from a generator seeded with (seed, k), and everything else that changes
is in the checkpoint: a resumed run does what the unbroken run would have done. One thread prepares
batches ahead; the network runs in the caller's thread.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import math
import os
import queue
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tools.train.assign import Targets
from tools.train.augment import Example, Recipe, compose
from tools.train.data import Bytes, Corpus, Floats, sampling_weights
from tools.train.loss import Batch, agreement, losses
from tools.train.model import Architecture, Detector, cells, decode, parameters_of
from tools.train.optim import optimisers
from tools.train.scoring import average_precision
from tools.train.teacher import Imitation, Teacher

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """All choices of a run. `steps` may be changed when resuming: the rate stays flat until
    `cooldown` of the steps is left, then falls to zero along a half cosine."""

    steps: int = 6000
    batch: int = 32
    seed: int = 1
    size: int = 256
    early_size: int = 192
    early_share: float = 0.4
    final_size: int = 320
    final_share: float = 0.1
    warmup: int = 100
    cooldown: float = 0.35
    matrix_rate: float = 0.02
    rate: float = 2e-3
    weight_decay: float = 0.01
    ema: float = 0.998
    box_gain: float = 4.0
    top: int = 10
    imitation: float = 2.0
    agreement: float = 1.0
    mosaic: float = 0.6
    whole: float = 0.1
    evaluate_every: int = 500
    save_every: int = 100


def learning_rate(step: int, plan: Plan) -> float:
    """Share of the full rate at a step: rise, plateau, half cosine down to 1 %."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    start = plan.steps * (1.0 - plan.cooldown)
    if step < start:
        return 1.0
    progress = min(1.0, (step - start) / max(1.0, plan.steps - start))
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress))


def recipe_at(step: int, plan: Plan) -> Recipe:
    """Small squares first: a step costs half there, and coarse features come first anyway. The
    last share at the serving size, milder and with whole pictures."""
    if step < plan.steps * plan.early_share:
        return Recipe(
            size=plan.early_size,
            mosaic=plan.mosaic,
            whole=plan.whole,
            single_scale=(0.5, 1.3),
            mosaic_scale=(0.4, 1.0),
        )
    if step < plan.steps * (1.0 - plan.final_share):
        return Recipe(size=plan.size, mosaic=plan.mosaic, whole=plan.whole)
    return Recipe(
        size=plan.final_size,
        mosaic=0.35,
        single_scale=(0.7, 1.4),
        mosaic_scale=(0.5, 1.1),
        whole=0.5,
        colour=0.7,
        degrade=0.3,
    )


def examples(corpus: Corpus, chances: Any, step: int, plan: Plan) -> list[Example]:
    """The batch of a step; a function of corpus, plan and step only."""
    rng = np.random.default_rng((plan.seed, step))
    recipe = recipe_at(step, plan)
    made = []
    for _ in range(plan.batch):
        count = 4 if rng.random() < recipe.mosaic else 1
        chosen = rng.choice(len(corpus.pictures), count, p=chances)
        made.append(compose([corpus.pictures[i] for i in chosen], recipe, rng))
    return made


def collate(made: list[Example], device: torch.device) -> Batch:
    """Flat targets and the map from cells to tiles."""
    size = made[0].rgb.shape[0]
    centres, _ = cells(size, size)
    points = centres.numpy()
    tiles = max(len(e.tiles_xyxy) for e in made)
    classes = made[0].background.shape[1]
    background = np.ones((len(made), tiles + 1, classes), np.float32)
    tile_of_cell = np.full((len(made), len(points)), tiles, np.int64)
    for n, example in enumerate(made):
        background[n, : len(example.background)] = example.background
        for t, (x1, y1, x2, y2) in enumerate(example.tiles_xyxy):
            inside = (points >= (x1, y1)).all(1) & (points < (x2, y2)).all(1)
            tile_of_cell[n, inside] = t
    owners = np.repeat(np.arange(len(made)), [len(e.classes) for e in made])
    ignored = np.repeat(np.arange(len(made)), [len(e.ignored_classes) for e in made])

    def send(array: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return Batch(
        pictures=send(np.stack([e.rgb for e in made])).permute(0, 3, 1, 2),
        targets=Targets(
            send(owners),
            send(np.concatenate([e.boxes_xyxy for e in made])),
            send(np.concatenate([e.classes for e in made])),
            send(np.concatenate([e.weights for e in made])),
        ),
        ignored_picture=send(ignored),
        ignored_boxes=send(np.concatenate([e.ignored_xyxy for e in made])),
        ignored_classes=send(np.concatenate([e.ignored_classes for e in made])),
        tile_of_cell=send(tile_of_cell),
        background=send(background),
    )


class Feed:
    """Prepares the batches of the coming steps in one thread, at most `ahead` of them."""

    def __init__(self, corpus: Corpus, plan: Plan, step: int, ahead: int = 4) -> None:
        self._corpus, self._plan, self._step = corpus, plan, step
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="train-feed", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        chances = sampling_weights(self._corpus.pictures)
        try:
            for step in range(self._step, self._plan.steps):
                made = examples(self._corpus, chances, step, self._plan)
                self._put(collate(made, torch.device("cpu")))
                if self._closed.is_set():
                    return
        except Exception as error:  # top of the thread: handed to the loop, which raises it
            self._put(error)

    def _put(self, item: Batch | BaseException) -> None:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.5)
                return
            except queue.Full:
                continue

    def next(self) -> Batch:
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=60)


def to_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    t = batch.targets
    moved = Targets(*(x.to(device) for x in (t.picture, t.boxes, t.classes, t.weights)))
    return Batch(
        pictures=batch.pictures.to(device),
        targets=moved,
        ignored_picture=batch.ignored_picture.to(device),
        ignored_boxes=batch.ignored_boxes.to(device),
        ignored_classes=batch.ignored_classes.to(device),
        tile_of_cell=batch.tile_of_cell.to(device),
        background=batch.background.to(device),
    )


class Trainer:
    """Network, averaged copy, optimisers and the step counter; all of it in `state()`."""

    def __init__(
        self,
        architecture: Architecture,
        plan: Plan,
        corpus: Corpus,
        device: torch.device,
        teacher: Teacher | None = None,
    ) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.corpus, self.device, self.teacher = plan, corpus, device, teacher
        self.network = Detector(architecture).to(device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.imitation = (
            Imitation(architecture.neck, teacher.widths).to(device) if teacher else None
        )
        self.optimisers = optimisers(
            self.network, self.imitation, plan.matrix_rate, plan.rate, plan.weight_decay
        )
        self._rates = [[g["lr"] for g in o.param_groups] for o in self.optimisers]
        self.step = 0
        self.history: list[dict[str, float]] = []

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One update; returns the losses."""
        batch = to_device(batch, self.device)
        share = learning_rate(self.step, self.plan)
        for optimiser, rates in zip(self.optimisers, self._rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * share
        self.network.train()
        pictures = (batch.pictures.float() / 255.0).contiguous(memory_format=torch.channels_last)
        lesson = self.teacher.look(batch.pictures) if self.teacher else None
        with torch.autocast(self.device.type, torch.bfloat16):
            features = self.network.features(pictures)
            logits, raw = self.network.head(features)
            copied = torch.zeros((), device=self.device)
            if lesson is not None and self.imitation is not None:
                copied = self.imitation(features, lesson.maps)
        size = pictures.shape[-1]
        centres, strides = cells(size, size, self.device)
        boxes = decode(raw.float(), centres, strides)
        found = losses(logits, boxes, batch, centres, self.plan.box_gain, self.plan.top)
        agreed = torch.zeros((), device=self.device)
        if lesson is not None:
            agreed = agreement(
                logits, boxes, lesson.scores, lesson.boxes, lesson.known, self.plan.box_gain
            )
        total = found.total + self.plan.imitation * copied + self.plan.agreement * agreed
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        total.backward()
        for optimiser in self.optimisers:
            nn.utils.clip_grad_norm_(
                [p for g in optimiser.param_groups for p in g["params"]], max_norm=20.0
            )
            optimiser.step()
        self.step += 1
        self._update_average()
        return {
            "loss": float(total.detach()),
            "class": float(found.classes),
            "box": float(found.boxes),
            "copy": float(copied.detach()),
            "agree": float(agreed.detach()),
            "positives": found.positives / len(pictures),
        }

    @torch.no_grad()
    def _update_average(self) -> None:
        # A short memory at first: early weights are worth forgetting quickly.
        decay = min(self.plan.ema, self.step / (self.step + 10.0))
        ours = [*self.average.parameters(), *self.average.buffers()]
        theirs = [*self.network.parameters(), *self.network.buffers()]
        floats = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1.0 - decay)

    def state(self) -> dict[str, Any]:
        return {
            "architecture": dataclasses.asdict(self.network.architecture),
            "names": list(self.corpus.names),
            "left_out": self.corpus.left_out,
            "knowledge": dataclasses.asdict(self.corpus.knowledge),
            "taught_by": self.teacher.name if self.teacher else None,
            "plan": dataclasses.asdict(self.plan),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "imitation": self.imitation.state_dict() if self.imitation else None,
            "optimisers": [o.state_dict() for o in self.optimisers],
            "step": self.step,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        if self.imitation is not None and state["imitation"] is not None:
            self.imitation.load_state_dict(state["imitation"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step = int(state["step"])
        self.history = list(state["history"])

    def evaluate(self, folder: Path, size: int) -> dict[str, tuple[float, float]]:
        return average_precision(runner(self.average, self.device), folder, self.corpus.names, size)


def runner(network: Detector, device: torch.device) -> Any:
    """The network, fused, as a function of uint8 pictures; see `scoring.Run`."""
    network = copy.deepcopy(network).eval().fuse()
    network.to(device=device, memory_format=torch.channels_last)

    @torch.no_grad()
    def run(pictures_rgb: Bytes) -> tuple[Floats, Floats]:
        x = torch.from_numpy(pictures_rgb).to(device).permute(0, 3, 1, 2).float() / 255.0
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cpu"):
            logits, boxes = network(x)
        return logits.float().sigmoid().cpu().numpy(), boxes.float().cpu().numpy()

    return run


def save(state: dict[str, Any], path: Path, copy_to: Path | None = None) -> None:
    """Written whole or not at all: a run killed in the middle keeps its last checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    torch.save(state, unfinished)
    os.replace(unfinished, path)
    if copy_to is not None:
        copy_to.mkdir(parents=True, exist_ok=True)
        part = copy_to / (path.name + ".part")
        shutil.copyfile(path, part)
        os.replace(part, copy_to / path.name)


def fitting_threads(most: int, load: float) -> int:
    """All threads on a quiet machine, one on a busy one.

    Inside a convolution threads wait for each other by spinning. Where others take turns on the
    cores, that wait burns most of the time we are given (measured here: twice the CPU time per
    step); one thread waits for nobody.
    """
    return most if load < most + 1.5 else 1


def run(
    trainer: Trainer,
    folder: Path,
    evaluate_on: Path | None,
    copy_to: Path | None = None,
    stop_at: int | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Train until `plan.steps`, `stop_at` or `stop`, with checkpoints and a progress line at times.

    `folder/last.pt` is the resumable state, `folder/progress.jsonl` one line per record.
    """
    plan = trainer.plan
    last = min(plan.steps, stop_at or plan.steps)
    log.info(
        "%d pictures, %d classes, %.2f M parameters, step %d of %d on %s, teacher %s",
        len(trainer.corpus.pictures),
        len(trainer.corpus.names),
        parameters_of(trainer.network) / 1e6,
        trainer.step,
        plan.steps,
        trainer.device,
        trainer.teacher.provider if trainer.teacher else None,
    )
    folder.mkdir(parents=True, exist_ok=True)
    feed = Feed(trainer.corpus, plan, trainer.step)
    most_threads = torch.get_num_threads()
    sums: dict[str, float] = {}
    count, started, cpu = 0, time.monotonic(), time.process_time()
    try:
        while trainer.step < last and not (stop and stop.is_set()):
            if trainer.step % 10 == 0:
                torch.set_num_threads(fitting_threads(most_threads, os.getloadavg()[0]))
            for key, value in trainer.train_step(feed.next()).items():
                sums[key] = sums.get(key, 0.0) + value
            count += 1
            if not math.isfinite(sums["loss"]):
                raise FloatingPointError(f"loss is not finite at step {trainer.step}")
            if trainer.step % 50 == 0 or trainer.step == last:
                record = {key: value / count for key, value in sums.items()}
                record["pictures_per_s"] = count * plan.batch / (time.monotonic() - started)
                cpu, cpu_before = time.process_time(), cpu
                record["cpu_s_per_step"] = (cpu - cpu_before) / count
                _record(trainer, folder, record)
                sums, count, started = {}, 0, time.monotonic()
            if trainer.step % plan.save_every == 0 or trainer.step == last:
                save(trainer.state(), folder / "last.pt", copy_to)
            if evaluate_on and (trainer.step % plan.evaluate_every == 0 or trainer.step == last):
                table = trainer.evaluate(evaluate_on, plan.final_size)
                record = {"ap50": table["all"][0], "ap": table["all"][1]}
                if "person" in table:
                    record |= {"person_ap50": table["person"][0], "person_ap": table["person"][1]}
                _record(trainer, folder, record)
                started = time.monotonic()
        if stop and stop.is_set():
            save(trainer.state(), folder / "last.pt", copy_to)
            log.info("stopped at step %d", trainer.step)
    finally:
        feed.close()


def _record(trainer: Trainer, folder: Path, values: dict[str, float]) -> None:
    entry = {"step": float(trainer.step), **values}
    trainer.history.append(entry)
    text = {key: round(value, 4) for key, value in entry.items()}
    with (folder / "progress.jsonl").open("a") as file:
        file.write(json.dumps(text) + "\n")
    log.info(" ".join(f"{key} {value:g}" for key, value in text.items()))
