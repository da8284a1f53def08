"""States, counts and events of the streams at an MQTT broker. On the loop.

One connection, made again with longer and longer pauses when it is lost; what is retained is
then said again. Meanwhile events wait in a bounded queue (`outlets/bulletin.py`), the oldest fall
out. Needs the extra `mqtt`; nothing of it is imported without `mqtt_url`.
"""

import asyncio
import contextlib
import json
import logging
import secrets
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from server.access.auth import matches
from server.backoff import backoff_s
from server.clock import NS_PER_S, now_ns, s_to_ns
from server.errors import SettingsError
from server.outlets.bulletin import DETECTIONS, ENDED, EVENTS, LIVE, STATUS, Bulletin, Notice
from server.outlets.home_assistant import Topics, discovery, plain_id
from server.settings import MqttSettings
from server.urls import split_url

if TYPE_CHECKING:
    import aiomqtt

logger = logging.getLogger(__name__)

PORTS = {"mqtt": 1883, "mqtts": 8883}
KEEP_ALIVE_S = 30
# Longest wait for the broker's word on anything; a publication without it ends the connection.
ANSWER_S = 10.0
CONNECT_S = 3.0
FIRST_PAUSE_S, MOST_PAUSE_S = 0.5, 60.0
ONLINE, OFFLINE = "online", "offline"
# Streams that Home Assistant is told of in one run: the broker keeps each of them.
ANNOUNCED_AT_MOST = 256
# The strength of delivery: what must not be lost, and what is followed by newer.
SURE, LOOSE = 1, 0

Snapshot = Callable[[str], Awaitable[bytes | None]]


@dataclass(frozen=True, slots=True)
class Broker:
    """Where it is; what `mqtt_url` says."""

    host: str
    port: int
    tls: bool


@dataclass(frozen=True, slots=True)
class MqttStatistics:
    """Counts since start, and whether there is a connection."""

    broker: str
    """Host and port; empty when there is none in the settings."""
    connected: bool
    connections: int
    failures: int
    """Connections lost, and tries to make one."""
    published: int
    dropped: int
    """Events and states that fell out of the queue, the oldest first."""
    replaced: int
    waiting: int
    last_error: str


def parse_broker(settings: MqttSettings) -> Broker:
    """Messages never show the address: it may hold a password."""
    parts = split_url(settings.mqtt_url)
    if parts is None or parts.scheme not in PORTS or not parts.hostname or parts.path.strip("/"):
        raise SettingsError("mqtt_url: not mqtt://HOST[:PORT] or mqtts://HOST[:PORT]")
    if parts.username or parts.password:
        raise SettingsError("mqtt_url: name and password go into mqtt_user and mqtt_password")
    for name in ("mqtt_prefix", "mqtt_discovery"):
        check_topic(name, getattr(settings, name), may_be_empty=name == "mqtt_discovery")
    port = parts.port or PORTS[parts.scheme]
    return Broker(parts.hostname, port, parts.scheme == "mqtts")


def check_topic(name: str, text: str, *, may_be_empty: bool) -> None:
    wrong = set(text) & set("+#\0") or text != text.strip("/") or len(text) > 100
    if wrong or not (text or may_be_empty):
        raise SettingsError(f"{name}: {text!r:.60} is not the beginning of a topic, without + # /")


def import_library() -> ModuleType:
    try:
        import aiomqtt
    except ImportError:
        raise SettingsError(
            "mqtt_url: MQTT needs the extra mqtt: make environment EXTRAS=mqtt"
        ) from None
    return aiomqtt


def count_classes(notice: Notice) -> dict[str, Any]:
    """How many objects of which class a detections message has."""
    rows, names = notice.message["boxes"], notice.names
    counts = Counter(
        names[row[4]] if 0 <= row[4] < len(names) else f"class {row[4]}" for row in rows
    )
    return {"total": len(rows), "classes": dict(sorted(counts.items()))}


NOTHING_SEEN: dict[str, Any] = {"total": 0, "classes": {}}


class MqttOutlet:
    """Made, started and closed by the application; does nothing without `mqtt_url`. `snapshot`
    gives a JPEG of a stream, or None."""

    def __init__(
        self,
        settings: MqttSettings,
        bulletin: Bulletin,
        version: str,
        snapshot: Snapshot | None = None,
    ) -> None:
        self._settings = settings
        self._version = version
        self._snapshot = snapshot if settings.mqtt_snapshot_s else None
        self._topics = Topics(settings.mqtt_prefix)
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._connected = False
        self._connections = self._failures = self._published = 0
        self._last_error = ""
        # Of the streams there are, to be said again after a new connection.
        self._states: dict[str, str] = {}
        self._counts: dict[str, dict[str, Any]] = {}
        self._counted_at_ns: dict[str, int] = {}
        self._announced: set[str] = set()
        # Taken out of the queue and not yet with the broker.
        self._unsent: Notice | None = None
        self._broker: Broker | None = None
        if not settings.mqtt_url:
            return
        self._library = import_library()
        self._broker = parse_broker(settings)
        self._tls = self._tls_context()
        rate = max(settings.mqtt_counts_per_s, settings.mqtt_detections_per_s)
        patterns = settings.mqtt_streams
        self._subscription = bulletin.subscribe(
            (STATUS, EVENTS, DETECTIONS),
            allows=lambda stream: any(matches(pattern, stream) for pattern in patterns),
            detections_every_s=1 / rate,
        )

    def start(self) -> None:
        """Connect, and stay connected."""
        if self._broker is not None:
            self._task = asyncio.create_task(self._run(), name="mqtt")

    async def close(self, timeout_s: float) -> None:
        """Say what waits and that we go, as far as that goes within the time. Idempotent."""
        if self._task is None:
            return
        self._subscription.finish()
        self._stopping.set()
        _, late = await asyncio.wait([self._task], timeout=timeout_s)
        if late:
            self._task.cancel()
            await asyncio.wait(late)
        self._subscription.close()
        self._task = None

    def statistics(self) -> MqttStatistics:
        broker = self._broker
        if broker is None:
            return MqttStatistics("", False, 0, 0, 0, 0, 0, 0, "")
        counts = self._subscription.statistics()
        return MqttStatistics(
            broker=f"{broker.host}:{broker.port}",
            connected=self._connected,
            connections=self._connections,
            failures=self._failures,
            published=self._published,
            dropped=counts.dropped,
            replaced=counts.replaced,
            waiting=counts.waiting,
            last_error=self._last_error,
        )

    # --- the connection ---

    async def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                async with self._connection() as client:
                    failures = 0
                    self._connected = True
                    self._connections += 1
                    self._last_error = ""
                    logger.info("MQTT: connected to %s", self.statistics().broker)
                    await self._serve(client)
            except self._library.MqttError as error:
                failures += 1
                self._failures += 1
                self._say(str(error))
            except Exception:
                # The top of the outlet: whatever went wrong here ends nothing else.
                failures += 1
                self._failures += 1
                logger.exception("MQTT: failed")
            finally:
                self._connected = False
            if failures:
                await self._pause(backoff_s(failures, FIRST_PAUSE_S, MOST_PAUSE_S))

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator["aiomqtt.Client"]:
        client = self._client()
        try:
            await client.__aenter__()
        except BaseException:
            # A connection that the broker never answered on stays open otherwise. aiomqtt's own
            # handler stumbles over the wait that was given up.
            client._client.on_disconnect = None
            client._client.disconnect()
            raise
        try:
            yield client
        finally:
            await client.__aexit__(None, None, None)

    def _client(self) -> "aiomqtt.Client":
        """A new one each time: a client that failed is not always fit for use again."""
        broker, library = self._broker, self._library
        assert broker is not None
        client: aiomqtt.Client = library.Client(
            broker.host,
            broker.port,
            username=self._settings.mqtt_user or None,
            password=self._settings.mqtt_password or None,
            identifier=f"{plain_id(self._settings.mqtt_prefix)}-{secrets.token_hex(4)}",
            will=library.Will(self._topics.availability, OFFLINE, SURE, True),
            timeout=ANSWER_S,
            keepalive=KEEP_ALIVE_S,
            max_queued_incoming_messages=1,
            tls_context=self._tls,
        )
        # It connects on a thread of the loop's executor, which a stop has to wait for.
        client._client.connect_timeout = CONNECT_S
        return client

    async def _serve(self, client: "aiomqtt.Client") -> None:
        """Until the connection is lost, which raises, or we stop."""
        work = [asyncio.create_task(self._publish_all(client), name="mqtt publish")]
        work.append(asyncio.create_task(_until_lost(client), name="mqtt connection"))
        if self._snapshot is not None:
            work.append(asyncio.create_task(self._publish_pictures(client), name="mqtt pictures"))
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in work:
                task.cancel()
            await asyncio.wait(work)
            for task in work:
                # Seen here, whichever ended first told what there is to tell.
                if not task.cancelled():
                    task.exception()

    async def _pause(self, pause_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._stopping.wait()

    # --- what is said ---

    async def _publish_all(self, client: "aiomqtt.Client") -> None:
        """First what stands, then what comes; ends when the subscription does."""
        await self._publish(client, self._topics.availability, ONLINE, SURE, retain=True)
        self._announced.clear()
        for stream in list(self._states):
            await self._publish_state(client, stream)
        while True:
            if self._unsent is None:
                try:
                    self._unsent = await anext(self._subscription)
                except StopAsyncIteration:
                    break
            await self._publish_notice(client, self._unsent)
            self._unsent = None
        await self._publish(client, self._topics.availability, OFFLINE, SURE, retain=True)

    async def _publish_notice(self, client: "aiomqtt.Client", notice: Notice) -> None:
        stream, topics = notice.stream, self._topics
        if notice.topic == EVENTS:
            await self._publish(client, topics.of(stream, "events"), notice.text, SURE)
        elif notice.topic == DETECTIONS:
            await self._publish_detections(client, notice)
        else:
            state = notice.message["state"]
            self._states[stream] = state
            if state != LIVE:
                self._counts[stream] = NOTHING_SEEN
            await self._publish_state(client, stream)
            if state == ENDED:
                if self._snapshot is not None:
                    # The broker forgets the picture.
                    topic = topics.of(stream, "snapshot")
                    await self._publish(client, topic, b"", SURE, retain=True)
                for known in (self._states, self._counts, self._counted_at_ns):
                    known.pop(stream, None)

    async def _publish_state(self, client: "aiomqtt.Client", stream: str) -> None:
        await self._announce(client, stream)
        topics = self._topics
        await self._publish(
            client, topics.of(stream, "state"), self._states[stream], SURE, retain=True
        )
        await self._publish_counts(client, stream)

    async def _publish_detections(self, client: "aiomqtt.Client", notice: Notice) -> None:
        stream, at_ns = notice.stream, now_ns()
        if self._settings.mqtt_detections_per_s:
            topic = self._topics.of(stream, "detections")
            await self._publish(client, topic, notice.text, LOOSE)
        counts = count_classes(notice)
        every_ns = s_to_ns(1 / self._settings.mqtt_counts_per_s)
        # A tenth early: the detections themselves come at this pace or a faster one.
        due = at_ns - self._counted_at_ns.get(stream, 0) >= every_ns * 0.9
        if due and counts != self._counts.get(stream) and stream in self._states:
            self._counts[stream] = counts
            self._counted_at_ns[stream] = at_ns
            await self._publish_counts(client, stream)

    async def _publish_counts(self, client: "aiomqtt.Client", stream: str) -> None:
        counts = self._counts.get(stream, NOTHING_SEEN)
        topic = self._topics.of(stream, "counts")
        await self._publish(client, topic, _json(counts), LOOSE, retain=True)

    async def _announce(self, client: "aiomqtt.Client", stream: str) -> None:
        settings = self._settings
        if not settings.mqtt_discovery or stream in self._announced:
            return
        if len(self._announced) >= ANNOUNCED_AT_MOST:
            return
        self._announced.add(stream)
        messages = discovery(
            self._topics,
            settings.mqtt_discovery,
            stream,
            settings.mqtt_classes,
            self._version,
            pictures=self._snapshot is not None,
        )
        for topic, payload in messages.items():
            await self._publish(client, topic, _json(payload), SURE, retain=True)

    async def _publish_pictures(self, client: "aiomqtt.Client") -> None:
        assert self._snapshot is not None
        next_at_ns = now_ns()
        while True:
            for stream, state in list(self._states.items()):
                picture = await self._snapshot(stream) if state == LIVE else None
                if picture is not None:
                    topic = self._topics.of(stream, "snapshot")
                    await self._publish(client, topic, picture, LOOSE, retain=True)
            next_at_ns = max(next_at_ns, now_ns()) + s_to_ns(self._settings.mqtt_snapshot_s)
            await asyncio.sleep((next_at_ns - now_ns()) / NS_PER_S)

    async def _publish(
        self,
        client: "aiomqtt.Client",
        topic: str,
        payload: str | bytes,
        qos: int,
        *,
        retain: bool = False,
    ) -> None:
        await client.publish(topic, payload, qos, retain)
        self._published += 1

    # --- small parts ---

    def _say(self, error: str) -> None:
        """A line when something is wrong that was not before."""
        if error != self._last_error:
            logger.warning("MQTT: %s: %s", self.statistics().broker, error)
        self._last_error = error

    def _tls_context(self) -> ssl.SSLContext | None:
        assert self._broker is not None
        if not self._broker.tls:
            return None
        try:
            return ssl.create_default_context(cafile=self._settings.mqtt_ca or None)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"mqtt_ca: cannot be used: {error}") from None


async def _until_lost(client: "aiomqtt.Client") -> None:
    """Nothing is subscribed to, so nothing comes but the end."""
    async for _ in client.messages:
        pass


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
