"""The threads beside the loop: one runs the model, some draw and encode, one loads other models.
And what times them."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

from server.detector.load import load_detector
from server.detector.trial import try_apart
from server.detector_watch import DetectorWatch
from server.frame import FrameSink
from server.inference import Detector, InferenceWorker
from server.model_change import ModelChanger, model_folders
from server.settings import DetectorSettings, Settings
from server.telemetry import FrameTelemetry, LoopLagSampler
from server.tracing import make_tracer

logger = logging.getLogger(__name__)

THREADS_START_S = 10.0

# What the page asks a camera for unless told otherwise; other shapes are made when they come.
CAMERA_SIZES = ((640, 480),)


def make_detector(settings: Settings) -> Detector | None:
    """The detector of the settings, loaded and warm; None when no model is named."""
    return load_for_cameras(settings.detector) if settings.detector.model else None


def load_for_cameras(settings: DetectorSettings) -> Detector:
    """A detector that also prepares for the sizes cameras have; a stranger's file is tried first,
    where it can end no process but its own."""
    try_apart(settings)
    return load_detector(settings, CAMERA_SIZES)


class Workers:
    """Made on the loop; they work as long as `life` is in its middle. `load` makes detectors."""

    def __init__(
        self,
        settings: Settings,
        detector: Detector | None,
        load: Callable[[DetectorSettings], Detector],
    ) -> None:
        self._settings = settings
        self.inference = InferenceWorker(detector, settings.scheduling)
        self.encoders = ThreadPoolExecutor(settings.rtc.encode_threads, thread_name_prefix="encode")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        folders = model_folders(settings.detector)
        self.changer = ModelChanger(settings.detector, load, self.inference, self._loader, folders)
        self._watch = DetectorWatch(
            self.inference, self.changer.load_current, settings.detector.replace_after_s
        )
        self.frames = FrameTelemetry()
        self.loop_lag = LoopLagSampler()
        share, endpoint = settings.server.trace_sample, settings.server.trace_endpoint
        self._tracer = make_tracer(self.frames, share, endpoint) if share else None

    @property
    def frame_sink(self) -> FrameSink:
        """Takes the instants of every frame that left."""
        return self._tracer or self.frames

    async def life(self, _: object) -> AsyncIterator[None]:
        """From the server's start to its end, which comes in the middle."""
        self.inference.start()
        _start_all(self.encoders, self._settings.rtc.encode_threads)
        tasks = [asyncio.create_task(self.loop_lag.run(), name="loop lag")]
        if self._settings.detector.replace_after_s:
            tasks.append(asyncio.create_task(self._watch.run(), name="detector watch"))
        yield
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        timeout_s = self._settings.session.close_timeout_s
        if not await asyncio.to_thread(self.inference.stop, timeout_s):
            logger.warning("The detector still hangs; leaving its thread behind")
        self._loader.shutdown(wait=False, cancel_futures=True)
        self.encoders.shutdown(wait=False, cancel_futures=True)
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)


def _start_all(executor: ThreadPoolExecutor, threads: int) -> None:
    """All threads now: left to itself it starts one when work comes while the others are busy,
    which may be hours later, and then for the sake of a picture that waits."""
    together = threading.Barrier(threads)
    for _ in range(threads):
        executor.submit(together.wait, THREADS_START_S)
