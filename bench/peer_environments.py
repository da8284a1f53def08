"""Environments of the servers we are compared with, one each, made when first needed.

They lie under `bench/peers/`, which git ignores, and hold the exact versions that
`bench/peer_servers/<name>.txt` lists. What decides how fast a picture is decoded or a model runs
is the same in all of them and in the bench's own; a test holds it.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import ServerError
from tools import setup_environment

ENVIRONMENTS: Final = Path(__file__).parent / "peers"
CONSTRAINTS: Final = Path(__file__).parent / "peer_servers"
CHECKOUT: Final = Path(__file__).parents[1]
STAMP: Final = "made.json"
INSTALL_TIMEOUT_S: Final = 1200.0
LINES_SHOWN: Final = 12
ENGINES: Final = ("onnxruntime-openvino", "onnxruntime-gpu", "onnxruntime")
# What every one of them needs to run the product's detector on a picture.
DETECTOR: Final = ("av", "numpy", "opencv-python-headless", "psutil", "PyYAML")
WANTED: Final[Mapping[str, Sequence[str]]] = {
    "fastrtc": ("fastrtc",),
    "streamlit": ("streamlit-webrtc", "aiohttp"),
    "websocket": ("fastapi", "uvicorn[standard]"),
}


@dataclass(frozen=True, slots=True)
class PeerEnvironment:
    """What runs a peer, and in which versions."""

    python: Path
    versions: Mapping[str, str]

    def variables(self) -> dict[str, str]:
        """Beside those of this process: the detector comes from this checkout."""
        return {
            "PYTHONPATH": str(CHECKOUT),
            "PYTHONNOUSERSITE": "1",
            "GRADIO_ANALYTICS_ENABLED": "0",
            "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "0",
        }


def own_environment() -> PeerEnvironment:
    """The bench's own, for a peer that needs nothing but what is pinned here anyway."""
    found = {
        name: importlib.metadata.version(name)
        for name in ("aiortc", "aioice", "av", "numpy", "opencv-python-headless")
    }
    return PeerEnvironment(Path(sys.executable), found | dict([_engine()]))


def peer_environment(name: str) -> PeerEnvironment:
    """Made if need be, which takes a minute or two; at once when it is there already.

    Blocks. Raises `ServerError` when it cannot be made, with pip's last lines.
    """
    folder = ENVIRONMENTS / name
    with _only_one(folder):
        fingerprint = _fingerprint(name)
        stamp = _stamp(folder)
        if stamp.get("fingerprint") != fingerprint:
            _make(name, folder, fingerprint)
            stamp = _stamp(folder)
    versions = stamp["versions"]
    assert isinstance(versions, dict)
    return PeerEnvironment(setup_environment.venv_python(folder), versions)


def constraints(name: str) -> dict[str, str]:
    """The exact versions of a peer's environment by distribution, without the engine."""
    lines = (CONSTRAINTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def _make(name: str, folder: Path, fingerprint: str) -> None:
    """The stamp goes first and comes back last: an interrupted making is done again."""
    (folder / STAMP).unlink(missing_ok=True)
    folder.parent.mkdir(exist_ok=True)
    try:
        pip = setup_environment.create(folder)
    except setup_environment.SetupError as error:
        raise ServerError(f"{name}: {error}") from error
    engine = "==".join(_engine())
    options = ["--quiet", "--no-input", "--disable-pip-version-check"]
    listed = str(CONSTRAINTS / f"{name}.txt")
    command = [*pip, "install", *options, "--constraint", listed, engine, *DETECTOR, *WANTED[name]]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ServerError(
            f"{name}: its packages were not installed within {INSTALL_TIMEOUT_S:g} s"
        ) from None
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).splitlines()[-LINES_SHOWN:])
        raise ServerError(f"{name}: pip could not install its packages:\n{said}")
    stamp = {"fingerprint": fingerprint, "versions": _installed(folder)}
    (folder / STAMP).write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")


def _installed(folder: Path) -> dict[str, str]:
    """Of everything in the environment, as its own interpreter sees it."""
    script = (
        "import importlib.metadata as m, json\n"
        "print(json.dumps({d.metadata['Name']: d.version for d in m.distributions()}))"
    )
    python = setup_environment.venv_python(folder)
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return dict(sorted(found.items()))


def _engine() -> tuple[str, str]:
    """The distribution that runs models here, and its version: peers get the same."""
    for name in ENGINES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return name, importlib.metadata.version(name)
    raise ServerError("no onnxruntime is installed, so no peer can be given the same")


def _fingerprint(name: str) -> str:
    told = "\0".join((sys.version, *_engine(), *DETECTOR, *WANTED[name]))
    content = (CONSTRAINTS / f"{name}.txt").read_bytes()
    return hashlib.sha256(told.encode() + content).hexdigest()


def _stamp(folder: Path) -> dict[str, object]:
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    usable = isinstance(stamp, dict) and setup_environment.venv_python(folder).exists()
    return stamp if usable else {}


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Two benches that need the same environment wait for each other."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
