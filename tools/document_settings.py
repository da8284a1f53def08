"""Writes docs/configuration.md from the table of settings, so that it cannot be out of date."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from server.settings import GROUPS
from server.settings_loading import KEYS, Key

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration

<!-- Written by `make document` from server/settings.py: change the text there. -->

All settings, with their defaults and what they may be. Each has one name and three places; the
stronger place wins:

1. a flag: `python -m server --port 9000`, or `make serve ARGS="--port 9000"`
2. an environment variable: `SIGHTLINE_PORT=9000`
3. a line of a YAML file: `port: 9000`, with `--config FILE` or `SIGHTLINE_CONFIG=FILE`

Everything is checked at start. A wrong value ends the start with one line that names the setting,
the value and what it may be. Lists are written with commas, in YAML also as a list.

`python -m server --help` prints the same table; `python -m server doctor` says what the settings
come to on this machine.
"""


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def shown_default(row: Key) -> str:
    """The default as it would be written in a file; empty text is said so."""
    if row.is_list:
        text = ",".join(row.default)
    elif row.kind is bool:
        text = str(row.default).lower()
    elif row.kind is float:
        text = f"{row.default:g}"
    else:
        text = str(row.default)
    return f"`{text}`" if text else "(empty)"


def lines() -> Iterator[str]:
    yield INTRODUCTION
    for group, group_type in GROUPS:
        yield f"## {group}\n"
        yield f"{(group_type.__doc__ or '').strip()}\n"
        yield "| Setting | Default | May be | What it does |"
        yield "|---|---|---|---|"
        for row in KEYS:
            if row.group == group:
                columns = (f"`{row.name}`", shown_default(row), row.range_text, row.help)
                yield "| " + " | ".join(cell(column) for column in columns) + " |"
        yield ""


def document() -> str:
    return "\n".join(lines()).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail when it would change")
    arguments = parser.parse_args()
    if not arguments.check:
        DOCUMENT.write_text(document(), encoding="utf-8")
        return 0
    if DOCUMENT.read_text(encoding="utf-8") == document():
        return 0
    print(f"{DOCUMENT.name} is out of date: run `make document`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
