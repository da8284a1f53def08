"""`python -m tools.fetch_model NAME`: a well-known model into the cache folder.

The last line of standard output is one JSON object with `--json`; messages go to standard error.
Exit status: 0 done, 1 failed, 2 wrong use, 3 the licence was not accepted, 4 no network,
130 interrupted.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from server.model_registry import (
    DEFAULT_CACHE_DIR,
    PYTORCH_ADVICE,
    REGISTRY,
    ModelEntry,
    find_entry,
    similar_names,
)
from tools.fetch_model.download import FetchError, Limits, OfflineError, fetch, sha256_of
from tools.fetch_model.lock import Lock, Pin
from tools.progress import Progress

MB = 1_000_000
DONE, FAILED, WRONG_USE, NOT_ACCEPTED, OFFLINE, INTERRUPTED = 0, 1, 2, 3, 4, 130


class NotAcceptedError(FetchError):
    """The licence needs a word from the user, and none was given."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m tools.fetch_model",
        description="Fetch a well-known model, checked against its SHA-256, into the cache folder.",
    )
    made.add_argument("name", nargs="*", metavar="NAME", help="models to fetch; see --list")
    made.add_argument("--list", action="store_true", help="show the known models and stop")
    made.add_argument("--dir", metavar="DIR", help="cache folder (default: SIGHTLINE_CACHE_DIR)")
    made.add_argument(
        "--accept-licence",
        action="store_true",
        help="agree to the terms of AGPL models without being asked",
    )
    made.add_argument("--force", action="store_true", help="fetch again what is already there")
    made.add_argument("--json", action="store_true", help="last line of output is one JSON object")
    made.add_argument("--timeout", type=float, default=20.0, metavar="S", help="longest silence")
    made.add_argument("--max-mb", type=float, default=1024.0, metavar="MB", help="largest file")
    return made


def main(
    arguments: Sequence[str] | None = None,
    registry_find: Callable[[str], ModelEntry | None] = find_entry,
) -> int:
    options = parser().parse_args(arguments)
    cache_dir = Path(
        options.dir or os.environ.get("SIGHTLINE_CACHE_DIR") or DEFAULT_CACHE_DIR
    ).expanduser()
    if options.list:
        rows = [_row(entry, cache_dir) for entry in REGISTRY]
        print(json.dumps({"models": rows}) if options.json else _table(rows))
        return DONE
    if not options.name:
        _say("name a model, or see --list")
        return WRONG_USE
    try:
        status, results = _fetch_all(options, cache_dir, registry_find)
    except KeyboardInterrupt:
        _say("\nstopped; what came is kept, run it again to go on")
        return INTERRUPTED
    if options.json:
        print(json.dumps({"ok": status == DONE, "models": results}))
    return status


def _fetch_all(
    options: argparse.Namespace,
    cache_dir: Path,
    registry_find: Callable[[str], ModelEntry | None],
) -> tuple[int, list[dict[str, Any]]]:
    """The worst status and one row a model; what fails does not keep the next from coming."""
    results: list[dict[str, Any]] = []
    status = DONE
    for name in options.name:
        try:
            results.append(_fetch_one(name, options, cache_dir, registry_find))
        except OfflineError as error:
            status = OFFLINE
            message = f"{error}. {_next_best(name, cache_dir, registry_find)}"
        except NotAcceptedError as error:
            status, message = NOT_ACCEPTED, str(error)
        except FetchError as error:
            status, message = FAILED, str(error)
        except OSError as error:
            status, message = FAILED, f"{error.filename}: {error.strerror}"
        else:
            continue
        _say(f"{name}: {message}" if name not in message else message)
        results.append({"name": name, "error": message})
    return status, results


def _fetch_one(
    name: str,
    options: argparse.Namespace,
    cache_dir: Path,
    registry_find: Callable[[str], ModelEntry | None],
) -> dict[str, Any]:
    if name.lower().endswith((".pt", ".pth")):
        raise FetchError(f"{name}: {PYTORCH_ADVICE}")
    entry = registry_find(name)
    if entry is None:
        meant = similar_names(name)
        hint = f"did you mean {' or '.join(meant)}?" if meant else "see --list"
        raise FetchError(f"{name}: not a known model; {hint}")
    target = cache_dir / entry.file_name
    lock = Lock(cache_dir)
    pin = lock.pin(entry.name)
    expected = entry.sha256 or (pin.sha256 if pin is not None and pin.url == entry.url else "")
    if target.is_file() and not options.force:
        found = sha256_of(target)
        if expected in ("", found):
            _say(f"{entry.name}: already at {target}")
            return _result(entry, target, found, "kept")
        _say(f"{entry.name}: {target} is not the file on record; fetching it again")
    _say(f"{entry.name}: {entry.licence}, {entry.licence_url}")
    if entry.needs_consent and pin is None and not options.accept_licence:
        _ask(entry)
    if not expected:
        _say(f"{entry.name}: no SHA-256 is on record; what comes now is pinned in {lock.path.name}")
    progress: list[Progress] = []

    def show(done_bytes: int, total_bytes: int) -> None:
        if not progress:
            progress.append(Progress(entry.name, total_bytes / MB, " MB"))
        progress[0].advance(done_bytes / MB - progress[0].done)

    try:
        fetched = fetch(
            entry.url,
            target,
            sha256=expected,
            size_bytes=entry.size_bytes,
            limits=Limits(timeout_s=options.timeout, max_bytes=int(options.max_mb * MB)),
            on_bytes=show,
        )
    finally:
        for line in progress:
            line.close()
    lock.add(
        entry.name,
        Pin(entry.url, fetched.sha256, fetched.size_bytes, entry.licence, int(1000 * time.time())),
    )
    checked = "checked" if expected else "pinned"
    _say(f"{entry.name}: {target}, {fetched.size_bytes / MB:.1f} MB, SHA-256 {checked}")
    return _result(entry, target, fetched.sha256, "fetched") | {
        "resumed_at_bytes": fetched.resumed_at_bytes
    }


def _ask(entry: ModelEntry) -> None:
    terms = (
        f"{entry.name} is {entry.licence}: who offers it to others over a network owes them the "
        "source of the whole work, unless the authors sold them another licence"
    )
    if not sys.stdin.isatty():
        raise NotAcceptedError(f"{terms}; run it again with --accept-licence if you agree")
    _say(terms)
    print("Agree? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise NotAcceptedError(f"{entry.name}: not agreed, nothing fetched")


def _next_best(
    name: str, cache_dir: Path, registry_find: Callable[[str], ModelEntry | None]
) -> str:
    """What to do without a network, in one sentence."""
    entry = registry_find(name)
    here = [item.name for item in REGISTRY if (cache_dir / item.file_name).is_file()]
    carry = f"Put {entry.url} at {cache_dir / entry.file_name} by other means" if entry else ""
    use = f", or use what is here: --model {here[0]}" if here else ", or --model PATH of any file"
    return carry + use


def _row(entry: ModelEntry, cache_dir: Path) -> dict[str, Any]:
    return {
        "name": entry.name,
        "family": entry.family,
        "input": entry.input_text,
        "finds": entry.finds,
        "size_bytes": entry.size_bytes or None,
        "licence": entry.licence,
        "sha256": entry.sha256 or None,
        "url": entry.url,
        "here": (cache_dir / entry.file_name).is_file(),
    }


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'NAME':<19}{'FAMILY':<23}{'INPUT':<9}{'MB':>6}  {'LICENCE':<12}HERE  FINDS"]
    for row in rows:
        size = f"{row['size_bytes'] / MB:.1f}" if row["size_bytes"] else "?"
        lines.append(
            f"{row['name']:<19}{row['family']:<23}{row['input']:<9}{size:>6}  "
            f"{row['licence']:<12}{'yes' if row['here'] else '-':<6}{row['finds']}"
        )
    return "\n".join(lines)


def _result(entry: ModelEntry, path: Path, sha256: str, outcome: str) -> dict[str, Any]:
    return {
        "name": entry.name,
        "path": str(path),
        "sha256": sha256,
        "size_bytes": path.stat().st_size,
        "licence": entry.licence,
        "outcome": outcome,
    }


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
