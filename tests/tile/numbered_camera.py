"""A stock peer that publishes numbered pictures as VP8, which every browser plays, in a process of
its own. `python -m tests.tile.numbered_camera URL`; ends with its standard input."""

import asyncio
import sys
import time
from fractions import Fraction

import aiohttp
import av
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.mediastreams import VideoStreamTrack

from bench.barcode import Mark, stamp

SIZE_WH = (320, 240)
FPS = 15


class Numbered(VideoStreamTrack):
    """Grey pictures with their number in bars, at a camera's pace."""

    def __init__(self) -> None:
        super().__init__()
        self._number = -1
        self._began_at = time.monotonic()

    async def recv(self) -> av.VideoFrame:
        self._number += 1
        await asyncio.sleep(max(0.0, self._began_at + self._number / FPS - time.monotonic()))
        picture = np.full((SIZE_WH[1] * 3 // 2, SIZE_WH[0]), 128, np.uint8)
        stamp(picture[: SIZE_WH[1]], Mark(0, self._number))
        frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
        frame.pts, frame.time_base = self._number * 90_000 // FPS, Fraction(1, 90_000)
        return frame


async def publish(url: str) -> None:
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transceiver = pc.addTransceiver(Numbered(), direction="sendonly")
    codecs = RTCRtpSender.getCapabilities("video").codecs
    transceiver.setCodecPreferences([codec for codec in codecs if codec.mimeType == "video/VP8"])
    await pc.setLocalDescription(await pc.createOffer())
    async with (
        aiohttp.ClientSession() as http,
        http.post(
            url, data=pc.localDescription.sdp, headers={"Content-Type": "application/sdp"}
        ) as reply,
    ):
        body = await reply.text()
        assert reply.status == 201, body
    await pc.setRemoteDescription(RTCSessionDescription(body, "answer"))
    await asyncio.to_thread(sys.stdin.read)
    await pc.close()


if __name__ == "__main__":
    asyncio.run(publish(sys.argv[1]))
