"""Cameras for the tests: the RTSP server of the bench, and video files made on the spot."""

import asyncio
import contextlib
import fractions
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from tests.serving import DEADLINE_S

PYTHON = "/usr/bin/python3"
SERVER = Path(__file__).resolve().parents[2] / "bench" / "rtsp_camera.py"
PACKAGES = (
    "python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good "
    "gstreamer1.0-plugins-ugly"
)
PROBE = (
    "import gi; gi.require_version('GstRtspServer', '1.0'); "
    "from gi.repository import Gst, GstRtspServer; Gst.init(None); "
    "assert all(map(Gst.ElementFactory.find, ('x264enc', 'rtph264pay', 'videotestsrc')))"
)


def want_camera() -> None:
    """Without Debian's RTSP server the test fails under CI and skips elsewhere."""
    if shutil.which(PYTHON):
        done = subprocess.run([PYTHON, "-c", PROBE], capture_output=True, check=False, timeout=60)
        if done.returncode == 0:
            return
    reason = f"no RTSP camera (apt-get install {PACKAGES})"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def write_play_list(folder: Path) -> Path:
    """A recording cut into pieces, with the play list that names them."""
    with av.open(
        str(folder / "list.m3u8"),
        "w",
        format="hls",
        options={"hls_time": "0.5", "hls_list_size": "0"},
    ) as container:
        stream = container.add_stream("libx264", rate=10)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        stream.codec_context.gop_size = 5
        for number in range(20):
            picture = np.full((180, 160), 128, np.uint8)
            picture[:120] = 40 + 8 * number
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts, frame.time_base = number, fractions.Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return folder / "list.m3u8"


class Camera:
    """A camera that runs; `stop` takes it away, as a power cut does."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self.port = port

    @property
    def path(self) -> str:
        return f"127.0.0.1:{self.port}/camera"

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        async with asyncio.timeout(DEADLINE_S):
            await self._process.wait()


@contextlib.asynccontextmanager
async def camera(**options: str) -> AsyncIterator[Camera]:
    """An RTSP camera on this machine; gone when the block ends."""
    arguments = [f"{name}={value}" for name, value in options.items()]
    process = await asyncio.create_subprocess_exec(
        PYTHON,
        str(SERVER),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    made = Camera(process, 0)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            made.port = json.loads(await process.stdout.readline())["port"]
        yield made
    finally:
        await made.stop()


def write_clip(path: Path, seconds: float = 0.6, fps: int = 10, codec: str = "libx264") -> Path:
    """A video file whose pictures get lighter as it goes on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = 160, 120
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(int(seconds * fps)):
            picture = np.full((180, 160), 128, np.uint8)
            picture[:120] = 40 + 20 * number % 200
            frame = av.VideoFrame.from_ndarray(picture, format=stream.pix_fmt)
            frame.pts, frame.time_base = number, fractions.Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
