"""The browsers and the detector of the page's tests. Each story runs in one browser always, and
in the other with the long tests."""

import pytest

from bench.browsers.driver import Browser
from tests.page.conftest import camera_clip, chromium, detector_file, firefox, page_files

__all__ = ["camera_clip", "chromium", "detector_file", "firefox", "page_files"]


@pytest.fixture(params=["chromium", pytest.param("firefox", marks=pytest.mark.long)])
def browser(request: pytest.FixtureRequest) -> Browser:
    """Chromium; Firefox in long runs."""
    found: Browser = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["firefox", pytest.param("chromium", marks=pytest.mark.long)])
def other_browser(request: pytest.FixtureRequest) -> Browser:
    """Firefox; Chromium in long runs."""
    found: Browser = request.getfixturevalue(request.param)
    return found
