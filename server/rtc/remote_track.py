"""The track that a peer's video arrives on, as the session sees it."""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiortc.mediastreams import MediaStreamError
from aiortc.rtcrtpreceiver import RemoteStreamTrack

from server.rtc.decoding import DecodedFrame

if TYPE_CHECKING:
    from av import VideoFrame

logger = logging.getLogger(__name__)

Sink = Callable[[DecodedFrame], None]


class RemoteVideoTrack(RemoteStreamTrack):
    """What the peer sends, decoded.

    With a sink, pictures go there on the decoder thread. Without one `recv` serves the newest
    picture: bound 1, the older is dropped and counted. Ends when the peer's track ends, the
    receiver stops or the connection is lost.
    """

    def __init__(self, track_id: str) -> None:
        super().__init__(kind="video", id=track_id)
        self._running_loop = asyncio.get_running_loop()
        self._sink: Sink | None = None
        self._newest: DecodedFrame | None = None
        self._changed = asyncio.Event()
        self.dropped_unread = 0

    def deliver_to(self, sink: Sink) -> None:
        """Send pictures to `sink` from now on; on the decoder thread, so it must not block."""
        self._sink = sink

    def put_from_decoder(self, decoded: DecodedFrame) -> None:
        """On the decoder thread: pass one picture on."""
        sink = self._sink
        if sink is not None:
            sink(decoded)
            return
        try:
            self._running_loop.call_soon_threadsafe(self._put, decoded)
        except RuntimeError:
            logger.debug("picture after the loop was closed")

    def _put(self, decoded: DecodedFrame) -> None:
        if self._newest is not None:
            self.dropped_unread += 1
        self._newest = decoded
        self._changed.set()

    async def recv_decoded(self) -> DecodedFrame:
        """The newest picture not served yet; raises `MediaStreamError` at the end."""
        while self._newest is None:
            if self.readyState != "live":
                raise MediaStreamError
            self._changed.clear()
            await self._changed.wait()
        decoded, self._newest = self._newest, None
        return decoded

    async def recv(self) -> "VideoFrame":
        """The newest picture not served yet; raises `MediaStreamError` at the end."""
        return (await self.recv_decoded()).video_frame

    def stop(self) -> None:
        """End the track; whoever waits in `recv` gets the error. Idempotent."""
        super().stop()
        # Whoever took the pictures is let go of; the decoder may be giving us a last one.
        self._sink = _taken_by_nobody
        self._newest = None
        self._changed.set()


def _taken_by_nobody(decoded: DecodedFrame) -> None:
    """What becomes of a picture after the end."""
