"""What Home Assistant is told about a stream so that it makes a device of it (MQTT discovery)."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Payload = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Topics:
    """Where what is said, below one prefix."""

    prefix: str

    @property
    def availability(self) -> str:
        """online or offline: this server, not a camera."""
        return f"{self.prefix}/availability"

    def of(self, stream: str, what: str) -> str:
        """`what` is state, counts, events, detections or snapshot."""
        return f"{self.prefix}/streams/{stream}/{what}"


def plain_id(text: str) -> str:
    """As ids may be: letters, digits, _ and -."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", text)


def discovery(
    topics: Topics,
    discovery_prefix: str,
    stream: str,
    classes: Sequence[str],
    version: str,
    *,
    pictures: bool,
) -> dict[str, Payload]:
    """Retained messages by topic: one device a stream, with its camera, sensors and switches."""
    node = f"{plain_id(topics.prefix)}_{stream}"
    common: Payload = {
        "availability_topic": topics.availability,
        "device": {
            "identifiers": [node],
            "name": stream,
            "manufacturer": "Sightline",
            "model": "Stream with a detector",
            "sw_version": version,
        },
        "origin": {"name": "Sightline", "sw_version": version},
    }
    state, counts = topics.of(stream, "state"), topics.of(stream, "counts")
    entities: dict[tuple[str, str], Payload] = {
        ("binary_sensor", "live"): {
            "name": "Live",
            "device_class": "connectivity",
            "entity_category": "diagnostic",
            "state_topic": state,
            "value_template": "{{ 'ON' if value == 'live' else 'OFF' }}",
        },
        ("sensor", "objects"): {
            "name": "Objects",
            "state_class": "measurement",
            "icon": "mdi:shape",
            "state_topic": counts,
            "value_template": "{{ value_json.total }}",
            "json_attributes_topic": counts,
            "json_attributes_template": "{{ value_json.classes | tojson }}",
        },
    }
    if pictures:
        entities["camera", "camera"] = {"name": None, "topic": topics.of(stream, "snapshot")}
    for name in classes:
        # A literal of the template language is one of JSON here.
        count = f"value_json.classes[{json.dumps(name)}] | default(0)"
        entities["sensor", f"count_{plain_id(name)}"] = {
            "name": f"{name.capitalize()} count",
            "state_class": "measurement",
            "state_topic": counts,
            "value_template": f"{{{{ {count} }}}}",
        }
        entities["binary_sensor", f"seen_{plain_id(name)}"] = {
            "name": name.capitalize(),
            "device_class": "occupancy",
            "state_topic": counts,
            "value_template": f"{{{{ 'ON' if ({count}) > 0 else 'OFF' }}}}",
        }
    return {
        f"{discovery_prefix}/{component}/{node}/{what}/config": {
            **common,
            **entity,
            "unique_id": f"{node}_{what}",
            "object_id": f"{node}_{what}",
        }
        for (component, what), entity in entities.items()
    }
