"""The decoder thread: what it survives, what it drops, how it ends."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from server.rtc.assembly import EncodedFrame
from server.rtc.decoding import DecodedFrame, DecoderWorker
from tests.rtc.pictures import encode, level_of

pytestmark = pytest.mark.unit

DEADLINE_S = 10.0
NAME = "video-decoder-test"

both_codecs = pytest.mark.parametrize("codec", ["VP8", "H264"])


class Output:
    """Collects what the worker says. A gate may hold its thread inside the sink."""

    def __init__(self) -> None:
        self.decoded: asyncio.Queue[DecodedFrame] = asyncio.Queue()
        self.lost: asyncio.Queue[int] = asyncio.Queue()
        self.gate = threading.Event()
        self.gate.set()
        self.inside = asyncio.Event()
        self.error: Exception | None = None
        self.loop = asyncio.get_running_loop()

    def sink(self, decoded: DecodedFrame) -> None:
        self.loop.call_soon_threadsafe(self.inside.set)
        assert self.gate.wait(DEADLINE_S)
        self.loop.call_soon_threadsafe(self.decoded.put_nowait, decoded)
        if self.error is not None:
            raise self.error

    async def levels(self, count: int) -> list[int]:
        async with asyncio.timeout(DEADLINE_S):
            return [level_of((await self.decoded.get()).video_frame) for _ in range(count)]


@contextlib.asynccontextmanager
async def working(
    output: Output, queue_frames: int | None = 64, max_picture_pixels: int = 10**6
) -> AsyncIterator[DecoderWorker]:
    worker = DecoderWorker(
        name=NAME,
        sink=output.sink,
        reference_lost=output.lost.put_nowait,
        queue_frames=queue_frames,
        max_picture_pixels=max_picture_pixels,
    )
    try:
        yield worker
    finally:
        output.gate.set()
        worker.request_stop()
        assert await worker.wait_ended(DEADLINE_S)
        worker._thread.join(DEADLINE_S)
        assert not worker.is_alive
        assert NAME not in [thread.name for thread in threading.enumerate()]


def submit(worker: DecoderWorker, frames: list[EncodedFrame]) -> list[bool]:
    return [worker.submit_nowait(frame, 3000 * index) for index, frame in enumerate(frames)]


@both_codecs
async def test_each_frame_gives_its_picture_at_once(codec: str) -> None:
    output = Output()
    frames = encode(codec, [40, 80, 120, 160])
    async with working(output) as worker:
        for index, frame in enumerate(frames):
            # The next is not submitted before this one is out: no delay inside the decoder.
            assert worker.submit_nowait(frame, 3000 * index)
            async with asyncio.timeout(DEADLINE_S):
                decoded = await output.decoded.get()
            assert level_of(decoded.video_frame) == pytest.approx(40 * (index + 1), abs=3)
            assert decoded.video_frame.pts == 3000 * index
            assert decoded.rtp_timestamp == frame.rtp_timestamp
            assert decoded.received_at_ns == frame.received_at_ns
            assert decoded.decoded_at_ns > 0
        assert worker.counters.frames_decoded == 4
        assert worker.counters.decode_errors == 0


@both_codecs
async def test_an_empty_frame_is_not_the_end_of_the_stream(codec: str) -> None:
    output = Output()
    frames = encode(codec, [40, 80, 120])
    frames.insert(1, replace(frames[0], data=b""))
    async with working(output) as worker:
        submit(worker, frames)
        assert await output.levels(3) == pytest.approx([40, 80, 120], abs=3)
        assert worker.counters.decode_errors == 0


@both_codecs
@pytest.mark.parametrize("garbage", [b"\x00", b"\xff" * 200, bytes(range(256)) * 4])
async def test_garbage_costs_its_frame_and_is_reported(codec: str, garbage: bytes) -> None:
    output = Output()
    first, second = encode(codec, [40, 80]), encode(codec, [120, 160])
    bad = replace(first[1], data=garbage, rtp_timestamp=4711)
    async with working(output) as worker:
        submit(worker, [first[0], bad, *second])
        # Some decoders make a picture of it, corrupt or not; what counts is what comes after.
        levels = await output.levels(1)
        while levels[-1] != pytest.approx(160, abs=3):
            levels += await output.levels(1)
        assert levels[0] == pytest.approx(40, abs=3)
        assert levels[-2] == pytest.approx(120, abs=3)
        refused = worker.counters.decode_errors + worker.counters.dropped_corrupt
        for _ in range(refused):
            async with asyncio.timeout(DEADLINE_S):
                assert await output.lost.get() == 4711
        assert refused + worker.counters.frames_decoded in (3, 4)


async def test_an_unknown_codec_costs_its_frames() -> None:
    output = Output()
    frames = encode("VP8", [40])
    async with working(output) as worker:
        submit(worker, [replace(frames[0], codec_name="AV1"), frames[0]])
        assert await output.levels(1) == pytest.approx([40], abs=3)
        assert worker.counters.decode_errors == 1


async def test_the_codec_may_change_at_a_key_frame() -> None:
    output = Output()
    async with working(output) as worker:
        submit(worker, [*encode("VP8", [40, 80]), *encode("H264", [120, 160])])
        assert await output.levels(4) == pytest.approx([40, 80, 120, 160], abs=3)


@both_codecs
async def test_the_size_may_change_at_a_key_frame_and_be_odd(codec: str) -> None:
    output = Output()
    odd = (66, 50) if codec == "H264" else (65, 49)
    async with working(output) as worker:
        submit(worker, [*encode(codec, [40]), *encode(codec, [80], odd), *encode(codec, [120])])
        async with asyncio.timeout(DEADLINE_S):
            pictures = [(await output.decoded.get()).video_frame for _ in range(3)]
    assert [(picture.width, picture.height) for picture in pictures] == [(64, 48), odd, (64, 48)]


@both_codecs
async def test_too_large_pictures_are_refused(codec: str) -> None:
    output = Output()
    async with working(output, max_picture_pixels=64 * 48) as worker:
        submit(worker, [*encode(codec, [40], (128, 96)), *encode(codec, [80])])
        assert await output.levels(1) == pytest.approx([80], abs=3)
        assert worker.counters.decode_errors == 1


async def test_a_sink_that_raises_costs_nothing_but_a_count() -> None:
    output = Output()
    output.error = RuntimeError("sink")
    async with working(output) as worker:
        submit(worker, encode("VP8", [40, 80, 120]))
        assert await output.levels(3) == pytest.approx([40, 80, 120], abs=3)
    assert worker.counters.sink_errors == 3
    assert "sink" in worker.counters.last_error


async def held_inside_sink(output: Output, worker: DecoderWorker, frame: EncodedFrame) -> None:
    """Return when the thread stands in the sink with the first frame."""
    output.gate.clear()
    worker.submit_nowait(frame, 0)
    async with asyncio.timeout(DEADLINE_S):
        await output.inside.wait()


async def test_a_full_queue_without_key_frame_is_emptied_and_says_so() -> None:
    output = Output()
    first, *rest = encode("VP8", [40, 60, 80, 100, 120])
    async with working(output, queue_frames=3) as worker:
        await held_inside_sink(output, worker, first)
        assert submit(worker, rest) == [True, True, True, False]
        assert worker.frames_waiting == 0
        assert worker.counters.dropped_full == 4
        output.gate.set()
        submit(worker, encode("VP8", [200]))
        assert await output.levels(2) == pytest.approx([40, 200], abs=3)


async def test_a_full_queue_drops_to_the_key_frame_it_holds() -> None:
    output = Output()
    first, *rest = encode("VP8", [40, 60, 80, 100, 120], gop=3)
    assert [frame.is_key for frame in rest] == [False, False, True, False]
    async with working(output, queue_frames=3) as worker:
        await held_inside_sink(output, worker, first)
        assert submit(worker, rest) == [True, True, True, True]
        assert worker.frames_waiting == 2
        assert worker.counters.dropped_full == 2
        output.gate.set()
        assert await output.levels(3) == pytest.approx([40, 100, 120], abs=3)


async def test_stop_drops_the_backlog_and_never_blocks_the_loop() -> None:
    output = Output()
    first, *rest = encode("VP8", [40, 60, 80, 100])
    async with working(output) as worker:
        await held_inside_sink(output, worker, first)
        submit(worker, rest)
        worker.request_stop()
        worker.request_stop()
        assert worker.frames_waiting == 0
        # The thread stands in the sink; the loop does not wait for it.
        assert not await worker.wait_ended(0.0)
        assert worker.submit_nowait(rest[0], 0)
        output.gate.set()
        assert await worker.wait_ended(DEADLINE_S)
    assert worker.counters.frames_decoded == 1


@pytest.mark.parametrize("when", ["before any frame", "after frames"])
async def test_the_thread_ends_by_itself(when: str) -> None:
    output = Output()
    async with working(output) as worker:
        if when == "after frames":
            submit(worker, encode("H264", [40]))
            await output.levels(1)


async def test_a_loop_that_is_gone_does_not_hurt_the_thread() -> None:
    ended = threading.Event()

    def other_loop(body: Callable[[], None]) -> None:
        async def main() -> None:
            worker = DecoderWorker(
                name=NAME,
                sink=lambda decoded: None,
                reference_lost=lambda timestamp: None,
                queue_frames=4,
                max_picture_pixels=10**6,
            )
            workers.append(worker)

        asyncio.run(main())
        body()

    workers: list[DecoderWorker] = []
    await asyncio.to_thread(other_loop, ended.set)
    assert ended.is_set()
    [worker] = workers
    worker.request_stop()
    worker._thread.join(DEADLINE_S)
    assert not worker._thread.is_alive()
