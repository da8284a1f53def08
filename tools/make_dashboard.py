"""`python -m tools.make_dashboard`: writes observe/grafana/dashboards/sightline.json.

The dashboard is a table of panels here; the file is what Grafana takes. A test holds the file to
this table, and every query to the metrics that the server has.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "observe" / "grafana" / "dashboards" / "sightline.json"
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDE, HIGH, STAT_HIGH = 8, 8, 4
COLUMNS = 24


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: queries with their legends, and the unit as Grafana names it."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    stacked: bool = False
    note: str = ""


def quantile(share: float, metric: str, by: str = "", where: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    rate = f"rate({metric}_bucket{{{where}}}[$__rate_interval])"
    return f"histogram_quantile({share}, sum by ({labels}) ({rate}))"


def per_second(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}[$__rate_interval]))"


STAGE = "sightline_stage_seconds"
ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Now",
        (
            Panel("Ready", (("sightline_ready", ""),), kind="stat"),
            Panel("Calls", (('sum(sightline_calls{state="live"})', ""),), kind="stat"),
            Panel("Viewers", (("sum(sightline_viewers)", ""),), kind="stat"),
            Panel("Live streams", (("sum(sightline_stream_live)", ""),), kind="stat"),
            Panel(
                "Server, p95", ((quantile(0.95, STAGE, where='stage="total"'), ""),), "s", "stat"
            ),
            Panel(
                "Processor", (("rate(sightline_cpu_seconds_total[1m])", ""),), "percentunit", "stat"
            ),
        ),
    ),
    (
        "Delay",
        (
            Panel(
                "In the server: first packet in to last packet out",
                (
                    (quantile(0.5, STAGE, where='stage="total"'), "p50"),
                    (quantile(0.95, STAGE, where='stage="total"'), "p95"),
                    (quantile(0.95, STAGE, where='stage="own"'), "p95 without the model"),
                ),
                "s",
                note="The budget of the whole way, camera to screen, is 75 ms.",
            ),
            Panel(
                "Stages, mean",
                (
                    (
                        'sum by (stage) (rate(sightline_stage_seconds_sum{stage!~"total|own"}'
                        "[$__rate_interval])) / sum by (stage) "
                        '(rate(sightline_stage_seconds_count{stage!~"total|own"}'
                        "[$__rate_interval]))",
                        "{{stage}}",
                    ),
                ),
                "s",
                stacked=True,
            ),
            Panel(
                "Event loop, how late",
                (
                    (quantile(0.5, "sightline_loop_lag_seconds"), "p50"),
                    (quantile(0.99, "sightline_loop_lag_seconds"), "p99"),
                ),
                "s",
            ),
        ),
    ),
    (
        "Pictures",
        (
            Panel(
                "Frames", ((per_second("sightline_frames_total", "direction"), "{{direction}}"),)
            ),
            Panel(
                "Dropped, by reason",
                ((per_second("sightline_dropped_frames_total", "reason"), "{{reason}}"),),
            ),
            Panel(
                "Detector",
                (
                    ("rate(sightline_inferred_frames_total[$__rate_interval])", "looked at"),
                    ("rate(sightline_failed_frames_total[$__rate_interval])", "failed"),
                    ("rate(sightline_replaced_frames_total[$__rate_interval])", "replaced"),
                    ("rate(sightline_stale_frames_total[$__rate_interval])", "stale"),
                    ("sightline_waiting_frames", "waiting now"),
                ),
            ),
        ),
    ),
    (
        "Streams and viewers",
        (
            Panel("Viewers", (("sightline_stream_viewers", "{{stream}}"),)),
            Panel(
                "Pictures in",
                ((per_second("sightline_stream_frames_total", "stream"), "{{stream}}"),),
            ),
            Panel(
                "Encoded once, and passed on as they came",
                (
                    (
                        per_second("sightline_shared_pictures_total", "stream, codec, rung"),
                        "{{stream}} {{codec}} {{rung}}",
                    ),
                    (
                        per_second("sightline_relayed_pictures_total", "stream"),
                        "{{stream}} as it came",
                    ),
                ),
            ),
        ),
    ),
    (
        "Network",
        (
            Panel(
                "Video",
                (
                    (
                        "8 * " + per_second("sightline_media_bytes_total", "direction"),
                        "{{direction}}",
                    ),
                ),
                "bps",
            ),
            Panel(
                "Repairs",
                ((per_second("sightline_packet_repairs_total", "what"), "{{what}}"),),
                note="Packets lost on their way in, asked for again, got so, and sent again.",
            ),
            Panel(
                "Key frames asked for",
                ((per_second("sightline_keyframe_requests_total", "direction"), "{{direction}}"),),
            ),
            Panel("Round trip", (("sightline_rtt_seconds", "{{quantile}}"),), "s"),
            Panel(
                "Loss that peers report",
                (("sightline_outgoing_loss", "{{quantile}}"),),
                "percentunit",
            ),
            Panel(
                "Datagrams not taken",
                ((per_second("sightline_rejected_datagrams_total", "kind"), "{{kind}}"),),
            ),
        ),
    ),
    (
        "Who comes and goes",
        (
            Panel("Calls", (("sightline_calls", "{{state}}"),), stacked=True),
            Panel(
                "Ended, by reason",
                (
                    (per_second("sightline_calls_ended_total", "reason"), "call: {{reason}}"),
                    (per_second("sightline_viewers_ended_total", "reason"), "viewer: {{reason}}"),
                ),
            ),
            Panel(
                "Refused",
                (
                    (per_second("sightline_refused_requests_total", "reason"), "{{reason}}"),
                    (per_second("sightline_calls_refused_total", "reason"), "call: {{reason}}"),
                ),
            ),
        ),
    ),
    (
        "Process",
        (
            Panel("Processor", (("rate(sightline_cpu_seconds_total[$__rate_interval])", "cores"),)),
            Panel("Memory", (("sightline_resident_bytes", "resident"),), "bytes"),
            Panel(
                "Threads, tasks, files",
                (
                    ("sightline_threads", "threads"),
                    ("sightline_tasks", "tasks"),
                    ("sightline_open_files", "files"),
                ),
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
        panels.append(
            {"type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        )
        y = _add_row(panels, row, y + 1)
    for number, panel in enumerate(panels, start=1):
        panel["id"] = number
    return {
        "uid": "sightline",
        "title": "Sightline",
        "description": "Delay, pictures, streams, network and load of a Sightline server.",
        "tags": ["sightline", "webrtc"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {
                    "name": "source",
                    "label": "Source",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {},
                    "hide": 0,
                }
            ]
        },
        "annotations": {"list": []},
        "panels": panels,
    }


def _add_row(panels: list[dict[str, Any]], row: Sequence[Panel], y: int) -> int:
    """Panels from left to right, three or six to a line; returns where the next row begins."""
    x, high = 0, HIGH
    for panel in row:
        wide = COLUMNS // 6 if panel.kind == "stat" else WIDE
        high = STAT_HIGH if panel.kind == "stat" else HIGH
        if x + wide > COLUMNS:
            x, y = 0, y + high
        panels.append(_panel(panel, {"h": high, "w": wide, "x": x, "y": y}))
        x += wide
    return y + high


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    custom = {"stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"}}
    shown: dict[str, Any] = {"tooltip": {"mode": "multi", "sort": "desc"}}
    if panel.kind == "stat":
        custom = {}
        shown = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.note,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": custom}, "overrides": []},
        "options": shown,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "expr": query,
                "legendFormat": legend,
                "datasource": SOURCE,
            }
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def document() -> str:
    return json.dumps(dashboard(), indent=2) + "\n"


def main() -> None:
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(document(), encoding="utf-8")
    print(FILE)


if __name__ == "__main__":
    main()
