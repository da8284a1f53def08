"""The composition root: builds every part once, in order, and takes them down in reverse."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiohttp import web

from server import __version__
from server.access.auth import Authority
from server.access.holdings import Holdings
from server.access.limits import CpuMeter, Limits, Load
from server.access.turn import ice_credentials, ice_servers_json
from server.analysis.analyst import Analyst
from server.analysis.scenes import Scenes
from server.call_options import CallOptions
from server.clock import now_ns
from server.desk import Desk
from server.detector.load import load_detector
from server.detector.trial import try_apart
from server.detector_watch import DetectorWatch
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
from server.feed import Feed
from server.history.clips import ClipRecorder
from server.history.journal import Journal
from server.history.storing import choose_store
from server.hub import Hub, SentShot
from server.inference import Detector, InferenceWorker
from server.metrics import MetricsPage
from server.model_change import ModelChanger, model_folders
from server.model_registry import chosen_model
from server.outlets.audience import Audience
from server.outlets.bulletin import EVENTS, Bulletin
from server.outlets.mqtt import MqttOutlet
from server.outlets.webhooks import Webhooks
from server.pull.pulls import Pulls
from server.registry import Registry
from server.rtc.encoders.probe import choose_h264
from server.rtc.fanout_sender import PictureSource
from server.rtc.options import IceServer, RtcOptions
from server.rtc.peer import PeerConnection
from server.session import Session
from server.settings import RTC_SWITCHES, DetectorSettings, RtcSettings, Settings
from server.shot import Shot
from server.state_files import state_folder
from server.status import Status, model_json
from server.streams import ANNOTATED, Publication, Stream, Streams
from server.telemetry import FrameTelemetry, LoopLagSampler
from server.tracing import make_tracer
from server.viewer import Viewer

logger = logging.getLogger(__name__)

SIGNALING = web.AppKey("signaling", Signaling)
BULLETIN = web.AppKey("bulletin", Bulletin)
JOURNAL = web.AppKey("journal", Journal)
RECORDER = web.AppKey("recorder", ClipRecorder)
INFERENCE = web.AppKey("inference", InferenceWorker)


def web_root() -> Path:
    """The page's files: beside the package in a checkout, inside it when installed."""
    inside = Path(__file__).parent / "web"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "web"


def rtc_options(settings: RtcSettings, credentials: tuple[str, str]) -> RtcOptions:
    """The transport's own options from the settings; `credentials` are for TURN."""
    username, credential = credentials
    servers = tuple(
        IceServer((url,), username or None, credential or None)
        if url.startswith("turn")
        else IceServer((url,))
        for url in settings.ice_servers
    )
    return RtcOptions(
        **{switch: switch not in settings.rtc_disable for switch in RTC_SWITCHES},
        video_codecs=settings.video_codecs,
        h264_encoder=settings.h264_encoder,
        bitrate_min_bps=settings.bitrate_min_kbps * 1000,
        bitrate_max_bps=settings.bitrate_max_kbps * 1000,
        ice_servers=servers,
        port_range=settings.port_pair(),
        announced=settings.announce,
        gather_timeout_s=settings.gather_timeout_s,
        frame_deadline_ms=settings.frame_deadline_ms,
    )


# What the page asks a camera for unless told otherwise; other shapes are made when they come.
CAMERA_SIZES = ((640, 480),)


# How long MQTT and webhooks have to tell what waits when the server stops.
OUTLET_CLOSE_S = 2.0

# How long the threads of sources are waited for when everything else has ended.
LINGERING_S = 0.5
# Loop lags measured, one in 10 ms, before they decide whether new calls are taken.
LAGS_AT_LEAST = 300


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


def make_detector(settings: Settings) -> Detector | None:
    """The detector of the settings, loaded and warm; None when no model is named."""
    return load_for_cameras(settings.detector) if settings.detector.model else None


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
    folder = Path(clips.clips_dir) if clips.clips_dir else state_folder(settings.auth) / "clips"
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


def load_for_cameras(settings: DetectorSettings) -> Detector:
    """A detector that also prepares for the sizes cameras have; a stranger's file is tried first,
    where it can end no process but its own."""
    try_apart(settings)
    return load_detector(settings, CAMERA_SIZES)


def make_app(
    settings: Settings,
    detector: Detector | None,
    load: Callable[[DetectorSettings], Detector] = load_for_cameras,
) -> web.Application:
    """The application; its parts live from start-up to clean-up. `load` makes other detectors."""
    app = web.Application(
        client_max_size=settings.server.max_body_kib * 1024, middlewares=[refuse_honestly]
    )
    authority = Authority(settings.auth, *(host for host, _ in settings.server.addresses()))
    inference = InferenceWorker(detector, settings.scheduling)
    frames = FrameTelemetry()
    share, endpoint = settings.server.trace_sample, settings.server.trace_endpoint
    tracer = make_tracer(frames, share, endpoint) if share else None
    frame_sink = tracer or frames
    loop_lag = LoopLagSampler()
    encoders = ThreadPoolExecutor(settings.rtc.encode_threads, thread_name_prefix="encode")

    def describe(codec: str) -> dict[str, Any]:
        h264 = choose_h264(settings.rtc.h264_encoder)
        statistics = inference.statistics()
        return {
            "model": model_json(statistics),
            "names": list(statistics.names),
            "codec": codec,
            "encoder": h264.name if codec == "H264" else "libvpx",
        }

    def options_now() -> RtcOptions:
        return rtc_options(settings.rtc, ice_credentials(settings, "server"))

    bulletin = app[BULLETIN] = Bulletin()
    journal = app[JOURNAL] = make_journal(settings, bulletin)
    scenes = Scenes(
        state_folder(settings.auth),
        tracking=settings.analysis.tracking,
        on_happening=journal.happened,
    )

    def make_analyst(stream: str) -> Analyst | None:
        """For a source of this stream, or of none."""
        tracking = settings.analysis.tracking
        if not stream:
            return Analyst(tracking=True) if tracking else None
        return Analyst(tracking=tracking, scene=scenes.of(stream))

    def make_session(
        session_id: str, call_options: CallOptions, publication: Publication | None
    ) -> Session:
        # First: it may refuse, and a connection that was made would have to be closed.
        analyst = make_analyst(publication.stream.name if publication is not None else "")
        return Session(
            session_id=session_id,
            settings=settings.session,
            options=call_options,
            peer=PeerConnection(options_now(), encoders),
            inference=inference,
            frame_sink=frame_sink,
            describe=describe,
            publication=publication,
            analyst=analyst,
        )

    def make_feed(
        key: str, stream: str, call_options: CallOptions, deliver: Callable[[Shot], None]
    ) -> Feed:
        fade_ms, analyst = settings.session.fade_ms, make_analyst(stream)
        return Feed(key, fade_ms, call_options, inference, deliver, analyst=analyst)

    def make_hub(on_sent: Callable[[SentShot], None]) -> Hub:
        return Hub(options_now(), encoders, on_sent)

    def make_viewer(session_id: str, stream: Stream, rung: str, view: str) -> Viewer:
        def find_fanout(codec: str) -> PictureSource:
            return stream.hub.fanout(codec, rung) if view == ANNOTATED else stream.relay

        options = options_now()
        if view != ANNOTATED:
            options = replace(options, video_codecs=(stream.forwarded_codec,))
        return Viewer(
            session_id=session_id,
            settings=settings.session,
            peer=PeerConnection(options, encoders, find_fanout),
            stream=stream,
            rung=rung,
            view=view,
            describe=describe,
        )

    streams = Streams(settings.streams, make_hub, frame_sink, bulletin)
    recorder = app[RECORDER] = make_recorder(settings, streams, bulletin, scenes, journal)

    def forget_pictures(stream: str) -> None:
        recorder.forget_pictures(stream)
        with contextlib.suppress(NotFoundError):
            streams.get(stream).hub.forget()

    scenes.on_masks = forget_pictures
    registry = Registry(settings.session, make_session, streams, make_viewer)
    first_options = CallOptions(mode=settings.session.mode, confidence=settings.session.confidence)
    pulls = Pulls(settings.sources, first_options, streams, make_feed)
    cpu = CpuMeter()

    def measure() -> Load:
        sessions, lag = registry.statistics().sessions, loop_lag.recorder.statistics()
        # Old waits say nothing about now when no call makes new ones.
        fetched = [stream for stream in streams.statistics() if pulls.has(stream.name)]
        live = any(session.frames_out for session in sessions) or any(s.live for s in fetched)
        pixels = sum(w * h * session.fps_in for session in sessions for w, h in [session.size_wh])
        pixels += desk.rate.per_second(now_ns())
        pixels += sum(w * h * stream.fps for stream in fetched for w, h in [stream.size_wh])
        return Load(
            # The first seconds are those of start-up.
            loop_lag_p99_ms=lag.p99 if lag.count >= LAGS_AT_LEAST else 0.0,
            inference_wait_p95_ms=frames.statistics()["wait"].p95 if live else 0.0,
            megapixels_per_s=pixels / 1e6,
            cpu_percent=cpu.percent(),
        )

    audience = Audience(settings.outlets)
    desk = Desk(settings.images, inference)
    sockets = Sockets(settings.images, desk, streams, make_analyst)
    stills_api = StillsApi(settings.streams, streams, encoders, settings.outlets.listener_timeout_s)
    holders = (registry, audience, sockets, stills_api)
    holdings = Holdings(lambda held: any(part.has(held) for part in holders))
    gate = Gate(
        settings,
        authority,
        Limits(settings.limits, measure),
        holdings,
        is_draining=lambda: registry.draining,
    )
    gate.install(app)
    mqtt = MqttOutlet(settings.mqtt, bulletin, __version__, stills_api.newest)
    webhooks = Webhooks(settings.webhooks, bulletin, __version__)
    status = Status(
        registry,
        inference,
        frames,
        loop_lag,
        bulletin,
        audience,
        desk,
        mqtt,
        webhooks,
        journal,
        pulls,
        recorder,
    )
    loader = ThreadPoolExecutor(1, thread_name_prefix="load")
    changer = ModelChanger(
        settings.detector, load, inference, loader, model_folders(settings.detector)
    )
    watch = DetectorWatch(inference, changer.load_current, settings.detector.replace_after_s)
    signaling = Signaling(
        settings,
        registry,
        status,
        MetricsPage(status.statistics, gate.statistics),
        changer,
        web_root(),
    )

    def ice_links(request: web.Request) -> list[str]:
        identity = principal_of(request).identity
        servers = ice_servers_json(settings, identity, relays=True)
        return [link_header(server) for server in servers]

    app[SIGNALING] = signaling
    app[INFERENCE] = inference
    gateway = Gateway(settings, registry, streams, hold, ice_links)
    embed_policy(settings.auth.frame_ancestors)  # a mistake in it ends the start
    pages = Pages(settings, web_root())
    streams_api = StreamsApi(streams, pulls, stills_api.statistics_of)
    event_api = EventApi(settings.outlets, bulletin, audience, streams, lambda: inference.names)
    app.add_routes(
        [
            *signaling.routes(),
            *access_routes(),
            *gateway.routes(),
            *streams_api.routes(),
            *stills_api.routes(),
            *event_api.routes(),
            *ZonesApi(scenes).routes(),
            *HistoryApi(journal).routes(),
            *ClipsApi(recorder, journal).routes(),
            *pages.routes(),
            *sockets.routes(),
            *DetectApi(settings, desk).routes(),
            *openapi_routes(),
        ]
    )

    async def end_listeners(_: web.Application) -> None:
        """Before the wait for requests that are being answered: these would go on for ever."""
        audience.close()
        stills_api.close()

    app.on_shutdown.append(end_listeners)

    async def parts(_: web.Application) -> AsyncIterator[None]:
        inference.start()
        journal.start()
        recorder.start()
        tasks = [asyncio.create_task(loop_lag.run(), name="loop lag")]
        if settings.detector.replace_after_s:
            tasks.append(asyncio.create_task(watch.run(), name="detector watch"))
        mqtt.start()
        webhooks.start()
        pulls.begin_configured()
        yield
        # Reverse order: sources and calls, then what they use.
        pulls.stop()
        await registry.close(settings.server.shutdown_timeout_s)
        # What ended with the calls is written and told.
        await recorder.close(settings.session.close_timeout_s)
        await journal.close(settings.session.close_timeout_s)
        # What the end of the calls gave rise to is still told.
        await asyncio.gather(mqtt.close(OUTLET_CLOSE_S), webhooks.close(OUTLET_CLOSE_S))
        bulletin.close()
        desk.close()
        holdings.close()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        # A thread that waits for a camera ends with its deadline, or with the process.
        lingering = await pulls.close(LINGERING_S)
        if lingering:
            logger.info("Not waited for: %s", ", ".join(lingering))
        stopped = await asyncio.to_thread(inference.stop, settings.session.close_timeout_s)
        if not stopped:
            logger.warning("The detector still hangs; leaving its thread behind")
        loader.shutdown(wait=False, cancel_futures=True)
        encoders.shutdown(wait=False, cancel_futures=True)
        if tracer is not None:
            await asyncio.to_thread(tracer.close)

    async def close_sockets(_: web.Application) -> None:
        # Before the runner waits for handlers: a socket's handler lives as long as the socket.
        await sockets.close()

    app.on_shutdown.append(close_sockets)
    app.cleanup_ctx.append(parts)
    return app
