"""The named streams there are; each begins with its source. On the loop."""

from collections.abc import Callable

from server.errors import ConflictError, NotFoundError, UnavailableError
from server.frame import FrameSink
from server.hub import Hub, SentShot
from server.outlets.bulletin import Bulletin
from server.settings import STREAM_NAME, STREAM_NAME_RULE, StreamSettings
from server.stream import FULL_RETRY_S, Publication, Stream, StreamStatistics


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
    if not STREAM_NAME.fullmatch(name):
        raise NotFoundError(f"stream: {STREAM_NAME_RULE}")
