"""A fresh detector in the place of one that hangs or keeps failing.

What hangs in native code cannot be ended from outside: its thread is left behind and another
one works on with a detector loaded anew. That costs the memory of a model each time, so it
happens a few times only; after that pictures pass without boxes until somebody looks.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from server.clock import NS_PER_S, now_ns
from server.inference import Detector, InferenceStatistics

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 0.1
ABANDONED_AT_MOST = 3
# Each replacement doubles how long the next one waits; one that has worked for so long is
# trusted as the first was.
TRUSTED_AFTER_S = 600.0
LOAD_TIMEOUT_S = 60.0


class Replaceable(Protocol):
    """The inference worker, as far as watching needs it."""

    @property
    def trouble_since_ns(self) -> int | None: ...

    def statistics(self) -> InferenceStatistics: ...

    def take_over(self, detector: Detector) -> bool: ...

    def replace(self, detector: Detector) -> Future[None]: ...


class DetectorWatch:
    """`run` is a task of the application's; cancelling it ends it. On the loop.

    `load` makes the detector that shall be running; it is called on a thread of its own.
    """

    def __init__(
        self, worker: Replaceable, load: Callable[[], Detector], replace_after_s: float
    ) -> None:
        self._worker = worker
        self._load = load
        self._first_patience_s = self._patience_s = replace_after_s
        self._replaced_at_ns = 0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            since_ns = self._worker.trouble_since_ns
            at_ns = now_ns()
            if since_ns is None:
                if at_ns - self._replaced_at_ns > TRUSTED_AFTER_S * NS_PER_S:
                    self._patience_s = self._first_patience_s
                continue
            # Trouble that outlasts a replacement begins anew with it.
            troubled_s = (at_ns - max(since_ns, self._replaced_at_ns)) / NS_PER_S
            if troubled_s < self._patience_s:
                continue
            if self._worker.statistics().abandoned >= ABANDONED_AT_MOST:
                continue
            await self._replace(troubled_s)

    async def _replace(self, troubled_s: float) -> None:
        logger.error("The detector gives nothing for %.1f s; loading it anew", troubled_s)
        self._patience_s *= 2
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                detector = await self._loaded()
        except TimeoutError:
            logger.error("Loading the detector anew takes over %g s: given up", LOAD_TIMEOUT_S)
            return
        except Exception:
            # Whatever a model, a provider or a driver raises: video goes on without boxes.
            logger.exception("Loading the detector anew failed")
            return
        finally:
            self._replaced_at_ns = now_ns()
        if self._worker.take_over(detector):
            logger.warning("A fresh detector took over; the thread of the old one is left behind")
        elif self._worker.trouble_since_ns is not None:
            self._worker.replace(detector)
            logger.warning("A fresh detector takes over from the failing one")
        else:
            detector.close()
            logger.info("The detector came back by itself")

    async def _loaded(self) -> Detector:
        """Not on an executor: the process would wait at its end for a load that hangs."""
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[Detector] = loop.create_future()

        def load() -> None:
            outcome: Detector | Exception
            try:
                outcome = self._load()
            except Exception as error:
                # Told to whoever waits for it: a thread's own exception would end here.
                outcome = error
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(tell, outcome)

        def tell(outcome: Detector | Exception) -> None:
            if loaded.done():
                if not isinstance(outcome, Exception):
                    outcome.close()
            elif isinstance(outcome, Exception):
                loaded.set_exception(outcome)
            else:
                loaded.set_result(outcome)

        threading.Thread(target=load, name="reload", daemon=True).start()
        return await loaded
