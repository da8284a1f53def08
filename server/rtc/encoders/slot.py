"""The place where a sender's encoder lives: rendering, encoding, and recovery from failures."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from av import VideoFrame

from server.clock import now_ns
from server.rtc.bitrate import Allowance, CadenceMeter, StepFilter
from server.rtc.encoders.base import EncodedPicture, EncodeError, VideoEncoder

RTP_CLOCK_HZ = 90_000


class Renderable(Protocol):
    """A picture that is drawn where and when it is encoded. One that has `captured_at_ns` knows
    when it reached us."""

    def render(self) -> VideoFrame:
        """Draw and return the picture. Once, on an encode thread; it is ours afterwards."""

    def sent(self, encode_started_at_ns: int, encoded_at_ns: int, sent_at_ns: int) -> None:
        """The last packet of the picture has left. On the loop; never for a lost picture."""


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """What one job on the encode thread came to."""

    picture: EncodedPicture
    ticks: int | None
    """Media time of the picture in 1/90000 s; None for a picture without time."""
    bits_per_s: int
    encoder: str
    note: str
    encode_started_at_ns: int
    encoded_at_ns: int


class RenderError(Exception):
    """`render()` failed; the encoder is not to blame."""


class EncoderSlot:
    """Owns the encoder of one outgoing video.

    One `encode` call at a time, on any encode thread. A call that fails costs its picture and
    its encoder: the next call starts with a new one, hence with a key frame.
    """

    def __init__(self, make: Callable[[frozenset[str]], VideoEncoder]) -> None:
        self._make = make
        self._encoder: VideoEncoder | None = None
        self._failed_names: frozenset[str] = frozenset()
        self._cadence = CadenceMeter()
        self._steps = StepFilter()

    def submit(
        self,
        executor: Executor,
        data: VideoFrame | Renderable,
        keyframe: bool,
        allowance: Allowance,
        deliver: Callable[[EncodeResult | Exception], object],
    ) -> None:
        """`encode` on the executor. What came of it is delivered on the loop that this is called
        on, unless that is gone by then."""
        loop = asyncio.get_running_loop()

        def job() -> None:
            outcome: EncodeResult | Exception
            try:
                outcome = self.encode(data, keyframe, allowance)
            except Exception as error:
                # Told to whoever waits: nobody looks at the executor's future.
                outcome = error
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(deliver, outcome)

        # Not run_in_executor: it chains two futures, 7 us and two locks per picture.
        executor.submit(job)

    def encode(
        self, data: VideoFrame | Renderable, keyframe: bool, allowance: Allowance
    ) -> EncodeResult:
        """Render and encode one picture. Raises `RenderError` or `EncodeError`, nothing else."""
        video_frame = _rendered(data)
        started_at_ns = now_ns()
        ticks = _ticks_of(video_frame)
        fps = self._cadence.observe(ticks) if ticks is not None else self._cadence.fps
        size_wh = video_frame.width, video_frame.height
        bits_per_s = self._steps.step(allowance.bits_per_s(size_wh, fps))
        encoder = self._encoder
        try:
            if encoder is None:
                encoder = self._encoder = self._make(self._failed_names)
            picture = encoder.encode(video_frame, keyframe, bits_per_s, fps)
        except Exception as error:
            # Whatever a codec throws, the next picture deserves a fresh one; and a hardware
            # encoder that failed once is passed over for the life of this sender.
            self._encoder = None
            if encoder is not None:
                self._failed_names |= {encoder.name}
            if isinstance(error, EncodeError):
                raise
            raise EncodeError(f"{type(error).__name__}: {error}") from error
        return EncodeResult(
            picture,
            ticks,
            bits_per_s,
            encoder.name,
            encoder.note,
            started_at_ns,
            now_ns(),
        )


def _rendered(data: VideoFrame | Renderable) -> VideoFrame:
    if isinstance(data, VideoFrame):
        return data
    try:
        return data.render()
    except Exception as error:
        # Not our code: whatever it raises costs this picture.
        raise RenderError(f"{type(error).__name__}: {error}") from error


def _ticks_of(video_frame: VideoFrame) -> int | None:
    time_base = video_frame.time_base
    if video_frame.pts is None or not time_base:
        return None
    return video_frame.pts * time_base.numerator * RTP_CLOCK_HZ // time_base.denominator
