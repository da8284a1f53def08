"""The layout of `server/` holds: imports point down, each heavy library has its doors.

The tables below are the architecture as data; `server/README.md` tells it in words. A new
module fails here until it has a place. Imports under `if TYPE_CHECKING` are free: they do not
exist when the program runs.
"""

import ast
import contextlib
import importlib
import importlib.abc
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

SERVER = Path(__file__).resolve().parents[1] / "server"

# Lowest first. A module imports lower layers only, never its neighbours; the modules of one
# package (`rtc`, `detector`) may import each other. `server/__init__.py` lies below everything.
LAYERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("floor", ("clock", "errors", "logs", "memory", "urls")),
    (
        "values",
        (
            "detections",
            "analysis/events",
            "frame",
            "geometry",
            "model_registry",
            "settings",
            "analysis/zones",
        ),
    ),
    (
        "requests",
        (
            "call_options",
            "access/callers",
            "access/limits",
            "offer",
            "edge/query",
            "settings_loading",
            "state_files",
            "access/turn",
        ),
    ),
    (
        "mechanisms",
        (
            "edge/answers",
            "access/auth",
            "backoff",
            "batching",
            "outlets/bulletin",
            "data_channel",
            "edge/form",
            "latest",
            "mailbox",
            "messages",
            "sdp_rules",
            "shot",
            "history/store",
            "telemetry",
            "tracing",
            "access/tls",
            "analysis/tracking",
        ),
    ),
    ("possessions", ("access/holdings", "history/storing")),
    ("pictures", ("overlay", "pixels")),
    ("covering", ("analysis/masks", "history/thumbnail")),
    ("sight", ("analysis/seen",)),
    ("scene", ("analysis/scene",)),
    ("files", ("images",)),
    ("engines", ("detector", "rtc")),
    ("worker", ("inference",)),
    ("films", ("history/mp4",)),
    ("analysis", ("analysis/analyst", "history/journal", "analysis/scenes")),
    ("media", ("feed", "hub", "link_counts", "peer_life", "tracks")),
    ("return", ("returning",)),
    ("desk", ("desk",)),
    ("reel", ("history/reel",)),
    ("news", ("stream_news",)),
    ("stream", ("stream",)),
    ("streams", ("streams",)),
    ("clips", ("history/clips",)),
    ("stills", ("stills",)),
    ("peer", ("pull", "session", "viewer")),
    ("peers", ("registry", "model_change", "detector_watch")),
    ("dialects", ("outlets/home_assistant",)),
    ("outlets", ("outlets/audience", "outlets/mqtt", "outlets/webhooks")),
    ("state", ("load_meter", "status")),
    ("makers", ("peer_factory", "workers")),
    ("records", ("metrics",)),
    ("gate", ("edge/gate",)),
    ("facts", ("edge/api_facts",)),
    ("contract", ("edge/openapi",)),
    (
        "edge",
        (
            "edge/access_api",
            "edge/clips_api",
            "edge/detect_api",
            "edge/event_api",
            "edge/gateway",
            "edge/history_api",
            "edge/picture_socket",
            "edge/signaling",
            "edge/stills_api",
            "edge/streams_api",
            "edge/zones_api",
        ),
    ),
    ("shown", ("edge/pages",)),
    ("wiring", ("app",)),
    ("report", ("doctor", "healthcheck", "access/token_command")),
    ("entry", ("__main__",)),
)
RANKS = {name: rank for rank, (_, names) in enumerate(LAYERS) for name in names}

# Third-party libraries and the modules that may import them.
DOORS: Mapping[str, tuple[str, ...]] = {
    "OpenSSL": ("rtc",),
    "aiohttp": (
        "__main__",
        "edge/access_api",
        "app",
        "edge/clips_api",
        "edge/event_api",
        "edge/gate",
        "edge/gateway",
        "edge/history_api",
        "edge/openapi",
        "edge/pages",
        "edge/signaling",
        "edge/stills_api",
        "edge/streams_api",
        "edge/zones_api",
        "edge/detect_api",
        "edge/picture_socket",
        "outlets/webhooks",
    ),
    "aioice": ("rtc",),
    "aiolimiter": ("access/limits",),
    "aiomqtt": ("outlets/mqtt",),
    "aiortc": ("peer_life", "rtc", "session", "tracks", "viewer"),
    "av": ("images", "history/mp4", "pixels", "pull", "rtc", "tracks"),
    "cryptography": ("rtc", "access/tls"),
    "alembic": ("history/store",),
    "cv2": (
        "detector",
        "images",
        "analysis/masks",
        "overlay",
        "pixels",
        "pull",
        "history/thumbnail",
    ),
    "jwt": ("access/auth",),
    "onnxruntime": ("detector",),
    "opentelemetry": ("tracing",),
    "prometheus_client": ("metrics",),
    "pylibsrtp": ("rtc",),
    "segno": ("edge/pages",),
    "simplejpeg": ("images",),
    "sqlalchemy": ("history/store",),
    "uvloop": ("__main__",),
    "yaml": ("detector", "settings_loading"),
}
# Folders that only group modules: each of these keeps a layer of its own.
GROUPS = ("access", "analysis", "edge", "history", "outlets")
FREE = ("numpy",)
# Modules up to and with the worker load none of these, so their tests need none of them.
HEAVY = ("aiohttp", "aioice", "aiortc", "onnxruntime")


def modules() -> dict[str, Path]:
    """Dotted name of every module under server/, and its file."""
    found = {}
    for path in sorted(SERVER.rglob("*.py")):
        parts = path.relative_to(SERVER.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def place_of(module: str) -> str:
    """`server.rtc.peer` -> `rtc`; of a group, `server.edge.gate` -> `edge/gate`; `server` and the
    groups themselves -> the empty name."""
    first, _, rest = module.partition(".")[2].partition(".")
    if first not in GROUPS:
        return first
    return f"{first}/{rest.partition('.')[0]}" if rest else ""


def is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return name == "TYPE_CHECKING"


def run_time_imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted target of every import that is executed, nested ones too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and is_type_checking(node.test):
            for other in node.orelse:
                yield from run_time_imports(other)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "." * node.level
            else:
                # `from package import module` names a module, `from module import name` not.
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    yield node.lineno, whole if whole in MODULES else str(node.module)
        else:
            yield from run_time_imports(node)


def imports_of(module: str) -> list[tuple[int, str]]:
    return list(run_time_imports(ast.parse(MODULES[module].read_text(encoding="utf-8"))))


def complaints(module: str, imports: Sequence[tuple[int, str]]) -> list[str]:
    """What is wrong with the imports of one module."""
    here, found = place_of(module), []
    for line, target in imports:
        top = target.partition(".")[0]
        where = f"{module}:{line} imports {target}"
        if not top:
            found.append(f"{module}:{line} has a relative import: write the whole name")
        elif top == "server":
            there = place_of(target)
            if there not in ("", here) and RANKS[there] >= RANKS[here]:
                found.append(f"{where}, which is not in a lower layer")
        elif top in DOORS:
            if here not in DOORS[top]:
                found.append(f"{where}, whose doors are {', '.join(DOORS[top])}")
        elif top not in FREE and top not in sys.stdlib_module_names:
            found.append(f"{where}: give this library its doors")
    return found


def test_every_module_has_a_layer() -> None:
    places = {place_of(module) for module in MODULES} - {""}
    assert places - RANKS.keys() == set(), "give new modules a place in LAYERS"
    assert RANKS.keys() - places == set(), "these places of LAYERS are empty"
    assert {door for doors in DOORS.values() for door in doors} <= places


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_and_use_the_doors(module: str) -> None:
    assert complaints(module, imports_of(module)) == []


def test_version_module_imports_nothing() -> None:
    assert imports_of("server") == []


def test_no_import_goes_in_a_circle() -> None:
    graph = {
        module: {target for _, target in imports_of(module) if target in MODULES} - {module}
        for module in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("module", "source", "word"),
    [
        # upward
        ("server.mailbox", "from server.session import Session", "lower layer"),
        # sideways
        ("server.pixels", "import server.overlay", "lower layer"),
        # hidden in a function
        ("server.mailbox", "def f():\n import server.app", "lower layer"),
        # a package as a module's attribute
        ("server.clock", "from server import rtc", "lower layer"),
        # past the door
        ("server.session", "import onnxruntime as ort", "doors"),
        ("server.registry", "from aiortc.mediastreams import MediaStreamTrack", "doors"),
        # a library nobody decided on
        ("server.app", "import requests", "give this library"),
        ("server.rtc.peer", "from . import receiver", "relative"),
    ],
)
def test_wrong_import_is_found(module: str, source: str, word: str) -> None:
    [complaint] = complaints(module, list(run_time_imports(ast.parse(source))))
    assert word in complaint


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("server.frame", "if TYPE_CHECKING:\n from av import VideoFrame"),
        ("server.frame", "import typing\nif typing.TYPE_CHECKING:\n import server.app"),
        ("server.rtc.peer", "from server.rtc.sender import VideoSender"),
        ("server.app", "from server import __version__"),
        ("server.app", ""),
    ],
)
def test_right_import_is_let_through(module: str, source: str) -> None:
    assert complaints(module, list(run_time_imports(ast.parse(source)))) == []


class Refuse(importlib.abc.MetaPathFinder):
    """Fails the import of the named libraries, before anything is loaded."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname.partition(".")[0] in self.names:
            raise AssertionError(f"{fullname} was imported")


@contextlib.contextmanager
def fresh_server(refused: Sequence[str] = ()) -> Iterator[None]:
    """As in a new interpreter for `server` and the refused libraries; the old ones come back."""
    gone = ("server", *refused)
    before = {name: sys.modules[name] for name in sys.modules if name.partition(".")[0] in gone}
    finder = Refuse(refused)
    for name in before:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in gone]:
            del sys.modules[name]
        sys.modules.update(before)


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_alone_and_without_warnings(module: str) -> None:
    with fresh_server(), warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.import_module(module)


def is_light(module: str) -> bool:
    place = place_of(module)
    at_a_door = any(place in DOORS[library] for library in HEAVY)
    return not place or (RANKS.get(place, len(LAYERS)) <= RANKS["inference"] and not at_a_door)


@pytest.mark.parametrize("module", [module for module in MODULES if is_light(module)])
def test_module_up_to_the_worker_loads_no_heavy_library(module: str) -> None:
    with fresh_server(refused=HEAVY):
        importlib.import_module(module)


def test_the_page_on_architecture_lists_these_layers() -> None:
    page = (SERVER / "README.md").read_text()
    rows = re.findall(r"^\| (\w+) \| ((?:`[\w/]+` ?)+)\|", page, re.MULTILINE)
    listed = {layer: set(re.findall(r"`([\w/]+?)/?`", modules)) for layer, modules in rows}
    assert listed == {layer: set(modules) for layer, modules in LAYERS}
