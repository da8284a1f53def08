"""Browsers, clip and detector, made once for all tests of the page."""

from pathlib import Path

import pytest

from bench.browsers.driver import Browser
from tests.page.making import write_camera_clip, write_detector, write_video_file


@pytest.fixture(scope="session")
def chromium(chromium_path: str) -> Browser:
    return Browser("chromium", chromium_path)


@pytest.fixture(scope="session")
def firefox(firefox_path: str) -> Browser:
    return Browser("firefox", firefox_path)


@pytest.fixture(params=["chromium", "firefox"])
def browser(request: pytest.FixtureRequest) -> Browser:
    """Each of the two browsers in turn."""
    found: Browser = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def page_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="session")
def detector_file(page_files: Path) -> Path:
    """A model that finds a person and a cat at fixed places."""
    return write_detector(page_files / "always.onnx")


@pytest.fixture(scope="session")
def camera_clip(page_files: Path) -> Path:
    return write_camera_clip(page_files / "camera.mjpeg")


@pytest.fixture(scope="session")
def video_file(page_files: Path) -> Path:
    return write_video_file(page_files / "clip.webm")
