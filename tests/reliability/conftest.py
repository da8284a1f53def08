import re
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.analysis.conftest import postgres
from tests.reliability.matrix import Matrix

__all__ = ["matrix", "postgres"]


@pytest.fixture
def matrix(request: pytest.FixtureRequest) -> Matrix:
    """Takes the test's lines of the reliability table."""
    out = request.config.getoption("--matrix-out")
    test = re.sub(r"^.*?tests/", "tests/", request.node.nodeid)
    return Matrix(test, Path(out) if out else None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Function) -> Generator[None]:
    """All lines of a test are written before it is judged by them."""
    found = item.funcargs.get("matrix")
    try:
        yield
    except Exception as error:
        if isinstance(found, Matrix):
            found.fail(error)
        raise
    if isinstance(found, Matrix):
        found.judge()
