"""FFmpeg's own WHIP muxer as publisher, in a process of its own: it holds the interpreter while
it connects. `python -m tests.gateway.publishing URL [option=value ...]`."""

import asyncio
import contextlib
import datetime
import select
import sys
import time
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.serving import DEADLINE_S

ROOT = Path(__file__).resolve().parents[2]
SIZE_WH = (320, 240)


def write_pair(folder: Path, curve: ec.EllipticCurve | None = None) -> tuple[Path, Path]:
    """Certificate and key for the muxer's DTLS, as PEM files."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "publisher")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate_file, key_file


@contextlib.asynccontextmanager
async def publishing(url: str, **options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """FFmpeg publishes while the block runs; then it is told to stop and has ended."""
    arguments = [f"{name}={value}" for name, value in options.items()]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.gateway.publishing",
        url,
        *arguments,
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(DEADLINE_S):
            await process.wait()


def publish(url: str, options: dict[str, str]) -> None:
    """Pictures at 30 a second until standard input ends."""
    with av.open(url, "w", format="whip", options=options) as container:
        stream = container.add_stream("libx264", rate=30)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = SIZE_WH
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 30
        stream.codec_context.options = {
            "profile": "baseline",
            "preset": "ultrafast",
            "tune": "zerolatency",
        }
        began_at = time.monotonic()
        stop = began_at + 60
        number = 0
        while time.monotonic() < stop and not stopped():
            picture = np.full((SIZE_WH[1] * 3 // 2, SIZE_WH[0]), 128, np.uint8)
            picture[: SIZE_WH[1]] = 60 + number % 100
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
            number += 1
            # A camera keeps its own pace; this is its clock, not a wait for something to happen.
            time.sleep(max(0.0, began_at + number / 30 - time.monotonic()))


def stopped() -> bool:
    """Whether standard input has ended; never waits."""
    readable, _, _ = select.select([sys.stdin], [], [], 0)
    return bool(readable)


if __name__ == "__main__":
    publish(sys.argv[1], dict(argument.split("=", 1) for argument in sys.argv[2:]))
