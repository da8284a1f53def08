"""Two pictures at a time, each with half of the threads, where many wait for their answers.

Threads that share one picture wait for each other after each of some 300 layers, and hand half of
what they wrote to another core; one thread a picture does neither. A single picture is answered
later that way, so this is for those that would otherwise wait in line.
"""

import logging
import queue
import threading
from collections.abc import Callable

from server.clock import now_ns
from server.detector.engine import Engine, one_line
from server.detector.spec import Tensors

logger = logging.getLogger(__name__)

LANES = 2

OnDone = Callable[[], None]


class Lane:
    """An engine and a thread that runs it. `start`, then `wait`, in turns, by its owner."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._jobs: queue.SimpleQueue[OnDone | None] = queue.SimpleQueue()
        self._done = threading.Event()
        self._outputs: Tensors | Exception = {}
        self._done_at_ns = 0
        # A daemon because native code that hangs cannot be ended from outside.
        threading.Thread(target=self._run, name="inference lane", daemon=True).start()

    def start(self, on_done: OnDone) -> None:
        """Run on what the engine's input holds; `on_done` is called on the lane's thread."""
        self._done.clear()
        self._jobs.put(on_done)

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def wait(self) -> tuple[Tensors, int]:
        """What came out and when; raises what the engine raised."""
        self._done.wait()
        if isinstance(self._outputs, Exception):
            raise self._outputs
        return self._outputs, self._done_at_ns

    def close(self) -> None:
        """The thread ends, and lets go of the engine, when it has nothing more to do."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (on_done := self._jobs.get()) is not None:
            try:
                self._outputs = self.engine.run(1)
            except Exception as error:
                # Broad on purpose: it is raised where the picture's answer is fetched.
                self._outputs = error
            self._done_at_ns = now_ns()
            self._done.set()
            on_done()


class Lanes:
    """The lanes of one engine, made in the background when first asked for. Owned by the thread
    that owns the engine."""

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        """`make_engine` is called on a thread of its own; ModelError where there can be none."""
        self._make_engine = make_engine
        self._builder: threading.Thread | None = None
        self._lock = threading.Lock()
        self._lanes: list[Lane] = []
        self._closed = False

    def free(self) -> Lane | None:
        """A lane with nothing to do; whoever takes it gives it back. None where there is none
        (yet)."""
        if self._builder is None:
            self._builder = threading.Thread(target=self._build, name="lanes", daemon=True)
            self._builder.start()
        with self._lock:
            return self._lanes.pop() if self._lanes else None

    def give_back(self, lane: Lane) -> None:
        with self._lock:
            if not self._closed:
                self._lanes.append(lane)
                return
        lane.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            lanes, self._lanes = self._lanes, []
        for lane in lanes:
            lane.close()

    def _build(self) -> None:
        try:
            engines = [self._make_engine() for _ in range(LANES)]
            for engine in engines:
                engine.warm_up()
        except Exception as error:
            # Broad on purpose: whatever keeps them from being made, one by one works.
            logger.info("Pictures that wait are looked at one by one: %s", one_line(error))
            return
        for engine in engines:
            self.give_back(Lane(engine))
