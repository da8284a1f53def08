"""Encoders alone: milliseconds, bits and likeness for each speed setting, on one thread.

Runs the encoders of `server/rtc/encoders` as the sender uses them, decodes what comes out and
compares. Pictures are synthetic unless a clip is given. `cpu ms` is the processor time of the
encoding thread, which a busy machine hardly changes; the other times are by the clock. Compare
rows of one run only.

    python -m bench.encoders --size 640x480 --clip some.mp4 --json
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction

import av
import numpy as np
from aiortc.codecs.h264 import h264_depayload
from aiortc.codecs.vpx import vp8_depayload
from av import VideoFrame
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

from server.clock import NS_PER_MS, now_ns
from server.rtc.bitrate import START_SHARE, ceiling_bps
from server.rtc.encoders.base import VideoEncoder
from server.rtc.encoders.h264 import H264Encoder
from server.rtc.encoders.probe import LIBX264, NVENC, H264Choice, refusal
from server.rtc.encoders.vp8 import Vp8Encoder

FPS = 30.0
MIN_BPS, MAX_BPS = 300_000, 6_000_000
WARM_UP_FRAMES = 10
KEYFRAME_EVERY = 90
X264_PRESETS = ("ultrafast", "superfast", "veryfast")
VP8_CPU_USED = (-4, -6, -8, -10, -12, -16)


@dataclass(frozen=True, slots=True)
class Row:
    """One encoder with one setting over one clip."""

    encoder: str
    setting: str
    size: str
    cpu_p50_ms: float
    p50_ms: float
    p95_ms: float
    max_ms: float
    kbit_per_s: float
    psnr_db: float
    worst_psnr_db: float
    keyframe_kbyte: float
    largest_other_kbyte: float


def synthetic(size_wh: tuple[int, int], count: int) -> Iterator[VideoFrame]:
    """A textured picture under a slowly moving camera, with a patch that moves by itself."""
    width, height = size_wh
    rng = np.random.default_rng(5)
    coarse = rng.integers(30, 220, (height // 16 + 40, width // 16 + 40)).astype(np.float32)
    scene = np.kron(coarse, np.ones((16, 16), np.float32))
    for _ in range(3):
        scene = (scene + np.roll(scene, 5, 0) + np.roll(scene, 5, 1) + np.roll(scene, -5, 1)) / 4
    scene += rng.normal(0, 4, scene.shape)
    for index in range(count):
        top, left = index % 300, (2 * index) % 300
        luma = np.clip(scene[top : top + height, left : left + width], 0, 255).astype(np.uint8)
        at = (5 * index) % (width // 2)
        luma[height // 3 : height // 2, at : at + width // 6] = 200
        frame = VideoFrame(width, height, "yuv420p")
        view(frame)[:] = luma
        for plane in frame.planes[1:]:
            plane.update(bytes([128]) * (plane.line_size * plane.height))
        yield frame


def from_clip(path: str, size_wh: tuple[int, int], count: int) -> Iterator[VideoFrame]:
    """The first pictures of a file, scaled."""
    with av.open(path) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index == count:
                return
            yield frame.reformat(size_wh[0], size_wh[1], "yuv420p")


def view(frame: VideoFrame) -> NDArray[np.uint8]:
    """The brightness plane without padding, as memory."""
    plane = frame.planes[0]
    memory = np.frombuffer(plane, np.uint8)  # type: ignore[call-overload]
    rows: NDArray[np.uint8] = memory.reshape(plane.height, plane.line_size)
    return rows[:, : plane.width]


def psnr_db(first: VideoFrame, second: VideoFrame) -> float:
    a, b = view(first), view(second)
    high, wide = min(a.shape[0], b.shape[0]), min(a.shape[1], b.shape[1])
    error = float(np.mean((a[:high, :wide].astype(np.int16) - b[:high, :wide]) ** 2.0))
    return 99.0 if error == 0 else 10 * float(np.log10(255 * 255 / error))


def measure(
    encoder: VideoEncoder, setting: str, codec: str, frames: list[VideoFrame], bits_per_s: int
) -> Row:
    """Encode, time, put together, decode, compare."""
    decoder = av.CodecContext.create("h264" if codec == "H264" else "vp8", "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.thread_count = 1
    depayload = h264_depayload if codec == "H264" else vp8_depayload
    times_ms: list[float] = []
    cpu_ms: list[float] = []
    likeness: list[float] = []
    sizes: list[int] = []
    keyframe_sizes: list[int] = []
    other_sizes: list[int] = [0]
    for index, frame in enumerate(frames):
        frame.pts, frame.time_base = index * 3000, Fraction(1, 90_000)
        started_at_ns, cpu_started_ns = now_ns(), time.thread_time_ns()
        encoded = encoder.encode(frame, index % KEYFRAME_EVERY == 0, bits_per_s, FPS)
        cpu_ms.append((time.thread_time_ns() - cpu_started_ns) / NS_PER_MS)
        times_ms.append((now_ns() - started_at_ns) / NS_PER_MS)
        size = sum(map(len, encoded.payloads))
        sizes.append(size)
        (keyframe_sizes if encoded.keyframe else other_sizes).append(size)
        bitstream = b"".join(map(depayload, encoded.payloads))
        likeness += [psnr_db(frame, d) for d in decoder.decode(av.Packet(bitstream))]
    times_ms = times_ms[WARM_UP_FRAMES:]
    return Row(
        encoder=encoder.name,
        setting=setting,
        size=f"{frames[0].width}x{frames[0].height}",
        cpu_p50_ms=round(float(np.percentile(cpu_ms[WARM_UP_FRAMES:], 50)), 2),
        p50_ms=round(float(np.percentile(times_ms, 50)), 2),
        p95_ms=round(float(np.percentile(times_ms, 95)), 2),
        max_ms=round(max(times_ms), 2),
        kbit_per_s=round(sum(sizes) * 8 * FPS / len(sizes) / 1000),
        psnr_db=round(float(np.mean(likeness)), 2),
        worst_psnr_db=round(min(likeness), 2),
        keyframe_kbyte=round(max(keyframe_sizes) / 1000, 1),
        largest_other_kbyte=round(max(other_sizes) / 1000, 1),
    )


def candidates(codecs: list[str]) -> Iterator[tuple[VideoEncoder, str, str]]:
    """Every encoder and setting: the encoder, the setting's name, the codec."""
    if "H264" in codecs:
        for preset in X264_PRESETS:
            yield H264Encoder(H264Choice(LIBX264), MIN_BPS, MAX_BPS, 1, preset), preset, "H264"
        if not refusal(NVENC):
            yield H264Encoder(H264Choice(NVENC), MIN_BPS, MAX_BPS, 1), "p1 ull", "H264"
    if "VP8" in codecs:
        for cpu_used in VP8_CPU_USED:
            yield Vp8Encoder(MIN_BPS, MAX_BPS, 1, cpu_used=cpu_used), f"cpu-used {cpu_used}", "VP8"


def size_of(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.encoders", description=__doc__)
    parser.add_argument("--size", type=size_of, default=(640, 480), help="WxH (640x480)")
    parser.add_argument("--codec", choices=["H264", "VP8", "both"], default="both")
    parser.add_argument("--frames", type=int, default=150, help="pictures per row (150)")
    parser.add_argument("--clip", help="a video file instead of synthetic pictures")
    parser.add_argument("--kbps", type=int, help="target; default: what the sender starts with")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args(arguments)
    if options.frames <= WARM_UP_FRAMES:
        parser.error(f"--frames: {options.frames} is not above {WARM_UP_FRAMES}")

    bits_per_s = int(START_SHARE * ceiling_bps(options.size, FPS, MIN_BPS, MAX_BPS))
    if options.kbps:
        bits_per_s = options.kbps * 1000
    try:
        source = (
            from_clip(options.clip, options.size, options.frames)
            if options.clip
            else synthetic(options.size, options.frames)
        )
        frames = list(source)
    except (OSError, av.FFmpegError) as error:
        print(f"--clip: {error}", file=sys.stderr)
        return 1
    if len(frames) <= WARM_UP_FRAMES:
        print(f"--clip: only {len(frames)} pictures", file=sys.stderr)
        return 1
    codecs = ["H264", "VP8"] if options.codec == "both" else [options.codec]
    print(f"{len(frames)} pictures, target {bits_per_s // 1000} kbit/s", flush=True)
    print(
        f"{'encoder':<10} {'setting':<13} {'cpu ms':>7} {'p50 ms':>7} {'p95 ms':>7} {'kbit/s':>7} "
        f"{'PSNR dB':>8} {'worst':>6} {'key kB':>7} {'other kB':>9}"
    )
    rows = []
    for encoder, setting, codec in candidates(codecs):
        row = measure(encoder, setting, codec, frames, bits_per_s)
        rows.append(row)
        print(
            f"{row.encoder:<10} {row.setting:<13} "
            f"{row.cpu_p50_ms:>7} {row.p50_ms:>7} {row.p95_ms:>7} {row.kbit_per_s:>7.0f} "
            f"{row.psnr_db:>8} {row.worst_psnr_db:>6} "
            f"{row.keyframe_kbyte:>7} {row.largest_other_kbyte:>9}",
            flush=True,
        )
    if options.json:
        record = {
            "bench": "encoders",
            "machine": {"cpus": os.cpu_count(), "arch": platform.machine()},
            "versions": {"python": platform.python_version(), "av": av.__version__},
            "frames": len(frames),
            "target_bps": bits_per_s,
            "rows": [asdict(row) for row in rows],
        }
        print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
