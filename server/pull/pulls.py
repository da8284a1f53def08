"""The sources that this server fetches: begins and ends them, and holds their streams.

A source keeps its stream from when it is added until it is ended: while the camera is away its
viewers see the last picture marked as such, and the next picture without doing anything. On the
loop; pictures come on each source's own thread.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from server.call_options import CallOptions
from server.clock import NS_PER_S, now_ns, s_to_ns
from server.errors import SettingsError, SightlineError, UnavailableError
from server.feed import Feed
from server.logs import log_event
from server.pull.address import Address, check_host, parse_address, parse_sources
from server.pull.demo import DemoReader
from server.pull.picture_thread import PictureThread, ReaderCounters, Take
from server.pull.reader import Reader
from server.settings import SourceSettings
from server.shot import Shot
from server.stream import Publication
from server.streams import Streams

logger = logging.getLogger(__name__)

DEMO = "demo"
# A source that has ended may need its deadline to be gone; so many more than streams may linger.
LINGERING_AT_MOST = 32
RETRY_AFTER_S = 5
# How long the demo goes on when its last viewer has left: the next may be on its way.
UNWATCHED_S = 1.0

MakeFeed = Callable[[str, str, CallOptions, Callable[[Shot], None]], Feed]


@dataclass(frozen=True, slots=True)
class PullStatistics:
    """One source as it stands; nothing in it is secret."""

    stream: str
    address: str
    """Scheme and host."""
    state: str
    """`idle`, `connecting`, `playing`, `waiting` (for the next try), `ended`."""
    attempts: int
    connects: int
    pictures: int
    decoder: str
    last_error: str
    dropped: dict[str, int]


class Pull:
    """One source and its stream."""

    def __init__(
        self,
        name: str,
        address: Address,
        options: CallOptions,
        publication: Publication,
        make_feed: MakeFeed,
        make_reader: Callable[[Take], PictureThread],
        on_end: Callable[["Pull"], None],
    ) -> None:
        self.name = name
        self.address = address
        self.reader: PictureThread | None = None
        self._publication = publication
        self._make_reader = make_reader
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._feed = make_feed(f"pull {name}", name, options, self._deliver)
        self._counters = ReaderCounters()
        self._unwatched: asyncio.TimerHandle | None = None
        self._ended = False
        publication.owner = self
        if address.kind == "demo":
            publication.on_watched = self._on_watched
            if publication.stream.watched:
                # Those who stayed when the source before left are not told of again.
                self._on_watched(True)
        else:
            self._begin()

    # --- as its stream knows it ---

    @property
    def options(self) -> CallOptions:
        return self._feed.options

    def update(self, changes: Mapping[str, object]) -> CallOptions:
        self._feed.options = self._feed.options.updated(changes)
        return self._feed.options

    def end(self, reason: str) -> None:
        """Stop fetching. Idempotent; the thread is gone by its own deadline."""
        if self._ended:
            return
        self._ended = True
        last = self.statistics()
        log_event(
            logger,
            "source ended",
            stream=self.name,
            source=last.address,
            reason=reason,
            connects=last.connects,
            pictures=last.pictures,
            dropped={name: count for name, count in last.dropped.items() if count},
            last_error=last.last_error,
        )
        self._rest()
        self._publication.end()
        self._on_end(self)

    @property
    def dropped(self) -> dict[str, int]:
        """Between the camera and the detector, then between the detector's turns."""
        fed = self._feed.statistics(now_ns())
        turns = {"replaced": fed.dropped_replaced, "stale": fed.dropped_stale}
        return {**self._reading.dropped, **turns}

    @property
    def _reading(self) -> ReaderCounters:
        return self.reader.counters if self.reader is not None else self._counters

    def statistics(self) -> PullStatistics:
        counters = self._reading
        return PullStatistics(
            stream=self.name,
            address=self.address.shown,
            state="ended" if self._ended else counters.state,
            attempts=counters.attempts,
            connects=counters.connects,
            pictures=counters.pictures,
            decoder=counters.decoder,
            last_error=counters.last_error,
            dropped=self.dropped,
        )

    # --- small parts ---

    def _begin(self) -> None:
        self._feed.open()
        self.reader = self._make_reader(self._feed.take)
        self.reader.start()

    def _rest(self) -> None:
        """No more pictures; for the demo until somebody watches again."""
        if self._unwatched is not None:
            self._unwatched.cancel()
            self._unwatched = None
        if self.reader is not None:
            self.reader.request_stop()
        self._feed.close()

    def _deliver(self, shot: Shot) -> None:
        """On the reader's or the inference thread."""
        try:
            self._loop.call_soon_threadsafe(self._offer, shot)
        except RuntimeError:
            logger.debug("pull %s: the loop is closed", self.name)

    def _offer(self, shot: Shot) -> None:
        # One that was on its way when the demo fell asleep would be what the next viewer sees.
        if self.reader is not None:
            self._publication.offer(shot)

    def _on_watched(self, watched: bool) -> None:
        """The demo runs only while somebody looks."""
        if self._unwatched is not None:
            self._unwatched.cancel()
            self._unwatched = None
        running = self.reader is not None
        if watched and not running:
            self._begin()
        elif not watched and running:
            self._unwatched = self._loop.call_later(UNWATCHED_S, self._fall_asleep)

    def _fall_asleep(self) -> None:
        self._rest()
        self.reader = None
        # What was shown last is no picture to begin with next time.
        self._publication.stream.hub.forget()


class Pulls:
    """All of them, by the name of their stream. Ended by `close`, whose wait is off the loop."""

    def __init__(
        self,
        settings: SourceSettings,
        options: CallOptions,
        streams: Streams,
        make_feed: MakeFeed,
    ) -> None:
        self._settings = settings
        self._options = options
        self._streams = streams
        self._make_feed = make_feed
        self._pulls: dict[str, Pull] = {}
        self._lingering: list[PictureThread] = []
        self._closed = False

    def begin_configured(self) -> None:
        """The sources of the settings, and the demo. A source that cannot be is logged, not fatal:
        the others are wanted all the same."""
        for name, text in sources_of(self._settings).items():
            try:
                self.add(name, text, {}, trusted=True)
            except SightlineError as error:
                logger.error("sources: %s: %s", name, error)
        if self._settings.demo == "on":
            self.add(DEMO, DEMO, {}, trusted=True)

    async def add_for_caller(self, name: str, text: str, changes: Mapping[str, object]) -> None:
        """Begin a source that a caller of the API names."""
        address = parse_address(text, self._settings)
        try:
            await asyncio.wait_for(
                asyncio.to_thread(check_host, address, self._settings.source_hosts), 5.0
            )
        except (OSError, TimeoutError):
            # A name that is not known now may be later; it is looked at again with every try.
            logger.debug("pull %s: its host is not known", name)
        self.add(name, text, changes, trusted=False)

    def add(self, name: str, text: str, changes: Mapping[str, object], *, trusted: bool) -> None:
        """Begin a source; refuses an address, options or a name that cannot be."""
        if self._closed:
            raise UnavailableError("the server is stopping", RETRY_AFTER_S)
        address = parse_address(text, self._settings)
        options = self._options.updated(changes)
        self._lingering = [reader for reader in self._lingering if reader.is_alive]
        if len(self._lingering) >= LINGERING_AT_MOST:
            raise UnavailableError("sources that were ended are still closing", RETRY_AFTER_S)

        def make_reader(take: Take) -> PictureThread:
            if address.kind == "demo":
                return DemoReader(name, take)
            return Reader(name, address, self._settings, take, trusted=trusted)

        kind = "demo" if address.kind == "demo" else "pull"
        publication = self._streams.claim(name, kind, returns_picture=False)
        try:
            self._pulls[name] = Pull(
                name, address, options, publication, self._make_feed, make_reader, self._on_end
            )
        except BaseException:
            # Whatever it was: the name is free again.
            publication.end()
            raise

    def has(self, name: str) -> bool:
        return name in self._pulls

    def statistics(self) -> tuple[PullStatistics, ...]:
        return tuple(pull.statistics() for pull in self._pulls.values())

    def statistics_of(self, name: str) -> PullStatistics | None:
        pull = self._pulls.get(name)
        return pull.statistics() if pull is not None else None

    def stop(self) -> None:
        """End all of them; `close` then waits for their threads."""
        self._closed = True
        for pull in list(self._pulls.values()):
            pull.end("server stops")

    async def close(self, timeout_s: float) -> tuple[str, ...]:
        """End all of them; names the threads that are still running after the time."""
        self.stop()
        return await asyncio.to_thread(self._join, timeout_s)

    def _join(self, timeout_s: float) -> tuple[str, ...]:
        until_ns = now_ns() + s_to_ns(timeout_s)
        return tuple(
            reader.name
            for reader in self._lingering
            if not reader.join(max(0.0, (until_ns - now_ns()) / NS_PER_S))
        )

    def _on_end(self, pull: Pull) -> None:
        if self._pulls.get(pull.name) is pull:
            del self._pulls[pull.name]
        if pull.reader is not None:
            self._lingering.append(pull.reader)


def sources_of(settings: SourceSettings) -> dict[str, str]:
    """Those of the settings, by name."""
    try:
        return parse_sources(settings.sources)
    except ValueError as error:
        raise SettingsError(str(error)) from None
