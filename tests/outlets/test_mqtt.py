"""MQTT with a real mosquitto: what is said, what is kept, and a broker that comes and goes."""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from server.access.tls import self_signed_pem
from server.errors import SettingsError
from server.outlets.bulletin import DETECTIONS, EVENTS, STATUS, WAITING_AT_MOST, Bulletin
from server.outlets.mqtt import MqttOutlet, Snapshot
from server.settings import MqttSettings
from tests.fakes import FakeDetector
from tests.outlets.brokering import Broker, brokering, free_port, overhearing
from tests.serving import DEADLINE_S, calling, changed, serving, until

pytestmark = pytest.mark.service

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "a-password-that-nobody-may-see"
STATE, COUNTS = "sightline/streams/porch/state", "sightline/streams/porch/counts"
EVENT_TOPIC, SNAPSHOT = "sightline/streams/porch/events", "sightline/streams/porch/snapshot"


@asynccontextmanager
async def telling(
    broker: Broker | int, snapshot: Snapshot | None = None, **keys: Any
) -> AsyncIterator[tuple[Bulletin, MqttOutlet]]:
    port = broker if isinstance(broker, int) else broker.port
    settings = MqttSettings(**{"mqtt_url": f"mqtt://127.0.0.1:{port}"} | keys)
    bulletin = Bulletin()
    outlet = MqttOutlet(settings, bulletin, "0.0", snapshot)
    outlet.start()
    try:
        yield bulletin, outlet
    finally:
        await outlet.close(5)
        bulletin.close()


def state(bulletin: Bulletin, text: str) -> None:
    bulletin.post(STATUS, "porch", {"stream": "porch", "state": text, "source": "whip"})


def detections(bulletin: Bulletin, *class_ids: int) -> None:
    boxes = [[0.0, 0.0, 9.0, 9.0, class_id, 0.9, None] for class_id in class_ids]
    message = {"stream": "porch", "seq": 1, "boxes": boxes}
    bulletin.post(DETECTIONS, "porch", message, ("person", "dog"))


def counts(**classes: int) -> str:
    return json.dumps({"total": sum(classes.values()), "classes": classes}, separators=(",", ":"))


async def test_states_counts_and_events_are_told_and_what_stands_is_kept(tmp_path: Path) -> None:
    async with brokering(tmp_path) as broker, telling(broker) as (bulletin, _):
        async with overhearing(broker.port) as overheard:
            state(bulletin, "live")
            await overheard.wait_for(STATE, "live")
            detections(bulletin, 0, 1, 0)
            await overheard.wait_for(COUNTS, counts(dog=1, person=2))
            bulletin.post(EVENTS, "porch", {"id": "7", "kind": "enter"})
            await overheard.wait_for(EVENT_TOPIC, '{"id":"7","kind":"enter"}')
            assert "sightline/streams/porch/detections" not in overheard.newest
        # Who comes later hears how things stand, and no old event.
        async with overhearing(broker.port) as late:
            await late.wait_for(STATE, "live")
            await late.wait_for(COUNTS, counts(dog=1, person=2))
            await late.wait_for("sightline/availability", "online")
            assert EVENT_TOPIC not in late.newest
            state(bulletin, "no_signal")
            await late.wait_for(STATE, "no_signal")
            await late.wait_for(COUNTS, counts())


async def test_detections_come_when_wished_and_no_faster(tmp_path: Path) -> None:
    async with (
        brokering(tmp_path) as broker,
        overhearing(broker.port) as overheard,
        telling(broker, mqtt_detections_per_s=20, mqtt_counts_per_s=20) as (bulletin, outlet),
    ):
        state(bulletin, "live")
        await overheard.wait_for(STATE, "live")
        loop = asyncio.get_running_loop()
        began = loop.time()
        topic = "sightline/streams/porch/detections"
        async with asyncio.timeout(DEADLINE_S):
            while len(overheard.of(topic)) < 5:
                detections(bulletin, 0)
                await asyncio.sleep(0.002)
        assert loop.time() - began >= 4 / 20 * 0.9
        assert outlet.statistics().replaced > 0
        # The counts did not change, so they were said once.
        assert overheard.of(COUNTS).count(counts(person=1)) == 1


async def test_home_assistant_is_told_of_a_device_with_its_entities(tmp_path: Path) -> None:
    async def picture(stream: str) -> bytes:
        return b"JPEG of " + stream.encode()

    node = "sightline_porch"
    topics = {
        f"homeassistant/{what}/config"
        for what in (
            f"binary_sensor/{node}/live",
            f"sensor/{node}/objects",
            f"camera/{node}/camera",
            f"sensor/{node}/count_person",
            f"binary_sensor/{node}/seen_person",
            f"sensor/{node}/count_a__dog_",
            f"binary_sensor/{node}/seen_a__dog_",
        )
    }
    async with (
        brokering(tmp_path) as broker,
        telling(broker, picture, mqtt_classes=("person", 'a "dog"')) as (bulletin, _),
    ):
        async with overhearing(broker.port) as first:
            state(bulletin, "live")
            await first.wait_for(STATE, "live")
            await until(lambda: topics <= set(first.newest))
        # Whoever comes later is told the same, in an order of the broker's own.
        async with overhearing(broker.port) as overheard:
            await overheard.wait_for(STATE, "live")
            await until(lambda: topics <= set(overheard.newest))
            configs = {
                topic: json.loads(payload)
                for topic, payload in overheard.newest.items()
                if topic.startswith("homeassistant/")
            }
    assert set(configs) == topics
    assert set(configs) <= overheard.retained
    assert len({config["unique_id"] for config in configs.values()}) == len(configs)
    for topic, config in configs.items():
        assert config["device"]["identifiers"] == [node]
        assert config["availability_topic"] == "sightline/availability"
        told = config.get("state_topic") or config["topic"]
        assert told in (STATE, COUNTS, SNAPSHOT), topic
    assert configs[f"homeassistant/camera/{node}/camera/config"]["topic"] == SNAPSHOT
    seen = configs[f"homeassistant/binary_sensor/{node}/seen_person/config"]
    assert seen["value_template"] == (
        "{{ 'ON' if (value_json.classes[\"person\"] | default(0)) > 0 else 'OFF' }}"
    )


async def test_pictures_are_told_and_forgotten_with_the_stream(tmp_path: Path) -> None:
    taken: list[str] = []

    async def picture(stream: str) -> bytes:
        taken.append(stream)
        return b"JPEG %d" % len(taken)

    async with (
        brokering(tmp_path) as broker,
        overhearing(broker.port) as overheard,
        telling(broker, picture, mqtt_snapshot_s=0.05) as (bulletin, _),
    ):
        state(bulletin, "live")
        await overheard.wait_for(SNAPSHOT, "JPEG 2")
        state(bulletin, "ended")
        await overheard.wait_for(STATE, "ended")
        await overheard.wait_for(SNAPSHOT, "")
    assert set(taken) == {"porch"}


async def test_other_streams_are_not_told(tmp_path: Path) -> None:
    async with (
        brokering(tmp_path) as broker,
        overhearing(broker.port) as overheard,
        telling(broker, mqtt_streams=("front-*", "porch"), mqtt_discovery="") as (bulletin, _),
    ):
        bulletin.post(STATUS, "yard", {"stream": "yard", "state": "live"})
        bulletin.post(STATUS, "front-1", {"stream": "front-1", "state": "live"})
        state(bulletin, "live")
        await overheard.wait_for(STATE, "live")
        assert "sightline/streams/front-1/state" in overheard.newest
        assert not [t for t in overheard.newest if "yard" in t or "homeassistant" in t]


async def test_a_broker_that_goes_away_and_comes_back_hears_what_it_missed(tmp_path: Path) -> None:
    async with brokering(tmp_path) as broker, telling(broker) as (bulletin, outlet):
        async with overhearing(broker.port) as overheard:
            state(bulletin, "live")
            detections(bulletin, 0)
            await overheard.wait_for(COUNTS, counts(person=1))
        await broker.stop()
        await until(lambda: not outlet.statistics().connected)
        for number in range(WAITING_AT_MOST + 3):
            bulletin.post(EVENTS, "porch", {"id": number})
        # One is already on its way and comes on top.
        assert outlet.statistics().dropped in (2, 3)
        await broker.start()
        async with overhearing(broker.port) as overheard:
            await until(lambda: len(overheard.of(EVENT_TOPIC)) >= 1)
            await overheard.wait_for(
                EVENT_TOPIC, json.dumps({"id": WAITING_AT_MOST + 2}).replace(" ", "")
            )
            # The broker had forgotten all of it.
            await overheard.wait_for("sightline/availability", "online")
            await overheard.wait_for(STATE, "live")
            await overheard.wait_for(COUNTS, counts(person=1))
            assert any(topic.startswith("homeassistant/") for topic in overheard.newest)
        assert outlet.statistics().connections == 2
        assert outlet.statistics().failures >= 1


async def test_leaving_says_offline_after_all_that_waits(tmp_path: Path) -> None:
    async with brokering(tmp_path) as broker, overhearing(broker.port) as overheard:
        async with telling(broker) as (bulletin, outlet):
            await until(lambda: outlet.statistics().connected)
            for number in range(20):
                bulletin.post(EVENTS, "porch", {"id": number})
        await overheard.wait_for("sightline/availability", "offline")
        said = [
            topic for topic, _ in overheard.said if topic in (EVENT_TOPIC, "sightline/availability")
        ]
        assert said == ["sightline/availability", *[EVENT_TOPIC] * 20, "sightline/availability"]


async def test_nothing_listening_there_holds_up_neither_start_nor_stop() -> None:
    loop = asyncio.get_running_loop()
    async with telling(free_port()) as (_, outlet):
        await until(lambda: outlet.statistics().failures >= 2)
        assert "refused" in outlet.statistics().last_error
        began = loop.time()
    assert loop.time() - began < 4


async def test_a_broker_that_never_answers_does_not_hold_up_the_stop() -> None:
    reached = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    before = asyncio.all_tasks()
    bulletin = Bulletin()
    outlet = MqttOutlet(MqttSettings(mqtt_url=f"mqtt://127.0.0.1:{port}"), bulletin, "0.0")
    outlet.start()
    async with asyncio.timeout(DEADLINE_S):
        await reached.wait()
        await outlet.close(0.2)
    silent.close()
    await until(lambda: asyncio.all_tasks() <= before)


async def test_wrong_password_is_counted_and_never_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with (
        brokering(tmp_path, "allow_anonymous false") as broker,
        telling(broker, mqtt_user="me", mqtt_password=PASSWORD) as (_, outlet),
    ):
        await until(lambda: outlet.statistics().failures >= 1)
        assert "ot authori" in outlet.statistics().last_error
    assert "ot authori" in caplog.text
    assert PASSWORD not in caplog.text


# paho leaves a socket whose handshake failed to the collector, which closes it at once.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_tls_takes_the_brokers_own_authority_and_no_other(tmp_path: Path) -> None:
    pem = tmp_path / "broker.pem"
    pem.write_text(self_signed_pem([]))
    options = (f"certfile {pem}", f"keyfile {pem}", "allow_anonymous true")
    async with brokering(tmp_path, *options) as broker:
        url = f"mqtts://127.0.0.1:{broker.port}"
        async with telling(broker, mqtt_url=url) as (_, outlet):
            await until(lambda: outlet.statistics().failures >= 1)
            assert "CERTIFICATE_VERIFY_FAILED" in outlet.statistics().last_error
        async with telling(broker, mqtt_url=url, mqtt_ca=str(pem)) as (_, outlet):
            await until(lambda: outlet.statistics().connected)


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"mqtt_url": f"mqtt://me:{PASSWORD}@broker"}, "mqtt_user"),
        ({"mqtt_url": f"http://broker/{PASSWORD}"}, "mqtt://HOST"),
        ({"mqtt_url": "mqtt://broker:port"}, "mqtt://HOST"),
        ({"mqtt_url": f"mqtt://me:{PASSWORD}@[broker"}, "mqtt://HOST"),
        ({"mqtt_url": f"mqtt://me:{PASSWORD}@a\u2100b"}, "mqtt://HOST"),
        ({"mqtt_url": "mqtt://broker", "mqtt_prefix": "a/#"}, "mqtt_prefix"),
        ({"mqtt_url": "mqtt://broker", "mqtt_prefix": ""}, "mqtt_prefix"),
        ({"mqtt_url": "mqtts://broker", "mqtt_ca": "/nowhere"}, "mqtt_ca"),
    ],
)
async def test_wrong_settings_are_named_without_showing_secrets(
    keys: dict[str, Any], word: str
) -> None:
    with pytest.raises(SettingsError, match=word) as caught:
        MqttOutlet(MqttSettings(**keys), Bulletin(), "0.0")
    assert PASSWORD not in str(caught.value)


async def test_without_the_extra_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "aiomqtt", None)
    with pytest.raises(SettingsError, match="EXTRAS=mqtt"):
        MqttOutlet(MqttSettings(mqtt_url="mqtt://broker"), Bulletin(), "0.0")
    # And without a broker nothing is needed.
    assert MqttOutlet(MqttSettings(), Bulletin(), "0.0").statistics().broker == ""


async def test_a_camera_at_the_server_is_seen_at_the_broker(tmp_path: Path) -> None:
    async with brokering(tmp_path) as broker, overhearing(broker.port) as overheard:
        url = f"mqtt://127.0.0.1:{broker.port}"
        keys = {"mqtt_url": url, "mqtt_counts_per_s": 20, "mqtt_snapshot_s": 0.2}
        async with (
            serving(FakeDetector(), changed(mqtt=keys)) as server,
            calling(server, stream="porch"),
        ):
            await overheard.wait_for(STATE, "live")
            await overheard.wait_for(COUNTS, counts(fake=1))
            await until(lambda: "JFIF" in overheard.newest.get(SNAPSHOT, ""))
            assert (await server.stats())["mqtt"]["connected"] is True
            async with server.http.get(f"{server.url}/metrics") as reply:
                assert "sightline_mqtt_connected 1.0" in await reply.text()
        await overheard.wait_for(STATE, "ended")
        await overheard.wait_for("sightline/availability", "offline")


async def test_a_server_that_is_killed_is_told_offline_by_the_broker(tmp_path: Path) -> None:
    async with brokering(tmp_path) as broker, overhearing(broker.port) as overheard:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "server", "--model", "none", "--port", "0"),
            cwd=ROOT,
            env={**os.environ, "SIGHTLINE_MQTT_URL": f"mqtt://127.0.0.1:{broker.port}"},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            await overheard.wait_for("sightline/availability", "online")
        finally:
            process.send_signal(signal.SIGKILL)
            await process.wait()
        await overheard.wait_for("sightline/availability", "offline")
