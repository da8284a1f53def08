"""One incoming video track's decoder: a thread of its own behind a bounded queue.

The thread ends by itself after `request_stop`; nobody joins it on the event loop. Whatever a
frame does to the decoder costs that frame.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext

from server.clock import now_ns
from server.rtc.assembly import EncodedFrame

if TYPE_CHECKING:
    from av import VideoFrame

logger = logging.getLogger(__name__)

VIDEO_TIME_BASE = Fraction(1, 90_000)

_FFMPEG_DECODERS = {"VP8": "libvpx", "H264": "h264"}


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """One decoded picture. Read-only for everybody: the decoder may still refer to it."""

    video_frame: "VideoFrame"
    """Its pts is RTP time since the first frame, unwrapped; its time base 1/90000."""
    rtp_timestamp: int
    received_at_ns: int
    assembled_at_ns: int
    decoded_at_ns: int


@dataclass(slots=True)
class DecodeCounters:
    """Since the beginning. Each is written by one thread only, the one named."""

    frames_submitted: int = 0  # loop
    dropped_full: int = 0  # loop
    frames_decoded: int = 0  # decoder
    decode_errors: int = 0  # decoder
    dropped_corrupt: int = 0  # decoder
    sink_errors: int = 0  # decoder
    last_error: str = ""  # decoder


@dataclass(frozen=True, slots=True)
class _Job:
    frame: EncodedFrame
    pts: int


@dataclass(slots=True)
class _Queue:
    """What the loop and the decoder thread share, under one condition."""

    condition: threading.Condition = field(default_factory=threading.Condition)
    jobs: deque[_Job] = field(default_factory=deque)
    stopping: bool = False


class DecoderWorker:
    """Decodes what is submitted and hands each picture to `sink`, on its own thread.

    Made and driven on the event loop. `sink` must not block; what it raises is counted.
    `reference_lost` is called on the loop with the RTP timestamp of a frame that gave no
    picture. Bound: `queue_frames`; when full, everything up to the next key frame is dropped.
    """

    def __init__(
        self,
        *,
        name: str,
        sink: Callable[[DecodedFrame], None],
        reference_lost: Callable[[int], None],
        queue_frames: int | None,
        max_picture_pixels: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sink = sink
        self._reference_lost = reference_lost
        self._queue_frames = queue_frames
        self._max_picture_pixels = max_picture_pixels
        self._queue = _Queue()
        self._ended = asyncio.Event()
        self.counters = DecodeCounters()
        # A daemon as the last resort: an owner that dies without `request_stop` must not hold
        # the process open. The ordinary end is waited for, and tests assert it.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        return self._thread.name

    @property
    def is_alive(self) -> bool:
        """False once the thread has said that it ends, which is the last thing it does."""
        return not self._ended.is_set()

    @property
    def frames_waiting(self) -> int:
        return len(self._queue.jobs)

    def submit_nowait(self, frame: EncodedFrame, pts: int) -> bool:
        """Queue a frame; False if it, or frames it needs, had to be dropped."""
        queue = self._queue
        kept = True
        with queue.condition:
            if queue.stopping:
                return True
            queue.jobs.append(_Job(frame, pts))
            if self._queue_frames is not None and len(queue.jobs) > self._queue_frames:
                kept = self._drop_to_key_frame()
            queue.condition.notify()
        self.counters.frames_submitted += 1
        return kept

    def _drop_to_key_frame(self) -> bool:
        """Empty the queue up to a key frame, which stays; False if there is none."""
        jobs = self._queue.jobs
        self.counters.dropped_full += 1
        jobs.popleft()
        while jobs and not jobs[0].frame.is_key:
            self.counters.dropped_full += 1
            jobs.popleft()
        return bool(jobs)

    def request_stop(self) -> None:
        """Let the thread end after the frame it decodes; what waits is dropped. Idempotent."""
        with self._queue.condition:
            self._queue.stopping = True
            self._queue.jobs.clear()
            self._queue.condition.notify()

    async def wait_ended(self, timeout_s: float) -> bool:
        """Whether the thread ended in time; any thread of control may ask."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    # On the decoder thread.

    def _run(self) -> None:
        try:
            decoder: _Decoder | None = None
            while (job := self._next_job()) is not None:
                if decoder is None or decoder.codec_name != job.frame.codec_name:
                    decoder = self._open(job.frame)
                if decoder is not None and not self._decode(decoder, job):
                    decoder = None
        finally:
            # Whom it told of pictures holds it, too.
            del self._sink, self._reference_lost
            self._call_loop(self._ended.set)

    def _next_job(self) -> _Job | None:
        queue = self._queue
        with queue.condition:
            while not queue.jobs and not queue.stopping:
                queue.condition.wait()
            return None if queue.stopping else queue.jobs.popleft()

    def _open(self, frame: EncodedFrame) -> "_Decoder | None":
        try:
            return _Decoder(frame.codec_name, self._max_picture_pixels)
        except (KeyError, ValueError, av.FFmpegError) as error:
            self._failed(frame, error)
            return None

    def _decode(self, decoder: "_Decoder", job: _Job) -> bool:
        """Decode and deliver one frame; False when the decoder itself is of no more use."""
        frame = job.frame
        if not frame.data:
            # FFmpeg takes an empty packet for the end of the stream and decodes no more.
            return True
        try:
            pictures = decoder.decode(frame.data, job.pts)
        except EOFError as error:
            self._failed(frame, error)
            return False
        except av.FFmpegError as error:
            # Keep the decoder: without its state every frame would fail until a key frame.
            self._failed(frame, error)
            return True
        except Exception as error:
            # Nothing a peer sends may end this thread: its queue would fill behind it.
            logger.warning("%s: decoder replaced", self.name, exc_info=True)
            self._failed(frame, error)
            return False
        for picture in pictures:
            self._deliver(picture, frame)
        return True

    def _deliver(self, picture: "VideoFrame", frame: EncodedFrame) -> None:
        if picture.is_corrupt and not frame.follows_loss:
            self.counters.dropped_corrupt += 1
            self._call_loop(self._reference_lost, frame.rtp_timestamp)
            return
        self.counters.frames_decoded += 1
        decoded = DecodedFrame(
            video_frame=picture,
            rtp_timestamp=frame.rtp_timestamp,
            received_at_ns=frame.received_at_ns,
            assembled_at_ns=frame.assembled_at_ns,
            decoded_at_ns=now_ns(),
        )
        try:
            self._sink(decoded)
        except Exception as error:
            # The sink is not ours; its faults must not stop the pictures for good.
            if self.counters.sink_errors == 0:
                logger.exception("%s: the sink failed; further failures are counted", self.name)
            self.counters.sink_errors += 1
            self.counters.last_error = repr(error)

    def _failed(self, frame: EncodedFrame, error: Exception) -> None:
        if self.counters.decode_errors == 0:
            logger.info("%s: %s: further failures are counted", self.name, error)
        self.counters.decode_errors += 1
        self.counters.last_error = repr(error)
        self._call_loop(self._reference_lost, frame.rtp_timestamp)

    def _call_loop(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            logger.debug("%s: the loop is closed", self.name)


class _Decoder:
    """An FFmpeg decoder that gives each picture at once, on the thread that calls it."""

    def __init__(self, codec_name: str, max_picture_pixels: int) -> None:
        context = av.CodecContext.create(_FFMPEG_DECODERS[codec_name], "r")
        self.codec_name = codec_name
        self._context = cast(VideoCodecContext, context)
        # More threads would buy nothing at these sizes, and hold pictures back.
        self._context.thread_count = 1
        self._context.flags |= Flags.low_delay
        # Refused by FFmpeg before it allocates: a few bytes can announce a huge picture.
        self._context.options = {"max_pixels": str(max_picture_pixels)}

    def decode(self, data: bytes, pts: int) -> list["VideoFrame"]:
        packet = av.Packet(data)
        packet.pts = pts
        packet.time_base = VIDEO_TIME_BASE
        return self._context.decode(packet)
