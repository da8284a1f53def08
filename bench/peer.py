"""One headless client: camera out, annotated picture back, detections on the data channel."""

import asyncio
import concurrent.futures
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiortc import MediaStreamTrack, RTCSessionDescription

from bench.camera import Camera
from bench.errors import PeerError
from bench.eye import Eye
from bench.relay import Relay
from bench.window import Message
from server.clock import NS_PER_MS, now_ns
from server.rtc.options import RtcOptions
from server.rtc.peer import PeerConnection
from server.rtc.receiver import RemoteVideoTrack

ANSWER_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0
MESSAGES_AT_MOST: Final = 20_000
"""The newest messages kept per client; ten minutes of them at 30 a second."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said to the offer."""

    session: str
    codec: str
    encoder: str
    model: Mapping[str, object] | None


class Peer:
    """Loop only, one use: `connect`, `wait_first_picture`, then read the logs, then `close`.

    Between, nothing runs on the loop for it but the sender, the receiver's packets and the
    arrival of messages: the client shares its cores with what it measures.
    """

    def __init__(
        self,
        name: str,
        camera: Camera,
        codec: str,
        encode_executor: concurrent.futures.Executor,
        listens: bool = True,
        relay: Relay | None = None,
    ) -> None:
        self.name = name
        self.relay = relay
        """A bad network that all media of this call goes through."""
        self.camera = camera
        self.answer: Answer | None = None
        self.messages: deque[Message] = deque(maxlen=MESSAGES_AT_MOST)
        self.first_picture_ms: float | None = None
        """From the start of `POST /offer` to the first picture read."""
        self._listens = listens
        self._loop = asyncio.get_running_loop()
        self._offered_at_ns = 0
        self._resource_url: str | None = None
        self._connection = PeerConnection(RtcOptions(video_codecs=(codec,)), encode_executor)
        self._first_picture = asyncio.Event()
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self.eye = Eye(camera.handed_at_ns, self._on_first_picture)

    async def connect(
        self, http: aiohttp.ClientSession, url: str, options: Mapping[str, object]
    ) -> None:
        """Offer, and take the answer. Raises `PeerError` with what the server said."""
        connection = self._connection
        connection.on("track", self._on_track)
        connection.on("connectionstatechange", self._on_state_change)
        connection.addTrack(self.camera)
        if self._listens:
            channel = connection.createDataChannel("detections", ordered=False, maxRetransmits=0)
            channel.on("message", self._on_message)
        await connection.setLocalDescription(await connection.createOffer())
        sdp = connection.localDescription.sdp
        body = {
            "sdp": sdp if self.relay is None else self.relay.offer(sdp),
            "type": "offer",
            "options": dict(options),
        }
        self._offered_at_ns = now_ns()
        try:
            async with (
                asyncio.timeout(ANSWER_TIMEOUT_S),
                http.post(f"{url}/offer", json=body) as response,
            ):
                answer = await response.json(content_type=None)
                status = response.status
        except (aiohttp.ClientError, ValueError, TimeoutError) as error:
            raise PeerError(f"{self.name}: no answer to the offer: {error!r}") from error
        if status != 200:
            raise PeerError(f"{self.name}: the offer was refused with {status}: {answer}")
        self._resource_url = f"{url}/sessions/{answer['session']}"
        self.answer = Answer(
            answer["session"],
            str(answer.get("codec")),
            str(answer.get("encoder")),
            answer.get("model"),
        )
        sdp = answer["sdp"] if self.relay is None else self.relay.answer(answer["sdp"])
        await connection.setRemoteDescription(RTCSessionDescription(sdp, answer["type"]))

    async def wait_first_picture(self, timeout_s: float) -> None:
        """Until a picture came back. Raises `PeerError` when the call ends or time is up first."""
        arrival = asyncio.ensure_future(self._first_picture.wait())
        try:
            await asyncio.wait(
                (arrival, self._ended), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            arrival.cancel()
        if not self._first_picture.is_set():
            reason = self._ended.result() if self._ended.done() else f"{timeout_s:g} s are over"
            raise PeerError(f"{self.name}: no picture came back: {reason}; {self._situation()}")

    def check_alive(self) -> None:
        """Raises `PeerError` when the connection ended on its own."""
        if self._ended.done():
            raise PeerError(f"{self.name}: the call ended early: {self._ended.result()}")

    async def close(self, http: aiohttp.ClientSession) -> None:
        """End the call on both sides, each within a deadline."""
        self._connection.remove_all_listeners("connectionstatechange")
        if self._resource_url is not None:
            try:
                async with (
                    asyncio.timeout(CLOSE_TIMEOUT_S),
                    http.delete(self._resource_url),
                ):
                    pass
            except (aiohttp.ClientError, TimeoutError):
                pass  # the server frees a silent peer by itself
        self.camera.stop()
        await self._connection.close_within(CLOSE_TIMEOUT_S)

    @property
    def connection(self) -> PeerConnection:
        """For what only tests need: its statistics, and its keys to misbehave with."""
        return self._connection

    def _situation(self) -> str:
        """Where it got stuck, for the one line of an error."""
        connection, seen = self._connection, self.eye.statistics()
        refused = dict(connection.statistics().rejected_datagrams)
        return (
            f"connection {connection.connectionState}, ICE {connection.iceConnectionState}, "
            f"datagrams refused {refused or 'none'}, {len(self.camera.send_times)} pictures sent, "
            f"{seen.pictures} came back, {seen.unreadable} of them unreadable"
        )

    def _on_track(self, track: MediaStreamTrack) -> None:
        if isinstance(track, RemoteVideoTrack):
            track.deliver_to(self.eye.see)

    def _on_first_picture(self) -> None:
        arrived_at_ns = now_ns()
        self._loop.call_soon_threadsafe(self._note_first_picture, arrived_at_ns)

    def _note_first_picture(self, arrived_at_ns: int) -> None:
        self.first_picture_ms = (arrived_at_ns - self._offered_at_ns) / NS_PER_MS
        self._first_picture.set()

    def _on_message(self, text: str | bytes) -> None:
        if isinstance(text, str):
            self.messages.append(Message(now_ns(), text))

    def _on_state_change(self) -> None:
        state = self._connection.connectionState
        if state in ("failed", "closed") and not self._ended.done():
            self._ended.set_result(f"connection {state}")
