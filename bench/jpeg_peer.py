"""A client of a server that takes JPEG over WebSocket and answers with boxes.

One picture is under way at a time, always the newest, as live clients of such servers do. Its delay
runs from the instant the camera had it until the answer's boxes are drawn into it.
"""

import asyncio
import concurrent.futures
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import cv2
import numpy as np
import numpy.typing as npt

from bench.clip import ping_pong
from bench.errors import PeerError
from bench.statistics import (
    by_second,
    distribution,
    freezes,
    growth_per_minute,
    quantiles,
    rate_per_s,
)
from bench.window import ClientReport, Window, ms, server_share
from server.clock import NS_PER_S, now_ns

BgrArray = npt.NDArray[np.uint8]

QUALITY: Final = 90
"""What stream-yolo's own client sends."""
ANSWER_TIMEOUT_S: Final = 10.0
MAX_MESSAGE_BYTES: Final = 16 * 2**20
ANSWERS_KEPT: Final = 8
COLOUR_BGR: Final = (0, 255, 0)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One picture and its answer."""

    taken_at_ns: int
    """The camera had it."""
    encoded_at_ns: int
    answered_at_ns: int
    shown_at_ns: int
    """Its boxes are drawn into it."""


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """A picture and what the server said of it, to be looked at later."""

    bgr: BgrArray
    boxes: tuple[tuple[float, float, float, float], ...]


class JpegPeer:
    """Loop only, one use: `run` until it is cancelled or `stop` is set. Pictures are shared."""

    def __init__(
        self,
        name: str,
        pictures: Sequence[BgrArray],
        fps: float,
        phase: float,
        executor: concurrent.futures.Executor,
    ) -> None:
        self.name = name
        self.exchanges: list[Exchange] = []
        self.kept: list[Answered] = []
        self.keeps_every = 0
        """Slots between two answers that are kept; 0 for none."""
        self.stop = asyncio.Event()
        self._answered = asyncio.Event()
        self._pictures = pictures
        self._fps = fps
        self._phase = phase
        self._executor = executor

    async def wait_first_answer(self, timeout_s: float) -> None:
        try:
            await asyncio.wait_for(self._answered.wait(), timeout_s)
        except TimeoutError:
            raise PeerError(f"{self.name}: no answer came within {timeout_s:g} s") from None

    async def run(self, http: aiohttp.ClientSession, url: str) -> None:
        """Raises `PeerError` when the server ends the connection or says no."""
        address = f"{url.replace('http', 'ws', 1)}/ws/stream"
        loop = asyncio.get_running_loop()
        begin_at_ns = now_ns() + round(self._phase * NS_PER_S / self._fps)
        last, next_kept = -1, 0
        try:
            async with http.ws_connect(
                address, max_msg_size=MAX_MESSAGE_BYTES, compress=0
            ) as socket:
                while not self.stop.is_set():
                    newest = int((now_ns() - begin_at_ns) * self._fps / NS_PER_S)
                    slot = max(last + 1, newest)
                    last = slot
                    taken_at_ns = begin_at_ns + round(slot * NS_PER_S / self._fps)
                    await asyncio.sleep(max(0, taken_at_ns - now_ns()) / NS_PER_S)
                    bgr = self._pictures[ping_pong(slot, len(self._pictures))]
                    jpeg = await loop.run_in_executor(self._executor, _encoded, bgr)
                    encoded_at_ns = now_ns()
                    await socket.send_bytes(jpeg)
                    answer = await socket.receive_str(timeout=ANSWER_TIMEOUT_S)
                    answered_at_ns = now_ns()
                    boxes = _boxes(self.name, answer)
                    await loop.run_in_executor(self._executor, _shown, bgr, boxes)
                    self.exchanges.append(
                        Exchange(taken_at_ns, encoded_at_ns, answered_at_ns, now_ns())
                    )
                    self._answered.set()
                    if self.keeps_every and slot >= next_kept and len(self.kept) < ANSWERS_KEPT:
                        next_kept = slot + self.keeps_every
                        self.kept.append(Answered(bgr, boxes))
        except (aiohttp.ClientError, TypeError, TimeoutError) as error:
            raise PeerError(f"{self.name}: the exchange ended early: {error!r}") from error

    def report(self, window: Window) -> ClientReport:
        """In the words of the other peers: a picture sent is one taken from the camera."""
        inside = [each for each in self.exchanges if window.holds(each.taken_at_ns)]
        latencies_ms = [ms(each.shown_at_ns - each.taken_at_ns) for each in inside]
        arrivals = [each.shown_at_ns for each in self.exchanges]
        offered = round(window.duration_s * self._fps)
        return ClientReport(
            name=self.name,
            sent=offered,
            returned=len(inside),
            lost=max(0, offered - len(inside)),
            unreadable=0,
            misread=0,
            repeated=0,
            read_from_lower_strip=0,
            slots_skipped=0,
            fps_sent=rate_per_s(len(inside), window.duration_s),
            fps_received=rate_per_s(sum(map(window.holds, arrivals)), window.duration_s),
            latency_ms=distribution(latencies_ms),
            freezes=freezes(
                [ms(at_ns) for at_ns in arrivals], ms(window.begin_at_ns), ms(window.end_at_ns)
            ),
            growth_ms_per_minute=growth_per_minute(
                [each.taken_at_ns / NS_PER_S for each in inside], latencies_ms
            ),
            send_ms=None,
            encode_ms=distribution([ms(e.encoded_at_ns - e.taken_at_ns) for e in inside]),
            receive_ms=distribution([ms(e.shown_at_ns - e.answered_at_ns) for e in inside]),
            server=server_share((), False),
            quantiles_ms=quantiles(latencies_ms),
            seconds_ms=by_second(
                [(e.taken_at_ns - window.begin_at_ns) / NS_PER_S for e in inside], latencies_ms
            ),
        )


def _encoded(bgr: BgrArray) -> bytes:
    done, jpeg = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))
    assert done, "a picture of bytes can always be a JPEG"
    return jpeg.tobytes()


def _boxes(name: str, answer: str) -> tuple[tuple[float, float, float, float], ...]:
    """Raises `PeerError` for an answer without detections: it is no answer to a picture."""
    try:
        told: Any = json.loads(answer)
        sides = [tuple(map(float, found["box"])) for found in told["detections"]]
        return tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in sides)
    except (ValueError, KeyError, TypeError) as error:
        raise PeerError(f"{name}: not an answer to a picture: {answer[:200]}") from error


def _shown(bgr: BgrArray, boxes: Sequence[tuple[float, float, float, float]]) -> BgrArray:
    """What a viewer would be given."""
    shown = bgr.copy()
    for box in boxes:
        x1, y1, x2, y2 = map(int, box)
        cv2.rectangle(shown, (x1, y1), (x2, y2), COLOUR_BGR, 2)
    return shown
