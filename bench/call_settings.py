"""What measurements of pictures through the server have in common: what is sent, for how long, and
the server that is started for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench.errors import check_ranges
from bench.server_process import TAKES_EVERY_CALL


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """The base of a command's settings, which call `check` when they are made."""

    FPS_AT_MOST: ClassVar[float] = 240
    SECONDS_AT_MOST: ClassVar[float] = 600

    fps: float = 30.0
    size_wh: tuple[int, int] = (640, 480)
    codec: str = "H264"
    mode: str = "exact"
    clip: Path | None = None
    seconds: float = 10.0
    warmup_s: float = 3.0
    runs: int = 1
    model: str | None = None
    detector: bool = True
    server_args: tuple[str, ...] = ()
    budget_ms: float | None = None

    def check(self) -> None:
        """Raises `UsageError` for what is out of its range."""
        check_ranges(
            ("fps", self.fps, 1, self.FPS_AT_MOST),
            ("width", self.size_wh[0], 128, 4096),
            ("height", self.size_wh[1], 96, 2304),
            ("seconds", self.seconds, 0.5, self.SECONDS_AT_MOST),
            ("warmup", self.warmup_s, 0, 600),
            ("runs", self.runs, 1, 100),
            ("budget-ms", 1 if self.budget_ms is None else self.budget_ms, 0.001, 60_000),
        )

    def server_module_args(self, *more: str) -> list[str]:
        """What follows `python -m` to start the measured server."""
        model = [] if self.model is None else ["--model", self.model]
        if not self.detector:
            model = ["--model", "none"]
        fixed = ["server", "--host", "127.0.0.1", *TAKES_EVERY_CALL]
        return [*fixed, *model, *more, *self.server_args]

    def common_record(self) -> dict[str, Any]:
        """For the record: names of files without their folders."""
        return {
            "fps": self.fps,
            "size": f"{self.size_wh[0]}x{self.size_wh[1]}",
            "codec": self.codec,
            "mode": self.mode,
            "clip": "photographs" if self.clip is None else self.clip.name,
            "seconds": self.seconds,
            "warmup_s": self.warmup_s,
            "runs": self.runs,
            "model": None if self.model is None else Path(self.model).name,
            "detector": self.detector,
            "server_args": [Path(argument).name for argument in self.server_args],
        }
