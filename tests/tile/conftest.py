"""The browsers, the clip and the detector of the page's tests, for the gateway's too."""

from tests.page.conftest import (
    browser,
    camera_clip,
    chromium,
    detector_file,
    firefox,
    page_files,
)

__all__ = ["browser", "camera_clip", "chromium", "detector_file", "firefox", "page_files"]
