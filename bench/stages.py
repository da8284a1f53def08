"""Each stage of the way of a frame alone, on one thread: what it costs when nothing else runs.

The same pictures go through encode, decode, prepare, infer, boxes, draw and encode in turn,
so that caches are as cold as they are in the server, and no network or thread is in between.
"""

import argparse
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import av
from aiortc.codecs import get_capabilities
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext

from bench.clip import MAX_BYTES, load_clip
from bench.command import OK, publish, record_begun
from bench.errors import ServerError, UsageError, check_ranges
from bench.options import CODECS, add_clip, add_engine, add_output, add_size
from bench.pacing import Pace
from bench.record import plain
from bench.statistics import Distribution, distribution
from server.clock import NS_PER_S, now_ns, ns_to_ms
from server.detections import Detected, Detections
from server.errors import SightlineError
from server.overlay import Painter
from server.pixels import YuvPicture, copy_yuv420p, plane_views
from server.rtc.encoders import make_encoder
from server.rtc.options import RtcOptions

if TYPE_CHECKING:
    from server.rtc.encoders import EncodedPicture, VideoEncoder

STAGES: Final = (
    "encode in",
    "decode",
    "prepare",
    "infer",
    "boxes",
    "draw",
    "encode out",
    "decode out",
)
# What no server can leave out: both codecs' work and the model's.
UNAVOIDABLE: Final = tuple(stage for stage in STAGES if stage != "draw")
SHAPE_TIMEOUT_S: Final = 30.0
FPS: Final = 30.0
BITS_PER_S: Final = 1_500_000
DECODERS: Final = {"H264": "h264", "VP8": "libvpx"}


@dataclass(frozen=True, slots=True)
class StageSettings:
    """One measurement. Checked when made; raises `UsageError`."""

    size_wh: tuple[int, int] = (640, 480)
    codec: str = "H264"
    clip: Path | None = None
    model: str | None = None
    provider: str = "auto"
    precision: str = "auto"
    threads: int = 0
    frames: int = 200
    warmup_frames: int = 30
    fps: float = 0.0
    """The rhythm of the frames, as a camera's; 0 for one after another."""

    def __post_init__(self) -> None:
        check_ranges(
            ("width", self.size_wh[0], 128, 4096),
            ("height", self.size_wh[1], 96, 2304),
            ("frames", self.frames, 10, 100_000),
            ("threads", self.threads, 0, 256),
            ("fps", self.fps, 0, 240),
        )

    def to_record(self) -> dict[str, Any]:
        """For the record: names of files without their folders."""
        return {
            "size": f"{self.size_wh[0]}x{self.size_wh[1]}",
            "codec": self.codec,
            "clip": "photographs" if self.clip is None else self.clip.name,
            "model": None if self.model is None else Path(self.model).name,
            "provider": self.provider,
            "precision": self.precision,
            "threads": self.threads,
            "frames": self.frames,
            "warmup_frames": self.warmup_frames,
            "fps": self.fps,
        }


@dataclass(frozen=True, slots=True)
class StageReport:
    """Durations in milliseconds by stage; stages of an absent detector are left out."""

    stages_ms: dict[str, Distribution]
    encoder: str
    boxes_per_frame: float
    bytes_per_frame: float
    unavoidable_ms: Distribution | None = None
    """Of each frame, the sum of its stages without drawing: the floor."""
    engine: dict[str, Any] | None = None
    """What the model really ran on."""


def measure(settings: StageSettings) -> StageReport:
    """Blocks until done. Raises `BenchError`."""
    clip = load_clip(settings.clip, settings.size_wh, FPS, MAX_BYTES)
    decoder, viewer = _decoder(settings.codec), _decoder(settings.codec)
    encoder_in, encoder_out = _encoder(settings.codec), _encoder(settings.codec)
    painter = Painter()
    durations: dict[str, list[float]] = {stage: [] for stage in STAGES}
    sums: list[float] = []
    boxes = octets = 0
    engine: dict[str, Any] | None = None
    with ExitStack() as stack:
        detector = None
        if settings.model is not None:
            detector = _detector(settings)
            stack.callback(detector.close)
        pace = Pace(settings.fps, now_ns()) if settings.fps else None
        for number in range(settings.warmup_frames + settings.frames):
            if pace is not None:
                # A camera's pace, on a thread that only measures.
                time.sleep(max(0, pace.next_slot(now_ns()).due_at_ns - now_ns()) / NS_PER_S)
            marks = [now_ns()]
            encoded = encoder_in.encode(clip.picture(number), False, BITS_PER_S, FPS)
            marks.append(now_ns())
            bitstream = _bitstream(settings.codec, encoded)
            marks.append(now_ns())
            decoded = decoder.decode(av.Packet(bitstream))
            marks.append(now_ns())
            if len(decoded) != 1:
                raise ServerError(f"the decoder gave {len(decoded)} pictures for one")
            found: Detected | None = None
            if detector is not None:
                (found,) = detector.detect([YuvPicture(decoded[0])])
            drawing_at_ns = now_ns()
            picture = copy_yuv420p(decoded[0])
            shown = Detections.empty(settings.size_wh)
            if found is not None:
                shown = found.detections.select(0.35)
                painter.draw(plane_views(picture), shown, detector.names if detector else ())
            drawn_at_ns = now_ns()
            returned = encoder_out.encode(picture, False, BITS_PER_S, FPS)
            encoded_at_ns = now_ns()
            shown_bits = _bitstream(settings.codec, returned)
            unpacked_at_ns = now_ns()
            viewer.decode(av.Packet(shown_bits))
            shown_at_ns = now_ns()
            if number < settings.warmup_frames:
                continue
            boxes += len(shown)
            octets += sum(map(len, returned.payloads))
            durations["encode in"].append(ns_to_ms(marks[1] - marks[0]))
            durations["decode"].append(ns_to_ms(marks[3] - marks[2]))
            if found is not None:
                durations["prepare"].append(ns_to_ms(found.prepared_at_ns - marks[3]))
                durations["infer"].append(ns_to_ms(found.inferred_at_ns - found.prepared_at_ns))
                durations["boxes"].append(ns_to_ms(found.boxed_at_ns - found.inferred_at_ns))
            durations["draw"].append(ns_to_ms(drawn_at_ns - drawing_at_ns))
            durations["encode out"].append(ns_to_ms(encoded_at_ns - drawn_at_ns))
            durations["decode out"].append(ns_to_ms(shown_at_ns - unpacked_at_ns))
            sums.append(sum(durations[stage][-1] for stage in UNAVOIDABLE if durations[stage]))
        if detector is not None:
            engine = asdict(detector.reports()[0])
    described = {stage: distribution(values) for stage, values in durations.items()}
    return StageReport(
        stages_ms={stage: values for stage, values in described.items() if values is not None},
        encoder=encoder_out.name,
        boxes_per_frame=boxes / settings.frames,
        bytes_per_frame=octets / settings.frames,
        unavoidable_ms=distribution(sums),
        engine=engine,
    )


def describe(report: StageReport, settings: dict[str, Any]) -> str:
    """The report for a person."""
    lines = [
        f"{settings['size']}, {settings['codec']} ({report.encoder}), "
        f"{settings['frames']} frames, {report.boxes_per_frame:.1f} boxes and "
        f"{report.bytes_per_frame / 1000:.1f} kB a frame",
        f"{'ms':12}{'p50':>9}{'p95':>9}{'max':>9}",
        *(
            f"{stage:12}{values.p50:>9.2f}{values.p95:>9.2f}{values.max:>9.2f}"
            for stage, values in report.stages_ms.items()
        ),
    ]
    if report.unavoidable_ms is not None:
        floor = report.unavoidable_ms
        lines.append(f"{'floor':12}{floor.p50:>9.2f}{floor.p95:>9.2f}{floor.max:>9.2f}")
    return "\n".join(lines)


def _encoder(codec: str) -> "VideoEncoder":
    parameters = next(
        found
        for found in get_capabilities("video").codecs
        if found.mimeType.lower() == f"video/{codec.lower()}"
    )
    return make_encoder(parameters, RtcOptions())  # type: ignore[arg-type]


def _detector(settings: StageSettings) -> Any:
    from server.detector.aspects import AspectDetector
    from server.detector.load import load_detector
    from server.settings import DetectorSettings

    assert settings.model is not None
    try:
        detector = load_detector(
            DetectorSettings(
                model=settings.model,
                provider=settings.provider,
                precision=settings.precision,
                threads=settings.threads,
            ),
            [settings.size_wh],
        )
    except SightlineError as error:
        raise UsageError(f"--model: {error}") from error
    if isinstance(detector, AspectDetector):
        detector.wait_shape(settings.size_wh, SHAPE_TIMEOUT_S)
    return detector


def _decoder(codec: str) -> VideoCodecContext:
    """As a receiver has it: a picture in, a picture out, on the calling thread."""
    decoder = av.CodecContext.create(DECODERS[codec], "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.thread_count = 1
    decoder.flags |= Flags.low_delay
    return decoder


def _bitstream(codec: str, encoded: "EncodedPicture") -> bytes:
    """The picture as its decoder wants it, from RTP payloads."""
    from aiortc.codecs.h264 import h264_depayload
    from aiortc.codecs.vpx import vp8_depayload

    depayload = h264_depayload if codec == "H264" else vp8_depayload
    return b"".join(map(depayload, encoded.payloads))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Runs the stages of a frame's way one after another on one thread."
    add_stage_options(parser, frames=200)
    parser.add_argument(
        "--model", metavar="FILE", help="an ONNX file; without one there is no inference"
    )


def add_stage_options(parser: argparse.ArgumentParser, *, frames: int) -> None:
    """What is common to whatever measures by stages: pictures, engine, how many, output."""
    add_size(parser)
    add = parser.add_argument
    add("--codec", choices=CODECS, default="H264", help="of both directions (H264)")
    add_clip(parser)
    add_engine(parser)
    add("--frames", type=int, default=frames, help=f"measured frames ({frames})")
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    return run_stages("stages", options, options.model, fps=0.0)


def run_stages(bench: str, options: argparse.Namespace, model: str | None, *, fps: float) -> int:
    """Measure as `add_stage_options` was answered, and publish it as this bench's record."""
    settings = StageSettings(
        size_wh=options.size,
        codec=options.codec,
        clip=options.clip,
        model=model,
        provider=options.provider,
        precision=options.precision,
        threads=options.threads,
        frames=options.frames,
        fps=fps,
    )
    make_record = record_begun(bench)
    report = measure(settings)
    record = make_record(settings.to_record(), plain(report), [])
    width, height = settings.size_wh
    text = describe(report, settings.to_record())
    publish(record, options.out, f"{width}x{height}-{settings.codec}", text, as_json=options.json)
    return OK
