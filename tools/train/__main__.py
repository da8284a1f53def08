"""Train a detector: `python -m tools.train run --data DIR --out DIR`, see README.md beside this."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import signal
import threading
from pathlib import Path

import cv2

try:
    import torch
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error.name} is not installed: `make environment EXTRAS=train` brings it"
    ) from None

from tools.train import curves
from tools.train.data import Knowledge, load
from tools.train.export import Deployment, export
from tools.train.loop import Plan, Trainer, run
from tools.train.model import Architecture, architecture_from
from tools.train.teacher import Teacher


def _numbers(text: str) -> tuple[int, int, int]:
    a, b, c = (int(part) for part in text.split(","))
    return a, b, c


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.train", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    train = verbs.add_parser("run", help="train, or go on where a run stopped")
    train.add_argument("--data", type=Path, required=True, help="folder with labels.json, images/")
    train.add_argument("--out", type=Path, required=True, help="folder for checkpoints and curves")
    train.add_argument("--evaluate", type=Path, help="folder with instances.json, images/")
    train.add_argument("--teacher", type=Path, help="YOLOX-nano ONNX file to imitate")
    train.add_argument("--copy-to", type=Path, help="second place for the newest checkpoint")
    train.add_argument("--resume", type=Path, help="checkpoint; default: OUT/last.pt if there")
    train.add_argument("--start-from", type=Path, help="weights only, counters from zero")
    train.add_argument("--stop-at", type=int, help="end this piece at a step")
    train.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    train.add_argument("--stem", type=int, default=32)
    train.add_argument("--widths", type=_numbers, default=(64, 128, 160))
    train.add_argument("--depths", type=_numbers, default=(2, 2, 1))
    train.add_argument("--neck", type=int, default=64)
    train.add_argument("--head", type=int, default=64)
    train.add_argument("--activation", choices=("relu", "silu"), default="relu")
    train.add_argument(
        "--branched", action="store_true", help="branches while training, fused after"
    )
    for field in dataclasses.fields(Plan):
        flag = "--" + field.name.replace("_", "-")
        train.add_argument(flag, type=type(field.default), default=None, help=f"{field.default}")
    ship = verbs.add_parser("export", help="checkpoint to the ONNX file the server runs")
    ship.add_argument("checkpoint", type=Path)
    ship.add_argument("target", type=Path)
    ship.add_argument("--full-precision", action="store_true", help="FP32, to compare with")
    ship.add_argument("--overlap", type=float, default=Deployment.overlap)
    ship.add_argument("--size", type=int, default=Deployment.size)
    tell = verbs.add_parser("card", help="measure a model, write it into the README.md beside it")
    tell.add_argument("model", type=Path)
    tell.add_argument("--data", type=Path, nargs="+", required=True, help="evaluation folders")
    tell.add_argument("--faces", type=Path, help="face detector (YuNet) to compare faces with")
    draw = verbs.add_parser("curves", help="picture of one or more runs")
    draw.add_argument("target", type=Path)
    draw.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    return parser


def plan_from(options: argparse.Namespace, base: Plan) -> Plan:
    """The base with every value that was given on the command line."""
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Plan)
        if getattr(options, field.name) is not None
    }
    return dataclasses.replace(base, **given)


def train(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corpus = load(options.data, Knowledge())
    teacher = (
        Teacher(options.teacher, corpus.names, threads=options.threads) if options.teacher else None
    )
    resume = options.resume or options.out / "last.pt"
    state = None
    if resume.exists():
        state = torch.load(resume, map_location=device, weights_only=True)
    elif options.resume:
        raise SystemExit(f"no checkpoint at {options.resume}")
    if state is not None:
        architecture = architecture_from(state["architecture"])
        plan = plan_from(options, Plan(**state["plan"]))
    else:
        architecture = Architecture(
            classes=len(corpus.names),
            stem=options.stem,
            widths=options.widths,
            depths=options.depths,
            neck=options.neck,
            head=options.head,
            activation=options.activation,
            branched=options.branched,
        )
        plan = plan_from(options, Plan())
    trainer = Trainer(architecture, plan, corpus, device, teacher)
    if state is not None:
        trainer.restore(state)
    elif options.start_from:
        weights = torch.load(options.start_from, map_location=device, weights_only=True)
        trainer.network.load_state_dict(weights["average"])
        trainer.average.load_state_dict(weights["average"])
    # Asked to end, the run finishes its step and writes its state.
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run(trainer, options.out, options.evaluate, options.copy_to, options.stop_at, stop)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    options = arguments().parse_args()
    if options.verb == "run":
        train(options)
    elif options.verb == "export":
        deployment = Deployment(
            size=options.size, overlap=options.overlap, half=not options.full_precision
        )
        digest = export(options.checkpoint, options.target, deployment)
        print(f"{digest}  {options.target}")
    elif options.verb == "card":
        # Here, because it needs the server's packages, which training does not.
        from tools.train import card

        card.write(options.model, options.data, options.faces)
    else:
        curves.draw({run.name: run / "progress.jsonl" for run in options.runs}, options.target)


if __name__ == "__main__":
    main()
