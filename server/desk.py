"""Pictures that come as files and want an answer each: decoded, shown to the detector, answered.

An `Asker` is one caller's way through: a picture at a time, so that answers keep the order of
the questions and every question gets one. Decoding has threads of its own, and the picture goes
on to the detector from there. Askers live on the loop.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol

from server.call_options import CallOptions
from server.clock import NS_PER_S, now_ns, ns_to_ms
from server.detections import Detections
from server.errors import MalformedError, RequestError, SightlineError, UnavailableError
from server.feed import Analyst, Feed, Inference
from server.frame import Stamps
from server.images import check_image, decode_image
from server.inference import InferenceStatistics
from server.pixels import copy_yuv420p
from server.settings import ImageSettings
from server.shot import Shot
from server.telemetry import DurationRecorder, Summary

logger = logging.getLogger(__name__)

DOORS = ("websocket", "detect", "deepstack")
TIME_BASE = Fraction(1, 90_000)
# Single requests at the detector together: one is looked at, one waits, one is decoded. More
# would take turns from the cameras without being answered sooner.
TURNS = 3
RETRY_AFTER_S = 2
RATE_S = 2
PICTURES_KEPT = 2000


class Worker(Inference, Protocol):
    """The inference thread, which also tells why it looks at nothing."""

    def statistics(self) -> InferenceStatistics: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found in one picture, and the instants it passed."""

    shot: Shot
    detections: Detections
    stamps: Stamps


@dataclass(frozen=True, slots=True)
class DoorStatistics:
    """Counts since start. A request is a POST or an opened WebSocket."""

    requests: int
    pictures: int
    """Answered with what was found."""
    refused: dict[str, int]


@dataclass(frozen=True, slots=True)
class DeskStatistics:
    """All doors."""

    doors: dict[str, DoorStatistics]
    waiting: int
    """Pictures that were sent and not yet answered."""
    waiting_megapixels: float
    decode_ms: Summary
    answer_ms: Summary
    """From the whole picture in to its answer ready."""


class PixelBudget:
    """How many decoded pixels there may be at a time; who waits is served in order. On the loop."""

    def __init__(self, pixels: int) -> None:
        self._limit = self._free = pixels
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def taken(self) -> int:
        return self._limit - self._free

    async def take(self, pixels: int) -> None:
        """Wait for room. The caller bounds the wait and gives back what it took."""
        if not self._queue and pixels <= self._free:
            self._free -= pixels
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (pixels, turn)
        self._queue.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # It was served in the same moment.
                self._free += pixels
            elif entry in self._queue:
                self._queue.remove(entry)
            self._serve()
            raise

    def give_back(self, pixels: int) -> None:
        self._free += pixels
        self._serve()

    def _serve(self) -> None:
        while self._queue and self._queue[0][0] <= self._free:
            pixels, turn = self._queue.popleft()
            # One that was given up may still be here: its task has not run since.
            if not turn.done():
                self._free -= pixels
                turn.set_result(None)


class PixelRate:
    """Pixels a second over the last RATE_S. Bound: PICTURES_KEPT pictures; beyond that it reads
    low."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, int]] = deque(maxlen=PICTURES_KEPT)

    def add(self, at_ns: int, pixels: int) -> None:
        self._seen.append((at_ns, pixels))

    def per_second(self, at_ns: int) -> float:
        since_ns = at_ns - RATE_S * NS_PER_S
        return sum(pixels for seen_ns, pixels in self._seen if seen_ns > since_ns) / RATE_S


class Desk:
    """What all askers share; made by the application, closed after the last of them."""

    def __init__(self, settings: ImageSettings, inference: Worker) -> None:
        self.settings = settings
        self.inference = inference
        self.decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="image")
        self.budget = PixelBudget(round(settings.image_memory_megapixels * 1e6))
        self.turns = asyncio.Semaphore(TURNS)
        self.waiting = 0
        self.answer_ms = DurationRecorder()
        self.rate = PixelRate()
        self._decode_ms = DurationRecorder()
        self._requests: Counter[str] = Counter()
        self._pictures: Counter[str] = Counter()
        self._refused: dict[str, Counter[str]] = {door: Counter() for door in DOORS}

    def asker(
        self,
        door: str,
        key: str,
        options: CallOptions,
        *,
        in_turns: bool = True,
        on_shot: Callable[[Shot], None] | None = None,
        analyst: Analyst | None = None,
    ) -> "Asker":
        """A caller's way through. `key` is its own at the detector. `in_turns`: it shares TURNS
        with others like it. `on_shot` hears of every picture, on the loop."""
        return Asker(self, door, key, options, in_turns, on_shot, analyst)

    def count_request(self, door: str) -> None:
        self._requests[door] += 1

    def count_picture(self, door: str, answer: Answer) -> None:
        self._pictures[door] += 1
        stamps = answer.stamps
        self._decode_ms.add_ms(ns_to_ms(stamps.decoded_at_ns - stamps.assembled_at_ns))
        self.answer_ms.add_ms(ns_to_ms(stamps.handed_out_at_ns - stamps.received_at_ns))

    def count_refusal(self, door: str, error: SightlineError) -> None:
        """By the kind of error: `malformed`, `too_large`, `unavailable`, ..."""
        self.count_refused(door, _reason(error))

    def count_refused(self, door: str, reason: str) -> None:
        self._refused[door][reason] += 1

    def statistics(self) -> DeskStatistics:
        return DeskStatistics(
            doors={
                door: DoorStatistics(
                    self._requests[door], self._pictures[door], dict(self._refused[door])
                )
                for door in DOORS
            },
            waiting=self.waiting,
            waiting_megapixels=self.budget.taken / 1e6,
            decode_ms=self._decode_ms.statistics(),
            answer_ms=self.answer_ms.statistics(),
        )

    def close(self) -> None:
        """Decode nothing more. What waits runs into its deadline."""
        self.decoders.shutdown(wait=False, cancel_futures=True)


class Asker:
    """See the module. Between its making and `close` the detector knows it."""

    def __init__(
        self,
        desk: Desk,
        door: str,
        key: str,
        options: CallOptions,
        in_turns: bool,
        on_shot: Callable[[Shot], None] | None,
        analyst: Analyst | None,
    ) -> None:
        self._desk = desk
        self._door = door
        self._in_turns = in_turns
        self._on_shot = on_shot
        self._loop = asyncio.get_running_loop()
        self._begun_at_ns = now_ns()
        # Of the picture that waits: an answer to one that was given up is told by its instant.
        self._asked_at_ns = 0
        self._answer: asyncio.Future[Shot] | None = None
        self.feed = Feed(
            key, 0.0, options, desk.inference, self._deliver, analyst=analyst, patient=True
        )
        self.feed.open()

    def close(self) -> None:
        """An answer in the making is dropped. Idempotent."""
        self.feed.close()

    async def ask(self, data: bytes) -> Answer:
        """What is in this picture. Raises `RequestError` when the picture is wrong and
        `UnavailableError` when there is no answer in time; one call at a time."""
        answer = await self._ask(data)
        self._desk.count_picture(self._door, answer)
        return answer

    async def _ask(self, data: bytes) -> Answer:
        desk, received_at_ns = self._desk, now_ns()
        size_wh = check_image(data, round(desk.settings.max_image_megapixels * 1e6))
        desk.rate.add(received_at_ns, size_wh[0] * size_wh[1])
        desk.waiting += 1
        try:
            async with asyncio.timeout(desk.settings.answer_timeout_s), AsyncExitStack() as stack:
                if self._in_turns:
                    await stack.enter_async_context(desk.turns)
                pixels = size_wh[0] * size_wh[1]
                await desk.budget.take(pixels)
                stack.callback(desk.budget.give_back, pixels)
                self._asked_at_ns = received_at_ns
                self._answer = self._loop.create_future()
                job = desk.decoders.submit(self._decode, data, size_wh, received_at_ns)
                # One that has not begun when nobody waits any more is not decoded.
                stack.callback(job.cancel)
                shot = await self._answer
        except TimeoutError:
            raise UnavailableError(
                f"answer_timeout_s: no answer within {desk.settings.answer_timeout_s:g} s",
                RETRY_AFTER_S,
            ) from None
        finally:
            # The picture goes with its answer: asker and feed know each other, so that what
            # they kept would wait for the collector, which counts objects and not megabytes.
            self._asked_at_ns, self._answer = 0, None
            desk.waiting -= 1
        if shot.detections is None:
            raise UnavailableError(f"detector: {self._why_none()}", RETRY_AFTER_S)
        stamps = replace(shot.frame.stamps, handed_out_at_ns=now_ns())
        return Answer(shot, shot.detections, stamps)

    def _decode(self, data: bytes, size_wh: tuple[int, int], received_at_ns: int) -> None:
        """On a thread for images: the picture, and on to the detector."""
        started_at_ns = now_ns()
        try:
            video_frame = decode_image(data, size_wh)
            ticks = (received_at_ns - self._begun_at_ns) * 90_000 // NS_PER_S
            if self._on_shot is not None:
                # What encoders and those who cover parts of a picture take.
                video_frame = copy_yuv420p(video_frame)
            video_frame.pts, video_frame.time_base = ticks, TIME_BASE
            stamps = Stamps(received_at_ns, started_at_ns, now_ns())
            self.feed.take(video_frame, ticks & 0xFFFFFFFF, stamps)
        except RequestError as error:
            self._call_soon(self._failed, received_at_ns, error)
        except Exception:
            # The top of this picture's work: whatever a decoder raises ends it and no other.
            logger.exception("A picture could not be decoded")
            undecoded = MalformedError("the image cannot be decoded")
            self._call_soon(self._failed, received_at_ns, undecoded)

    def _deliver(self, shot: Shot) -> None:
        """On the thread that decodes or on that of the detector."""
        self._call_soon(self._answered, shot)

    def _answered(self, shot: Shot) -> None:
        if self._on_shot is not None:
            self._on_shot(shot)
        if self._waits_for(shot.frame.stamps.received_at_ns):
            assert self._answer is not None
            self._answer.set_result(shot)

    def _failed(self, received_at_ns: int, error: RequestError) -> None:
        if self._waits_for(received_at_ns):
            assert self._answer is not None
            self._answer.set_exception(error)

    def _waits_for(self, received_at_ns: int) -> bool:
        waits = self._answer is not None and not self._answer.done()
        return waits and received_at_ns == self._asked_at_ns

    def _why_none(self) -> str:
        return {
            "none": "there is none",
            "stalled": "it hangs",
            "failing": "it keeps failing",
            "stopped": "the server stops",
        }.get(self._desk.inference.statistics().state, "it failed on this picture")

    def _call_soon(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            logger.debug("Dropped an answer: the loop is closed")


def _reason(error: SightlineError) -> str:
    name = type(error).__name__.removesuffix("Error")
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
