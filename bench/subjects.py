"""What is compared: each server, how it is started, and how it is told to run the same model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bench.peer_environments import PeerEnvironment, own_environment, peer_environment
from bench.peer_servers.finder import COLOUR_BGR
from bench.seen_boxes import ColourOf, always, palette
from bench.server_process import TAKES_EVERY_CALL

OURS: Final = "sightline"


@dataclass(frozen=True, slots=True)
class Engine:
    """What runs the model of one server; the words of the product's settings."""

    model: str | None = None
    provider: str = "auto"
    precision: str = "auto"
    threads: int = 0

    def arguments(self) -> list[str]:
        model = [] if self.model is None else ["--model", self.model]
        return [
            *model,
            *("--provider", self.provider),
            *("--precision", self.precision),
            *("--threads", str(self.threads)),
        ]


@dataclass(frozen=True, slots=True)
class Subject:
    """One compared server."""

    name: str
    title: str
    """For tables."""
    how: str
    """What it is and how it is driven, in a sentence."""
    module: str
    environment: Callable[[], PeerEnvironment]
    """May take minutes the first time."""
    colour_of: ColourOf
    speaks: str = "webrtc"
    """webrtc, or jpeg: pictures over WebSocket, boxes back."""

    def module_args(self, engine: Engine, size_wh: tuple[int, int]) -> list[str]:
        if self.module == "server":
            return ["server", "--host", "127.0.0.1", *TAKES_EVERY_CALL, *engine.arguments()]
        width, height = size_wh
        size = ["--width", str(width), "--height", str(height)]
        return [self.module, *engine.arguments(), *size]


def _made(name: str) -> Callable[[], PeerEnvironment]:
    return lambda: peer_environment(name)


SUBJECTS: Final[Mapping[str, Subject]] = {
    subject.name: subject
    for subject in (
        Subject(
            OURS,
            "Sightline",
            "this checkout with its defaults",
            "server",
            own_environment,
            palette,
        ),
        Subject(
            "aiortc",
            "aiortc, detection in recv()",
            "stock aiortc; a track detects inside recv(), as most first servers do",
            "bench.peer_servers.aiortc_shape",
            own_environment,
            always(COLOUR_BGR),
        ),
        Subject(
            "fastrtc",
            "FastRTC",
            "Stream with a video handler, mounted on FastAPI under uvicorn, input set",
            "bench.peer_servers.fastrtc_app",
            _made("fastrtc"),
            always(COLOUR_BGR),
        ),
        Subject(
            "streamlit",
            "streamlit-webrtc",
            "its WebRtcWorker with a frame callback and its defaults; its page is left out",
            "bench.peer_servers.streamlit_worker",
            _made("streamlit"),
            always(COLOUR_BGR),
        ),
        Subject(
            "websocket",
            "JPEG over WebSocket",
            "FastAPI under uvicorn, a JPEG in, boxes as JSON out, one under way",
            "bench.peer_servers.websocket_jpeg",
            _made("websocket"),
            always(COLOUR_BGR),
            "jpeg",
        ),
        Subject(
            "sightline-websocket",
            "Sightline, JPEG over WebSocket",
            "this checkout's /ws/stream with the same client",
            "server",
            own_environment,
            palette,
            "jpeg",
        ),
    )
}
BY_DEFAULT: Final = ("aiortc", "fastrtc", "streamlit", "websocket")
# Told in each record, so that nobody asks where it is.
LEFT_OUT: Final[Mapping[str, str]] = {
    "roboflow-inference": (
        "its package pins av 14.2, numpy 2.2 and onnxruntime 1.21 beside PyTorch and some 200 "
        "more, so it cannot run on the same libraries; its WebRTC worker takes its models from "
        "the vendor's service with a key, so it cannot be given the same detector"
    ),
}
