"""The browsers of the page's tests."""

from tests.page.conftest import chromium, firefox
from tests.tile.conftest import browser

__all__ = ["browser", "chromium", "firefox"]
