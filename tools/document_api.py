"""Writes the table of docs/api.md from the routes themselves, so that it cannot be out of date."""

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from server.app import make_app
from server.edge.api_facts import FACTS
from server.edge.gate import RULES, Rule
from server.edge.openapi import make_document
from server.settings import Settings

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "api.md"
BEGIN = "<!-- written by `make document` from the routes: begin -->\n"
END = "<!-- written by `make document` from the routes: end -->\n"

# By tag, in the order of the page: what stands over the table, and the page that tells more.
TITLES = {
    "streams": "Streams ([sources.md](sources.md))",
    "whip": "Publish ([publish.md](publish.md))",
    "whep": "Watch ([view.md](view.md))",
    "events": "Listen ([events.md](events.md))",
    "zones": "Zones, lines and masks ([analytics.md](analytics.md#zones-lines-and-masks))",
    "history": "Events and clips ([analytics.md](analytics.md#events))",
    "pictures": "Picture files ([detect.md](detect.md))",
    "calls": "Calls of the page",
    "detector": "The detector ([models.md](models.md))",
    "access": "Tokens and tickets ([access.md](access.md))",
    "state": "The server itself ([observe.md](observe.md))",
    "page": "Pages",
}
SCOPES = {"any": "", "path": " of the stream", "all": " of `*`"}


def needs(rule: Rule | None) -> str:
    """Whose key or token opens the route."""
    if rule is None:
        return "`control` of `*`"
    if rule.held:
        return "what opened it"
    if not rule.scope:
        return "nothing" if rule.public else "a key or token"
    return f"`{rule.scope}`{SCOPES[rule.of]}"


def rows(paths: Mapping[str, Mapping[str, Any]], tag: str) -> Iterator[str]:
    for path, operations in paths.items():
        for method, operation in operations.items():
            if operation["tags"] != [tag]:
                continue
            names = [p["name"] for p in operation.get("parameters", ()) if p["in"] == "query"]
            query = ", ".join(f"`{name}`" for name in names)
            what = operation["summary"].removesuffix(".").replace("|", "\\|")
            rule = RULES.get((method.upper(), path))
            yield f"| `{method.upper()} {path}` | {what} | {query} | {needs(rule)} |\n"


def tables() -> str:
    """Every route, by subject."""
    paths = make_document(make_app(Settings(), None), RULES, FACTS)["paths"]
    tags = {op["tags"][0] for operations in paths.values() for op in operations.values()}
    assert tags == set(TITLES), f"TITLES names other subjects: {sorted(tags ^ set(TITLES))}"
    parts = []
    for tag, title in TITLES.items():
        parts.append(
            f"### {title}\n\n| Route | What it does | Query | Needs |\n|---|---|---|---|\n"
        )
        parts += [*rows(paths, tag), "\n"]
    return "".join(parts)


def document(written: str) -> str:
    """The page with the tables as they are now; what stands around them is written by hand."""
    before, _, rest = written.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail when it would change")
    arguments = parser.parse_args()
    # The application that is put together for its routes has nothing to say about its settings.
    logging.disable(logging.INFO)
    written = DOCUMENT.read_text(encoding="utf-8")
    wanted = document(written)
    if not arguments.check:
        DOCUMENT.write_text(wanted, encoding="utf-8")
        return 0
    if written == wanted:
        return 0
    print(f"{DOCUMENT.name} is out of date: run `make document`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
