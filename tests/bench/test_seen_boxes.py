"""Drawn boxes are told from pictures that were handed through, after a real codec too."""

from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext

from bench.peer_servers.finder import COLOUR_BGR, Found, draw
from bench.seen_boxes import Seen, always, look_at, overlap, palette
from server.detections import Detections
from server.overlay import Painter
from server.pixels import copy_yuv420p, plane_views

pytestmark = pytest.mark.unit

SIZE_WH = (640, 480)
BOXES = (
    Found((60.0, 80.0, 220.0, 400.0), 0.9, 0, "person"),
    Found((300.0, 150.0, 520.0, 330.0), 0.7, 2, "car"),
)


@dataclass
class FakeFinder:
    """Always sees the same objects."""

    boxes: tuple[Found, ...] = BOXES

    def find(self, bgr: object) -> list[Found]:
        return list(self.boxes)


def scene(seed: int = 3) -> av.VideoFrame:
    """Smooth colours with detail, as a camera's picture has."""
    y, x = np.mgrid[: SIZE_WH[1], : SIZE_WH[0]]
    noise = np.random.default_rng(seed).normal(0, 4, (*y.shape, 3))
    waves = [110 + 60 * np.sin(x / (23 + 9 * c)) * np.cos(y / (31 + 7 * c)) for c in range(3)]
    bgr = np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)
    return av.VideoFrame.from_ndarray(bgr, format="bgr24").reformat(format="yuv420p")


def coded(video_frame: av.VideoFrame) -> av.VideoFrame:
    """Through H264 at a call's bit rate."""
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height = SIZE_WH
    encoder.pix_fmt, encoder.bit_rate = "yuv420p", 1_500_000
    encoder.time_base = Fraction(1, 30)
    encoder.options = {"preset": "superfast", "tune": "zerolatency"}
    packets = [*encoder.encode(video_frame), *encoder.encode(None)]
    decoder = av.CodecContext.create("h264", "r")
    assert isinstance(decoder, VideoCodecContext)
    frames = [f for p in packets for f in decoder.decode(p)]
    frames += decoder.decode(None)
    found: av.VideoFrame = frames[0]
    return found


def as_peers_draw(video_frame: av.VideoFrame) -> av.VideoFrame:
    bgr = video_frame.to_ndarray(format="bgr24").astype(np.uint8)
    draw(bgr, BOXES)
    return av.VideoFrame.from_ndarray(bgr, format="bgr24").reformat(format="yuv420p")


def as_we_draw(video_frame: av.VideoFrame) -> av.VideoFrame:
    picture = copy_yuv420p(video_frame)
    detections = Detections(
        xyxy=np.array([box.xyxy for box in BOXES], np.float32),
        confidence=np.array([box.confidence for box in BOXES], np.float32),
        class_id=np.array([box.class_id for box in BOXES], np.int32),
        size_wh=SIZE_WH,
    )
    Painter().draw(plane_views(picture), detections, ["person", "bicycle", "car"])
    return picture


def seen(returned: av.VideoFrame, ours: bool = False) -> Seen:
    colour_of = palette if ours else always(COLOUR_BGR)
    return look_at([(scene(), returned)], FakeFinder(), colour_of)  # type: ignore[arg-type]


def test_boxes_that_peers_draw_are_seen_after_the_codec() -> None:
    found = seen(coded(as_peers_draw(scene())))
    assert (found.expected, found.found, found.control) == (2, 2, 0)
    assert found.real is True


def test_boxes_that_we_draw_are_seen_after_the_codec() -> None:
    found = seen(coded(as_we_draw(scene())), ours=True)
    assert (found.expected, found.found, found.control) == (2, 2, 0)
    assert found.real is True


@pytest.mark.parametrize("ours", [False, True])
def test_a_picture_that_was_handed_through_has_none(ours: bool) -> None:
    found = seen(coded(scene()), ours)
    assert (found.expected, found.found) == (2, 0)
    assert found.real is False


def test_a_picture_in_one_colour_is_no_proof() -> None:
    flooded = av.VideoFrame.from_ndarray(
        np.full((SIZE_WH[1], SIZE_WH[0], 3), COLOUR_BGR, np.uint8), format="bgr24"
    ).reformat(format="yuv420p")
    assert seen(flooded).real is False


def test_nothing_to_see_is_neither_real_nor_not() -> None:
    pair = (scene(), scene())
    found = look_at([pair], FakeFinder(()), palette)  # type: ignore[arg-type]
    assert found.real is None


def test_boxes_at_the_edge_of_the_picture_are_looked_at_without_leaving_it() -> None:
    edge = Found((0.0, 0.0, 640.0, 480.0), 0.9, 0, "person")
    found = look_at([(scene(), scene())], FakeFinder((edge,)), palette)  # type: ignore[arg-type]
    assert (found.expected, found.found) == (1, 0)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0.0, 0.0, 2.0, 2.0), (0.0, 0.0, 2.0, 2.0), 1.0),
        ((0.0, 0.0, 2.0, 2.0), (1.0, 0.0, 3.0, 2.0), 1 / 3),
        # side by side
        ((0.0, 0.0, 2.0, 2.0), (2.0, 0.0, 4.0, 2.0), 0.0),
    ],
)
def test_overlap_is_intersection_over_union(
    first: tuple[float, float, float, float],
    second: tuple[float, float, float, float],
    expected: float,
) -> None:
    assert overlap(first, second) == pytest.approx(expected)
