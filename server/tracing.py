"""A share of the frames as OpenTelemetry traces: one span a frame, one inside for each stage.

Only with `trace_sample` over 0, and then from the instants that every frame has anyway: nothing is
timed for it. Spans are sent by the library's own thread. Needs the extra `otel`.
"""

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from server import __version__
from server.clock import now_ns
from server.errors import SettingsError
from server.frame import STAGES, FrameSink, Stamps

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

EXPORT_TIMEOUT_S = 5.0
QUEUE_SPANS = 4096


class FrameTracer:
    """Passes every frame's instants on to `inner` and traces `share` of them. On the loop; end it
    with `close`."""

    def __init__(
        self,
        inner: FrameSink,
        share: float,
        provider: "TracerProvider",
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._inner = inner
        self._share = share
        self._provider = provider
        self._tracer = provider.get_tracer("sightline", __version__)
        self._chance = chance

    def record(self, stamps: Stamps) -> None:
        self._inner.record(stamps)
        if stamps.sent_at_ns and self._chance() < self._share:
            self._trace(stamps)

    def _trace(self, stamps: Stamps) -> None:
        from opentelemetry.trace import set_span_in_context

        to_unix_ns = time.time_ns() - now_ns()
        frame = self._tracer.start_span("frame", start_time=stamps.received_at_ns + to_unix_ns)
        inside = set_span_in_context(frame)
        for name, begin, end in STAGES:
            begin_ns, end_ns = getattr(stamps, begin), getattr(stamps, end)
            if begin_ns and end_ns:
                stage = self._tracer.start_span(name, inside, start_time=begin_ns + to_unix_ns)
                stage.end(end_ns + to_unix_ns)
        frame.end(stamps.sent_at_ns + to_unix_ns)

    def close(self) -> None:
        """Send what waits, for `EXPORT_TIMEOUT_S` at most, and stop; blocks."""
        self._provider.force_flush(int(EXPORT_TIMEOUT_S * 1000))
        self._provider.shutdown()


def make_tracer(inner: FrameSink, share: float, endpoint: str) -> FrameTracer:
    """A tracer that sends to this OTLP endpoint over HTTP. Raises `SettingsError` without the
    library."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise SettingsError(
            "trace_sample: OpenTelemetry is not installed: `make environment EXTRAS=otel` brings it"
        ) from None
    return traced_by(inner, share, OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S))


def traced_by(inner: FrameSink, share: float, exporter: "SpanExporter") -> FrameTracer:
    """A tracer that hands its spans to this exporter, in batches and on a thread of their own."""
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource({SERVICE_NAME: "sightline", SERVICE_VERSION: __version__})
    # Not the global provider: nothing else in this process is to be traced by our settings.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=QUEUE_SPANS))
    return FrameTracer(inner, share, provider)
