"""`python -m bench report OUT RECORD...`: one page of HTML that holds everything, and PNGs.

Nothing is fetched: style and charts are in the page. It follows the reader's light or dark. PNGs,
for a README, are photographs that Chromium takes of the same charts.
"""

import argparse
import asyncio
from collections.abc import Callable, Sequence
from html import escape
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from bench.command import OK, run_async
from bench.errors import UsageError
from bench.reading import read_records
from bench.record import Record, plain
from bench.reports.sections import (
    Figure,
    Section,
    browser_section,
    compare_section,
    delay_table,
    distribution_section,
    glass_section,
    headline,
    sessions_section,
    soak_section,
    stage_section,
    table,
)

STYLE: Final = Path(__file__).parent / "reports" / "style.css"
THEMES: Final = ("light", "dark")
FIGURE_WIDTH: Final = 560
PHOTO_TIMEOUT_S: Final = 60.0
KNOWN: Final = ("compare", "glass", "browser", "sessions", "soak", "stages", "floor")
BUSY_LOAD: Final = 1.0
ROWS_AT_MOST: Final = 80


def page(records: Sequence[tuple[str, Record]], title: str = "Sightline, measured") -> str:
    """The whole page."""
    only = [record for _, record in records]
    tiles = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
        for value, what in headline(only)
    )
    first = only[0]
    commit = str(first.code.get("commit") or "unknown")[:10]
    machine = f"{first.machine.get('cpu')}, {first.machine.get('cores')} cores"
    body = "".join(map(_section, sections(only)))
    return _document(
        title,
        f"<header><h1>{escape(title)}</h1>"
        f"<p>{escape(machine)}. {escape(first.measured_utc[:10])}, commit {escape(commit)}. "
        "Delay is from the picture handed to the client's encoder until the returned picture is "
        "decoded and read, by a bar code in the picture itself.</p>"
        f'{_busy(only)}<div class="tiles">{tiles}</div></header>'
        f"{body}{_environment(records)}"
        f"<footer>{len(records)} record(s): "
        f"{escape(', '.join(name for name, _ in records))}. Made by <code>python -m bench report"
        "</code>; what each figure means stands in bench/README.md.</footer>",
    )


def sections(records: Sequence[Record]) -> list[Section]:
    compared = [compare_section(record) for record in records if record.bench == "compare"]
    makers: Sequence[Callable[[Sequence[Record]], Section | None]] = (
        distribution_section,
        glass_section,
        stage_section,
        browser_section,
        sessions_section,
        soak_section,
        _others,
    )
    found = [*compared, *(made for made in (make(records) for make in makers) if made is not None)]
    delays = delay_table([record for record in records if record.bench in ("glass", "browser")])
    if delays:
        found.insert(len(compared), Section("Delays", "All measurements of calls.", (), [delays]))
    return found


def figure_page(figure: Figure, theme: str) -> str:
    """One chart alone, to be photographed."""
    return _document(figure.title, figure.card(), theme=theme, kind="figure")


async def photograph(records: Sequence[Record], folder: Path) -> list[Path]:
    """Every chart in light and dark. Raises `UsageError` where there is no Chromium."""
    from bench.browsers.driver import find_browser, open_page

    browser = find_browser("chromium")
    if browser is None:
        raise UsageError("--png: takes Chromium, which is not installed")
    written = []
    figures = list(chain.from_iterable(section.figures for section in sections(records)))
    with TemporaryDirectory() as place:
        # Twice the pixels, for screens that have them.
        flags = ("--force-device-scale-factor=2", "--hide-scrollbars")
        async with open_page(browser, flags=flags) as shown:
            for figure in figures:
                for theme in THEMES:
                    source = Path(place) / "figure.html"
                    source.write_text(figure_page(figure, theme), encoding="utf-8")
                    async with asyncio.timeout(PHOTO_TIMEOUT_S):
                        await shown.set_viewport(FIGURE_WIDTH, 400)
                        await shown.goto(source.as_uri())
                        height = await shown.evaluate(
                            "Math.ceil(document.querySelector('main').getBoundingClientRect().height)"
                        )
                        await shown.set_viewport(FIGURE_WIDTH, int(height))
                        png = await shown.screenshot()
                    path = folder / f"{figure.key}-{theme}.png"
                    path.write_bytes(png)
                    written.append(path)
    return written


def _section(section: Section) -> str:
    cards = "".join(figure.card() for figure in section.figures)
    tables = "".join(section.tables)
    return (
        f"<section><h2>{escape(section.title)}</h2><p>{escape(section.lead)}</p>"
        f'<div class="grid">{cards}{tables}</div></section>'
    )


def _others(records: Sequence[Record]) -> Section | None:
    """Benches that have no chart yet: their numbers, as they stand in the record."""
    tables = []
    for record in records:
        if record.bench not in KNOWN:
            rows = [(name, f"{value:g}") for name, value in _leaves(plain(record.summary))]
            tables.append(
                f'<details class="card wide" open><summary>{escape(record.bench)}</summary>'
                f"{table(('figure', 'value'), rows[:ROWS_AT_MOST])}</details>"
            )
    if not tables:
        return None
    return Section("Other benches", "As they stand in their records.", (), tables)


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, float]]:
    if isinstance(value, bool):
        return []
    if isinstance(value, int | float):
        return [(prefix, value)]
    items = value.items() if isinstance(value, dict) else ()
    return [leaf for key, inner in items for leaf in _leaves(inner, f"{prefix} {key}".strip())]


def _busy(records: Sequence[Record]) -> str:
    """A machine that did something else makes absolute figures worthless: said, not hidden."""
    loads = [(record.machine.get("load_before") or [0.0])[0] for record in records]
    if max(loads) <= BUSY_LOAD:
        return ""
    return (
        f'<p class="warn">The machine was busy with other work when this was measured (load '
        f"average up to {max(loads):.1f}): only ratios within one record mean anything here.</p>"
    )


def _environment(records: Sequence[tuple[str, Record]]) -> str:
    first = records[0][1]
    machine = [(key, _words(value)) for key, value in first.machine.items()]
    versions = list(first.versions.items())
    parts = [
        "<section><h2>Measured with</h2><p>Settings of each record stand in the record.</p>"
        f'<div class="grid">{table(("machine", ""), machine)}',
        f'<details class="card wide"><summary>Versions here</summary>'
        f"{table(('package', 'version'), versions)}</details>",
    ]
    for _, record in records:
        if record.bench == "compare":
            for name, found in record.summary["environments"].items():
                parts.append(
                    f'<details class="card wide"><summary>Versions of {escape(name)}</summary>'
                    f"{table(('package', 'version'), list(found.items()))}</details>"
                )
            left_out = "".join(
                f"<p><b>{escape(name)}</b>: {escape(why)}</p>"
                for name, why in {
                    **record.settings["left_out"],
                    **record.summary["failures"],
                }.items()
            )
            if left_out:
                parts.append(
                    f'<div class="card wide"><h3>Not compared, and why</h3>{left_out}</div>'
                )
    return "".join(parts) + "</div></section>"


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _document(title: str, body: str, *, theme: str = "", kind: str = "") -> str:
    style = STYLE.read_text(encoding="utf-8")
    attribute = f' data-theme="{theme}"' if theme else ""
    return (
        f'<!doctype html>\n<html lang="en"{attribute}><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>"
        f'<body class="{kind}"><main>{body}</main></body></html>\n'
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Draws records as one page that fetches nothing: compared servers, distributions, time "
        "lines, stages, environment. Joined records count as all that are in them."
    )
    add = parser.add_argument
    add("out", type=Path, metavar="OUT.html", help="the page to write")
    add("records", type=Path, nargs="+", metavar="RECORD", help="records of the bench")
    add("--title", default="Sightline, measured", help="heading of the page")
    add("--png", type=Path, metavar="DIR", help="each chart as PNG too, light and dark (Chromium)")


def run(options: argparse.Namespace) -> int:
    records = list(read_records(options.records))
    if not records:
        raise UsageError("none of the files holds a record of the bench")
    options.out.write_text(page(records, options.title), encoding="utf-8")
    print(f"{len(records)} record(s) in {options.out.name}")
    if options.png is not None:
        options.png.mkdir(parents=True, exist_ok=True)
        written = run_async(photograph([record for _, record in records], options.png))
        print(f"{len(written)} pictures in {options.png.name}")
    return OK
