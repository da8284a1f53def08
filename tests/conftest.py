"""Rules for every test: a category, and browsers that are really there.

Each test module names its category at the top, `pytestmark = pytest.mark.unit` (or `service`,
`loopback`, `browser`); collection fails without. Browser tests skip with the reason where a browser
is missing at a desk, and fail under CI=true, where `make test` had to install it.
"""

import os
import secrets
import shutil

import hypothesis
import pytest

CATEGORIES = ("unit", "service", "loopback", "browser")
# What each browser is called on the PATH, best first; `make test` installs Debian's.
BROWSER_COMMANDS = {
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "firefox": ("firefox-esr", "firefox"),
}

# No deadline: the machine that runs the tests is shared, and tests assert no times.
hypothesis.settings.register_profile(
    "sightline", deadline=None, derandomize=os.environ.get("CI") == "true"
)
hypothesis.settings.load_profile("sightline")


def find_browser(name: str) -> str | None:
    """The path of a browser on this machine."""
    found = (shutil.which(command) for command in BROWSER_COMMANDS[name])
    return next((path for path in found if path), None)


def browser_path(name: str) -> str:
    """The path of a browser; without it the test fails under CI and skips elsewhere."""
    path = find_browser(name)
    if path is not None:
        return path
    reason = f"{name} is not installed (apt-get install {BROWSER_COMMANDS[name][0]})"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def own_state_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a server keeps lies in a folder of the test's own: not among the user's events and
    secrets, where another server may be at work."""
    base = tmp_path_factory.getbasetemp() / "state" / secrets.token_hex(8)
    monkeypatch.setenv("XDG_STATE_HOME", str(base))


@pytest.fixture(scope="session")
def chromium_path() -> str:
    return browser_path("chromium")


@pytest.fixture(scope="session")
def firefox_path() -> str:
    return browser_path("firefox")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--matrix-out",
        metavar="FOLDER",
        help="leave the lines of the reliability table there (docs/reliability.md)",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        named = [name for name in CATEGORIES if item.get_closest_marker(name)]
        if len(named) != 1:
            raise pytest.UsageError(
                f"{item.nodeid} has {' and '.join(named) or 'no category'}: set one "
                f"`pytestmark = pytest.mark.<{'|'.join(CATEGORIES)}>` at the top of its module"
            )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`pytest.mark.browser` wants every browser, `pytest.mark.browser("firefox")` the named."""
    for mark in item.iter_markers("browser"):
        for name in mark.args or BROWSER_COMMANDS:
            browser_path(name)
