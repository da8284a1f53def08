"""A server whose load is not looked at: the machine that runs the tests is busy."""

from contextlib import AbstractAsyncContextManager
from typing import Any

from server.inference import Detector
from tests.serving import Serving, changed, serving

OPEN_LIMITS = {"admit_loop_lag_ms": 0, "admit_wait_ms": 0, "calls_per_s": 0}


def open_server(
    detector: Detector | None, **groups: dict[str, Any]
) -> AbstractAsyncContextManager[Serving]:
    limits = OPEN_LIMITS | groups.pop("limits", {})
    return serving(detector, changed(limits=limits, **groups))
