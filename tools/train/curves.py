"""A picture of a run: losses, speed and AP over steps, from `progress.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def read_progress(path: Path) -> list[dict[str, float]]:
    """Records in order; a piece that was resumed from an earlier step replaces what it repeats."""
    records: list[dict[str, float]] = []
    for line in path.read_text().splitlines():
        entry: dict[str, float] = json.loads(line)
        key = "loss" if "loss" in entry else "ap50"
        records = [
            r for r in records if r["step"] < entry["step"] or ((key in r) != (key in entry))
        ] + [entry]
    return records


def series(records: Sequence[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one quantity."""
    chosen = [(r["step"], r[key]) for r in records if key in r]
    return [step for step, _ in chosen], [value for _, value in chosen]


def draw(runs: dict[str, Path], target: Path) -> None:
    """One picture of all runs (name to `progress.jsonl`)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = (
        ("class", "class loss"),
        ("box", "box loss (1 - GIoU)"),
        ("copy", "imitation (1 - correlation)"),
        ("person_ap50", "person AP50, evaluation set"),
    )
    figure, axes = pyplot.subplots(1, len(panels), figsize=(16, 4), layout="constrained")
    for axis, (key, title) in zip(axes, panels, strict=True):
        for name, path in runs.items():
            steps, values = series(read_progress(path), key)
            if values:
                axis.plot(steps, values, label=name, marker="o" if key == "person_ap50" else None)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if key == "class":
            axis.set_yscale("log")
    axes[-1].legend()
    figure.savefig(target, dpi=100)
    pyplot.close(figure)
