"""What the page's tests need around the page: a detector that always finds the same, a clip to
point a camera at, and the server as its own process on a port that outlives a restart."""

import asyncio
import contextlib
import signal
import socket
import sys
from fractions import Fraction
from pathlib import Path

import aiohttp
import av
import cv2
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from server.overlay import PALETTE_RGB

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "server" / "pictures" / "astronaut.jpg"
CLIP_WH = (640, 480)
CLIP_FRAMES = 60
START_DEADLINE_S = 90.0
STOP_DEADLINE_S = 8.0
POLL_S = 0.05
# A machine busy with tests is no reason to turn calls away.
QUIET = ("--admit-loop-lag-ms", "0", "--model", "none", "--demo", "off")

# In shares of a 4:3 picture: name, confidence, and x1 y1 x2 y2.
FOUND = (
    ("person", 0.9, (0.25, 0.25, 0.5, 0.75)),
    ("cat", 0.6, (0.625, 0.25, 0.875, 0.75)),
)
COLOURS_RGB = {name: PALETTE_RGB[index] for index, (name, _, _) in enumerate(FOUND)}
INPUT_SIDE = 64


def write_detector(path: Path) -> Path:
    """An end-to-end ONNX graph that finds FOUND in every 4:3 picture, whatever it shows."""
    # A 4:3 picture lies in the middle of the square input, as wide as it.
    height = INPUT_SIDE * 3 / 4
    offset_y = (INPUT_SIDE - height) / 2
    rows = [
        [
            x1 * INPUT_SIDE,
            y1 * height + offset_y,
            x2 * INPUT_SIDE,
            y2 * height + offset_y,
            confidence,
            class_id,
        ]
        for class_id, (_, confidence, (x1, y1, x2, y2)) in enumerate(FOUND)
    ]
    constants = {
        "rows": np.array([rows], np.float32),
        "nothing": np.zeros(1, np.float32),
    }
    # The mean times nothing makes the answer depend on the picture for the engine's eyes only.
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
            helper.make_node("Add", ["rows", "zero"], ["detections"]),
        ],
        "always",
        [
            helper.make_tensor_value_info(
                "images", TensorProto.FLOAT, [1, 3, INPUT_SIDE, INPUT_SIDE]
            )
        ],
        [helper.make_tensor_value_info("detections", TensorProto.FLOAT, [1, len(rows), 6])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    names = {class_id: name for class_id, (name, _, _) in enumerate(FOUND)}
    helper.set_model_props(model, {"names": repr(names), "end2end": "True"})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def clip_pictures() -> list[npt.NDArray[np.uint8]]:
    """BGR pictures of a window that goes round over the public-domain portrait."""
    portrait = cv2.imread(str(PICTURE))
    assert portrait is not None, f"{PICTURE} is part of the server"
    portrait = cv2.resize(portrait, (800, 800), interpolation=cv2.INTER_AREA)
    width, height = CLIP_WH
    pictures = []
    for index in range(CLIP_FRAMES):
        turn = 2 * np.pi * index / CLIP_FRAMES
        x = round((800 - width) / 2 * (1 + np.cos(turn)))
        y = round((800 - height) / 2 * (1 + np.sin(turn)))
        pictures.append(portrait[y : y + height, x : x + width].astype(np.uint8))
    return pictures


def write_camera_clip(path: Path) -> Path:
    """MJPEG as Chromium's camera plays it, over and over."""
    coded = [cv2.imencode(".jpg", picture)[1].tobytes() for picture in clip_pictures()]
    path.write_bytes(b"".join(coded))
    return path


def write_video_file(path: Path) -> Path:
    """A WebM that both browsers play without help of the system."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=30)
        stream.width, stream.height = CLIP_WH
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 1_500_000
        stream.time_base = Fraction(1, 30)
        stream.options = {"deadline": "realtime", "cpu-used": "8"}
        for picture in clip_pictures():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
    return path


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """`python -m server` on one port, started and stopped as often as a test likes.

    Used as an async context manager; leaving it stops the server.
    """

    def __init__(self, log: Path, *flags: str, host: str = "127.0.0.1") -> None:
        self._log = log
        self._flags = flags
        self._host = host
        self._port = free_port(host)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}/"

    async def __aenter__(self) -> "ServerProcess":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        # At once: a browser that is gone says no goodbye, and its call would be waited for.
        await self.stop(signal.SIGINT)

    async def start(self) -> None:
        """Returns when the server is ready for calls."""
        command = ("-m", "server", "--host", self._host, "--port", str(self._port), *QUIET)
        with self._log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *command, *self._flags, cwd=ROOT, stdout=output, stderr=output
            )
        try:
            async with asyncio.timeout(START_DEADLINE_S), aiohttp.ClientSession() as http:
                while not await self._ready(http):
                    assert self._process.returncode is None, self._log.read_text()
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise AssertionError(f"the server is not ready:\n{self._log.read_text()}") from None

    async def stop(self, first: signal.Signals = signal.SIGTERM) -> None:
        """First politely, then not."""
        process = self._process
        if process is None:
            return
        for each in (first, signal.SIGKILL):
            if process.returncode is None:
                process.send_signal(each)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), STOP_DEADLINE_S)

    async def kill(self) -> None:
        """At once, as a crash would."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def end_calls(self) -> None:
        """Nobody is in any more: a browser that was ended has said no goodbye."""
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{self.url}api/stats") as reply:
                sessions = (await reply.json())["sessions"]
            for session in sessions:
                url = f"{self.url}sessions/{session['session']}"
                async with http.delete(url) as reply:
                    # It may have ended in the meantime.
                    assert reply.status in (200, 204, 404), await reply.text()

    async def _ready(self, http: aiohttp.ClientSession) -> bool:
        try:
            async with http.get(f"{self.url}readyz") as reply:
                return reply.status == 200
        except aiohttp.ClientError:
            return False
