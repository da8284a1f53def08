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
    """Turns one snapshot into metrics each time it is scraped; keeps nothing itself."""

    def __init__(
        self, take: Callable[[], ServerStatistics], take_gate: Callable[[], GateStatistics]
    ) -> None:
        self._take = take
        self._take_gate = take_gate

    def collect(self) -> Iterable[Metric]:
        now = self._take()
        yield from _process(now)
        yield from _frames(now)
        yield from _links(now)
        yield from _gate(self._take_gate())
        yield from _calls(now)
        yield from _streams(now)
        yield from _sources(now)
        yield from _inference(now)
        yield from _pictures(now)
        yield from _bulletin(now)
        yield from _audience(now)
        yield from _mqtt(now)
        yield from _webhooks(now)
        yield from _journal(now)
        yield from _clips(now)


class MetricsPage:
    """The text of `/metrics`. `take_gate` gives what `/api/stats` says of the gate."""

    def __init__(
        self,
        take: Callable[[], ServerStatistics],
        take_gate: Callable[[], GateStatistics] = lambda: {},
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(SnapshotCollector(take, take_gate))

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
    viewers = GaugeMetricFamily(
        "sightline_viewers", "Viewers as they stand", labels=["state", "view"]
    )
    standing = Counter((viewer.state, viewer.view) for viewer in now.registry.viewers)
    for (state, view), count in sorted(standing.items()):
        viewers.add_metric([state, view], count)
    yield viewers
    yield _counter("sightline_viewers_opened", "Viewers answered", now.registry.viewers_opened)
    yield _by_label(
        "sightline_viewers_ended", "Viewers ended, by reason", "reason", now.registry.viewers_ended
    )


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
    load = limits.get("load", {})
    gauge = GaugeMetricFamily(
        "sightline_load", "What decides whether new calls are taken", labels=["what"]
    )
    for what, value in sorted(load.items()):
        gauge.add_metric([what], value)
    yield gauge


def _process(now: ServerStatistics) -> Iterable[Metric]:
    build = GaugeMetricFamily("sightline_build", "1, with the version", labels=["version"])
    build.add_metric([now.version], 1)
    yield build
    yield _histogram(
        "sightline_loop_lag_seconds", "How late the event loop ran a timer", [({}, now.loop_lag)]
    )
    process = now.process
    for name, text, value in (
        ("sightline_ready", "1 when new calls are served", float(now.ready)),
        ("sightline_resident_bytes", "Resident memory", process.resident_mib * 2**20),
        ("sightline_threads", "Threads of this process", process.threads),
        ("sightline_open_files", "Files and sockets of this process", process.open_files),
        ("sightline_tasks", "Tasks of the event loop", process.tasks),
        ("sightline_uptime_seconds", "Since the start", process.uptime_s),
    ):
        yield _gauge(name, text, value)
    yield _counter("sightline_cpu_seconds", "Processor time used", process.cpu_s)


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
    yield _counter(
        "sightline_stale_frames",
        "Frames that waited for the detector for too long",
        inference.mailbox.dropped_stale,
    )
    yield _gauge("sightline_waiting_frames", "Frames in the mailbox", inference.mailbox.waiting)
    yield _counter("sightline_model_swaps", "Detectors that took over", inference.swaps)
    state = GaugeMetricFamily("sightline_detector", "1 for the state it is in", labels=["state"])
    state.add_metric([inference.state], 1)
    yield state
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


def _journal(now: ServerStatistics) -> Iterable[Metric]:
    journal = now.journal
    yield _gauge("sightline_store_away", "1 while events wait for it", journal.state == "away")
    yield _gauge("sightline_events_waiting", "Events not on the disk yet", journal.waiting)
    yield _counter("sightline_events_written", "Events on the disk", journal.written)
    yield _counter("sightline_events_lost", "Events that were neither kept nor told", journal.lost)
    yield _counter(
        "sightline_event_pictures_lost", "Events without their picture", journal.pictures_lost
    )
    yield _histogram(
        "sightline_event_write_seconds",
        "From the picture of an event to the disk",
        [({}, journal.write_ms)],
    )


def _clips(now: ServerStatistics) -> Iterable[Metric]:
    clips = now.clips
    yield _gauge(
        "sightline_recording_stopped", "1 while the disk refuses", clips.state == "stopped"
    )
    yield _gauge("sightline_recording_streams", "Streams that are recorded", clips.recording)
    yield _gauge("sightline_recording_memory_bytes", "Pictures not in a file", clips.memory_bytes)
    yield _counter("sightline_clips_written", "Clips kept", clips.written)
    yield _counter("sightline_clips_lost", "Clips not kept", clips.lost)
    yield _counter("sightline_clips_cut", "Clips that ended early for want of memory", clips.cut)


def _by_label(name: str, text: str, label: str, counts: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
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
