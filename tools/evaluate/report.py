"""One HTML file that holds the whole report: no address is loaded, it opens from anywhere."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tools.evaluate.figures import DARK, FRONTIER, LIGHT, PAPER_FIGURES, FigureKind, svg
from tools.evaluate.run import Run
from tools.evaluate.tables import differences, frontier, ran_text, run_row

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2430; --soft: #5b6676;
  --line: #d9dee6; --panel: #f6f8fa; --good: #0f766e; --bad: #b42318 }
@media (prefers-color-scheme: dark) { :root { --paper: #12161d; --ink: #e6eaf0; --soft: #9aa7b8;
  --line: #2c3542; --panel: #1a2029; --good: #4fd1b8; --bad: #ff8a7a } }
:root[data-theme=light] { color-scheme: light; --paper: #fff; --ink: #1c2430; --soft: #5b6676;
  --line: #d9dee6; --panel: #f6f8fa; --good: #0f766e; --bad: #b42318 }
:root[data-theme=dark] { color-scheme: dark; --paper: #12161d; --ink: #e6eaf0; --soft: #9aa7b8;
  --line: #2c3542; --panel: #1a2029; --good: #4fd1b8; --bad: #ff8a7a }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif }
main { max-width: 1240px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
header { display: flex; gap: 1rem; justify-content: space-between; align-items: start }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .6rem }
p { max-width: 72ch; margin: .4rem 0 1rem }
.soft, figcaption { color: var(--soft) }
button { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--line);
  border-radius: .5rem; padding: .35rem .8rem; cursor: pointer; white-space: nowrap }
button:focus-visible { outline: 3px solid #6cb0ff; outline-offset: 2px }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: .9rem }
th, td { padding: .42rem .5rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; white-space: normal;
  line-height: 1.25 }
th:first-child, td:first-child, .left { text-align: left }
tbody tr:hover { background: var(--panel) }
.best { font-weight: 700 }
.good { color: var(--good) } .bad { color: var(--bad) }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 500px), 1fr));
  gap: 1.5rem }
figure { margin: 0; padding: .8rem; border: 1px solid var(--line); border-radius: .7rem }
figure img { width: 100%; height: auto; display: block }
figcaption { font-size: .88rem; margin-top: .4rem }
.wide { max-width: 860px }
img.dark { display: none }
@media (prefers-color-scheme: dark) { img.light { display: none } img.dark { display: block } }
:root[data-theme=light] img.light, :root[data-theme=dark] img.dark { display: block }
:root[data-theme=light] img.dark, :root[data-theme=dark] img.light { display: none }
details { border: 1px solid var(--line); border-radius: .7rem; padding: .6rem .9rem;
  margin: .6rem 0 }
summary { cursor: pointer; font-weight: 600 }
@media print { button { display: none } figure { break-inside: avoid } }
"""

SCRIPT = """
const root = document.documentElement;
document.querySelector("button").addEventListener("click", () => {
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
"""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """Where and how the runs were made, for the report's foot."""

    machine: str
    packages: str
    made_on: str
    command: str
    iou_text: str


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its head, the key of the row, and how it is shown."""

    head: str
    key: str
    digits: int | None = None
    signed: bool = False
    left: bool = False


def report_html(runs: Sequence[Run], circumstances: Circumstances) -> str:
    """The page for all runs; the figures are inside, once for light and once for dark."""
    parts = [_head(runs), _results(runs), _precisions(runs)]
    parts.append("<h2>Figures</h2>")
    parts.append(
        '<p class="soft">A colour is a model. Full precision is the broad pale line; '
        "half precision is dashed or dotted on top of it: where they overlap, the "
        "boxes are the same.</p>"
    )
    parts.append(f'<div class="figures">{"".join(_figure(k, runs) for k in PAPER_FIGURES)}</div>')
    parts.append(_frontier(runs))
    parts.append(_by_class(runs))
    parts.append(_foot(runs, circumstances))
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Accuracy and latency</title>\n<style>{STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main>\n<script>{SCRIPT}</script></body></html>\n"
    )


def _head(runs: Sequence[Run]) -> str:
    models = len({run.label for run in runs})
    counts = ", ".join(f"{run.data}: {run.pictures} pictures" for run in _one_per_data(runs))
    return (
        "<header><div><h1>Accuracy and latency</h1>"
        f'<p class="soft">{models} model{"s" * (models != 1)}, {len(runs)} runs on '
        f"{html.escape(counts)}. Accuracy by COCO's rules, in percent; times per picture.</p>"
        '</div><button type="button">Light / dark</button></header>'
    )


def _one_per_data(runs: Sequence[Run]) -> list[Run]:
    return list({run.data: run for run in runs}.values())


def _results(runs: Sequence[Run]) -> str:
    columns = (
        Column("Model", "label", left=True),
        Column("Precision", "precision", left=True),
        Column("What ran", "ran", left=True),
        Column("mAP50-95", "mAP50-95", 2),
        Column("mAP50", "mAP50", 2),
        Column("mAP75", "mAP75", 2),
        Column("small", "AP_small", 1),
        Column("medium", "AP_medium", 1),
        Column("large", "AP_large", 1),
        Column("best F1", "best_F1", 1),
        Column("prepare p50 ms", "prepare_p50_ms", 2),
        Column("infer p50 ms", "infer_p50_ms", 2),
        Column("boxes p50 ms", "boxes_p50_ms", 2),
        Column("all p50 ms", "total_p50_ms", 2),
        Column("all p95 ms", "total_p95_ms", 2),
    )
    rows = []
    for run in runs:
        row = run_row(run)
        row["label"] = run.label
        row["ran"] = ran_text(run)
        rows.append(row)
    return "<h2>Results</h2>" + _table(columns, rows, best="mAP50-95")


def _precisions(runs: Sequence[Run]) -> str:
    rows = differences(runs)
    if not rows:
        return ""
    columns = (
        Column("Model", "model", left=True),
        Column("Precision", "precision", left=True),
        Column("mAP50-95", "mAP50-95", 2, signed=True),
        Column("mAP50", "mAP50", 2, signed=True),
        Column("largest gap in mAP by IoU", "largest_mAP_gap", 2),
        Column("largest gap in the curves", "largest_curve_gap", 2),
        Column("mean gap in F1", "mean_curve_gap", 2),
        Column("infer, times as fast", "infer_speedup", 2),
    )
    return (
        "<h2>Against full precision</h2>"
        "<p>Percentage points above or below the same model in FP32 on the same pictures.</p>"
        + _table(columns, rows)
    )


def _frontier(runs: Sequence[Run]) -> str:
    named = ", ".join(f"{run.label} {run.precision.upper()}" for run in frontier(runs))
    return (
        "<h2>What to choose</h2>"
        f"<p>Not beaten in both accuracy and time, fastest first: <b>{html.escape(named)}</b>.</p>"
        f'<div class="wide">{_figure(FRONTIER, runs)}</div>'
    )


def _by_class(runs: Sequence[Run]) -> str:
    names = sorted({name for run in runs for name in run.scores.by_class})
    columns = [Column("Class", "class", left=True)]
    columns += [
        Column(f"{run.label} {run.precision.upper()}", str(index), 1)
        for index, run in enumerate(runs)
    ]
    rows: list[dict[str, Any]] = []
    for name in names:
        row: dict[str, Any] = {"class": name}
        for index, run in enumerate(runs):
            both = run.scores.by_class.get(name)
            row[str(index)] = None if both is None else 100 * both[0]
        rows.append(row)
    return (
        f"<h2>By class</h2><details><summary>AP50-95 by class: {len(names)}</summary>"
        f"{_table(columns, rows)}</details>"
    )


def _foot(runs: Sequence[Run], circumstances: Circumstances) -> str:
    notes = [
        f"{run.label} {run.precision.upper()}: {note}"
        for run in runs
        for note in (run.note, run.engine.fallback)
        if note
    ]
    fewer = {run.label: len(run.classes) for run in runs}
    if len(set(fewer.values())) > 1:
        counts = ", ".join(f"{label} {count}" for label, count in fewer.items())
        notes.append(f"Scored on the classes that each model knows: {counts}")
    listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    lines = (
        ("Machine", circumstances.machine),
        ("Software", circumstances.packages),
        ("Overlap for suppression", circumstances.iou_text),
        ("Made", circumstances.made_on),
        ("Command", circumstances.command),
    )
    table = "".join(
        f"<tr><td>{html.escape(head)}</td>"
        f'<td class="left" style="white-space:normal">{html.escape(text)}</td></tr>'
        for head, text in lines
    )
    return (
        "<h2>How it was measured</h2>"
        "<p>One picture at a time, as in the server: <i>prepare</i> scales it into the model's "
        "input, <i>infer</i> is the engine, <i>boxes</i> decodes and suppresses. Boxes from a "
        "confidence of 0.001, at most 300 per picture. The first pictures only warm up.</p>"
        + (f"<ul>{listed}</ul>" if notes else "")
        + f'<div class="scroll"><table>{table}</table></div>'
    )


def _figure(kind: FigureKind, runs: Sequence[Run]) -> str:
    images = "".join(
        f'<img class="{theme.name}" alt="{html.escape(kind.title)}" '
        f'src="data:image/svg+xml;base64,{_base64(svg(kind, runs, theme))}">'
        for theme in (LIGHT, DARK)
    )
    return f"<figure>{images}<figcaption>{html.escape(kind.caption)}</figcaption></figure>"


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _table(columns: Sequence[Column], rows: Sequence[dict[str, Any]], best: str = "") -> str:
    top = max((row[best] for row in rows if row.get(best) is not None), default=None)
    head = "".join(
        f"<th{' class=left' if column.left else ''}>{html.escape(column.head)}</th>"
        for column in columns
    )
    body = []
    for row in rows:
        cells = []
        for column in columns:
            value = row.get(column.key)
            classes = ["left"] if column.left else []
            if best and column.key == best and value == top:
                classes.append("best")
            cells.append(f"<td{_class(classes)}>{html.escape(_shown(value, column))}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _class(classes: Sequence[str]) -> str:
    return f' class="{" ".join(classes)}"' if classes else ""


def _shown(value: object, column: Column) -> str:
    if value is None:
        return "–"  # noqa: RUF001  a dash for "not measured"
    if isinstance(value, float | int) and column.digits is not None:
        return f"{value:+.{column.digits}f}" if column.signed else f"{value:.{column.digits}f}"
    return str(value)
