"""What the repository promises about itself: pins, documents, sizes, nothing of one machine."""

import argparse
import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import server
from server.settings_loading import KEYS, load_settings
from tools import document_api, document_settings

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_BYTES = 4_000_000
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PYPROJECT["optional-dependencies"]

# Import name, where it is not the distribution's name.
DISTRIBUTIONS = {
    "OpenSSL": "pyopenssl",
    "cv2": "opencv-python-headless",
    "jwt": "PyJWT",
    "onnxruntime": "onnxruntime-openvino",
    "opentelemetry": "opentelemetry-sdk",
    "yaml": "PyYAML",
}
OURS = ("server", "sightline", "tools", "bench", "tests")


def tracked_files() -> list[Path]:
    """Every file of the commit to come; a checkout may belong to another user."""
    git = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    try:
        listing = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout, or no git")
    paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def texts(*suffixes: str) -> Iterator[tuple[Path, str]]:
    """Tracked text files, all or with the given endings."""
    for path in tracked_files():
        if not suffixes or path.suffix in suffixes:
            try:
                yield path.relative_to(ROOT), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def declared(*extras: str) -> set[str]:
    """Names that pyproject.toml asks for: dependencies and the named extras, followed."""
    names: set[str] = set()
    waiting = [*PYPROJECT["dependencies"], *(r for extra in extras for r in EXTRAS[extra])]
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.name == PYPROJECT["name"]:
            waiting += [r for extra in requirement.extras for r in EXTRAS[extra]]
        else:
            names.add(canonicalize_name(requirement.name))
    return names


# Spelled in parts, so that this file does not match itself.
REGISTRIES = [
    "py" + "pi.org",
    "python" + "hosted.org",
    "registry." + "npmjs",
    "deb." + "debian.org",
    "--" + "index-url",
    "--extra-" + "index-url",
    "--find-" + "links",
]
MACHINE_PATH = re.compile(r"(?<![\w./~-])/(?:" + "|".join(["work", "root", r"home/\w+"]) + r")/\w")


def test_no_file_names_a_package_registry() -> None:
    found = [(str(path), host) for path, text in texts() for host in REGISTRIES if host in text]
    assert found == []


def test_no_file_names_a_path_of_one_machine() -> None:
    found = [
        f"{path}: {match[0]}" for path, text in texts() for match in MACHINE_PATH.finditer(text)
    ]
    assert found == []


def test_every_file_is_small() -> None:
    large = [str(path) for path in tracked_files() if path.stat().st_size > MAX_FILE_BYTES]
    assert large == []


def test_constraints_are_exact_versions_in_order() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line and not line.startswith("#")]
    wrong = [row for row in rows if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", row)]
    assert wrong == []
    names = [row.split("==")[0] for row in rows]
    assert names == sorted(set(names))


def test_every_dependency_is_pinned() -> None:
    assert declared(*EXTRAS) - pins().keys() == set()


def test_pyproject_itself_names_no_versions() -> None:
    lists = [PYPROJECT["dependencies"], *EXTRAS.values()]
    versioned = [r for requirements in lists for r in requirements if Requirement(r).specifier]
    assert versioned == [], "versions stand in constraints.txt"


def test_everything_installed_for_us_is_the_pinned_version() -> None:
    """Follows what is installed here from our dependencies down, so that none is forgotten."""
    pinned, wrong = pins(), []
    waiting = list(declared(*EXTRAS))
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another extra or platform
        if distribution.version.partition("+")[0] != pinned.get(name):
            wrong.append(f"{name} {distribution.version}, pinned {pinned.get(name)}")
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))
    assert wrong == []


def imported_by(folder: str) -> dict[str, str]:
    """Top-level third-party names that the folder's sources import, and one file that does."""
    found = {}
    for path in (ROOT / folder).rglob("*.py"):
        if path.is_relative_to(ROOT / "bench" / "peers"):
            continue  # environments that the bench made, of no commit
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            for name in (name.partition(".")[0] for name in names):
                if name not in sys.stdlib_module_names and name not in OURS:
                    found[name] = str(path.relative_to(ROOT))
    return found


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("server", ["openvino", "mqtt", "otel", "store"]),
        ("sightline", []),
        ("tools", ["openvino", "evaluate", "train"]),
        ("bench", ["openvino", "dev"]),
        ("tests", ["openvino", "dev", "train", "fuzz"]),
    ],
)
def test_everything_imported_is_declared(folder: str, extras: list[str]) -> None:
    allowed = declared(*extras)
    if folder == "bench":  # servers it compares us with, each in an environment of its own
        for path in (ROOT / "bench" / "peer_servers").glob("*.txt"):
            allowed |= set(re.findall(r"^([a-z0-9-]+)==", path.read_text(), re.MULTILINE))
    missing = {
        name: path
        for name, path in imported_by(folder).items()
        if canonicalize_name(DISTRIBUTIONS.get(name, name)) not in allowed
    }
    assert missing == {}


def test_newest_change_is_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = re.search(r"^## (\d+\.\d+\.\d+)\b", changelog, re.MULTILINE)
    assert heading is not None
    assert heading[1] == server.__version__


def test_image_is_built_from_the_pins() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^COPY .*\bconstraints\.txt\b", dockerfile, re.MULTILINE)
    assert "tools/setup_environment.py" in dockerfile
    unpinned = re.findall(r"^.*\bpip3? install\b(?!.*constraint).*$", dockerfile, re.MULTILINE)
    assert unpinned == []


def test_everything_the_image_copies_is_there() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    tracked = {path.relative_to(ROOT).as_posix() for path in tracked_files()}
    missing = []
    for sources in re.findall(r"^COPY (?!--)(.+) \S+$", dockerfile, re.MULTILINE):
        for source in sources.split():
            in_tree = any(path == source or path.startswith(f"{source}/") for path in tracked)
            if not in_tree or f"!{source.partition('/')[0]}" not in ignore:
                missing.append(source)
    assert missing == []


def test_page_of_settings_is_the_table_of_settings() -> None:
    written = document_settings.DOCUMENT.read_text(encoding="utf-8")
    assert written == document_settings.document(), "run `make document`"


def test_page_of_routes_is_what_the_router_has() -> None:
    written = document_api.DOCUMENT.read_text(encoding="utf-8")
    assert written == document_api.document(written), "run `make document`"


def pages() -> list[tuple[str, str]]:
    """The pages of docs/, by file name."""
    return [(path.name, text) for path, text in texts(".md") if path.parent == Path("docs")]


def test_every_page_begins_with_a_sentence_that_says_what_it_is_for() -> None:
    wrong = []
    for name, text in pages():
        heading, _, rest = re.sub(r"<!--.*?-->\n", "", text, flags=re.DOTALL).partition("\n\n")
        if not heading.startswith("# ") or not re.match(r"`?/?[A-Za-z]", rest.lstrip()):
            wrong.append(name)
    assert wrong == []


def test_every_page_is_in_the_list_of_pages() -> None:
    listed = set(
        re.findall(r"\]\(([a-z_]+\.md)\)", (ROOT / "docs" / "README.md").read_text("utf-8"))
    )
    assert listed == {name for name, _ in pages()} - {"README.md"}


def test_every_setting_the_documents_use_exists() -> None:
    flags = {row.flag for row in KEYS} | {"--config", "--help", "--json", "--version"}
    of_token = {"--scope", "--stream", "--ttl", "--key", "--name"}
    variables = {row.variable for row in KEYS} | {"SIGHTLINE_CONFIG"}
    missing = []
    for path, text in texts(".md"):
        code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL))
        commands = re.findall(r"-m server\b(?!\.)(?:[^`\n|]|\\\n)*", code)
        commands += re.findall(r'make serve ARGS="([^"]*)"', code)
        for command in commands:
            known = flags | (of_token if "token" in command.split() else set())
            used = re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", command.partition(" #")[0])
            missing += [f"{path}: {flag}" for flag in used if flag not in known]
        used = re.findall(r"\bSIGHTLINE_[A-Z_]+\b", code)
        missing += [f"{path}: {name}" for name in used if name not in variables]
    for file in ("compose.yaml", "Dockerfile"):
        used = re.findall(r"\bSIGHTLINE_[A-Z_]+\b", (ROOT / file).read_text(encoding="utf-8"))
        missing += [f"{file}: {name}" for name in used if name not in variables]
    assert missing == []


def test_every_settings_file_in_the_documents_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "sightline.yaml"
    seen = 0
    for _, text in pages():
        for block in re.findall(r"```yaml\n(# sightline\.yaml\n.*?)```", text, flags=re.DOTALL):
            file.write_text(block)
            load_settings(argparse.Namespace(config=str(file)), {})
            seen += 1
    assert seen >= 3


def anchors(markdown: str) -> set[str]:
    """Heading anchors as code hosts make them."""
    headings = re.findall(r"^#+ +(.+?) *$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def without_code(markdown: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", markdown, flags=re.DOTALL)


def test_every_link_between_documents_resolves() -> None:
    broken = []
    for path, text in texts(".md"):
        for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            file = (ROOT / path.parent / name).resolve() if name else ROOT / path
            if not file.exists():
                broken.append(f"{path}: {target}")
            elif anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
                broken.append(f"{path}: {target} (no such heading)")
    assert broken == []


def test_every_command_in_the_documents_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    missing = []
    for path, text in texts(".md"):
        code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL))
        named = re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)\b", code)
        missing += [f"{path}: make {target}" for target in named if target not in targets]
        for module in re.findall(r"python3? -m ((?:server|tools|bench)[\w.]*)", code):
            stem = ROOT.joinpath(*module.rstrip(".").split("."))
            if not (stem.with_suffix(".py").exists() or (stem / "__main__.py").exists()):
                missing.append(f"{path}: python -m {module}")
    assert missing == []


def test_the_example_of_embedding_says_what_is_wrong_with_its_key_file(tmp_path: Path) -> None:
    example = ROOT / "docs" / "embed_example" / "app.py"
    command = [sys.executable, str(example), "--stream", "porch", "--key-file", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert "--key-file" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
