"""What Prometheus and Grafana are given is true: every query names what the server has."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes import FakeDetector
from tests.gateway.test_views import passes_on
from tests.gateway.watching import sending, streaming, watching
from tests.serving import Serving, calling, until
from tools import make_dashboard

pytestmark = pytest.mark.loopback

ROOT = Path(__file__).parents[2]
RULES = ROOT / "observe" / "rules.yaml"
# Labels that Prometheus adds by itself, or makes for a histogram.
GIVEN = {"job", "instance", "le"}


def queries() -> list[str]:
    """Every query of the dashboard and of the alerts."""
    dashboard = json.loads(make_dashboard.FILE.read_text(encoding="utf-8"))
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return found + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def labels_in(query: str) -> set[str]:
    named = re.findall(r"[{,]\s*(\w+)\s*(?:=|!=|=~|!~)\"", query)
    grouped = [
        part.strip() for found in re.findall(r"by \(([^)]*)\)", query) for part in found.split(",")
    ]
    return {*named, *grouped} - GIVEN


async def metrics(server: Serving) -> tuple[set[str], dict[str, set[str]]]:
    """Names of all samples there can be, and the labels of each that there are."""
    async with server.http.get(f"{server.url}/metrics") as reply:
        assert reply.status == 200
        text = await reply.text()
    names: set[str] = set()
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        names |= {family.name + end for end in ends.get(family.type, ("",))}
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return names, labels


async def test_every_query_names_metrics_and_labels_that_there_are() -> None:
    async with (
        streaming(FakeDetector()) as server,
        sending(server, "cam"),
        calling(server) as caller,
    ):
        await passes_on(server)
        async with watching(server, "cam") as drawn, watching(server, "cam", "?view=data") as data:
            await drawn.picture()
            await data.picture()
            await caller.picture()
            assert (await server.http.get(f"{server.url}/sessions/nobody")).status == 404
            names, labels = await metrics(server)
        for query in queries():
            named = set(re.findall(r"\bsightline_\w+", query))
            assert named or query.startswith("up"), query
            assert named <= names, f"{sorted(named - names)} in {query}"
            known = set().union(*(labels.get(name, set()) for name in named))
            if any(name in labels for name in named):
                assert labels_in(query) <= known | {"job"}, query


async def test_sums_outlive_those_whom_they_were_taken_from_and_name_nobody() -> None:
    async with streaming(FakeDetector()) as server:
        async with sending(server, "cam"):
            await passes_on(server)
            async with watching(server, "cam") as watcher:
                await watcher.picture()
        await until(lambda: not server.registry.statistics().sessions)
        await until(lambda: not server.registry.statistics().viewers)
        links = server.registry.statistics().links
        assert min(links["packets_in"], links["packets_out"], links["frames_out"]) > 0
        async with server.http.get(f"{server.url}/metrics") as reply:
            text = await reply.text()
        value = re.search(r'^sightline_media_packets_total{direction="out"} (\S+)$', text, re.M)
        assert value is not None
        assert float(value[1]) == links["packets_out"]
        # No label has as many values as there are callers.
        assert "session=" not in text
        assert 'sightline_viewers_ended_total{reason="' in text


def test_the_dashboard_is_the_table_it_is_made_from() -> None:
    written = make_dashboard.FILE.read_text(encoding="utf-8")
    assert written == make_dashboard.document(), "run `make document`"


def test_panels_do_not_lie_on_each_other_and_each_has_its_own_number() -> None:
    panels = make_dashboard.dashboard()["panels"]
    numbers = [panel["id"] for panel in panels]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= make_dashboard.COLUMNS
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_what_compose_mounts_for_prometheus_and_grafana_is_there() -> None:
    compose: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    services = {
        name: service
        for name, service in compose["services"].items()
        if service.get("profiles") == ["observe"]
    }
    assert set(services) == {"prometheus", "grafana"}
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (ROOT / source).is_dir(), source
    config = yaml.safe_load((ROOT / "observe" / "prometheus.yaml").read_text(encoding="utf-8"))
    assert (ROOT / "observe" / config["rule_files"][0]) == RULES
    provided = ROOT / "observe" / "grafana" / "provisioning" / "dashboards" / "sightline.yaml"
    (provider,) = yaml.safe_load(provided.read_text(encoding="utf-8"))["providers"]
    assert f"{provider['options']['path']}:ro" in " ".join(services["grafana"]["volumes"])
