"""A database of each kind, and the browsers of the page's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.analysis.databases import Postgres, running_postgres
from tests.page.conftest import browser, chromium, firefox

__all__ = ["browser", "chromium", "database_url", "firefox", "postgres"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state/events.db"
    server: Postgres = request.getfixturevalue("postgres")
    return await server.database()
