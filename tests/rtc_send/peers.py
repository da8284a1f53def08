"""Two real peers on this machine, one of which sends with our sender."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiortc import RTCConfiguration, RTCPeerConnection
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtcrtpsender import RTCRtpSender
from aiortc.rtcrtptransceiver import RTCRtpTransceiver

from server.rtc.options import RtcOptions
from server.rtc.sender import VideoSender

DEADLINE_S = 10.0
THREAD_PREFIX = "test-encode"


class SendingPeer(RTCPeerConnection):
    """A stock peer but for its video sender."""

    def __init__(self, options: RtcOptions, executor: ThreadPoolExecutor) -> None:
        super().__init__(RTCConfiguration(iceServers=[]))
        self._test_options = options
        self._test_executor = executor

    def _RTCPeerConnection__createTransceiver(
        self, direction: str, kind: str, sender_track: MediaStreamTrack | None = None
    ) -> RTCRtpTransceiver:
        create: Any = RTCPeerConnection._RTCPeerConnection__createTransceiver  # type: ignore[attr-defined]
        transceiver: RTCRtpTransceiver = create(self, direction, kind, sender_track)
        stock = transceiver.sender
        sender = VideoSender(
            sender_track or kind,
            stock.transport,
            options=self._test_options,
            encode_executor=self._test_executor,
        )
        sender._stream_id = stock._stream_id
        transceiver._RTCRtpTransceiver__sender = sender  # type: ignore[attr-defined]
        transceiver.receiver._set_rtcp_ssrc(sender._ssrc)
        return transceiver

    @property
    def video_sender(self) -> VideoSender:
        (sender,) = self.getSenders()
        assert isinstance(sender, VideoSender)
        return sender


@contextlib.asynccontextmanager
async def sending_to(
    track: MediaStreamTrack, codec: str, options: RtcOptions | None = None
) -> AsyncIterator[tuple[SendingPeer, MediaStreamTrack]]:
    """Connect; gives the sending peer and the track as the stock peer receives it."""
    executor = ThreadPoolExecutor(1, THREAD_PREFIX)
    near = SendingPeer(options or RtcOptions(), executor)
    far = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    arrived: asyncio.Future[MediaStreamTrack] = asyncio.get_running_loop().create_future()
    far.on("track", arrived.set_result)
    try:
        async with asyncio.timeout(DEADLINE_S):
            near.addTrack(track)
            wanted = [
                c for c in RTCRtpSender.getCapabilities("video").codecs if c.name in (codec, "rtx")
            ]
            near.getTransceivers()[0].setCodecPreferences(wanted)
            await near.setLocalDescription(await near.createOffer())
            await far.setRemoteDescription(near.localDescription)
            await far.setLocalDescription(await far.createAnswer())
            await near.setRemoteDescription(far.localDescription)
            yield near, await arrived
    finally:
        async with asyncio.timeout(DEADLINE_S):
            await near.close()
            await far.close()
        executor.shutdown(wait=True)
