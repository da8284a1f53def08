"""Loads a model nobody vouches for in a process of its own first.

A file can be such that the runtime dies of it (seen: onnxruntime's layout optimiser and a
half-precision graph), and no exception tells. What survived once, with the same runtime and
settings, is remembered in the cache folder.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from server.detector.engine import runtime_version
from server.detector.load import load_detector, model_paths
from server.detector.parity import built_in_pictures, cache_key
from server.errors import ModelError, SightlineError
from server.model_registry import DEFAULT_CACHE_DIR, DEFAULT_MODEL, REGISTRY
from server.settings import DetectorSettings

TIMEOUT_S = 120.0
FOLDER = "survived"


def try_apart(settings: DetectorSettings, timeout_s: float = TIMEOUT_S) -> None:
    """ModelError if loading these models and looking at pictures ends a process, or never ends.

    A model that fails in any other way is left to the caller, who will meet the same error.
    Takes as long as loading, the first time. Any thread but the loop's.
    """
    strangers = [path for path in model_paths(settings.model, settings.cache_dir) if _strange(path)]
    if not settings.trial or not strangers:
        return
    survived = _remembered(strangers, settings)
    if survived.exists():
        return
    names = " and ".join(path.name for path in strangers)
    root = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "server.detector.trial"],
            input=json.dumps(dataclasses.asdict(settings)),
            env={**os.environ, "PYTHONPATH": search},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"model: {names} is not loaded after {timeout_s:g} s") from None
    if done.returncode < 0:
        raise ModelError(f"model: {names} makes the runtime crash (signal {-done.returncode})")
    if done.returncode == 0:
        _remember(survived)


def _strange(path: Path) -> bool:
    """Whether the file is neither ours nor one whose content we know."""
    if path == DEFAULT_MODEL:
        return False
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest not in {entry.sha256 for entry in REGISTRY}


def _remembered(paths: Sequence[Path], settings: DetectorSettings) -> Path:
    """The file whose presence says that these survived."""
    choices = (settings.provider, settings.precision, settings.max_batch, settings.threads)
    folder = Path(settings.cache_dir or DEFAULT_CACHE_DIR).expanduser() / FOLDER
    return folder / cache_key(paths, runtime_version(), *choices)


def _remember(survived: Path) -> None:
    try:
        survived.parent.mkdir(parents=True, exist_ok=True)
        survived.touch()
    except OSError:
        # A folder that cannot be written costs only the memory.
        return


def main() -> int:
    """In the process apart; settings come on standard input."""
    given = json.load(sys.stdin)
    try:
        detector = load_detector(DetectorSettings(**given))
        detector.detect(built_in_pictures()[:1])
    except SightlineError:
        return 1
    return 0


if __name__ == "__main__":
    # Without the interpreter's end: the runtime's own threads may crash in it.
    os._exit(main())
