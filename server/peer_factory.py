"""How sessions, viewers, feeds and hubs are made from the settings and what they share."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from server.access.turn import ice_credentials
from server.analysis.analyst import Analyst
from server.analysis.scenes import Scenes
from server.call_options import CallOptions
from server.feed import Feed
from server.frame import FrameSink
from server.hub import Hub, SentShot
from server.inference import InferenceWorker
from server.rtc.encoders.probe import choose_h264
from server.rtc.options import IceServer, RtcOptions
from server.rtc.peer import PeerConnection
from server.rtc.picture_source import PictureSource
from server.session import Session
from server.settings import RTC_SWITCHES, RtcSettings, Settings
from server.shot import Shot
from server.status import model_json
from server.stream import ANNOTATED, Publication, Stream
from server.viewer import Viewer


class PeerFactory:
    """Holds what all of them share and none of what it makes."""

    def __init__(
        self,
        settings: Settings,
        inference: InferenceWorker,
        encoders: Executor,
        frame_sink: FrameSink,
        scenes: Scenes,
    ) -> None:
        self._settings = settings
        self._inference = inference
        self._encoders = encoders
        self._frame_sink = frame_sink
        self._scenes = scenes
        self._rtc_options()  # a mistake in the settings ends the start, not the first call

    def session(
        self, session_id: str, options: CallOptions, publication: Publication | None
    ) -> Session:
        """One call."""
        # First: it may refuse, and a connection that was made would have to be closed.
        analyst = self.analyst(publication.stream.name if publication is not None else "")
        return Session(
            session_id=session_id,
            settings=self._settings.session,
            options=options,
            peer=PeerConnection(self._rtc_options(), self._encoders),
            inference=self._inference,
            frame_sink=self._frame_sink,
            describe=self._describe,
            publication=publication,
            analyst=analyst,
        )

    def viewer(self, session_id: str, stream: Stream, rung: str, view: str) -> Viewer:
        """One viewer of a stream: of its encoded pictures, or of its packets as they came."""

        def find_fanout(codec: str) -> PictureSource:
            return stream.hub.fanout(codec, rung) if view == ANNOTATED else stream.relay

        options = self._rtc_options()
        if view != ANNOTATED:
            options = replace(options, video_codecs=(stream.forwarded_codec,))
        return Viewer(
            session_id=session_id,
            settings=self._settings.session,
            peer=PeerConnection(options, self._encoders, find_fanout),
            stream=stream,
            rung=rung,
            view=view,
            describe=self._describe,
        )

    def feed(
        self, key: str, stream: str, options: CallOptions, deliver: Callable[[Shot], None]
    ) -> Feed:
        """The way through the detector of a source that the server fetches."""
        fade_ms, analyst = self._settings.session.fade_ms, self.analyst(stream)
        return Feed(key, fade_ms, options, self._inference, deliver, analyst=analyst)

    def hub(self, on_sent: Callable[[SentShot], None]) -> Hub:
        """What draws and encodes for the viewers of one stream."""
        return Hub(self._rtc_options(), self._encoders, on_sent)

    def analyst(self, stream: str) -> Analyst | None:
        """For a source of this stream, or of none."""
        tracking = self._settings.analysis.tracking
        if not stream:
            return Analyst(tracking=True) if tracking else None
        return Analyst(tracking=tracking, scene=self._scenes.of(stream))

    def _rtc_options(self) -> RtcOptions:
        # Each time anew: credentials for TURN run out.
        return rtc_options(self._settings.rtc, ice_credentials(self._settings, "server"))

    def _describe(self, codec: str) -> dict[str, Any]:
        h264 = choose_h264(self._settings.rtc.h264_encoder)
        statistics = self._inference.statistics()
        return {
            "model": model_json(statistics),
            "names": list(statistics.names),
            "codec": codec,
            "encoder": h264.name if codec == "H264" else "libvpx",
        }


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
