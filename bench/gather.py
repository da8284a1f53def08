"""Joins records into the one that is published with a release: `python -m bench.gather OUT IN...`.

The records stay as they were written; nothing is averaged or left out.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gather", description=__doc__)
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("records", type=Path, nargs="+", help="files that the bench wrote")
    options = parser.parse_args(arguments)
    try:
        records = {path.name: json.loads(path.read_text()) for path in options.records}
    except (OSError, ValueError) as error:
        print(f"bench.gather: {error}", file=sys.stderr)
        return 2
    if len(records) != len(options.records):
        print("bench.gather: two records have the same name", file=sys.stderr)
        return 2
    options.out.write_text(json.dumps({"records": records}, indent=1) + "\n")
    print(f"{len(records)} records in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
