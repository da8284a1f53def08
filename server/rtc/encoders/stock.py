"""aiortc's own encoders behind our protocol: the "before" of every comparison."""

from aiortc.codecs import get_encoder
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from av import VideoFrame

from server.rtc.encoders.base import EncodedPicture


class StockEncoder:
    """A `VideoEncoder` that behaves as an unchanged aiortc would, limits included."""

    def __init__(self, codec: RTCRtpCodecParameters) -> None:
        self._codec = codec
        self._encoder = get_encoder(codec)
        self._first = True

    @property
    def name(self) -> str:
        return f"aiortc {self._codec.name}"

    @property
    def note(self) -> str:
        return ""

    def encode(
        self, video_frame: VideoFrame, keyframe: bool, bits_per_s: int, fps: float
    ) -> EncodedPicture:
        self._encoder.target_bitrate = bits_per_s  # type: ignore[attr-defined]
        payloads, _ = self._encoder.encode(video_frame, keyframe)
        # It does not say which pictures are key frames; these are those we know of.
        first, self._first = self._first, False
        return EncodedPicture(tuple(payloads), keyframe or first)
