"""What `bench browser` measures: options, checked, and what the script in the page is told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from bench.errors import UsageError, check_ranges
from bench.record import plain
from bench.server_process import TAKES_EVERY_CALL

BrowserName = Literal["chromium", "firefox"]
Door = Literal["call", "page", "whep"]
BROWSERS: Final[tuple[BrowserName, ...]] = ("chromium", "firefox")


@dataclass(frozen=True, slots=True)
class PageSettings:
    """What the page asks of its browser; the defaults are those of the product's own page."""

    camera: str = "canvas"
    """canvas | track | clip: captured with the next repaint, handed over at once (Chromium only),
    or the browser's own fake camera, which plays the clip (Chromium only)."""
    jitter_target_ms: float = 0
    """Below 0 leaves the browser's own."""
    content_hint: str = "motion"
    start_kbps: int = 1_000
    """0 leaves the browser's own."""
    max_kbps: int = 2_000
    playout_delay: bool = True
    """False hides from the server that this browser can be asked to hold no picture back."""


@dataclass(frozen=True, slots=True)
class BrowserSettings:
    """One measurement. Checked when made; raises `UsageError`."""

    browsers: tuple[BrowserName, ...] = BROWSERS
    fps: float = 30.0
    size_wh: tuple[int, int] = (640, 480)
    codec: str = "auto"
    """auto | H264 | VP8: what browser and server agree on by themselves, or only this."""
    mode: str = "exact"
    clip: Path | None = None
    seconds: float = 10.0
    warmup_s: float = 4.0
    runs: int = 1
    model: str | None = None
    detector: bool = True
    url: str | None = None
    server_args: tuple[str, ...] = ()
    door: Door = "call"
    """call, page (the product's own page makes it) or whep (published by WHIP, watched by WHEP)."""
    budget_ms: float | None = None
    page: PageSettings = field(default_factory=PageSettings)

    def __post_init__(self) -> None:
        check_ranges(
            ("fps", self.fps, 1, 120),
            ("width", self.size_wh[0], 128, 4096),
            ("height", self.size_wh[1], 96, 2304),
            ("seconds", self.seconds, 0.5, 600),
            ("warmup", self.warmup_s, 0, 600),
            ("runs", self.runs, 1, 100),
            ("budget-ms", 1 if self.budget_ms is None else self.budget_ms, 0.001, 60_000),
        )
        if self.url is not None and (self.model is not None or self.server_args):
            raise UsageError("--url: a running server takes no --model and no --server-arg")
        if self.page.camera == "clip" and "firefox" in self.browsers:
            raise UsageError(
                "--camera: Firefox's fake camera plays no clip; add --browser chromium, "
                "or --camera canvas"
            )
        if self.page.camera == "clip" and self.door == "call":
            raise UsageError("--camera: a fake camera goes through --page or --whep")
        if self.door == "page" and self.page.camera == "track":
            raise UsageError("--camera: the page asks for a camera: canvas or clip")
        if self.door == "page" and self.codec != "auto":
            raise UsageError("--page: the page leaves the codec to browser and server")

    def module_args(self) -> list[str]:
        """What follows `python -m` to start the measured server."""
        model = [] if self.model is None else ["--model", self.model]
        if not self.detector:
            model = ["--model", "none"]
        return ["server", "--host", "127.0.0.1", *TAKES_EVERY_CALL, *model, *self.server_args]

    def to_record(self) -> dict[str, Any]:
        """For the record: names of files without their folders."""
        return {
            "browsers": list(self.browsers),
            "fps": self.fps,
            "size": f"{self.size_wh[0]}x{self.size_wh[1]}",
            "codec": self.codec,
            "mode": self.mode,
            "clip": "photographs" if self.clip is None else self.clip.name,
            "seconds": self.seconds,
            "warmup_s": self.warmup_s,
            "runs": self.runs,
            "against": "running server" if self.url else "server",
            "model": None if self.model is None else Path(self.model).name,
            "detector": self.detector,
            "server_args": [Path(argument).name for argument in self.server_args],
            "door": self.door,
            "camera": self.page.camera,
            "page": None if self.door == "page" else plain(self.page),
        }

    def plan(self) -> dict[str, Any]:
        """What the script in the page is told."""
        width, height = self.size_wh
        planned_s = self.warmup_s + self.seconds + 60
        return {
            "width": width,
            "height": height,
            "fps": self.fps,
            "codec": self.codec,
            "mode": self.mode,
            "camera": self.page.camera,
            "door": self.door,
            "jitterTargetMs": self.page.jitter_target_ms,
            "contentHint": self.page.content_hint,
            "startKbps": self.page.start_kbps,
            "maxKbps": self.page.max_kbps,
            "playoutDelay": self.page.playout_delay,
            "atMost": round(planned_s * self.fps),
        }
