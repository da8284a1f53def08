"""`python -m tools.reliability_table [FOLDER ...]`: the reliability matrix from its record.

Takes what tests left with `--matrix-out FOLDER` into tests/reliability/record.json, line by
line, and writes docs/reliability.md from it. Without a folder only the page is written.
"""

import json
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tests" / "reliability" / "record.json"
PAGE = ROOT / "docs" / "reliability.md"

TITLES = {
    "N": "The network",
    "F": "Parts that fail",
    "H": "Hostile input",
    "L": "Load",
}
ABSENT = "not covered"
COLUMNS = "| case | what it did | wanted | verdict | seed |\n|---|---|---|---|---|\n"


def main(arguments: Sequence[str]) -> int:
    if set(arguments) & {"-h", "--help"}:
        print(__doc__)
        return 0
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    for folder in arguments:
        if not Path(folder).is_dir():
            print(f"{folder}: no such folder; --matrix-out of the tests makes it", file=sys.stderr)
            return 1
        print(*take(record, Path(folder)), sep="\n")
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    RECORD.write_text(text, encoding="utf-8")
    PAGE.write_text(page(record), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(record['lines'])} lines")
    return 0


def take(record: dict[str, Any], folder: Path) -> list[str]:
    """Replace what the folder has news of; gives what to tell. A case that was not covered and now
    is needs no word of that any more."""
    lines = {line["case"]: line for line in record["lines"]}
    renewed: set[str] = set()
    telling: list[str] = []
    for path in sorted(folder.glob("*.json")):
        line = json.loads(path.read_text(encoding="utf-8"))
        if "case" in line:
            lines[line["case"]] = line
            renewed.add(line["case"])
            continue
        # It ended before it could measure: what it measured once is not true today.
        cases = {case for case in lines if lines[case]["test"] == line["test"]} - renewed
        lines |= {case: lines[case] | line for case in cases}
        renewed |= cases
        telling += [] if cases else [f"without a line: {line['test']}: {line['note']}"]
    record["lines"] = sorted(lines.values(), key=lambda line: order(line["case"]))
    told = {order(case)[:2] for case in lines}
    for case in [case for case in record["elsewhere"] if order(case)[:2] in told]:
        del record["elsewhere"][case]
    record["python"] = platform.python_version()
    telling += [f"as it was before: {case}" for case in lines if case not in renewed]
    telling += [
        f"{line['verdict']}: {line['case']}"
        for line in lines.values()
        if line["verdict"] != "holds"
    ]
    return telling


def order(case: str) -> tuple[int, int, str]:
    """N before F before H before L, then by number, then by the rest of the name."""
    found = re.match(r"([A-Z])(\d+)(.*)", case)
    assert found is not None, case
    return list(TITLES).index(found[1]), int(found[2]), found[3]


def page(record: Mapping[str, Any]) -> str:
    """The whole of docs/reliability.md."""
    parts = [HEAD.format(measured=record["measured"])]
    for letter, title in TITLES.items():
        parts += [f"## {title}\n\n", COLUMNS]
        rows: dict[tuple[int, int, str], str] = {}
        for line in record["lines"]:
            if line["case"].startswith(letter):
                rows[order(line["case"])] = _row(line)
        for case, entry in record["elsewhere"].items():
            if case.startswith(letter):
                rows[order(case)] = _elsewhere(case, entry)
        parts += [rows[key] for key in sorted(rows)]
        parts.append("\n")
    return "".join(parts)


def _row(line: Mapping[str, Any]) -> str:
    figure = line["figure"] + (f" ({line['note']})" if line["note"] else "")
    seed = "" if line["seed"] is None else line["seed"]
    cells = (line["case"], _cell(figure), _cell(line["threshold"]), line["verdict"], str(seed))
    return f"| {' | '.join(cells)} |\n"


def _elsewhere(case: str, entry: Mapping[str, Any]) -> str:
    tests = ", ".join(f"`{test}`" for test in entry["tests"])
    verdict = "holds" if tests else ABSENT
    told = _cell(entry["told"]) + (f" {tests}" if tests else "")
    return f"| {case} | {told} | {_cell(entry['wanted'])} | {verdict} | |\n"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


HEAD = """\
# Reliability, case by case

What a camera server meets in months on open networks: bad paths, parts that fail, strangers and
crowds. Each case is a test; most have a **witness**, a second caller on a clear path beside the
one that suffers, which must not feel it. Written by `python -m tools.reliability_table` from the
records of those tests; do not edit.

`make test` runs the short ones, `make test-long` the others; `make matrix` runs all of them, best
on a machine that does nothing else, and writes this page.

How to read it:

- Server, callers and the bad network share one process, one loop and two cores: ages hold the
  callers' own share, and on a busy machine the witness's figures are the machine's. In H1 to H5 the
  server is a process of its own, and the flood another.
- The bad network is a relay between real peers (`bench/impairment.py`): seeded, no root.
- "% decoded" counts pictures at the end of the bad direction. Fewer may be shown: those that
  waited behind a repair come at once, and the newest wins.
- {measured}

"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
