"""A detector that hangs or keeps failing gives way to a fresh one, a few times."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from server.detections import Detections
from server.detector_watch import ABANDONED_AT_MOST, DetectorWatch
from server.frame import Frame, Submission
from server.inference import InferenceWorker
from tests.fakes import FakeDetector, decoded_frame
from tests.serving import until
from tests.test_inference import Inbox

pytestmark = pytest.mark.unit

DEADLINE_S = 20.0


@contextlib.asynccontextmanager
async def watching(
    worker: InferenceWorker, load: Callable[[], FakeDetector], replace_after_s: float = 0.6
) -> AsyncIterator[DetectorWatch]:
    """The worker and its watch run; both have ended afterwards."""
    watch = DetectorWatch(worker, load, replace_after_s)
    worker.start()
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert worker.stop(DEADLINE_S)


def hanging() -> FakeDetector:
    detector = FakeDetector(name="hangs")
    detector.go_on.clear()
    return detector


async def accepted(worker: InferenceWorker, key: str = "a") -> None:
    """Submit until it is not refused."""
    await until(lambda: worker.submit(key, decoded_frame(9)) is not Submission.REFUSED)


async def test_another_takes_the_place_of_one_that_hangs() -> None:
    old, fresh, inbox = hanging(), FakeDetector(name="fresh"), Inbox()
    worker = InferenceWorker(old)
    worker.attach("a", inbox)
    async with watching(worker, lambda: fresh):
        worker.submit("a", decoded_frame(0))
        await until(lambda: worker.names == ("fresh",))
        await accepted(worker)
        frame, detections = await asyncio.to_thread(inbox.wait)
        assert (frame.frame_seq, detections is None) == (9, False)
        statistics = worker.statistics()
        assert (statistics.taken_over, statistics.abandoned, statistics.swaps) == (1, 1, 0)
        assert statistics.state == "running"
        # It comes back after all: its result is dropped, and it is let go.
        old.go_on.set()
        await until(lambda: old.closed)
        assert worker.statistics().abandoned == 0
        assert inbox.items.empty()
        assert not fresh.closed
    assert fresh.closed


async def test_another_takes_the_place_of_one_that_keeps_failing() -> None:
    old, fresh, inbox = FakeDetector(), FakeDetector(name="fresh"), Inbox()
    old.failure = MemoryError("out of memory")
    worker = InferenceWorker(old)
    worker.attach("a", inbox)
    async with watching(worker, lambda: fresh):
        while worker.names != ("fresh",):
            worker.submit("a", decoded_frame(0))
            await asyncio.sleep(0.01)
        assert old.closed
        assert worker.statistics().abandoned == 0
        await accepted(worker)
        assert worker.statistics().state == "running"


async def test_one_that_comes_back_meanwhile_stays() -> None:
    old, spare = hanging(), FakeDetector(name="spare")
    worker = InferenceWorker(old)
    worker.attach("a", Inbox())

    def load() -> FakeDetector:
        old.go_on.set()
        while worker.trouble_since_ns is not None:
            pass
        return spare

    async with watching(worker, load):
        worker.submit("a", decoded_frame(0))
        await until(lambda: spare.closed)
        assert worker.names == ("hangs",)
        assert worker.statistics().taken_over == 0


async def test_threads_left_behind_are_bounded() -> None:
    made: list[FakeDetector] = []

    def load() -> FakeDetector:
        made.append(hanging())
        return made[-1]

    worker = InferenceWorker(load())
    worker.attach("a", Inbox())
    async with watching(worker, load, 0.05):
        async with asyncio.timeout(DEADLINE_S):
            while worker.statistics().abandoned < ABANDONED_AT_MOST:
                worker.submit("a", decoded_frame(0))
                await asyncio.sleep(0.02)
        worker.submit("a", decoded_frame(0))
        await until(lambda: made[-1].entered.is_set())
        await until(lambda: worker.statistics().state == "stalled")
        await asyncio.sleep(1.0)  # several times the patience by then
        assert len(made) == ABANDONED_AT_MOST + 1
        for detector in made:
            detector.go_on.set()


@pytest.mark.parametrize("failure", [RuntimeError("no memory on the device"), OSError("gone")])
async def test_a_load_that_fails_leaves_everything_as_it_is(failure: Exception) -> None:
    old, tried = hanging(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def load() -> FakeDetector:
        loop.call_soon_threadsafe(tried.set)
        raise failure

    worker = InferenceWorker(old)
    worker.attach("a", Inbox())
    async with watching(worker, load):
        worker.submit("a", decoded_frame(0))
        async with asyncio.timeout(DEADLINE_S):
            await tried.wait()
        assert worker.names == ("hangs",)
        assert worker.statistics().state == "stalled"
        old.go_on.set()


async def test_what_a_taker_raises_does_not_end_the_thread() -> None:
    inbox = Inbox()

    def broken(frame: Frame, detections: Detections | None) -> None:
        raise RuntimeError("a taker's own fault")

    worker = InferenceWorker(FakeDetector())
    worker.attach("broken", broken)
    worker.attach("a", inbox)
    worker.start()
    worker.submit("broken", decoded_frame(0))
    worker.submit("a", decoded_frame(1))
    frame, _ = await asyncio.to_thread(inbox.wait)
    assert frame.frame_seq == 1
    assert worker.statistics().publish_failed == 1
    assert worker.stop(DEADLINE_S)
