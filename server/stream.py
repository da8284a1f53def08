"""The named streams there are: who is the source of each, and who watches.

A stream begins with its source. When the source leaves, its viewers keep the last picture for a
while; a source that comes back under the name is seen by them without doing anything. On the
loop only.
"""

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from server.call_options import CallOptions
from server.clock import NS_PER_S, now_ns, unix_ms
from server.detections import Detections
from server.errors import (
    ConflictError,
    NotFoundError,
    NotLiveError,
    UnavailableError,
    UnprocessableError,
)
from server.frame import Frame, Stamps
from server.hub import EncodingStatistics, Hub, SentShot
from server.messages import frame_message
from server.outlets.bulletin import (
    DETECTIONS,
    ENDED,
    LIVE,
    NO_SIGNAL,
    STATUS,
    WAITING,
    Bulletin,
)
from server.rtc.assembly import EncodedFrame
from server.rtc.relay import Relay, RelayStatistics
from server.settings import StreamSettings
from server.shot import Shot
from server.telemetry import RateMeter

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
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


class Watcher(Protocol):
    """A viewer as its stream knows it; on the loop."""

    view: str
    """One of VIEWS."""

    def watches(self, codec: str, rung: str) -> bool: ...

    @property
    def listens(self) -> bool:
        """Whether it takes messages."""
        ...

    def tell(self, text: str) -> None: ...

    def end(self, reason: str) -> None: ...


class FrameSink(Protocol):
    """Takes the instants of every frame that left."""

    def record(self, stamps: Stamps) -> None: ...


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
        """Set by whoever claimed, once there is a session."""
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
        if self.stream.publication is self:
            self.stream.source_left()


class Stream:
    """One named stream; made and ended by `Streams`."""

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
        self._bulletin = bulletin
        self._on_over = on_over
        self._state = ""
        self._told: Detections | None = None
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
        self._tell_signal(False)
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
        self._tell(shot)
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
            self._tell_signal(True)
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

    # --- small parts ---

    def _on_sent(self, sent: SentShot) -> None:
        """A shot has left for all viewers of one encoding: its boxes follow."""
        publication, shot = self.publication, sent.shot
        if publication is not None and not publication.returns_picture:
            self._frame_sink.record(sent.stamps)
        listeners = [viewer for viewer in self.viewers if viewer.watches(sent.codec, sent.rung)]
        if shot.detections is None or not listeners:
            return
        message = frame_message(
            self.name,
            shot.frame,
            shot.detections,
            rtp_timestamp=sent.rtp_timestamp,
            stages_ms=sent.stamps.stages_ms(),
            sent=sent.stamps,
        )
        text = json.dumps(message, separators=(",", ":"))
        for viewer in listeners:
            viewer.tell(text)

    def tell_data(self, frame: Frame, detections: Detections) -> None:
        """Boxes for those who draw them themselves, with the time of their frame as it left."""
        if self._only_relayed:
            # The picture was recorded when it left; this is the rest of its way.
            self._frame_sink.record(replace(frame.stamps, sent_at_ns=0))
        viewers = [viewer for viewer in self._viewers_of(DATA) if viewer.listens]
        relayed = self.relay.relayed(frame.rtp_timestamp) if viewers else None
        if relayed is None:
            return
        message = frame_message(
            self.name,
            frame,
            detections,
            rtp_timestamp=relayed.rtp_timestamp,
            stages_ms=frame.stamps.stages_ms(),
            sent=replace(frame.stamps, sent_at_ns=relayed.sent_at_ns),
        )
        text = json.dumps(message, separators=(",", ":"))
        for viewer in viewers:
            viewer.tell(text)

    def _tell_signal(self, live: bool) -> None:
        """Nobody draws `no signal` for those who get packets as they come."""
        text = json.dumps({"type": "signal", "live": live})
        for viewer in self._viewers_of(DATA, RAW):
            viewer.tell(text)

    def _viewers_of(self, *views: str) -> list[Watcher]:
        return [viewer for viewer in self.viewers if viewer.view in views]

    def _tell(self, shot: Shot) -> None:
        """Whoever listens hears of boxes as soon as they are known, watched or not."""
        # In mode `smooth` the same boxes are shown on several pictures, moved on.
        frame, found = shot.found or (shot.frame, shot.detections)
        if found is None or found is self._told:
            return
        self._told = found
        if not self._bulletin.wanted(DETECTIONS, self.name):
            return
        message = frame_message(
            self.name,
            frame,
            found,
            rtp_timestamp=frame.rtp_timestamp,
            stages_ms=frame.stamps.stages_ms(),
            sent=replace(frame.stamps, sent_at_ns=now_ns()),
        )
        self._bulletin.post(DETECTIONS, self.name, message, shot.names)

    def _say(self, state: str) -> None:
        """Tell how the stream stands, when that is new."""
        if state == self._state or self._state == ENDED:
            return
        self._state = state
        publication = self.publication
        source = publication.kind if publication is not None and state != ENDED else ""
        message = {
            "stream": self.name,
            "state": state,
            "source": source,
            "unix_ms": round(unix_ms(), 1),
        }
        self._bulletin.post(STATUS, self.name, message)

    def _look_at_signal(self) -> None:
        self._look = asyncio.get_running_loop().call_later(LOOK_S, self._look_at_signal)
        if self._state == LIVE and not self.hub.has_signal:
            self._say(NO_SIGNAL)

    def _stop_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None


class Streams:
    """All of them, by name."""

    def __init__(
        self,
        settings: StreamSettings,
        make_hub: Callable[[Callable[[SentShot], None]], Hub],
        frame_sink: FrameSink,
        bulletin: Bulletin,
    ) -> None:
        self._settings = settings
        self._make_hub = make_hub
        self._frame_sink = frame_sink
        self._bulletin = bulletin
        self._streams: dict[str, Stream] = {}

    def claim(self, name: str, kind: str, *, returns_picture: bool) -> Publication:
        """Become the source of a stream, which may be new; refuses where there is one."""
        check_name(name)
        stream = self._streams.get(name)
        taken = stream is not None and stream.publication is not None
        if taken and not self._settings.replace_source:
            raise ConflictError(f"stream: {name} has a source (replace_source would end it)")
        if stream is None:
            limit = self._settings.max_streams
            if len(self._streams) >= limit:
                raise UnavailableError(f"max_streams: there are {limit} streams", FULL_RETRY_S)
            stream = self._streams[name] = Stream(
                name, self._settings, self._make_hub, self._frame_sink, self._bulletin, self._over
            )
        publication = Publication(stream, kind, returns_picture)
        stream.take(publication)
        return publication

    def get(self, name: str) -> Stream:
        stream = self._streams.get(name)
        if stream is None:
            raise NotFoundError("stream: no such name")
        return stream

    def statistics(self) -> tuple[StreamStatistics, ...]:
        return tuple(stream.statistics() for stream in self._streams.values())

    def end(self, name: str, reason: str) -> None:
        """End one stream with its source and its viewers."""
        stream = self.get(name)
        publication, stream.publication = stream.publication, None
        if publication is not None and publication.owner is not None:
            publication.owner.end(reason)
        self._over(stream)

    def close(self) -> None:
        """End all streams."""
        for stream in list(self._streams.values()):
            self._over(stream)

    def _over(self, stream: Stream) -> None:
        if self._streams.get(stream.name) is stream:
            del self._streams[stream.name]
        stream.close()


def check_name(name: str) -> None:
    """Refuse what is no stream's name."""
    if not NAME.fullmatch(name):
        raise NotFoundError("stream: a name has 1 to 64 of A-Z, a-z, 0-9, _ and -")
