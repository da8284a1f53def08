"""What the server carries right now, as the limits on new calls ask it."""

from server.access.limits import CpuMeter, Load
from server.clock import now_ns
from server.desk import Desk
from server.memory import memory_limit_mib, resident_mib
from server.pull.pulls import Pulls
from server.registry import Registry
from server.streams import Streams
from server.telemetry import FrameTelemetry, LoopLagSampler

# Loop lags measured, one in 10 ms, before they decide whether new calls are taken.
LAGS_AT_LEAST = 300


class LoadMeter:
    """Sums what the parts count; on the loop."""

    def __init__(
        self,
        registry: Registry,
        streams: Streams,
        pulls: Pulls,
        desk: Desk,
        frames: FrameTelemetry,
        loop_lag: LoopLagSampler,
        memory_mib: float,
    ) -> None:
        """`memory_mib` is what this process may have; 0: what the system grants it."""
        self._registry = registry
        self._streams = streams
        self._pulls = pulls
        self._desk = desk
        self._frames = frames
        self._loop_lag = loop_lag
        self._cpu = CpuMeter()
        self._memory_mib = memory_mib or memory_limit_mib()

    def measure(self) -> Load:
        sessions = self._registry.statistics().sessions
        fetched = [each for each in self._streams.statistics() if self._pulls.has(each.name)]
        # Old waits say nothing about now when no call makes new ones.
        live = any(session.frames_out for session in sessions) or any(s.live for s in fetched)
        pixels = self._desk.rate.per_second(now_ns())
        pixels += sum(w * h * session.fps_in for session in sessions for w, h in [session.size_wh])
        pixels += sum(w * h * stream.fps for stream in fetched for w, h in [stream.size_wh])
        lag = self._loop_lag.recorder.statistics()
        return Load(
            # The first seconds are those of start-up.
            loop_lag_p99_ms=lag.p99 if lag.count >= LAGS_AT_LEAST else 0.0,
            inference_wait_p95_ms=self._frames.statistics()["wait"].p95 if live else 0.0,
            megapixels_per_s=pixels / 1e6,
            cpu_percent=self._cpu.percent(),
            memory_percent=100 * resident_mib() / self._memory_mib,
        )
