"""Frames as traces: what is sent to an OTLP collector, how many, and what that costs when off."""

import asyncio
import subprocess
import sys
from collections.abc import Sequence

import pytest
from aiohttp import web
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.clock import NS_PER_MS, now_ns
from server.frame import Stamps
from server.tracing import FrameTracer, traced_by
from tests.fakes import FakeDetector
from tests.serving import DEADLINE_S, calling, changed, serving

pytestmark = pytest.mark.service


class Sink:
    def __init__(self) -> None:
        self.recorded: list[Stamps] = []

    def record(self, stamps: Stamps) -> None:
        self.recorded.append(stamps)


def a_frame() -> Stamps:
    at = now_ns() - 20 * NS_PER_MS
    return Stamps(at, at + NS_PER_MS, at + 3 * NS_PER_MS, sent_at_ns=at + 9 * NS_PER_MS)


def spans(tracer: FrameTracer, exporter: InMemorySpanExporter) -> Sequence[ReadableSpan]:
    tracer.close()
    return exporter.get_finished_spans()


def test_a_frame_is_a_span_with_its_stages_inside() -> None:
    exporter, sink = InMemorySpanExporter(), Sink()
    tracer = traced_by(sink, 1.0, exporter)
    tracer.record(a_frame())
    found = {span.name: span for span in spans(tracer, exporter)}
    assert set(found) == {"frame", "assemble", "decode"}
    frame, decode = found["frame"], found["decode"]
    assert frame.context is not None
    assert decode.parent is not None
    assert decode.parent.span_id == frame.context.span_id
    assert frame.end_time is not None
    assert frame.start_time is not None
    assert frame.end_time - frame.start_time == 9 * NS_PER_MS
    assert len(sink.recorded) == 1


def test_the_share_is_kept_and_every_frame_is_passed_on() -> None:
    exporter, sink = InMemorySpanExporter(), Sink()
    tracer = traced_by(sink, 0.25, exporter)
    chances = iter([0.1, 0.3, 0.9, 0.24] * 25)
    tracer._chance = lambda: next(chances)
    for _ in range(100):
        tracer.record(a_frame())
    # Boxes whose picture left before are told without an end.
    tracer.record(Stamps(received_at_ns=1, assembled_at_ns=2))
    assert sum(span.name == "frame" for span in spans(tracer, exporter)) == 50
    assert len(sink.recorded) == 101


async def test_a_call_is_traced_to_a_collector() -> None:
    bodies: asyncio.Queue[bytes] = asyncio.Queue()

    async def collect(request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        bodies.put_nowait(await request.read())
        return web.Response()

    collector = web.Application(client_max_size=2**24)
    collector.router.add_post("/v1/traces", collect)
    runner = web.AppRunner(collector)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        trace = {"trace_sample": 1.0, "trace_endpoint": f"http://{host}:{port}/v1/traces"}
        async with (
            serving(FakeDetector(), changed(server=trace)) as server,
            calling(server) as caller,
        ):
            for _ in range(5):
                await caller.picture()
        # What waited was sent when the server stopped.
        async with asyncio.timeout(DEADLINE_S):
            body = await bodies.get()
        assert b"infer" in body
        assert b"sightline" in body
    finally:
        await runner.cleanup()


def test_without_it_nothing_of_opentelemetry_is_loaded() -> None:
    script = (
        "import sys\n"
        "from server.app import make_app\n"
        "from server.settings import Settings\n"
        "import asyncio\n"
        "async def main(): make_app(Settings(), None)\n"
        "asyncio.run(main())\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
