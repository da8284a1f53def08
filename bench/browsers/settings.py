"""What `bench browser` measures: options, checked, and what the script in the page is told."""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from bench.call_settings import CallSettings
from bench.errors import UsageError
from bench.record import plain

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


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowserSettings(CallSettings):
    """One measurement. Checked when made; raises `UsageError`."""

    FPS_AT_MOST = 120

    browsers: tuple[BrowserName, ...] = BROWSERS
    codec: str = "auto"
    """auto | H264 | VP8: what browser and server agree on by themselves, or only this."""
    warmup_s: float = 4.0
    url: str | None = None
    door: Door = "call"
    """call, page (the product's own page makes it) or whep (published by WHIP, watched by WHEP)."""
    page: PageSettings = field(default_factory=PageSettings)

    def __post_init__(self) -> None:
        self.check()
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
        return self.server_module_args()

    def to_record(self) -> dict[str, Any]:
        """For the record: names of files without their folders."""
        return {
            "browsers": list(self.browsers),
            **self.common_record(),
            "against": "running server" if self.url else "server",
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
