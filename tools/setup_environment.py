"""Makes the virtual environment: the right runtime, pinned versions, nothing twice.

Run by `make`, by the Dockerfile and by hand, with any Python 3.11 or later and nothing but its
standard library. A stamp inside the environment remembers what it was made from, so that a
second run returns at once. The stamp is removed first and written last: an interrupted run is
simply done again.
"""

import argparse
import contextlib
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUNTIMES = {
    "cpu": "onnxruntime",
    "gpu": "onnxruntime-gpu",
    "openvino": "onnxruntime-openvino",
}
BROWSERS = {"chromium": "chromium", "firefox-esr": "firefox-esr"}  # command: Debian package
# Library of Debian: package. The camera of the tests is GStreamer's RTSP server.
LIBRARIES = {
    "/usr/lib/python3/dist-packages/gi/__init__.py": "python3-gi",
    "/usr/lib/*/girepository-1.0/GstRtspServer-1.0.typelib": "gir1.2-gst-rtsp-server-1.0",
    "/usr/lib/*/gstreamer-1.0/libgstvideotestsrc.so": "gstreamer1.0-plugins-base",
    "/usr/lib/*/gstreamer-1.0/libgstrtp.so": "gstreamer1.0-plugins-good",
    "/usr/lib/*/gstreamer-1.0/libgstx264.so": "gstreamer1.0-plugins-ugly",
    # A viewer of another make.
    "/usr/lib/*/girepository-1.0/GstWebRTC-1.0.typelib": "gir1.2-gst-plugins-bad-1.0",
    "/usr/lib/*/gstreamer-1.0/libgstwebrtc.so": "gstreamer1.0-plugins-bad",
    "/usr/lib/*/gstreamer-1.0/libgstnice.so": "gstreamer1.0-nice",
    "/usr/lib/*/gstreamer-1.0/libgstlibav.so": "gstreamer1.0-libav",
}
# What tests talk to, and its Debian package.
SERVERS = {"mosquitto": "mosquitto", "pg_ctlcluster": "postgresql", "turnserver": "coturn"}
TYPESCRIPT = "typescript@7.0.2"
NODE_FOLDER = ROOT / ".cache" / "node"
STAMP_NAME = "sightline.json"
CONSTRAINTS = "constraints.txt"


class SetupError(Exception):
    """Set-up cannot go on; the message is one line that says what to do."""


def nvidia_driver_present() -> bool:
    """Whether an NVIDIA driver is loaded here; a graphics card without one does not count."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0


def choose_runtime(system: str, machine: str, nvidia_driver: bool) -> str:
    """The extra for this machine. `onnxruntime-gpu` and `-openvino` exist for x86-64 only."""
    is_x86_64 = machine.lower() in ("x86_64", "amd64")
    if nvidia_driver and is_x86_64 and system in ("Linux", "Windows"):
        return "gpu"
    if is_x86_64 and system == "Linux":
        return "openvino"
    return "cpu"


def requirements_of(pyproject: Mapping[str, Any], extras: Iterable[str]) -> list[str]:
    """What pyproject.toml asks for with these extras, extras of extras followed, sorted."""
    project = pyproject["project"]
    offered: Mapping[str, list[str]] = project["optional-dependencies"]
    wanted: set[str] = set(project["dependencies"])
    waiting, seen = list(extras), set()
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        if extra not in offered:
            raise SetupError(f"no extra {extra!r}; there are {', '.join(sorted(offered))}")
        for requirement in offered[extra]:
            inner = re.fullmatch(rf"{project['name']}\[(.+)\]", requirement)
            if inner:
                waiting += [name.strip() for name in inner[1].split(",")]
            else:
                wanted.add(requirement)
    return sorted(wanted, key=str.lower)


def fingerprint(root: Path) -> str:
    """Changes when the environment has to be looked at again."""
    content = b"\0".join((root / name).read_bytes() for name in ("pyproject.toml", CONSTRAINTS))
    return hashlib.sha256(content + sys.version.encode()).hexdigest()


def read_stamp(venv: Path) -> dict[str, Any]:
    """What the environment was made from; empty when unknown or unfinished."""
    try:
        stamp = json.loads((venv / STAMP_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def venv_python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@contextlib.contextmanager
def only_one(venv: Path) -> Iterator[None]:
    """Two set-ups of one environment wait for each other where the system can lock files."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder = ROOT / ".cache"
    folder.mkdir(exist_ok=True)
    with (folder / f"{venv.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    print(text, flush=True)


def run(command: Sequence[str | Path], failure: str) -> None:
    if subprocess.run([str(part) for part in command], check=False).returncode != 0:
        raise SetupError(failure)


def importable(module: str) -> bool:
    """Asked of a fresh interpreter: the base one, where set-up itself runs inside a venv."""
    probe = [base_python(), "-c", f"import {module}"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def base_python() -> str:
    return str(getattr(sys, "_base_executable", None) or sys.executable)


def create(venv: Path) -> list[str]:
    """An empty environment, and the command that is its pip.

    Debian leaves `ensurepip` out of its Python unless python3-venv is installed. The system's
    own pip then does the work from outside, so that a machine with Python and pip is enough.
    """
    minor = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if importable("ensurepip"):
        options = ["--clear"]
        pip = [str(venv_python(venv)), "-m", "pip"]
    elif importable("venv") and importable("pip"):
        options = ["--clear", "--without-pip"]
        pip = [base_python(), "-m", "pip", "--python", str(venv_python(venv))]
    else:
        raise SetupError(
            f"{base_python()} cannot make virtual environments: install Debian's {minor}-venv "
            f"(apt-get install {minor}-venv) or set PYTHON to another Python"
        )
    run([base_python(), "-m", "venv", *options, venv], f"could not create {venv}")
    return pip


def pip_of(venv: Path) -> list[str]:
    """The pip of an environment that exists."""
    inside = [str(venv_python(venv)), "-m", "pip"]
    if subprocess.run([*inside, "--version"], capture_output=True, check=False).returncode == 0:
        return inside
    return [base_python(), "-m", "pip", "--python", str(venv_python(venv))]


def installed_runtimes(venv: Path) -> set[str]:
    """Runtime distributions inside the environment, by name."""
    folders = venv.glob("[Ll]ib*/**/site-packages/onnxruntime*.dist-info")
    return {folder.name.split("-")[0].replace("_", "-") for folder in folders}


def keep_one_runtime(pip: Sequence[str], venv: Path, wanted: str) -> None:
    """Removes every runtime when another than the wanted one is there.

    All of them unpack into one folder. Removing only the wrong one would take shared files of
    the right one with it, so the right one goes too and is installed anew.
    """
    present = installed_runtimes(venv)
    if present - {wanted}:
        say(f"Removing {', '.join(sorted(present))}: only {wanted} is to be here")
        run([*pip, "uninstall", "--yes", "--quiet", *sorted(present)], "could not remove them")


def set_up(venv: Path, runtime: str, extras: set[str]) -> None:
    """Brings the environment to `runtime` and at least `extras`. Returns at once when it is."""
    before = read_stamp(venv)
    print_of_now = fingerprint(ROOT)
    known = set(before.get("extras", ()))
    if (
        before.get("fingerprint") == print_of_now
        and before.get("runtime") == runtime
        and extras <= known
        and venv_python(venv).exists()
    ):
        return
    same_python = before.get("python") == sys.version and venv_python(venv).exists()
    (venv / STAMP_NAME).unlink(missing_ok=True)
    pip = pip_of(venv) if same_python else create(venv)
    extras = extras | (known if same_python else set())
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    requirements = requirements_of(pyproject, [runtime, *extras])
    keep_one_runtime(pip, venv, RUNTIMES[runtime])
    say(
        f"Installing into {venv.name}: {RUNTIMES[runtime]} and {len(requirements) - 1} more, "
        "in the pinned versions. Once; this takes a minute or two."
    )
    options = ["--no-input", "--disable-pip-version-check"]
    if not sys.stdout.isatty():
        options.append("--quiet")
    run(
        [*pip, "install", *options, "--constraint", ROOT / CONSTRAINTS, *requirements],
        "pip could not install the packages: its message above names the first that failed",
    )
    stamp = {
        "fingerprint": print_of_now,
        "runtime": runtime,
        "extras": sorted(extras),
        "python": sys.version,
    }
    (venv / STAMP_NAME).write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")


def set_up_programs() -> None:
    """What tests use from Debian, where we may. Without it those tests say so."""
    programs = BROWSERS | SERVERS
    # Debian keeps servers where only the administrator's PATH leads.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    missing = [
        package for command, package in programs.items() if not shutil.which(command, path=path)
    ]
    missing += [package for pattern, package in LIBRARIES.items() if not glob.glob(pattern)]
    if not missing:
        return
    may_install = hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get")
    if not may_install:
        say(f"Some tests want {', '.join(missing)}; installing them takes root and apt-get")
        return
    say(f"Installing {', '.join(missing)} with apt-get. Once.")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *missing]
    for command in (["apt-get", "update", "-qq"], install):
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        if done.returncode != 0:
            say(f"{' '.join(command)} failed: the tests will say what is missing")
            return


def set_up_node() -> None:
    """The TypeScript checker for web/, in an ignored folder. Needed by nobody at run time."""
    stamp = NODE_FOLDER / "installed"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == TYPESCRIPT:
        return
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        return
    say(f"Installing {TYPESCRIPT} to check web/. Once.")
    NODE_FOLDER.mkdir(parents=True, exist_ok=True)
    # --ignore-scripts: nothing from the registry runs at install.
    options = ["--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    command = [npm, "install", "--prefix", str(NODE_FOLDER), *options, TYPESCRIPT]
    quiet = subprocess.DEVNULL
    if subprocess.run(command, stdin=quiet, stdout=quiet, check=False).returncode == 0:
        stamp.write_text(TYPESCRIPT, encoding="utf-8")
    else:
        say("npm could not install it: the check of web/ will say so")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where to make it")
    parser.add_argument(
        "--runtime",
        choices=("auto", *RUNTIMES),
        default=os.environ.get("RUNTIME") or "auto",
        help="what runs the model; auto looks at this machine",
    )
    parser.add_argument("--extras", default="", help="extras of pyproject.toml, by comma or space")
    parser.add_argument("--for-tests", action="store_true", help="browsers and TypeScript too")
    arguments = parser.parse_args()
    runtime = arguments.runtime
    if runtime not in ("auto", *RUNTIMES):  # argparse does not check a default
        parser.error(f"RUNTIME={runtime} is not one of auto, {', '.join(RUNTIMES)}")
    if runtime == "auto":
        runtime = choose_runtime(platform.system(), platform.machine(), nvidia_driver_present())
    venv = arguments.venv.absolute()
    venv.parent.mkdir(parents=True, exist_ok=True)
    try:
        with only_one(venv):
            set_up(venv, runtime, set(re.split(r"[\s,]+", arguments.extras)) - {""})
        if arguments.for_tests:
            set_up_programs()
            set_up_node()
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
