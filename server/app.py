"""The composition root, and the server's table of contents: what there is, in which order it is
built (each part is handed what it needs), and in which order it starts and ends."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiohttp import web

from server import __version__
from server.access.auth import Authority
from server.access.holdings import Holdings
from server.access.limits import Limits, Turns
from server.access.turn import ice_servers_json
from server.analysis.scenes import Scenes
from server.call_options import CallOptions
from server.desk import Desk
from server.edge.access_api import access_routes
from server.edge.clips_api import ClipsApi
from server.edge.detect_api import DetectApi
from server.edge.event_api import EventApi
from server.edge.gate import Gate, hold, principal_of
from server.edge.gateway import Gateway, link_header
from server.edge.history_api import HistoryApi
from server.edge.openapi import openapi_routes
from server.edge.pages import Pages, embed_policy
from server.edge.picture_socket import Sockets
from server.edge.signaling import Signaling, refuse_honestly
from server.edge.stills_api import StillsApi
from server.edge.streams_api import StreamsApi
from server.edge.zones_api import ZonesApi
from server.errors import NotFoundError
from server.history.clips import ClipRecorder
from server.history.journal import Journal
from server.history.storing import choose_store
from server.inference import Detector, InferenceWorker
from server.load_meter import LoadMeter
from server.model_registry import chosen_model
from server.outlets.audience import Audience
from server.outlets.bulletin import EVENTS, Bulletin
from server.outlets.mqtt import MqttOutlet
from server.outlets.webhooks import Webhooks
from server.peer_factory import PeerFactory
from server.pull.pulls import Pulls
from server.registry import Registry
from server.settings import DetectorSettings, Settings
from server.state_files import state_folder
from server.status import Status
from server.streams import Streams
from server.workers import Workers, load_for_cameras

logger = logging.getLogger(__name__)

SIGNALING = web.AppKey("signaling", Signaling)
BULLETIN = web.AppKey("bulletin", Bulletin)
JOURNAL = web.AppKey("journal", Journal)
RECORDER = web.AppKey("recorder", ClipRecorder)
INFERENCE = web.AppKey("inference", InferenceWorker)

# How long MQTT and webhooks have to tell what waits when the server stops.
OUTLET_CLOSE_S = 2.0
# How long the threads of sources are waited for when everything else has ended.
LINGERING_S = 0.5


def make_app(
    settings: Settings,
    detector: Detector | None,
    load: Callable[[DetectorSettings], Detector] = load_for_cameras,
) -> web.Application:
    """The application; its parts live from start-up to clean-up. `load` makes other detectors."""
    app = web.Application(
        client_max_size=settings.server.max_body_kib * 1024, middlewares=[refuse_honestly]
    )
    workers = Workers(settings, detector, load)
    inference = workers.inference

    # What goes on in the streams.
    bulletin = Bulletin()
    journal = make_journal(settings, bulletin)
    scenes = Scenes(
        state_folder(settings.auth),
        tracking=settings.analysis.tracking,
        on_happening=journal.happened,
    )

    # Who is in: sources, their streams and those who watch.
    factory = PeerFactory(settings, inference, workers.encoders, workers.frame_sink, scenes)
    streams = Streams(settings.streams, factory.hub, workers.frame_sink, bulletin)
    turns = Turns(settings.limits)
    registry = Registry(settings.session, factory.session, streams, factory.viewer, turns)
    first_options = CallOptions(mode=settings.session.mode, confidence=settings.session.confidence)
    pulls = Pulls(settings.sources, first_options, streams, factory.feed)
    recorder = make_recorder(settings, streams, bulletin, scenes, journal)
    scenes.on_masks = forgetting_pictures(streams, recorder)

    # Pictures one by one: asked for with a file, or as JPEG of a stream.
    desk = Desk(settings.images, inference)
    sockets = Sockets(settings.images, desk, streams, factory.analyst)
    stills_api = StillsApi(
        settings.streams, streams, workers.encoders, settings.outlets.listener_timeout_s
    )

    # Who is told.
    audience = Audience(settings.outlets)
    mqtt = MqttOutlet(settings.mqtt, bulletin, __version__, stills_api.newest)
    webhooks = Webhooks(settings.webhooks, bulletin, __version__)

    # Who may come in.
    holders = (registry, audience, sockets, stills_api)
    holdings = Holdings(lambda held: any(part.has(held) for part in holders))
    load_meter = LoadMeter(
        registry,
        streams,
        pulls,
        desk,
        workers.frames,
        workers.loop_lag,
        settings.limits.memory_limit_mib,
    )
    gate = Gate(
        settings,
        Authority(settings.auth, *(host for host, _ in settings.server.addresses())),
        Limits(settings.limits, load_meter.measure),
        holdings,
        is_draining=lambda: registry.draining,
    )
    gate.install(app)

    # What is served.
    status = Status(
        registry=registry,
        inference=inference,
        frames=workers.frames,
        loop_lag=workers.loop_lag,
        bulletin=bulletin,
        audience=audience,
        desk=desk,
        mqtt=mqtt,
        webhooks=webhooks,
        journal=journal,
        pulls=pulls,
        clips=recorder,
    )
    signaling = Signaling(settings, registry, status, workers.changer, web_root())
    embed_policy(settings.auth.frame_ancestors)  # a mistake in it ends the start
    event_api = EventApi(settings.outlets, bulletin, audience, streams, lambda: inference.names)
    app.add_routes(
        [
            *signaling.routes(),
            *access_routes(),
            *Gateway(settings, registry, streams, hold, ice_links(settings)).routes(),
            *StreamsApi(streams, pulls, stills_api.statistics_of).routes(),
            *stills_api.routes(),
            *event_api.routes(),
            *ZonesApi(scenes).routes(),
            *HistoryApi(journal).routes(),
            *ClipsApi(recorder, journal).routes(),
            *Pages(settings, web_root()).routes(),
            *sockets.routes(),
            *DetectApi(settings, desk).routes(),
            *openapi_routes(),
        ]
    )

    # For tests and for whoever embeds the application.
    app[SIGNALING], app[INFERENCE] = signaling, inference
    app[BULLETIN], app[JOURNAL], app[RECORDER] = bulletin, journal, recorder

    async def end_endless_answers(_: web.Application) -> None:
        # Before the wait for requests that are being answered: these would go on for ever.
        audience.close()
        stills_api.close()
        await sockets.close()

    app.on_shutdown.append(end_endless_answers)

    def close_desks() -> None:
        bulletin.close()
        desk.close()
        holdings.close()

    def start_outlets() -> None:
        mqtt.start()
        webhooks.start()

    async def close_outlets() -> None:
        await asyncio.gather(mqtt.close(OUTLET_CLOSE_S), webhooks.close(OUTLET_CLOSE_S))

    timeout_s = settings.session.close_timeout_s
    # Started from the top to the bottom, ended from the bottom to the top: sources and calls, what
    # their end gives rise to is written and told, then what all of them use.
    app.cleanup_ctx.extend(
        [
            workers.life,
            life(end=lambda: name_lingering(pulls)),
            life(end=close_desks),
            life(start_outlets, close_outlets),
            life(journal.start, lambda: journal.close(timeout_s)),
            life(recorder.start, lambda: recorder.close(timeout_s)),
            life(end=lambda: registry.close(settings.server.shutdown_timeout_s)),
            life(pulls.begin_configured, pulls.stop),
        ]
    )
    return app


def life(
    start: Callable[[], object] | None = None,
    end: Callable[[], Awaitable[object] | None] | None = None,
) -> Callable[[web.Application], AsyncIterator[None]]:
    """A part's life in the application. Its end comes even if that of another part fails."""

    async def lead(_: web.Application) -> AsyncIterator[None]:
        if start is not None:
            start()
        yield
        ended = end() if end is not None else None
        if ended is not None:
            await ended

    return lead


async def name_lingering(pulls: Pulls) -> None:
    """A thread that waits for a camera ends with its deadline, or with the process."""
    lingering = await pulls.close(LINGERING_S)
    if lingering:
        logger.info("Not waited for: %s", ", ".join(lingering))


def make_journal(settings: Settings, bulletin: Bulletin) -> Journal:
    """Events into the database of the settings, and from there to whoever listens."""
    choice = choose_store(settings)

    def post(stream: str, message: Mapping[str, Any]) -> None:
        bulletin.post(EVENTS, stream, message)

    return Journal(settings.store, choice.make, post, eager=choice.eager)


def make_recorder(
    settings: Settings, streams: Streams, bulletin: Bulletin, scenes: Scenes, journal: Journal
) -> ClipRecorder:
    """Clips of the streams whose zones are watched, beside the database of their events."""
    clips = settings.clips
    folder = clips_folder(settings)
    if clips.clips and not journal.stores:
        logger.warning("clips: nothing is recorded without a store")
        clips = replace(clips, clips=False)

    def store() -> Any:
        return journal.store

    return ClipRecorder(
        clips,
        folder,
        (settings.rtc.bitrate_min_kbps * 1000, settings.rtc.bitrate_max_kbps * 1000),
        streams,
        bulletin,
        lambda stream: scenes.peek(stream).layout.watches,
        store,
        journal.happened,
    )


def clips_folder(settings: Settings) -> Path:
    """Where clips lie, if there are any."""
    if settings.clips.clips_dir:
        return Path(settings.clips.clips_dir)
    return state_folder(settings.auth) / "clips"


def forgetting_pictures(streams: Streams, recorder: ClipRecorder) -> Callable[[str], None]:
    """What is to be done for a stream whose masks are others now."""

    def forget_pictures(stream: str) -> None:
        recorder.forget_pictures(stream)
        with contextlib.suppress(NotFoundError):
            streams.get(stream).hub.forget()

    return forget_pictures


def ice_links(settings: Settings) -> Callable[[web.Request], list[str]]:
    """The `Link` headers that tell a WHIP or WHEP client its ICE servers."""

    def links(request: web.Request) -> list[str]:
        identity = principal_of(request).identity
        servers = ice_servers_json(settings, identity, relays=True)
        return [link_header(server) for server in servers]

    return links


def web_root() -> Path:
    """The page's files: beside the package in a checkout, inside it when installed."""
    inside = Path(__file__).parent / "web"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "web"


def with_chosen_model(settings: Settings) -> Settings:
    """The settings with the model that they mean, by its path where it is our own."""
    detector = replace(settings.detector, model=chosen_model(settings.detector.model))
    return replace(settings, detector=detector)


def with_demo_decided(settings: Settings) -> Settings:
    """The settings with `auto` resolved: there is a demo where nothing else is to be seen."""
    sources = settings.sources
    if sources.demo != "auto":
        return settings
    demo = "off" if sources.sources else "on"
    return replace(settings, sources=replace(sources, demo=demo))
