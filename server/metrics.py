"""`/metrics` for Prometheus, made from the same snapshot as `/api/stats`."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from server.status import ServerStatistics
from server.telemetry import BOUNDS_MS, Summary

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class SnapshotCollector(Collector):
    """Turns one snapshot into metrics each time it is scraped; keeps nothing itself."""

    def __init__(self, take: Callable[[], ServerStatistics]) -> None:
        self._take = take

    def collect(self) -> Iterable[Metric]:
        now = self._take()
        yield from _frames(now)
        yield from _calls(now)
        yield from _streams(now)
        yield from _inference(now)
        yield from _pictures(now)
        yield from _bulletin(now)
        yield from _audience(now)
        yield from _mqtt(now)
        yield from _webhooks(now)
        yield _histogram(
            "sightline_loop_lag_seconds",
            "How late the event loop ran a timer",
            [({}, now.loop_lag)],
        )
        yield _gauge("sightline_ready", "1 when new calls are served", float(now.ready))
        yield _gauge(
            "sightline_resident_bytes", "Resident memory", now.process.resident_mib * 2**20
        )
        yield _gauge("sightline_threads", "Threads of this process", now.process.threads)
        yield _counter("sightline_cpu_seconds", "Processor time used", now.process.cpu_s)


class MetricsPage:
    """The text of `/metrics`."""

    def __init__(self, take: Callable[[], ServerStatistics]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(SnapshotCollector(take))

    def render(self) -> bytes:
        return generate_latest(self._registry)


def _frames(now: ServerStatistics) -> Iterable[Metric]:
    yield _histogram(
        "sightline_stage_seconds",
        "Time a frame spent in a stage; total and own are the sums",
        [({"stage": name}, summary) for name, summary in now.stages.items()],
    )
    frames = CounterMetricFamily("sightline_frames", "Frames, by direction", labels=["direction"])
    frames.add_metric(["in"], now.registry.frames_in)
    frames.add_metric(["out"], now.registry.frames_out)
    yield frames
    dropped = CounterMetricFamily(
        "sightline_dropped_frames", "Frames that came in and were not sent", labels=["reason"]
    )
    for reason, count in sorted(now.registry.dropped.items()):
        dropped.add_metric([reason], count)
    yield dropped


def _calls(now: ServerStatistics) -> Iterable[Metric]:
    live = GaugeMetricFamily("sightline_calls", "Calls as they stand, by state", labels=["state"])
    states = [session.state for session in now.registry.sessions]
    for state in ("connecting", "live", "stale", "closing"):
        live.add_metric([state], states.count(state))
    yield live
    yield _counter("sightline_calls_opened", "Calls answered", now.registry.opened)
    refused = CounterMetricFamily("sightline_calls_refused", "Calls refused", labels=["reason"])
    refused.add_metric(["full"], now.registry.refused_full)
    refused.add_metric(["offer"], now.registry.refused_offer)
    yield refused
    ended = CounterMetricFamily(
        "sightline_calls_ended", "Calls ended, by reason", labels=["reason"]
    )
    for reason, count in sorted(now.registry.ended.items()):
        ended.add_metric([reason], count)
    yield ended


def _streams(now: ServerStatistics) -> Iterable[Metric]:
    """Bound of the labels: max_streams names."""
    live = GaugeMetricFamily("sightline_stream_live", "1 while pictures come in", labels=["stream"])
    viewers = GaugeMetricFamily("sightline_stream_viewers", "Viewers", labels=["stream"])
    frames = CounterMetricFamily("sightline_stream_frames", "Pictures in", labels=["stream"])
    labels = ["stream", "codec", "rung"]
    encoded = CounterMetricFamily(
        "sightline_shared_pictures", "Pictures encoded once for all viewers", labels=labels
    )
    for stream in now.registry.streams:
        live.add_metric([stream.name], float(stream.live))
        viewers.add_metric([stream.name], stream.viewers)
        frames.add_metric([stream.name], stream.frames)
        for encoding in stream.encodings:
            fanout = encoding.fanout
            encoded.add_metric([stream.name, fanout.codec, encoding.rung], fanout.encoded)
    yield from (live, viewers, frames, encoded)


def _inference(now: ServerStatistics) -> Iterable[Metric]:
    inference = now.inference
    yield _counter("sightline_inferred_frames", "Frames the detector looked at", inference.inferred)
    yield _counter("sightline_failed_frames", "Frames the detector failed on", inference.failed)
    yield _counter(
        "sightline_replaced_frames",
        "Frames replaced by a newer one before the detector had time",
        inference.mailbox.dropped_replaced,
    )
    engine = GaugeMetricFamily(
        "sightline_engine", "1 for each engine that runs", labels=["model", "provider", "precision"]
    )
    for report in inference.engines:
        engine.add_metric([report.model, report.provider, report.precision], 1)
    yield engine


def _bulletin(now: ServerStatistics) -> Iterable[Metric]:
    bulletin = now.bulletin
    posted = CounterMetricFamily("sightline_notices", "What listeners were told", labels=["topic"])
    for topic, count in bulletin.posted.items():
        posted.add_metric([topic], count)
    yield posted
    yield _gauge("sightline_listeners", "Who listens, inside and outside", bulletin.subscriptions)
    lost = CounterMetricFamily(
        "sightline_notices_lost", "What came too fast for a listener", labels=["reason"]
    )
    lost.add_metric(["queue"], bulletin.dropped)
    lost.add_metric(["replaced"], bulletin.replaced)
    yield lost


def _audience(now: ServerStatistics) -> Iterable[Metric]:
    audience = now.audience
    listening = GaugeMetricFamily("sightline_audience", "Who listens from outside", labels=["kind"])
    for kind in ("sse", "websocket"):
        listening.add_metric([kind], audience.listening.get(kind, 0))
    yield listening
    yield _counter("sightline_audience_sent", "Messages sent to them", audience.sent)
    yield _counter("sightline_audience_refused", "Listeners refused", audience.refused)
    ended = CounterMetricFamily(
        "sightline_audience_ended", "Listeners that are gone, by reason", labels=["reason"]
    )
    for reason, count in sorted(audience.ended.items()):
        ended.add_metric([reason], count)
    yield ended


def _pictures(now: ServerStatistics) -> Iterable[Metric]:
    """Picture files that wanted one answer each, by the door they came through."""
    requests = CounterMetricFamily(
        "sightline_picture_requests", "POSTs and opened WebSockets", labels=["door"]
    )
    answered = CounterMetricFamily(
        "sightline_pictures_answered", "Picture files that got detections", labels=["door"]
    )
    refused = CounterMetricFamily(
        "sightline_pictures_refused", "Pictures and requests refused", labels=["door", "reason"]
    )
    for door, counts in now.desk.doors.items():
        requests.add_metric([door], counts.requests)
        answered.add_metric([door], counts.pictures)
        for reason, count in sorted(counts.refused.items()):
            refused.add_metric([door, reason], count)
    yield from (requests, answered, refused)
    yield _gauge("sightline_pictures_waiting", "Sent and not answered yet", now.desk.waiting)
    yield _histogram(
        "sightline_picture_decode_seconds",
        "Time to decode a picture file",
        [({}, now.desk.decode_ms)],
    )
    yield _histogram(
        "sightline_picture_answer_seconds",
        "From a whole picture file in to its answer ready",
        [({}, now.desk.answer_ms)],
    )


def _mqtt(now: ServerStatistics) -> Iterable[Metric]:
    mqtt = now.mqtt
    if not mqtt.broker:
        return
    yield _gauge("sightline_mqtt_connected", "1 while the broker is there", float(mqtt.connected))
    yield _counter("sightline_mqtt_failures", "Connections lost or not made", mqtt.failures)
    yield _counter("sightline_mqtt_published", "Messages the broker took", mqtt.published)
    yield _counter("sightline_mqtt_dropped", "Messages that fell out of the queue", mqtt.dropped)
    yield _gauge("sightline_mqtt_waiting", "Messages in the queue", mqtt.waiting)


def _webhooks(now: ServerStatistics) -> Iterable[Metric]:
    if not now.webhooks:
        return
    posts = CounterMetricFamily(
        "sightline_webhook_events", "Events by what became of them", labels=["target", "result"]
    )
    waiting = GaugeMetricFamily("sightline_webhook_waiting", "In the queue", labels=["target"])
    for number, webhook in enumerate(now.webhooks):
        # Two addresses of one host are told apart by their place in the settings.
        target = f"{number}:{webhook.target}"
        for result in ("delivered", "retried", "refused", "failed", "dropped"):
            posts.add_metric([target, result], getattr(webhook, result))
        waiting.add_metric([target], webhook.waiting)
    yield from (posts, waiting)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)


def _histogram(
    name: str, text: str, rows: Iterable[tuple[dict[str, str], Summary]]
) -> HistogramMetricFamily:
    rows = list(rows)
    family = HistogramMetricFamily(name, text, labels=list(rows[0][0]) if rows else [])
    for labels, summary in rows:
        buckets = []
        below = 0
        for bound_ms, count in zip(BOUNDS_MS, summary.bucket_counts, strict=False):
            below += count
            buckets.append((f"{bound_ms / 1000:g}", float(below)))
        buckets.append(("+Inf", float(summary.count)))
        family.add_metric(list(labels.values()), buckets, sum_value=summary.sum_ms / 1000)
    return family
