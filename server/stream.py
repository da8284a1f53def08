"""One named stream: what its source offers, and who is sent it in which form.

When the source leaves, its viewers keep the last picture for a while; a source that comes back
under the name is seen by them without doing anything. On the loop only.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from server.call_options import CallOptions
from server.clock import NS_PER_S, now_ns
from server.detections import Detections
from server.errors import NotLiveError, UnavailableError, UnprocessableError
from server.frame import Frame, FrameSink, Stamps
from server.hub import EncodingStatistics, Hub, SentShot
from server.outlets.bulletin import ENDED, LIVE, NO_SIGNAL, WAITING, Bulletin
from server.rtc.assembly import EncodedFrame
from server.rtc.relay import Relay, RelayStatistics
from server.settings import StreamSettings
from server.shot import Shot
from server.stream_news import StreamNews
from server.telemetry import RateMeter

# A viewer that finds no live source comes back after so long: spread, so that not all come at once.
RETRY_S = (2, 10)
FULL_RETRY_S = 5
# What a viewer is sent: the picture with its boxes drawn, the source's own packets with the boxes
# beside them, or those packets alone.
ANNOTATED, DATA, RAW = "annotated", "data", "raw"
VIEWS = (ANNOTATED, DATA, RAW)
# Sources whose packets can be: the others bring pictures.
FORWARDING = ("call", "whip")
# How often a stream looks whether pictures still come in.
LOOK_S = 1.0


class Source(Protocol):
    """What a stream's pictures come from: a session, a pull; on the loop."""

    @property
    def options(self) -> CallOptions: ...

    @property
    def dropped(self) -> Mapping[str, int]:
        """Pictures that came, or should have, and were not shown, by reason."""
        ...

    def update(self, changes: Mapping[str, object]) -> CallOptions: ...

    def end(self, reason: str) -> None: ...


@dataclass(frozen=True, slots=True)
class WatcherFacts:
    """How one viewer is served."""

    way: str
    """webrtc or mjpeg."""
    view: str
    rung: str
    codec: str
    state: str
    age_s: float
    rtt_ms: float | None
    packets_sent: int
    packets_resent: int
    """Those that were lost on the way and asked for again."""


class Watcher(Protocol):
    """A viewer as its stream knows it; on the loop."""

    id: str
    view: str
    """One of VIEWS."""

    def facts(self) -> WatcherFacts: ...

    def watches(self, codec: str, rung: str) -> bool: ...

    @property
    def listens(self) -> bool:
        """Whether it takes messages."""
        ...

    def tell(self, text: str) -> None: ...

    def end(self, reason: str) -> None: ...


@dataclass(frozen=True, slots=True)
class StreamStatistics:
    """One stream as it stands."""

    name: str
    live: bool
    """Pictures come in."""
    source: str
    """call, whip or what else; empty while there is none."""
    options: CallOptions | None
    """Of the source; None while there is none."""
    age_s: float
    size_wh: tuple[int, int]
    fps: float
    frames: int
    dropped: dict[str, int]
    """Pictures of this source that viewers did not get, by reason, the reasons there were."""
    sources: int
    """How many sources there have been."""
    viewers: int
    encodings: tuple[EncodingStatistics, ...]
    relay: RelayStatistics


class Publication:
    """A source's hold on its stream, from `Streams.claim` to `end`; a source that was replaced
    holds nothing any more."""

    def __init__(self, stream: "Stream", kind: str, returns_picture: bool) -> None:
        self.stream = stream
        self.kind = kind
        self.returns_picture = returns_picture
        self.owner: Source | None = None
        """Set by whoever claimed, once there is a session; None again after the end."""
        self._can_forward = kind in FORWARDING
        self._hidden = False
        self.on_watched: Callable[[bool], None] | None = None
        """Hears when the first viewer comes and when the last one leaves."""

    def offer(self, shot: Shot) -> None:
        """The next picture."""
        if self.stream.publication is self:
            self.stream.offer(shot)

    @property
    def forwards(self) -> bool:
        """Whether the source's packets may be passed on as they came."""
        return self._can_forward and not self._hidden

    def hide(self, hidden: bool) -> None:
        """Whether something in the picture may not be seen as it came; whoever does, ends."""
        if hidden and not self._hidden and self.stream.publication is self:
            self.stream.end_forwarding("part of the picture is covered now")
        self._hidden = hidden

    def forward(self, frame: EncodedFrame, ticks: int, wish_at_source: Callable[[], None]) -> None:
        """The next frame as it came, for viewers of `data` and `raw`; see `Relay.offer`."""
        if self.stream.publication is self:
            self.stream.forward(frame, ticks, wish_at_source)

    def detected(self, frame: Frame, detections: Detections) -> None:
        """Boxes of a frame whose picture has gone ahead."""
        if self.stream.publication is self:
            self.stream.tell_data(frame, detections)

    def end(self) -> None:
        """The source is gone. Idempotent."""
        self.owner = None
        if self.stream.publication is self:
            self.stream.source_left()


class Stream:
    """See the module. Made by `Streams`; `on_over` hears that nobody sends and nobody watches."""

    def __init__(
        self,
        name: str,
        settings: StreamSettings,
        make_hub: Callable[[Callable[[SentShot], None]], Hub],
        frame_sink: FrameSink,
        bulletin: Bulletin,
        on_over: Callable[["Stream"], None],
    ) -> None:
        self.name = name
        self.hub = make_hub(self._on_sent)
        self.relay = Relay(asyncio.get_running_loop().call_soon)
        self.publication: Publication | None = None
        self.viewers: dict[Watcher, None] = {}
        self._listeners = 0
        self._settings = settings
        self._frame_sink = frame_sink
        self._on_over = on_over
        self._news = StreamNews(name, bulletin)
        self._forwarded_codec = ""
        loop = asyncio.get_running_loop()
        self._look: asyncio.TimerHandle | None = loop.call_later(LOOK_S, self._look_at_signal)
        self._opened_at_ns = now_ns()
        self._expiry: asyncio.TimerHandle | None = None
        self._frames = 0
        self._rate = RateMeter()
        self._size_wh = (0, 0)
        self._sources = 0

    # --- the source ---

    def take(self, publication: Publication) -> None:
        """This is the source from now on; one there was ends."""
        before, self.publication = self.publication, publication
        if before is not None and before.owner is not None:
            before.owner.end("replaced by another source")
        self._stop_expiry()
        self._sources += 1
        self.hub.source_came()
        self.relay.source_came()
        self._say(WAITING)

    def source_left(self) -> None:
        """Keep what was seen last, for a while and if anybody looks."""
        self.publication = None
        self.hub.source_left()
        if not self.viewers:
            self._on_over(self)
            return
        self._say(NO_SIGNAL)
        self._news.tell_signal(False, self._viewers_of(DATA, RAW))
        loop = asyncio.get_running_loop()
        self._expiry = loop.call_later(self._settings.no_signal_s, self._on_over, self)

    def update(self, changes: Mapping[str, object]) -> CallOptions:
        """Change the options of the source; refuses where it is away."""
        if self.publication is None or self.publication.owner is None:
            raise NotLiveError("stream: its source is away", random.randint(*RETRY_S))
        return self.publication.owner.update(changes)

    def offer(self, shot: Shot) -> None:
        self._frames += 1
        self._rate.add(now_ns())
        self._size_wh = shot.frame.size_wh
        self.hub.offer(shot)
        self._say(LIVE)
        self._news.post_found(shot)
        if shot.detections is not None and shot.found is None:
            self.tell_data(shot.frame, shot.detections)

    def forward(self, frame: EncodedFrame, ticks: int, wish_at_source: Callable[[], None]) -> None:
        """The next frame as it came."""
        before = self._forwarded_codec
        if frame.codec_name != before:
            self._forwarded_codec = frame.codec_name
            if before:
                self.end_forwarding("the source changed its codec")
        began = not self.relay.codec
        self.relay.offer(frame, ticks, wish_at_source)
        if began:
            self._news.tell_signal(True, self._viewers_of(DATA, RAW))
        if self._only_relayed:
            stamps = Stamps(frame.received_at_ns, frame.assembled_at_ns, sent_at_ns=now_ns())
            self._frame_sink.record(stamps)

    @property
    def _only_relayed(self) -> bool:
        """Whether those who watch all get packets as they came: no picture of ours is recorded."""
        publication = self.publication
        returned = publication is not None and publication.returns_picture
        return self.relay.watched and not returned and not self.hub.watched

    def end_forwarding(self, reason: str) -> None:
        """Nobody is sent packets as they came any more."""
        for viewer in self._viewers_of(DATA, RAW):
            viewer.end(reason)

    @property
    def forwarded_codec(self) -> str:
        """What viewers of `data` and `raw` must take; refuses while there is none."""
        publication = self.publication
        if publication is None or (publication.forwards and not self.relay.codec):
            raise NotLiveError("stream: its source is away", random.randint(*RETRY_S))
        if not publication.forwards:
            raise UnprocessableError(
                f"view: the packets of this source ({publication.kind}) are not passed on; "
                f"view={ANNOTATED} is served"
            )
        return self.relay.codec

    # --- the viewers ---

    def join(self, viewer: Watcher) -> None:
        """Admit a viewer; refuses without a source and beyond the limit."""
        if self.publication is None:
            raise NotLiveError("stream: its source is away", random.randint(*RETRY_S))
        limit = self._settings.max_viewers
        if len(self.viewers) >= limit:
            raise UnavailableError(f"max_viewers: {limit} viewers watch this stream", FULL_RETRY_S)
        self.viewers[viewer] = None
        if len(self.viewers) == 1 and not self._listeners:
            self._tell_source(watched=True)

    def leave(self, viewer: Watcher) -> None:
        """Idempotent. The last one to leave a stream without source ends it."""
        left = self.viewers.pop(viewer, viewer) is None
        if self.viewers:
            return
        if self.publication is None:
            self._on_over(self)
        elif left and not self._listeners:
            self._tell_source(watched=False)

    def listen(self) -> None:
        """Somebody wants what is found and no picture: a source that rests begins."""
        self._listeners += 1
        if self._listeners == 1 and not self.viewers:
            self._tell_source(watched=True)

    def unlisten(self) -> None:
        """Once for each `listen`."""
        self._listeners -= 1
        if not self._listeners and not self.viewers:
            self._tell_source(watched=False)

    @property
    def watched(self) -> bool:
        """Whether anybody wants its pictures, or what is found in them."""
        return bool(self.viewers or self._listeners)

    def _tell_source(self, *, watched: bool) -> None:
        if self.publication is not None and self.publication.on_watched is not None:
            self.publication.on_watched(watched)

    def close(self) -> None:
        """End it for everybody. Idempotent."""
        self._stop_expiry()
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self.hub.close()
        self._say(ENDED)
        for viewer in list(self.viewers):
            viewer.end("stream ended")

    def statistics(self) -> StreamStatistics:
        at_ns = now_ns()
        publication = self.publication
        owner = publication.owner if publication is not None else None
        encodings = self.hub.statistics()
        dropped = Counter(owner.dropped if owner is not None else {})
        for encoding in encodings:
            dropped["encoder"] += encoding.fanout.dropped_replaced
            dropped["not_encoded"] += encoding.fanout.failures
        return StreamStatistics(
            name=self.name,
            live=self.hub.has_signal,
            source=publication.kind if publication is not None else "",
            options=owner.options if owner is not None else None,
            age_s=round((at_ns - self._opened_at_ns) / NS_PER_S, 1),
            size_wh=self._size_wh,
            fps=round(self._rate.per_second(at_ns), 1),
            frames=self._frames,
            dropped=dict(+dropped),
            sources=self._sources,
            viewers=len(self.viewers),
            encodings=encodings,
            relay=self.relay.statistics(),
        )

    # --- what is told, and to whom ---

    def _on_sent(self, sent: SentShot) -> None:
        """A shot has left for all viewers of one encoding: its boxes follow."""
        publication, detections = self.publication, sent.shot.detections
        if publication is not None and not publication.returns_picture:
            self._frame_sink.record(sent.stamps)
        listeners = [viewer for viewer in self.viewers if viewer.watches(sent.codec, sent.rung)]
        if detections is not None and listeners:
            self._news.tell_drawn(sent, detections, listeners)

    def tell_data(self, frame: Frame, detections: Detections) -> None:
        """Boxes of a frame that went ahead, for viewers of `data`."""
        if self._only_relayed:
            # The picture was recorded when it left; this is the rest of its way.
            self._frame_sink.record(replace(frame.stamps, sent_at_ns=0))
        listeners = [viewer for viewer in self._viewers_of(DATA) if viewer.listens]
        relayed = self.relay.relayed(frame.rtp_timestamp) if listeners else None
        if relayed is not None:
            self._news.tell_beside(frame, detections, relayed, listeners)

    def _viewers_of(self, *views: str) -> list[Watcher]:
        return [viewer for viewer in self.viewers if viewer.view in views]

    def _say(self, state: str) -> None:
        publication = self.publication
        kind = publication.kind if publication is not None and state != ENDED else ""
        self._news.post_state(state, kind)

    # --- timers ---

    def _look_at_signal(self) -> None:
        self._look = asyncio.get_running_loop().call_later(LOOK_S, self._look_at_signal)
        if self._news.state == LIVE and not self.hub.has_signal:
            self._say(NO_SIGNAL)

    def _stop_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
