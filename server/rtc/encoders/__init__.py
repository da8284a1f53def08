"""Our video encoders, behind one protocol; the only place where pictures become payloads.

`make_encoder` gives the encoder for a negotiated codec. With `own_encoders` switched off it is
aiortc's, behind the same protocol, for comparison.
"""

import os
import random

from aiortc.rtcrtpparameters import RTCRtpCodecParameters

from server.rtc.encoders.base import EncodedPicture, EncodeError, VideoEncoder
from server.rtc.encoders.h264 import H264Encoder
from server.rtc.encoders.probe import LIBX264, H264Choice, choose_h264
from server.rtc.encoders.slot import EncodeResult, EncoderSlot, Renderable, RenderError
from server.rtc.encoders.stock import StockEncoder
from server.rtc.encoders.vp8 import Vp8Encoder
from server.rtc.options import RtcOptions

__all__ = [
    "EncodeError",
    "EncodeResult",
    "EncodedPicture",
    "EncoderSlot",
    "RenderError",
    "Renderable",
    "VideoEncoder",
    "make_encoder",
]


def make_encoder(
    codec: RTCRtpCodecParameters, options: RtcOptions, failed_names: frozenset[str] = frozenset()
) -> VideoEncoder:
    """A new encoder for a negotiated codec. On an encode thread: it may try the hardware.

    `failed_names` are hardware encoders that failed this sender before. Raises `EncodeError`
    for a codec we have no encoder for.
    """
    if not options.own_encoders:
        return StockEncoder(codec)
    low, high, cpus = options.bitrate_min_bps, options.bitrate_max_bps, os.cpu_count() or 1
    mime = codec.mimeType.lower()
    if mime == "video/vp8":
        return Vp8Encoder(low, high, cpus, first_picture_id=random.getrandbits(15))
    if mime == "video/h264":
        choice = choose_h264(options.h264_encoder)
        if choice.name in failed_names and choice.name != LIBX264:
            choice = H264Choice(LIBX264, f"{choice.name}: failed while encoding")
        return H264Encoder(choice, low, high, cpus)
    raise EncodeError(f"no encoder for {codec.mimeType}")
