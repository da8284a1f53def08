"""`python -m bench table RECORD...`: the Markdown tables of a README, from records alone.

A test holds the README against them, so that no number there is anybody's memory.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.command import OK, WRONG_USAGE
from bench.options import add_json
from bench.reading import read_records
from bench.record import Record

NUMBERS: Final = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
MODELS: Final = {
    "sightline-nano.onnx": "our own detector",
    "yolox_nano.onnx": "YOLOX-nano 416",
    "yolo26n.onnx": "YOLO26n 640",
    "yolo26n_320.onnx": "YOLO26n 320",
    "nanodet_m.onnx": "NanoDet 320",
}
DOORS: Final = {"call": "", "page": " through the product's page", "whep": " by WHIP and WHEP"}
STAGES_LEFT_OUT: Final = ("own",)

Row = tuple[str, ...]
COMPARE_HEAD: Final[Row] = (
    "clients",
    "server",
    "p50 ms",
    "p95 ms",
    "frames a second",
    "growth, ms a minute",
    "p50, times ours",
    "p95, times ours",
)


def delay_rows(records: Sequence[Record]) -> list[Row]:
    """What, p50, p95, frames a second: one row a measurement of calls."""
    return [row for record in records for row in _delays(record)]


def stage_rows(record: Record) -> list[Row]:
    """Stage, p50, p95 of the server's own histograms."""
    stages = record.summary.get("server_stages_ms") or {}
    return [
        (stage, f"{values['p50']:.1f}", f"{values['p95']:.1f}")
        for stage, values in stages.items()
        if stage not in STAGES_LEFT_OUT
    ]


def compare_rows(record: Record) -> list[Row]:
    """Clients, server, p50, p95, frames a second, growth, times ours."""
    rows: list[Row] = []
    titles = {name: told["title"] for name, told in record.settings["subjects"].items()}
    for count, subjects in record.summary["clients"].items():
        for subject, figures in subjects.items():
            worst = figures["worst_client_ms"]
            ratios = record.summary["ratios"][count].get(subject) or {}
            rows.append(
                (
                    count,
                    titles[subject],
                    _text(worst["p50"]),
                    _text(worst["p95"]),
                    _text(figures["fps_slowest"], 0),
                    _text(figures["growth_ms_per_minute"], 0),
                    _times(ratios.get("p50")),
                    _times(ratios.get("p95")),
                )
            )
    return rows


def tables(records: Sequence[Record]) -> str:
    """All that the records have to tell, as Markdown."""
    parts = []
    delays = delay_rows(records)
    if delays:
        parts.append(markdown(("", "p50 ms", "p95 ms", "frames a second"), delays))
    for record in records:
        if record.bench == "compare":
            parts.append(markdown(COMPARE_HEAD, compare_rows(record)))
            times = record.summary.get("times_floor")
            if times is not None:
                floor = record.summary["floor"]["unavoidable_ms"]["p50"]
                parts.append(
                    f"Floor (the same work without a server): {floor:.1f} ms; one call takes "
                    f"{times:.2f} times that."
                )
        elif record.bench == "sessions":
            rows = [
                (mode, f"{found['sessions']}{'' if found['limit_found'] else ' or more'}")
                for mode, found in record.summary.items()
            ]
            parts.append(markdown(("mode", "calls within the budget"), rows))
    first = next((r for r in records if r.bench == "glass" and stage_rows(r)), None)
    if first is not None:
        parts.append(markdown(("Stage", "p50 ms", "p95 ms"), stage_rows(first)))
    return "\n\n".join(parts)


def markdown(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "".join(f"| {cell} " if cell else "| " for cell in line) + "|" for line in lines
    )


def _delays(record: Record) -> Iterator[Row]:
    settings, summary = record.settings, record.summary
    if record.bench == "glass":
        worst = summary["worst_client_ms"]
        figures = (worst["p50"], worst["p95"], summary["fps_slowest"])
        yield (call_label(settings), *_figures(figures))
    elif record.bench == "browser":
        for name, told in summary.items():
            figures = (told["latency_ms"]["p50"], told["latency_ms"]["p95"], told["fps_received"])
            codec = "" if settings["codec"] == "auto" else f", {settings['codec']}"
            door = DOORS[settings.get("door", "call")]
            what = f"{name.capitalize()}{door}, until the page has the picture"
            yield f"{what}{codec}, {_model(settings)}", *_figures(figures)
    elif record.bench == "tiles":
        for name, told in summary.items():
            worst = told["worst_tile_ms"]
            count = NUMBERS.get(settings["tiles"], str(settings["tiles"]))
            what = f"{count} tiles of {settings['size']} in {name.capitalize()}, slowest of them"
            figures = (worst["p50"], worst["p95"], told["fps_slowest"])
            yield f"{what}, {_model(settings)}", *_figures(figures)


def call_label(settings: Mapping[str, Any]) -> str:
    """What a measurement of calls was of, in a few words."""
    count = settings["clients"]
    calls = f"{NUMBERS.get(count, str(count))} call{'s' if count > 1 else ''}"
    mode = "" if count == 1 and settings["mode"] == "exact" else f", `{settings['mode']}`"
    slowest = ", slowest of them" if count > 1 else ""
    if settings["against"] != "server":
        return f"{calls}, {settings['against']}, {settings['codec']}"
    size = "" if settings["size"] == "640x480" else f", {settings['size']}"
    changes = " while its model changes" if settings.get("change_to") else ""
    return f"{calls}{mode}{size}{changes}, {settings['codec']}, {_model(settings)}{slowest}"


def _model(settings: Mapping[str, Any]) -> str:
    if not settings["detector"]:
        return "no detector"
    name = settings["model"]
    return MODELS["sightline-nano.onnx"] if name is None else MODELS.get(name, name)


def _figures(values: Sequence[float | None]) -> Row:
    p50, p95, fps = values
    return _text(p50), _text(p95), _text(fps, 0)


def _text(value: float | None, places: int = 1) -> str:
    # Adding nothing turns a rounded -0 into 0.
    return "-" if value is None else f"{round(value, places) + 0.0:.{places}f}"


def _times(ratio: Mapping[str, float] | None) -> str:
    return "" if ratio is None else f"{ratio['median']:.1f}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Prints the tables of records as Markdown, for the README."
    parser.add_argument("records", type=Path, nargs="+", help="records, single or joined")
    add_json(parser, "the rows as the last line of standard output")


def run(options: argparse.Namespace) -> int:
    records = [record for _, record in read_records(options.records)]
    text = tables(records)
    print(text or "these records have no tables")
    if options.json:
        print(json.dumps({"bench": "table", "delays": delay_rows(records)}))
    return OK if text else WRONG_USAGE
