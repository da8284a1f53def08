"""`/metrics` for Prometheus, made from the same snapshot as `/api/stats`."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from server.link_counts import REJECTED
from server.status import ServerStatistics
from server.telemetry import BOUNDS_MS, Summary, percentile

GateStatistics = Mapping[str, Any]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class SnapshotCollector(Collector):
    """One snapshot as metrics."""

    def __init__(self, snapshot: ServerStatistics, gate: GateStatistics) -> None:
        self._snapshot = snapshot
        self._gate = gate

    def collect(self) -> Iterable[Metric]:
        now = self._snapshot
        yield from _tables(now)
        yield from _process(now)
        yield from _frames(now)
        yield from _links(now)
        yield from _gate(self._gate)
        yield from _calls(now)
        yield from _streams(now)
        yield from _sources(now)
        yield from _inference(now)
        yield from _pictures(now)
        yield from _mqtt(now)
        yield from _webhooks(now)
        yield from _journal(now)


def metrics_text(snapshot: ServerStatistics, gate: GateStatistics) -> bytes:
    """The text of `/metrics`; `gate` is what `/api/stats` says of it. Takes milliseconds; any
    thread."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(snapshot, gate))
    return generate_latest(registry)


Figure = Callable[[ServerStatistics], float]
Figures = Callable[[ServerStatistics], Mapping[str, float]]

# Figures without labels: metric, what it tells, and where it is in the snapshot.
GAUGES: tuple[tuple[str, str, Figure], ...] = (
    ("sightline_ready", "1 when new calls are served", lambda s: s.ready),
    ("sightline_resident_bytes", "Resident memory", lambda s: s.process.resident_mib * 2**20),
    ("sightline_threads", "Threads of this process", lambda s: s.process.threads),
    ("sightline_open_files", "Files and sockets of this process", lambda s: s.process.open_files),
    ("sightline_tasks", "Tasks of the event loop", lambda s: s.process.tasks),
    ("sightline_uptime_seconds", "Since the start", lambda s: s.process.uptime_s),
    ("sightline_waiting_frames", "Frames in the mailbox", lambda s: s.inference.mailbox.waiting),
    ("sightline_pictures_waiting", "Sent and not answered yet", lambda s: s.desk.waiting),
    ("sightline_listeners", "Who listens, inside and outside", lambda s: s.bulletin.subscriptions),
    ("sightline_store_away", "1 while events wait for it", lambda s: s.journal.state == "away"),
    ("sightline_events_waiting", "Events not on the disk yet", lambda s: s.journal.waiting),
    (
        "sightline_recording_stopped",
        "1 while the disk refuses",
        lambda s: s.clips.state == "stopped",
    ),
    ("sightline_recording_streams", "Streams that are recorded", lambda s: s.clips.recording),
    ("sightline_recording_memory_bytes", "Pictures not in a file", lambda s: s.clips.memory_bytes),
)
COUNTERS: tuple[tuple[str, str, Figure], ...] = (
    ("sightline_cpu_seconds", "Processor time used", lambda s: s.process.cpu_s),
    ("sightline_calls_opened", "Calls answered", lambda s: s.registry.opened),
    ("sightline_viewers_opened", "Viewers answered", lambda s: s.registry.viewers_opened),
    ("sightline_inferred_frames", "Frames the detector looked at", lambda s: s.inference.inferred),
    ("sightline_failed_frames", "Frames the detector failed on", lambda s: s.inference.failed),
    (
        "sightline_replaced_frames",
        "Frames replaced by a newer one before the detector had time",
        lambda s: s.inference.mailbox.dropped_replaced,
    ),
    (
        "sightline_stale_frames",
        "Frames that waited for the detector for too long",
        lambda s: s.inference.mailbox.dropped_stale,
    ),
    ("sightline_model_swaps", "Detectors that took over", lambda s: s.inference.swaps),
    ("sightline_audience_sent", "Messages sent to them", lambda s: s.audience.sent),
    ("sightline_audience_refused", "Listeners refused", lambda s: s.audience.refused),
    ("sightline_events_written", "Events on the disk", lambda s: s.journal.written),
    ("sightline_events_lost", "Events that were neither kept nor told", lambda s: s.journal.lost),
    (
        "sightline_event_pictures_lost",
        "Events without their picture",
        lambda s: s.journal.pictures_lost,
    ),
    ("sightline_clips_written", "Clips kept", lambda s: s.clips.written),
    ("sightline_clips_lost", "Clips not kept", lambda s: s.clips.lost),
    ("sightline_clips_cut", "Clips that ended early for want of memory", lambda s: s.clips.cut),
)
# Figures with one label: metric, what it tells, the label, and the figures by its values.
GAUGES_BY: tuple[tuple[str, str, str, Figures], ...] = (
    ("sightline_detector", "1 for the state it is in", "state", lambda s: {s.inference.state: 1}),
    (
        "sightline_audience",
        "Who listens from outside",
        "kind",
        lambda s: {kind: s.audience.listening.get(kind, 0) for kind in ("sse", "websocket")},
    ),
)
COUNTERS_BY: tuple[tuple[str, str, str, Figures], ...] = (
    (
        "sightline_frames",
        "Frames, by direction",
        "direction",
        lambda s: {"in": s.registry.frames_in, "out": s.registry.frames_out},
    ),
    (
        "sightline_dropped_frames",
        "Frames that came in and were not sent",
        "reason",
        lambda s: s.registry.dropped,
    ),
    (
        "sightline_calls_refused",
        "Calls refused",
        "reason",
        lambda s: {"full": s.registry.refused_full, "offer": s.registry.refused_offer},
    ),
    ("sightline_calls_ended", "Calls ended, by reason", "reason", lambda s: s.registry.ended),
    (
        "sightline_viewers_ended",
        "Viewers ended, by reason",
        "reason",
        lambda s: s.registry.viewers_ended,
    ),
    ("sightline_notices", "What listeners were told", "topic", lambda s: s.bulletin.posted),
    (
        "sightline_notices_lost",
        "What came too fast for a listener",
        "reason",
        lambda s: {"queue": s.bulletin.dropped, "replaced": s.bulletin.replaced},
    ),
    (
        "sightline_audience_ended",
        "Listeners that are gone, by reason",
        "reason",
        lambda s: s.audience.ended,
    ),
)


def _tables(now: ServerStatistics) -> Iterable[Metric]:
    for name, text, value in GAUGES:
        yield _gauge(name, text, value(now))
    for name, text, value in COUNTERS:
        yield _counter(name, text, value(now))
    for name, text, label, values in GAUGES_BY:
        yield _by_label(name, text, label, values(now), GaugeMetricFamily)
    for name, text, label, values in COUNTERS_BY:
        yield _by_label(name, text, label, values(now))


def _frames(now: ServerStatistics) -> Iterable[Metric]:
    yield _histogram(
        "sightline_stage_seconds",
        "Time a frame spent in a stage; total and own are the sums",
        [({"stage": name}, summary) for name, summary in now.stages.items()],
    )


def _calls(now: ServerStatistics) -> Iterable[Metric]:
    live = GaugeMetricFamily("sightline_calls", "Calls as they stand, by state", labels=["state"])
    states = [session.state for session in now.registry.sessions]
    for state in ("connecting", "live", "stale", "closing"):
        live.add_metric([state], states.count(state))
    yield live
    viewers = GaugeMetricFamily(
        "sightline_viewers", "Viewers as they stand", labels=["state", "view"]
    )
    standing = Counter((viewer.state, viewer.view) for viewer in now.registry.viewers)
    for (state, view), count in sorted(standing.items()):
        viewers.add_metric([state, view], count)
    yield viewers


# Metric, what it tells, its label, and its values: the label's value and the name in the sums.
LINKS: tuple[tuple[str, str, str, Mapping[str, str]], ...] = (
    (
        "sightline_media_packets",
        "Packets of video, repairs apart",
        "direction",
        {"in": "packets_in", "out": "packets_out"},
    ),
    (
        "sightline_media_bytes",
        "Payload bytes of video",
        "direction",
        {"in": "bytes_in", "out": "bytes_out"},
    ),
    (
        "sightline_packet_repairs",
        "Packets lost on their way in, asked for again, got so, and sent again",
        "what",
        {
            "lost": "packets_lost",
            "requested": "packets_requested",
            "recovered": "packets_recovered",
            "resent": "packets_resent",
        },
    ),
    (
        "sightline_resends_left_out",
        "Packets that peers asked for and did not get",
        "reason",
        {"unknown": "resends_unknown", "repeated": "resends_repeated", "bound": "resends_refused"},
    ),
    (
        "sightline_keyframe_requests",
        "Key frames that we asked sources for, and peers asked us for",
        "direction",
        {"sent": "keyframes_requested", "received": "keyframe_requests"},
    ),
    (
        "sightline_peer_frames",
        "Pictures sent, those of them as they came, and key frames",
        "what",
        {"sent": "frames_out", "forwarded": "frames_forwarded", "key": "keyframes_sent"},
    ),
    (
        "sightline_media_failures",
        "What went wrong with single packets and pictures",
        "what",
        {
            "decode": "decode_errors",
            "encode": "encode_failures",
            "send": "send_errors",
            "restart": "restarts",
        },
    ),
)


def _links(now: ServerStatistics) -> Iterable[Metric]:
    """Sums since start; nobody's own figures, so that labels stay few."""
    links = now.registry.links
    for name, text, label, values in LINKS:
        yield _by_label(
            name, text, label, {value: links.get(key, 0) for value, key in values.items()}
        )
    rejected = {
        name.removeprefix(REJECTED): count
        for name, count in links.items()
        if name.startswith(REJECTED)
    }
    yield _by_label(
        "sightline_rejected_datagrams", "Datagrams that were not taken, by kind", "kind", rejected
    )
    peers = [session.peer for session in now.registry.sessions]
    peers += [viewer.peer for viewer in now.registry.viewers]
    outgoing = [video for peer in peers for video in peer.outgoing]
    incoming = [video for peer in peers for video in peer.incoming]
    round_trips_s = [peer.rtt_ms / 1000 for peer in peers if peer.rtt_ms is not None]
    losses = [video.fraction_lost for video in outgoing if video.fraction_lost is not None]
    jitters_s = [video.jitter_ms / 1000 for video in incoming]
    yield _spread("sightline_rtt_seconds", "Round trips of those who are in", round_trips_s)
    yield _spread("sightline_outgoing_loss", "Share of packets that peers report lost", losses)
    yield _spread("sightline_incoming_jitter_seconds", "Jitter of what comes in", jitters_s)


def _gate(gate: GateStatistics) -> Iterable[Metric]:
    """Who was not let in, and the load that decides it."""
    limits, access = gate.get("limits", {}), gate.get("access", {})
    refused = {**limits.get("refused", {}), **access.get("refused", {})}
    yield _by_label(
        "sightline_refused_requests",
        "Requests refused before any handler: by limit, or by status",
        "reason",
        refused,
    )
    yield _by_label(
        "sightline_load",
        "What decides whether new calls are taken",
        "what",
        limits.get("load", {}),
        GaugeMetricFamily,
    )


def _process(now: ServerStatistics) -> Iterable[Metric]:
    build = GaugeMetricFamily("sightline_build", "1, with the version", labels=["version"])
    build.add_metric([now.version], 1)
    yield build
    yield _histogram(
        "sightline_loop_lag_seconds", "How late the event loop ran a timer", [({}, now.loop_lag)]
    )


def _streams(now: ServerStatistics) -> Iterable[Metric]:
    """Bound of the labels: max_streams names."""
    live = GaugeMetricFamily("sightline_stream_live", "1 while pictures come in", labels=["stream"])
    viewers = GaugeMetricFamily("sightline_stream_viewers", "Viewers", labels=["stream"])
    frames = CounterMetricFamily("sightline_stream_frames", "Pictures in", labels=["stream"])
    labels = ["stream", "codec", "rung"]
    encoded = CounterMetricFamily(
        "sightline_shared_pictures", "Pictures encoded once for all viewers", labels=labels
    )
    target = GaugeMetricFamily(
        "sightline_shared_target_bits_per_second", "What an encoding may take", labels=labels
    )
    keyframes = CounterMetricFamily(
        "sightline_shared_keyframes", "Key frames among them", labels=labels
    )
    lost = CounterMetricFamily(
        "sightline_shared_pictures_dropped",
        "Pictures that viewers did not get",
        labels=[*labels, "reason"],
    )
    relayed = CounterMetricFamily(
        "sightline_relayed_pictures", "Pictures passed on as they came", labels=["stream"]
    )
    for stream in now.registry.streams:
        live.add_metric([stream.name], float(stream.live))
        viewers.add_metric([stream.name], stream.viewers)
        frames.add_metric([stream.name], stream.frames)
        relayed.add_metric([stream.name], stream.relay.pictures)
        for encoding in stream.encodings:
            fanout = encoding.fanout
            values = [stream.name, fanout.codec, encoding.rung]
            encoded.add_metric(values, fanout.encoded)
            target.add_metric(values, fanout.target_bps)
            keyframes.add_metric(values, fanout.keyframes)
            lost.add_metric([*values, "replaced"], fanout.dropped_replaced)
            lost.add_metric([*values, "failed"], fanout.failures)
    yield from (live, viewers, frames, relayed, encoded, target, keyframes, lost)


def _sources(now: ServerStatistics) -> Iterable[Metric]:
    """What the server fetches; the names are the operator's, so their number is bounded."""
    playing = GaugeMetricFamily(
        "sightline_source_playing", "1 while a fetched source is connected", labels=["stream"]
    )
    connects = CounterMetricFamily(
        "sightline_source_connects", "Connections to a fetched source", labels=["stream"]
    )
    dropped = CounterMetricFamily(
        "sightline_source_dropped",
        "Pictures of a fetched source that were left out",
        labels=["stream", "reason"],
    )
    for source in now.sources:
        playing.add_metric([source.stream], int(source.state == "playing"))
        connects.add_metric([source.stream], source.connects)
        for reason, count in source.dropped.items():
            dropped.add_metric([source.stream, reason], count)
    yield from (playing, connects, dropped)


def _inference(now: ServerStatistics) -> Iterable[Metric]:
    engine = GaugeMetricFamily(
        "sightline_engine", "1 for each engine that runs", labels=["model", "provider", "precision"]
    )
    for report in now.inference.engines:
        engine.add_metric([report.model, report.provider, report.precision], 1)
    yield engine


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


def _journal(now: ServerStatistics) -> Iterable[Metric]:
    yield _histogram(
        "sightline_event_write_seconds",
        "From the picture of an event to the disk",
        [({}, now.journal.write_ms)],
    )


def _by_label(
    name: str,
    text: str,
    label: str,
    values: Mapping[str, float],
    make: type[CounterMetricFamily] | type[GaugeMetricFamily] = CounterMetricFamily,
) -> Metric:
    family = make(name, text, labels=[label])
    for value, figure in sorted(values.items()):
        family.add_metric([value], figure)
    return family


def _spread(name: str, text: str, values: list[float]) -> Metric:
    """A gauge of the middle, the worst twentieth and the worst; nothing where there is nobody."""
    family = GaugeMetricFamily(name, text, labels=["quantile"])
    ascending = sorted(values)
    for quantile, percent in (("0.5", 50), ("0.95", 95), ("1", 100)) if ascending else ():
        family.add_metric([quantile], percentile(ascending, percent))
    return family


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
