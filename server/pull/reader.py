"""The thread that fetches one source: opens it, decodes, delivers, and comes back when it left.

There is no queue: a picture is decoded and delivered before the next is read, and a live source
that has got ahead of us is caught up with at a key frame. Everything that may wait has a deadline,
so the thread ends by itself soon after `request_stop`.
"""

import contextlib
import logging
import threading
from collections.abc import Generator
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
from av.codec.context import Flags
from av.codec.hwaccel import HWAccel, hwdevices_available

from server.backoff import backoff_s
from server.clock import NS_PER_S, now_ns, s_to_ns
from server.errors import SightlineError
from server.pull.address import MAX_PIXELS, Address, check_host, confined
from server.pull.device import NoCameraError, camera_pictures
from server.pull.media_clock import Lateness, MediaClock
from server.pull.picture_thread import TIME_BASE, PictureThread, Take
from server.pull.slices import SliceJoiner, begins_key
from server.settings import SourceSettings

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

FIRST_RETRY_S = 0.5
# A source that says no to its user name and password is not asked again soon: cameras lock out.
REFUSED_RETRY_S = 30.0
ERRORS_IN_ROW = 100
# What drawing and the detector take as it is; all else is converted once, here.
TAKEN_FORMATS = frozenset(("yuv420p", "yuvj420p", "nv12"))
# Formats whose pictures do not come in their own time.
PACED_FORMATS = ("hls", "mov", "matroska", "avi", "ogg")
HARDWARE = ("cuda", "vaapi", "qsv", "videotoolbox")


class SourceError(Exception):
    """Why a source cannot be read; the message holds no part of its address."""

    def __init__(self, message: str, retry_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class Reader(PictureThread):
    """Fetches from `address`. `trusted`: the address is the operator's own."""

    def __init__(
        self, name: str, address: Address, settings: SourceSettings, take: Take, *, trusted: bool
    ) -> None:
        super().__init__(name, take)
        self._address = address
        self._settings = settings
        self._trusted = trusted
        self._clock = MediaClock()
        self._hardware_works = True
        # H.264 over RTSP is put together here; another codec is found out at the first opening.
        self._own_joining = address.scheme in ("rtsp", "rtsp+udp", "rtsps")

    # --- on the thread ---

    def _run(self) -> None:
        counters, tries = self.counters, 0
        while not self._stopped.is_set():
            counters.state = "connecting"
            counters.attempts += 1
            pictures_before = counters.pictures
            connects_before = counters.connects
            error = self._play_once()
            if counters.connects == connects_before:
                # A driver may fail in any way when it is first asked: the CPU is tried next.
                self._hardware_works = False
            if self._stopped.is_set():
                break
            tries = 1 if counters.pictures > pictures_before else tries + 1
            if str(error) != counters.last_error:
                logger.info("%s: %s", self.name, error)
            counters.last_error = str(error)
            counters.state = "waiting"
            first_s = max(FIRST_RETRY_S, error.retry_s)
            self._stopped.wait(backoff_s(tries, first_s, self._settings.source_retry_s))

    def _play_once(self) -> SourceError:
        """Open and play until it ends; why it did."""
        began_at_ns, connects_before = now_ns(), self.counters.connects
        timeout_s = self._settings.source_timeout_s
        try:
            self._play()
        except SourceError as error:
            return error
        except SightlineError as error:
            # Ours, and made without the address.
            return SourceError(str(error), REFUSED_RETRY_S)
        except av.FFmpegError as error:
            # Its text repeats the address with user name and password; its kind does not.
            waited_s = (now_ns() - began_at_ns) / NS_PER_S
            if self.counters.connects == connects_before and waited_s >= timeout_s:
                # What FFmpeg makes of a deadline while it opens depends on where it stood.
                return SourceError(no_answer(timeout_s))
            return SourceError(told(error, timeout_s), retry_after(error))
        except OSError:
            return SourceError("its host is not known")
        except Exception as error:
            # Whatever a source does to FFmpeg or to us costs one connection, not the thread.
            logger.warning("%s: %s", self.name, type(error).__name__)
            logger.debug("%s", self.name, exc_info=True)
            return SourceError(f"failed: {type(error).__name__}")
        return SourceError("it ended")

    def _play(self) -> None:
        address, timeout_s = self._address, self._settings.source_timeout_s
        options = dict(address.options)
        if not self._trusted:
            check_host(address, self._settings.source_hosts)
            options = confined(address, self._settings.source_hosts)
        if address.kind == "device" and address.format not in av.formats_available:
            self._play_camera(camera_pictures(int(address.url.removeprefix("/dev/video"))))
            return
        if self._own_joining:
            options["fflags"] = "noparse+nofillin"
        with av.open(
            address.url,
            format=address.format,
            options=options,
            timeout=(timeout_s, timeout_s),
            hwaccel=self._hardware(),
        ) as container:
            stream = next((s for s in container.streams.video if s.codec_context), None)
            if stream is None:
                raise SourceError("there is no video in it that can be decoded")
            codec = stream.codec_context.name
            if not self._own_joining or codec == "h264":
                self._prepare(stream)
                hardware = " (hardware)" if stream.codec_context.is_hwaccel else ""
                self._connected(f"{codec}{hardware}")
                self._read(container, stream)
                return
        # Another codec wants FFmpeg's parser; from now on it is opened with it.
        self._own_joining = False
        self._play()

    def _play_camera(self, pictures: "Generator[VideoFrame]") -> None:
        with contextlib.closing(pictures):
            try:
                for picture in pictures:
                    if self.counters.state != "playing":
                        self._connected("OpenCV")
                    if self._stopped.is_set():
                        return
                    at_ns = now_ns()
                    self._show(picture, at_ns, at_ns, None)
            except NoCameraError:
                raise SourceError("there is no such camera, or another program has it") from None

    def _connected(self, decoder: str) -> None:
        counters = self.counters
        counters.connects += 1
        counters.state = "playing"
        counters.last_error = ""
        counters.decoder = decoder
        self._clock.restart()
        logger.info("%s: playing, %s", self.name, decoder)

    def _hardware(self) -> HWAccel | None:
        wanted = self._settings.source_decoder
        names = HARDWARE if wanted == "auto" else (wanted,)
        if wanted == "cpu" or not self._hardware_works:
            return None
        for name in names:
            if name in hwdevices_available():
                return HWAccel(name, allow_software_fallback=True)
        return None

    def _prepare(self, stream: "VideoStream") -> None:
        context = stream.codec_context
        # Threads that share out frames hold back as many as they are.
        context.thread_count = 1
        options = {"max_pixels": str(MAX_PIXELS)}
        if self._own_joining:
            options["flags2"] = "+chunks"
        context.options = options
        if self._address.kind != "file":
            context.flags |= Flags.low_delay

    def _read(self, container: "InputContainer", stream: "VideoStream") -> None:
        is_file = self._address.kind == "file"
        pace = None
        if is_file or container.format.name.split(",")[0] in PACED_FORMATS:
            pace = Pace(self._stopped)
        lateness = Lateness() if pace is None else None
        while not self._stopped.is_set():
            pictures_before = self.counters.pictures
            packets = cast("Generator[Packet[VideoStream]]", container.demux(stream))
            # Closed here, so that FFmpeg's own clean-up is not left to the collector.
            with contextlib.closing(packets):
                self._decode_all(packets, stream, pace, lateness)
            if not is_file or self._stopped.is_set():
                return
            if self.counters.pictures == pictures_before:
                raise SourceError("there is no picture in it")
            container.seek(0)
            assert pace is not None, "files are paced"
            pace.restart()
            self._clock.restart()

    def _decode_all(
        self,
        packets: "Generator[Packet[VideoStream]]",
        stream: "VideoStream",
        pace: "Pace | None",
        lateness: Lateness | None,
    ) -> None:
        joiner = SliceJoiner() if self._own_joining else None
        base = stream.time_base or TIME_BASE
        # The picture that comes in: its time, when its first payload came, and that of the last.
        pts: int | None = None
        first_at_ns = before_at_ns = 0
        errors = 0
        for packet in packets:
            if self._stopped.is_set():
                return
            at_ns = now_ns()
            if packet.pts != pts or joiner is None:
                pts, before_at_ns, first_at_ns = packet.pts, first_at_ns, at_ns
            data = bytes(packet) if joiner is not None else b""
            if lateness is not None and packet.size:
                source_s = None if pts is None else float(pts * base)
                is_key = packet.is_keyframe if joiner is None else begins_key(data)
                if lateness.is_late(source_s, at_ns / NS_PER_S, is_key):
                    self.counters.dropped["late"] += 1
                    continue
            if joiner is None:
                ready = [packet]
            else:
                ready = [_packet(*part, base) for part in joiner.add(data, packet.pts)]
            for whole in ready:
                received_at_ns = first_at_ns if whole.pts == pts else before_at_ns
                try:
                    pictures = stream.codec_context.decode(whole)
                except av.FFmpegError:
                    self.counters.dropped["corrupt"] += 1
                    errors += 1
                    if errors > ERRORS_IN_ROW:
                        raise SourceError("it cannot be decoded") from None
                    continue
                for picture in pictures:
                    errors = 0
                    self._show(picture, received_at_ns or at_ns, at_ns, pace)

    def _show(
        self, picture: "VideoFrame", received_at_ns: int, at_ns: int, pace: "Pace | None"
    ) -> None:
        source_s = None if picture.pts is None else float(picture.time)
        if pace is not None:
            if not pace.wait(source_s):
                return
            received_at_ns = at_ns = now_ns()
        if picture.format.name not in TAKEN_FORMATS:
            picture = picture.reformat(format="yuv420p")
        if self._stopped.is_set():
            # Whoever takes the pictures may have left.
            return
        ticks = self._clock.ticks(source_s, received_at_ns)
        self._hand_over(picture, ticks, received_at_ns, at_ns)


class Pace:
    """Lets pictures of a recording go in their own time. One thread."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._began: tuple[float, int] | None = None
        self._last_at_ns = 0

    def restart(self) -> None:
        """The recording begins again, behind its last picture."""
        self._began = None

    def wait(self, source_s: float | None) -> bool:
        """Until the picture is due; False when it is time to stop."""
        at_ns = now_ns()
        if source_s is None:
            due_ns = self._last_at_ns + NS_PER_S // 25
        else:
            if self._began is None:
                self._began = source_s, max(at_ns, self._last_at_ns + NS_PER_S // 25)
            began_s, began_at_ns = self._began
            due_ns = began_at_ns + s_to_ns(source_s - began_s)
            if abs(due_ns - at_ns) > 2 * NS_PER_S:
                # Its time leapt, or we were held up: go on from here.
                self._began, due_ns = (source_s, at_ns), at_ns
        if due_ns > at_ns and self._stop.wait((due_ns - at_ns) / NS_PER_S):
            return False
        self._last_at_ns = max(due_ns, at_ns)
        return True


def _packet(data: bytes, pts: int | None, time_base: Fraction) -> "Packet[VideoStream]":
    packet = cast("Packet[VideoStream]", av.Packet(data))
    packet.pts, packet.time_base = pts, time_base
    return packet


def told(error: av.FFmpegError, timeout_s: float) -> str:
    """What happened, in our words: FFmpeg's hold the address."""
    if isinstance(error, av.error.HTTPUnauthorizedError | av.error.HTTPForbiddenError):
        return "it refuses the user name or password"
    if isinstance(error, av.error.ExitError | TimeoutError):
        return no_answer(timeout_s)
    if isinstance(error, av.error.InvalidDataError | av.error.ArgumentError | EOFError):
        return "it ended, or it is not video that may be read here"
    if isinstance(error, av.error.ProtocolNotFoundError):
        return "FFmpeg as installed here cannot speak this protocol, or may not in this place"
    return str(error.strerror or type(error).__name__)[:100]


def no_answer(timeout_s: float) -> str:
    return f"source_timeout_s: nothing came for {timeout_s:g} s"


def retry_after(error: av.FFmpegError) -> float:
    """How long to wait at least before asking again."""
    refused = isinstance(error, av.error.HTTPUnauthorizedError | av.error.HTTPForbiddenError)
    return REFUSED_RETRY_S if refused else 0.0
