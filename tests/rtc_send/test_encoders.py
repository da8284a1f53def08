"""Real codecs, decoded again by FFmpeg's decoders."""

import hashlib
from fractions import Fraction

import numpy as np
import pytest
from aiortc.codecs import CODECS
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from av import VideoFrame
from av.video.frame import PictureType

from server.rtc.bitrate import ceiling_bps
from server.rtc.encoders import EncodeError, make_encoder, probe
from server.rtc.encoders.base import PAYLOAD_MAX, EncodedPicture, VideoEncoder
from server.rtc.encoders.h264 import H264Encoder, level_for
from server.rtc.encoders.h264 import threads_for as h264_threads_for
from server.rtc.encoders.h264_payload import nal_units
from server.rtc.encoders.vp8 import Vp8Encoder
from server.rtc.encoders.vp8 import threads_for as vp8_threads_for
from server.rtc.options import RtcOptions
from tests.rtc_send.pictures import Receiver, parse_sps, picture, psnr

pytestmark = pytest.mark.unit

FPS = 30.0
BOTH = pytest.mark.parametrize("codec", ["H264", "VP8"])


def negotiated(codec: str) -> RTCRtpCodecParameters:
    return next(c for c in CODECS["video"] if c.name == codec)


def encoder_for(codec: str, options: RtcOptions | None = None) -> VideoEncoder:
    return make_encoder(negotiated(codec), options or RtcOptions(h264_encoder="libx264"))


def sps_of(encoded: EncodedPicture) -> bytes:
    units = nal_units(Receiver("H264").bitstream(encoded.payloads))
    return next(unit for unit in units if unit[0] & 0x1F == 7)


@BOTH
@pytest.mark.parametrize(
    "size_wh",
    [
        (320, 240),
        (16, 16),  # one macroblock
        (641, 361),  # odd both ways
        (639, 480),
        (640, 359),
        (1280, 720),
        (1920, 1080),  # not a multiple of 16
    ],
    ids=lambda s: f"{s[0]}x{s[1]}",
)
def test_every_picture_decodes_at_once_and_looks_alike(
    codec: str, size_wh: tuple[int, int]
) -> None:
    encoder, receiver = encoder_for(codec), Receiver(codec)
    count = 4 if size_wh[0] > 700 else 8
    for index in range(count):
        source = picture(index, size_wh)
        encoded = encoder.encode(source, False, 8_000_000, FPS)
        decoded = receiver.decode(encoded.payloads)
        assert len(decoded) == 1, "a picture in, a picture out: nothing is held back"
        even = (size_wh[0] & ~1, size_wh[1] & ~1) if codec == "H264" else size_wh
        assert (decoded[0].width, decoded[0].height) == even
        assert psnr(source, decoded[0]) > 24
        assert encoded.keyframe == (index == 0)


def test_h264_is_constrained_baseline_and_says_that_nothing_is_reordered() -> None:
    sps = parse_sps(sps_of(encoder_for("H264").encode(picture(0), False, 1_000_000, FPS)))
    assert sps.profile_idc == 66
    assert sps.constraints & 0x40, "constraint_set1: no FMO, ASO or redundant slices"
    assert sps.has_restriction
    assert sps.num_reorder_frames == 0
    assert sps.max_dec_frame_buffering is not None
    assert sps.max_dec_frame_buffering <= 1


@pytest.mark.parametrize(
    ("size_wh", "level_idc"),
    [((320, 240), 31), ((640, 480), 31), ((1280, 720), 31), ((1920, 1080), 40)],
)
def test_h264_level_in_the_stream_carries_the_picture(
    size_wh: tuple[int, int], level_idc: int
) -> None:
    encoded = encoder_for("H264").encode(picture(0, size_wh), False, 2_000_000, FPS)
    assert parse_sps(sps_of(encoded)).level_idc == level_idc


@pytest.mark.parametrize(
    ("size_wh", "fps", "bits_per_s", "level"),
    [
        ((1280, 720), 30, 2_000_000, "3.1"),
        ((1280, 720), 60, 2_000_000, "3.2"),  # macroblocks a second
        ((720, 1280), 30, 2_000_000, "3.1"),  # upright
        ((1920, 1080), 30, 6_000_000, "4.0"),
        ((1920, 1080), 60, 6_000_000, "4.2"),
        ((640, 480), 30, 18_000_000, "3.2"),  # bits a second
        ((3840, 2160), 30, 6_000_000, "5.1"),
        ((3600, 160), 30, 2_000_000, "4.0"),  # few macroblocks, but too wide for 3.2
    ],
)
def test_level_is_the_lowest_that_fits(
    size_wh: tuple[int, int], fps: float, bits_per_s: int, level: str
) -> None:
    assert level_for(size_wh, fps, bits_per_s) == level


def test_picture_beyond_every_level_is_refused() -> None:
    with pytest.raises(EncodeError, match="8192x8192"):
        level_for((8192, 8192), 30, 2_000_000)


def test_picture_without_a_pair_of_columns_is_refused_by_h264() -> None:
    with pytest.raises(EncodeError, match="1x16"):
        encoder_for("H264").encode(picture(0, (1, 16)), False, 1_000_000, FPS)


@BOTH
def test_key_frame_comes_with_the_very_picture_it_was_asked_for(codec: str) -> None:
    encoder = encoder_for(codec)
    flags = [encoder.encode(picture(i), i == 5, 1_000_000, FPS).keyframe for i in range(10)]
    assert flags == [i in (0, 5) for i in range(10)]


@BOTH
def test_key_frame_starts_a_receiver_that_joined_late(codec: str) -> None:
    encoder = encoder_for(codec)
    for index in range(5):
        encoder.encode(picture(index), False, 1_000_000, FPS)
    encoded = encoder.encode(picture(5), True, 1_000_000, FPS)
    assert len(Receiver(codec).decode(encoded.payloads)) == 1


def test_scene_cut_makes_no_key_frame() -> None:
    encoder = encoder_for("H264")
    # x264 makes no second key frame within its first 25 to 30 pictures anyway.
    for index in range(60):
        encoder.encode(picture(index, (128, 96)), False, 1_000_000, FPS)
    noise = np.random.default_rng(1).integers(0, 255, (144, 128), dtype=np.uint8)
    other = VideoFrame.from_ndarray(noise, "yuv420p")
    assert not encoder.encode(other, False, 1_000_000, FPS).keyframe


@BOTH
def test_change_of_size_gives_a_key_frame_of_the_new_size(codec: str) -> None:
    encoder, receiver = encoder_for(codec), Receiver(codec)
    for index, size_wh in enumerate([(320, 240)] * 3 + [(240, 320)] * 3 + [(640, 480)] * 3):
        encoded = encoder.encode(picture(index, size_wh), False, 1_000_000, FPS)
        assert encoded.keyframe == (index % 3 == 0)
        (decoded,) = receiver.decode(encoded.payloads)
        assert (decoded.width, decoded.height) == size_wh


@BOTH
@pytest.mark.parametrize("fps", [30.0, 15.0])
def test_rate_follows_its_target_without_a_new_codec(codec: str, fps: float) -> None:
    encoder = encoder_for(codec)
    assert isinstance(encoder, H264Encoder | Vp8Encoder)
    size_wh, index, seen = (320, 240), 0, []
    ceiling = ceiling_bps(size_wh, fps, 100_000, 6_000_000)
    encoder.encode(picture(index, size_wh, fps), False, ceiling, fps)
    codec_at_start = encoder.codec
    for share in (0.8, 0.4, 1.0):
        target_bps, sizes = int(ceiling * share), []
        for _ in range(90):
            index += 1
            encoded = encoder.encode(picture(index, size_wh, fps), False, target_bps, fps)
            assert not encoded.keyframe
            sizes.append(sum(map(len, encoded.payloads)))
        settled = sizes[30:]
        seen.append(sum(settled) * 8 * fps / len(settled) / target_bps)
    assert encoder.codec is codec_at_start
    assert all(0.75 < ratio < 1.25 for ratio in seen), seen


@BOTH
def test_no_picture_after_the_first_is_larger_than_the_buffer(codec: str) -> None:
    encoder, size_wh = encoder_for(codec), (640, 480)
    ceiling = ceiling_bps(size_wh, FPS, 300_000, 6_000_000)
    for index in range(30):
        encoded = encoder.encode(picture(index * 40, size_wh), index == 20, 1_200_000, FPS)
        assert sum(map(len, encoded.payloads)) * 8 <= ceiling * 0.3


@BOTH
def test_payloads_fit_the_network_and_big_pictures_take_many(codec: str) -> None:
    encoded = encoder_for(codec).encode(picture(0, (1280, 720)), True, 6_000_000, FPS)
    assert len(encoded.payloads) > 4
    assert max(map(len, encoded.payloads)) <= PAYLOAD_MAX


@BOTH
def test_lent_picture_comes_back_as_it_was(codec: str) -> None:
    encoder = encoder_for(codec)
    frame = picture(3)
    frame.pict_type = PictureType.P
    before = [hashlib.sha256(bytes(plane)).digest() for plane in frame.planes]
    time_before = frame.pts, frame.time_base
    encoder.encode(frame, True, 1_000_000, FPS)
    assert (frame.pts, frame.time_base) == time_before
    assert frame.pict_type == PictureType.P
    assert [hashlib.sha256(bytes(plane)).digest() for plane in frame.planes] == before


@BOTH
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "nv12", "bgr24", "gray"])
def test_pixel_formats_of_cameras_and_drawings_are_taken(codec: str, pixel_format: str) -> None:
    frame = picture(0).reformat(format=pixel_format)
    encoded = encoder_for(codec).encode(frame, False, 1_000_000, FPS)
    assert len(Receiver(codec).decode(encoded.payloads)) == 1


@BOTH
def test_time_of_the_source_may_stand_still_or_jump(codec: str) -> None:
    encoder, receiver = encoder_for(codec), Receiver(codec)
    for index, pts in enumerate([0, 0, 5, 5_000_000_000, 3, None, 4]):
        frame = picture(index)
        frame.pts = pts
        encoded = encoder.encode(frame, False, 1_000_000, FPS)
        assert len(receiver.decode(encoded.payloads)) == 1


def test_picture_without_time_is_taken() -> None:
    frame = VideoFrame(320, 240, "yuv420p")
    for codec in ("H264", "VP8"):
        assert encoder_for(codec).encode(frame, False, 1_000_000, FPS).payloads


def test_vp8_picture_ids_count_on_across_a_change_of_size() -> None:
    encoder = Vp8Encoder(300_000, 6_000_000, 2, first_picture_id=(1 << 15) - 2)
    ids = []
    for index, size_wh in enumerate([(320, 240), (320, 240), (160, 120), (160, 120)]):
        first = encoder.encode(picture(index, size_wh), False, 500_000, FPS).payloads[0]
        ids.append(int.from_bytes(first[2:4], "big") & 0x7FFF)
    assert ids == [(1 << 15) - 2, (1 << 15) - 1, 0, 1]


def test_hardware_that_is_not_there_leaves_libx264_and_the_reason() -> None:
    reason = probe.refusal(probe.NVENC)
    if not reason:
        pytest.skip("this machine encodes with NVENC")
    for wish in ("auto", "h264_nvenc"):
        encoder = make_encoder(negotiated("H264"), RtcOptions(h264_encoder=wish))
        assert encoder.name == "libx264"
        assert encoder.note.startswith("h264_nvenc: ")
        assert len(encoder.note) > len("h264_nvenc: ")


def test_hardware_is_probed_once_per_process() -> None:
    probe.refusal(probe.NVENC)
    before = probe.refusal.cache_info().misses
    for _ in range(3):
        probe.choose_h264("auto")
    assert probe.refusal.cache_info().misses == before


def test_encoder_that_ffmpeg_does_not_know_is_refused_with_its_name() -> None:
    assert probe.refusal("h264_nonesuch").startswith("h264_nonesuch: ")


def test_software_is_taken_without_a_note_when_asked_for() -> None:
    encoder = encoder_for("H264")
    assert (encoder.name, encoder.note) == ("libx264", "")


def test_codec_that_we_do_not_have_is_refused() -> None:
    codec = RTCRtpCodecParameters(mimeType="video/AV1", clockRate=90_000, payloadType=99)
    with pytest.raises(EncodeError, match="AV1"):
        make_encoder(codec, RtcOptions())


@BOTH
def test_switch_gives_the_stock_encoders(codec: str) -> None:
    encoder = make_encoder(negotiated(codec), RtcOptions(own_encoders=False))
    assert encoder.name == f"aiortc {codec}"
    receiver = Receiver(codec)
    for index in range(3):
        encoded = encoder.encode(picture(index), False, 600_000, FPS)
        assert len(receiver.decode(encoded.payloads)) == 1
        assert encoded.keyframe == (index == 0)


def test_threads_stay_away_from_small_machines_and_pictures() -> None:
    assert h264_threads_for((1280, 720), 64) == 1
    assert h264_threads_for((1920, 1080), 2) == 1
    assert h264_threads_for((1920, 1080), 16) > 1
    assert vp8_threads_for((1920, 1080), 2) == 1
    assert vp8_threads_for((640, 480), 64) == 1
    assert vp8_threads_for((1920, 1080), 16) > 1


def test_rtp_time_does_not_reach_the_codec() -> None:
    # The codec lives on its own clock: the time base of the source must not matter.
    encoder = encoder_for("H264")
    for index in range(3):
        frame = picture(index)
        frame.pts, frame.time_base = index, Fraction(1, 30)
        assert encoder.encode(frame, False, 1_000_000, FPS).payloads
