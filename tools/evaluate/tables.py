"""The figures of all runs as rows: for people, for JSON and for CSV."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tools.evaluate.run import STAGES, Run
from tools.evaluate.scoring import SIZES


def run_row(run: Run) -> dict[str, Any]:
    """One run, flat; accuracy in percent, times in milliseconds."""
    f1, confidence = run.curves.best_f1()
    row: dict[str, Any] = {
        "model": run.model,
        "input": "x".join(str(side) for side in run.engine.input_wh),
        "precision": run.precision,
        "ran_provider": run.engine.provider,
        "ran_precision": run.engine.precision,
        "fallback": run.engine.fallback,
        "family": run.engine.family,
        "data": run.data,
        "pictures": run.pictures,
        "classes": len(run.classes),
        "mAP50-95": _percent(run.scores.map_50_95),
        "mAP50": _percent(run.scores.map_50),
        "mAP75": _percent(run.scores.map_75),
    }
    for size in SIZES:
        row[f"AP_{size}"] = _percent(run.scores.by_size[size])
    row["AR100"] = _percent(run.scores.recall_100)
    row["best_F1"] = _percent(f1)
    row["best_F1_confidence"] = round(confidence, 3)
    for stage in STAGES:
        for percent in (50, 95):
            row[f"{stage}_p{percent}_ms"] = _rounded(run.latency(stage, percent), 2)
    row["note"] = run.note
    return row


def run_json(run: Run) -> dict[str, Any]:
    """One run with everything that the figures show."""
    curves = run.curves
    every = slice(None, None, 10)
    return run_row(run) | {
        "mAP_by_iou": {
            f"{iou:.2f}": _percent(value)
            for iou, value in zip(run.scores.ious, run.scores.map_by_iou, strict=True)
        },
        "by_class": {
            name: {"AP50-95": _percent(both[0]), "AP50": _percent(both[1])}
            for name, both in run.scores.by_class.items()
        },
        "curves": {
            "confidence": _list(curves.confidence[every]),
            "precision": _list(curves.precision[every]),
            "recall": _list(curves.recall[every]),
            "f1": _list(curves.f1[every]),
            "recall_grid": _list(curves.recall_grid),
            "precision_at_recall": _list(curves.precision_at_recall),
        },
    }


def differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each other precision of a model against its fp32 run: accuracy lost, speed won."""
    rows = []
    for base in (run for run in runs if run.precision == "fp32"):
        for run in runs:
            if run.label != base.label or run is base:
                continue
            gaps = {
                name: float(np.max(np.abs(getattr(run.curves, name) - getattr(base.curves, name))))
                for name in ("precision", "recall", "f1", "precision_at_recall")
            }
            rows.append(
                {
                    "model": run.label,
                    "precision": run.precision,
                    "mAP50-95": _percent(run.scores.map_50_95 - base.scores.map_50_95),
                    "mAP50": _percent(run.scores.map_50 - base.scores.map_50),
                    "largest_mAP_gap": _percent(
                        float(np.nanmax(np.abs(run.scores.map_by_iou - base.scores.map_by_iou)))
                    ),
                    "largest_curve_gap": _percent(max(gaps.values())),
                    "mean_curve_gap": _percent(
                        float(np.mean(np.abs(run.curves.f1 - base.curves.f1)))
                    ),
                    "infer_speedup": _rounded(
                        base.latency("infer", 50) / run.latency("infer", 50), 2
                    ),
                }
            )
    return rows


def csv_text(runs: Sequence[Run]) -> str:
    """One line per run."""
    rows = [run_row(run) for run in runs]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]) if rows else ["model"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def class_csv_text(runs: Sequence[Run]) -> str:
    """One line per run and class."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["model", "input", "precision", "class", "AP50-95", "AP50"])
    for run in runs:
        size = "x".join(str(side) for side in run.engine.input_wh)
        for name, both in run.scores.by_class.items():
            writer.writerow(
                [run.model, size, run.precision, name, _percent(both[0]), _percent(both[1])]
            )
    return stream.getvalue()


def text_table(runs: Sequence[Run]) -> str:
    """The short table for a terminal."""
    lines = [
        f"{'MODEL':<22}{'PRECISION':<11}{'RAN':<24}{'mAP50-95':>9}{'mAP50':>7}"
        f"{'S':>6}{'M':>6}{'L':>6}{'INFER p50':>11}{'ALL p50':>9}{'p95':>7}"
    ]
    for run in runs:
        row = run_row(run)
        sizes = "".join(f"{_shown(row[f'AP_{size}']):>6}" for size in SIZES)
        lines.append(
            f"{run.label:<22}{run.precision:<11}{ran_text(run):<24}{_shown(row['mAP50-95']):>9}"
            f"{_shown(row['mAP50']):>7}{sizes}{_shown(row['infer_p50_ms']):>11}"
            f"{_shown(row['total_p50_ms']):>9}{_shown(row['total_p95_ms']):>7}"
        )
    return "\n".join(lines)


def ran_text(run: Run) -> str:
    """What really ran, in a word or two."""
    return f"{run.engine.provider} {run.engine.precision}" if run.timed else "emulated"


def frontier(runs: Sequence[Run]) -> list[Run]:
    """Runs that no other run beats in both accuracy and time, fastest first."""
    best: list[Run] = []
    for run in sorted(
        (run for run in runs if run.timed), key=lambda item: item.latency("total", 50)
    ):
        if not best or run.scores.map_50_95 > best[-1].scores.map_50_95:
            best.append(run)
    return best


def _percent(share: float) -> float | None:
    """To hundredths of a percent; None for nan, which JSON does not have."""
    return _rounded(100 * share, 2)


def _rounded(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _list(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]
