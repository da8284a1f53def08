"""Encoded pictures as a fan-out hands them to its viewers."""

import av
import numpy as np
from aiortc.rtcrtpparameters import RTCRtpCodecParameters

from server.clock import now_ns
from server.rtc.encoders import make_encoder
from server.rtc.options import RtcOptions
from server.rtc.picture_source import SharedPicture

H264 = RTCRtpCodecParameters(mimeType="video/H264", clockRate=90_000)


class Camera:
    """Pictures of a bar that moves, 30 a second of media time, encoded by our own encoder."""

    def __init__(self, size_wh: tuple[int, int] = (320, 240)) -> None:
        self._size_wh = size_wh
        self._encoder = make_encoder(H264, RtcOptions(), frozenset())
        self._number = 0

    def shoot(self, keyframe: bool = False) -> SharedPicture:
        width, height = self._size_wh
        pixels = np.full((height * 3 // 2, width), 128, np.uint8)
        pixels[:height] = 60
        left = self._number * 4 % (width - 20)
        pixels[:height, left : left + 20] = 220
        frame = av.VideoFrame.from_ndarray(pixels, format="yuv420p")
        encoded = self._encoder.encode(frame, keyframe, 500_000, 30.0)
        # Media time goes around in the middle of the film.
        ticks = (0xFFFF_FFFF - 90_000 + self._number * 3000) & 0xFFFF_FFFF
        self._number += 1
        size = sum(map(len, encoded.payloads))
        return SharedPicture(encoded.payloads, encoded.keyframe, ticks, now_ns(), size)
