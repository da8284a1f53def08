"""What most people write first with aiortc: a track that detects inside its `recv()`.

The picture is awaited from the incoming track, turned into an array, looked at, drawn on and
turned back, all on the event loop; aiortc itself is as it comes.
"""

import contextlib
from typing import TYPE_CHECKING

from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription
from av import VideoFrame

from bench.peer_servers import calls

if TYPE_CHECKING:
    from bench.peer_servers.finder import Finder


class DetectingTrack(MediaStreamTrack):
    kind = "video"

    def __init__(self, source: MediaStreamTrack, finder: "Finder") -> None:
        super().__init__()
        self._source = source
        self._finder = finder

    async def recv(self) -> VideoFrame:
        frame = await self._source.recv()
        assert isinstance(frame, VideoFrame)
        annotated = self._finder.annotate(frame.to_ndarray(format="bgr24"))
        returned = VideoFrame.from_ndarray(annotated, format="bgr24")
        returned.pts, returned.time_base = frame.pts, frame.time_base
        return returned


class AiortcCalls:
    """Loop only."""

    def __init__(self, finder: "Finder") -> None:
        self._finder = finder
        self._connections: dict[str, RTCPeerConnection] = {}

    async def answer(self, session: str, offer: RTCSessionDescription) -> RTCSessionDescription:
        connection = self._connections[session] = RTCPeerConnection()

        @connection.on("track")
        def on_track(track: MediaStreamTrack) -> None:
            if track.kind == "video":
                connection.addTrack(DetectingTrack(track, self._finder))

        await connection.setRemoteDescription(offer)
        await connection.setLocalDescription(await connection.createAnswer())
        return connection.localDescription

    async def end(self, session: str) -> None:
        connection = self._connections.pop(session, None)
        if connection is not None:
            with contextlib.suppress(ConnectionError):
                await connection.close()

    def sessions(self) -> list[str]:
        return list(self._connections)


if __name__ == "__main__":
    calls.run(AiortcCalls, __doc__)
