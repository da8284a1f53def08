"""Encoded pictures as an MP4 that browsers play: nothing is encoded anew.

The index lies at the front, in room set aside for it, so that playing can begin before all has
come. Written to memory first: what a disk says is then about whole files, and is heard.
"""

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
from av.codec import CodecContext
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from server.errors import UnprocessableError
from server.history.thumbnail import thumbnail
from server.rtc.payload import parse_payload
from server.rtc.picture_source import SharedPicture

CLOCK_HZ = 90_000
THUMBNAIL_SIDE = 320
# Room for the index: what it begins with, and what every picture adds (size, time, place).
INDEX_BYTES, INDEX_BYTES_EACH = 4096, 40
# A picture that comes later than this after the one before it is not waited for when playing.
GAP_AT_MOST = 2 * CLOCK_HZ
LAST_LASTS = CLOCK_HZ // 15


@dataclass(frozen=True, slots=True)
class Movie:
    """One file."""

    data: bytes
    duration_ms: int
    size_wh: tuple[int, int]
    thumbnail: bytes | None


def annex_b(picture: SharedPicture) -> bytes:
    """A picture's H264 with start codes, from its RTP payloads."""
    return b"".join(parse_payload("H264", payload).data for payload in picture.payloads)


def make_movie(pictures: Sequence[SharedPicture], show: int = 0) -> Movie:
    """Pictures from a key frame on; `show` is the one for the thumbnail. 5 to 50 ms, on any
    thread but the loop. Raises UnprocessableError for pictures that are none."""
    if not pictures or not pictures[0].keyframe:
        raise UnprocessableError("a clip begins with a key frame")
    output = io.BytesIO()
    try:
        frames = [annex_b(picture) for picture in pictures]
        with av.open(io.BytesIO(frames[0]), "r", format="h264") as source:
            template = source.streams.video[0]
            size_wh = template.codec_context.width, template.codec_context.height
            room = INDEX_BYTES + INDEX_BYTES_EACH * len(frames)
            with av.open(output, "w", format="mp4", options={"moov_size": str(room)}) as target:
                stream = target.add_stream_from_template(template, opaque=True)
                assert isinstance(stream, VideoStream)
                stream.time_base = Fraction(1, CLOCK_HZ)
                ticks = _ticks(pictures)
                for index, data in enumerate(frames):
                    packet = av.Packet(data)
                    packet.stream = stream
                    packet.pts = packet.dts = ticks[index]
                    packet.duration = ticks[index + 1] - ticks[index]
                    packet.time_base = Fraction(1, CLOCK_HZ)
                    packet.is_keyframe = pictures[index].keyframe
                    target.mux_one(packet)
    except (FFmpegError, ValueError, IndexError) as error:
        raise UnprocessableError(f"the pictures make no clip: {error}") from error
    return Movie(
        output.getvalue(),
        ticks[-1] * 1000 // CLOCK_HZ,
        size_wh,
        _thumbnail(frames[: max(0, min(show, len(frames) - 1)) + 1]),
    )


def _ticks(pictures: Sequence[SharedPicture]) -> list[int]:
    """When each picture is shown, and when the last one ends; from 0, always rising."""
    ticks = [0]
    for before, picture in itertools.pairwise(pictures):
        step = (picture.rtp_timestamp - before.rtp_timestamp) & 0xFFFF_FFFF
        # Media time may jump when another source takes over; half the circle is the past.
        ticks.append(ticks[-1] + max(1, step if step < GAP_AT_MOST else LAST_LASTS))
    return [*ticks, ticks[-1] + LAST_LASTS]


def _thumbnail(frames: Sequence[bytes]) -> bytes | None:
    """The last of these pictures, decoded from the key frame at their beginning."""
    decoder = CodecContext.create("h264", "r")
    assert isinstance(decoder, VideoCodecContext)
    picture = None
    try:
        for data in frames:
            picture = next(iter(decoder.decode(av.Packet(data))), picture)
        picture = next(iter(decoder.decode(None)), picture)
    except FFmpegError:
        return None
    return None if picture is None else thumbnail(picture, THUMBNAIL_SIDE)
