"""`python -m bench <command>`: measurements that write one JSON record each.

Exit codes: 0 measured; 1 measured, and the budget is passed; 2 wrong usage; 3 not measured.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Final, cast

from bench.command import NOT_MEASURED, OK, OVER_BUDGET, WRONG_USAGE, Command
from bench.errors import BenchError, UsageError

__all__ = ["NOT_MEASURED", "OK", "OVER_BUDGET", "WRONG_USAGE", "main"]

# By name: the module, which has `add_arguments(parser)` and `run(options)`, and one line of help.
# Only the module of the command that is run is imported.
COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "glass": ("bench.glass", "delay from glass to glass, headless peers"),
    "browser": ("bench.browser", "delay from glass to glass, real browsers"),
    "tiles": ("bench.tiles", "delay from glass to glass in tiles, many at once, real browsers"),
    "sessions": ("bench.sessions", "how many calls stay within the budget"),
    "fanout": ("bench.fanout", "what viewers cost and wait for, WHIP in to WHEP out"),
    "rtsp": ("bench.rtsp", "RTSP cameras: glass to glass, and many at once"),
    "impair": ("bench.impair", "what a bad path costs a call: loss, jitter, rate, seeded"),
    "soak": ("bench.soak", "does the server stay as it was over time"),
    "websocket": ("bench.websocket", "JPEG over WebSocket, beside a plain server of that shape"),
    "stages": ("bench.stages", "each stage of a frame's way alone"),
    "analysis": ("bench.analysis", "tracking, zones, masks; events written and searched"),
    "switches": ("bench.switches", "how often tracked objects change their number, on clips"),
    "compare": ("bench.compare", "side by side with what a user would take instead"),
    "floor": ("bench.floor", "what the same work costs without a server"),
    "release": ("bench.release", "everything the README's tables say, joined in one file"),
    "table": ("bench.table", "records as Markdown tables"),
    "compare-records": ("bench.compare_records", "is record B worse than record A"),
    "report": ("bench.report", "records as one page of HTML, and as PNGs"),
    "echo": ("bench.echo", "a server that echoes, to know the floor"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parsers = parser.add_subparsers(dest="bench", required=True, metavar="command")
    command: Command | None = None
    for name, (module, line) in COMMANDS.items():
        added = parsers.add_parser(name, help=line)
        if given[:1] == [name]:
            try:
                command = cast(Command, importlib.import_module(module))
            except ModuleNotFoundError as error:
                return _missing(error)
            command.add_arguments(added)
    options = parser.parse_args(given)
    assert command is not None, "the parser takes only what COMMANDS names"
    try:
        return command.run(options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        if getattr(options, "json", False):
            print(json.dumps({"bench": options.bench, "error": str(error)}))
        return WRONG_USAGE if isinstance(error, UsageError) else NOT_MEASURED
    except ModuleNotFoundError as error:
        # What a command imports late, when it has something to measure.
        return _missing(error)
    except KeyboardInterrupt:
        print("bench: stopped", file=sys.stderr)
        return NOT_MEASURED


def _missing(error: ModuleNotFoundError) -> int:
    wanted = "`make environment EXTRAS=dev` brings it"
    print(f"bench: {error.name} is not installed: {wanted}", file=sys.stderr)
    return NOT_MEASURED


if __name__ == "__main__":
    sys.exit(main())
