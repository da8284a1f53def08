"""Who publishes a stream and who watches it: many cheap viewers, and a few that look."""

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Mapping
from typing import Final

import aiohttp
from aiortc import MediaStreamTrack, RTCDtlsTransport, RTCRtpReceiver, RTCSessionDescription
from aiortc.rtp import RtpPacket

from bench.camera import Camera
from bench.errors import PeerError
from bench.eye import Eye
from server.clock import NS_PER_MS, now_ns
from server.rtc.idle import IdleReceiver
from server.rtc.options import RtcOptions
from server.rtc.peer import PeerConnection
from server.rtc.receiver import RemoteVideoTrack

SDP: Final = {"Content-Type": "application/sdp"}
CLOSE_TIMEOUT_S: Final = 2.0
# A stream that is not there yet is asked for again after so long.
RETRY_S: Final = 0.02


class CountingReceiver(IdleReceiver):
    """Takes packets off the wire, decrypts them and counts; decodes nothing."""

    def __init__(self, kind: str, transport: RTCDtlsTransport) -> None:
        super().__init__(kind, transport)
        self.packets = 0
        self.pictures = 0
        self.first_picture_at_ns = 0

    async def _handle_rtp_packet(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        self.packets += 1
        if packet.marker and packet.payload:
            self.pictures += 1
            self.first_picture_at_ns = self.first_picture_at_ns or now_ns()


class LightConnection(PeerConnection):
    """A peer connection whose video is counted only."""

    def _make_receiver(self, kind: str, transport: RTCDtlsTransport) -> RTCRtpReceiver:
        return CountingReceiver(kind, transport)


class Member:
    """One connection made by WHIP or WHEP. Loop only; `open`, then `close`."""

    def __init__(self, name: str, connection: PeerConnection) -> None:
        self.name = name
        self.connection = connection
        self.asked_at_ns = 0
        """When the offer that was taken began to be made."""
        self._url = ""

    async def open(self, http: aiohttp.ClientSession, url: str, *, patiently: bool = False) -> None:
        """Offer there and take the answer; `patiently` waits for a stream that is not there yet.
        Raises `PeerError` with what the server said."""
        await self.connection.setLocalDescription(await self.connection.createOffer())
        sdp = self.connection.localDescription.sdp
        while True:
            self.asked_at_ns = now_ns()
            async with http.post(url, data=sdp, headers=SDP) as reply:
                body = await reply.text()
                if reply.status == 201:
                    self._url = str(reply.url.join(reply.url.with_path(reply.headers["Location"])))
                    break
            if not patiently or reply.status not in (404, 409):
                raise PeerError(f"{self.name}: refused with {reply.status}: {body[:300]}")
            await asyncio.sleep(RETRY_S)
        await self.connection.setRemoteDescription(RTCSessionDescription(body, "answer"))

    async def close(self, http: aiohttp.ClientSession) -> None:
        """End it on both sides. Idempotent."""
        if self._url:
            url, self._url = self._url, ""
            # The server frees a silent peer by itself.
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S), http.delete(url):
                    pass
        await self.connection.close_within(CLOSE_TIMEOUT_S)


class Publisher(Member):
    """Sends a camera by WHIP."""

    def __init__(
        self, camera: Camera, codec: str, encode_executor: concurrent.futures.Executor
    ) -> None:
        super().__init__(
            "publisher", PeerConnection(RtcOptions(video_codecs=(codec,)), encode_executor)
        )
        self.camera = camera
        self.connection.addTransceiver(camera, direction="sendonly")


class LightViewer(Member):
    """Watches without decoding."""

    def __init__(self, name: str, codec: str, encode_executor: concurrent.futures.Executor) -> None:
        super().__init__(name, LightConnection(RtcOptions(video_codecs=(codec,)), encode_executor))
        transceiver = self.connection.addTransceiver("video", direction="recvonly")
        assert isinstance(transceiver.receiver, CountingReceiver)
        self.receiver = transceiver.receiver


class SeeingViewer(Member):
    """Watches as a browser does: decodes each picture and reads its bar code."""

    def __init__(
        self,
        name: str,
        codec: str,
        encode_executor: concurrent.futures.Executor,
        handed_at_ns: list[int],
    ) -> None:
        super().__init__(name, PeerConnection(RtcOptions(video_codecs=(codec,)), encode_executor))
        self._loop = asyncio.get_running_loop()
        self._first = asyncio.Event()
        self.first_at_ns = 0
        self.eye = Eye(handed_at_ns, self._on_first)
        self.connection.on("track", self._on_track)
        self.connection.addTransceiver("video", direction="recvonly")

    def _on_track(self, track: MediaStreamTrack) -> None:
        if isinstance(track, RemoteVideoTrack):
            track.deliver_to(self.eye.see)

    def _on_first(self) -> None:
        self.first_at_ns = now_ns()
        self._loop.call_soon_threadsafe(self._first.set)

    async def first_picture_ms(self, timeout_s: float, since_ns: int | None = None) -> float:
        """From the offer, or from `since_ns`, to the first picture read. Raises `PeerError`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._first.wait()
        except TimeoutError:
            raise PeerError(f"{self.name}: no picture within {timeout_s:g} s") from None
        return (self.first_at_ns - (since_ns or self.asked_at_ns)) / NS_PER_MS


def options_query(options: Mapping[str, str]) -> str:
    """`?view=data`, or nothing."""
    return "?" + "&".join(f"{name}={value}" for name, value in options.items()) if options else ""
