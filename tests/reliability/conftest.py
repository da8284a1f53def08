import re
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
