"""From a client's logs to its report: what counts, what is lost, what the server said."""

import json
from typing import Any

import pytest

from bench.camera import SendTimes
from bench.eye import EyeStatistics, Returned
from bench.window import ClientReport, Message, Window, client_report, server_share
from server.clock import NS_PER_MS, NS_PER_S

pytestmark = pytest.mark.unit

INTERVAL_NS = 100 * NS_PER_MS
LATENCY_NS = 20 * NS_PER_MS
NOTHING = EyeStatistics(0, 0, 0, 0)


def returned(number: int, latency_ns: int = LATENCY_NS, copy: int = 0) -> Returned:
    handed_at_ns = number * INTERVAL_NS
    read_at_ns = handed_at_ns + latency_ns
    return Returned(number, handed_at_ns, read_at_ns - 2 * NS_PER_MS, read_at_ns, copy)


def report(pictures: list[Returned], messages: list[Message] | None = None) -> ClientReport:
    """Of a client that sent ten pictures a second for three seconds; the middle one counts."""
    handed_at_ns = [number * INTERVAL_NS for number in range(30)]
    sent = [
        SendTimes(at_ns, at_ns, at_ns + NS_PER_MS, at_ns + 3 * NS_PER_MS) for at_ns in handed_at_ns
    ]
    return client_report(
        "client 1",
        Window(NS_PER_S, 2 * NS_PER_S),
        handed_at_ns,
        sent,
        pictures,
        messages or [],
        NOTHING,
        EyeStatistics(pictures=30, unreadable=4, misread=1, repeated=2),
        slots_skipped=3,
        waits_for_boxes=True,
    )


def test_only_pictures_handed_over_in_the_window_count() -> None:
    found = report([returned(number) for number in range(30)])
    assert (found.sent, found.returned, found.lost) == (10, 10, 0)
    assert (found.fps_sent, found.fps_received) == (10.0, 10.0)
    assert found.latency_ms is not None
    assert (found.latency_ms.p50, found.latency_ms.max) == (20.0, 20.0)
    assert found.send_ms is not None
    assert found.send_ms.p50 == 3.0
    assert found.receive_ms is not None
    assert found.receive_ms.p50 == 2.0


def test_a_picture_that_returned_after_the_window_is_not_lost() -> None:
    found = report([returned(number, latency_ns=NS_PER_S) for number in range(30)])
    assert (found.returned, found.lost) == (10, 0)
    assert found.latency_ms is not None
    assert found.latency_ms.p50 == 1000.0


def test_pictures_that_never_return_are_lost_and_lower_the_rate() -> None:
    found = report([returned(number) for number in range(0, 30, 2)])
    assert (found.sent, found.returned, found.lost) == (10, 5, 5)
    assert found.fps_received == 5.0


def test_a_pause_is_a_freeze() -> None:
    pictures = [returned(number) for number in range(30) if not 12 <= number < 17]
    found = report(pictures)
    assert found.freezes.count == 1
    assert found.freezes.longest_gap_ms == pytest.approx(600)


def test_nothing_returned_is_reported_without_made_up_numbers() -> None:
    found = report([])
    assert (found.returned, found.lost, found.fps_received) == (0, 10, 0.0)
    assert found.latency_ms is None
    assert found.freezes.count == 1


def test_counts_of_unread_pictures_are_those_of_the_window() -> None:
    found = report([returned(12, copy=1)])
    assert (found.unreadable, found.misread, found.repeated) == (4, 1, 2)
    assert (found.read_from_lower_strip, found.slots_skipped) == (1, 3)


def test_latency_that_grows_shows_as_growth() -> None:
    found = report([returned(number, LATENCY_NS + number * NS_PER_MS) for number in range(30)])
    assert found.growth_ms_per_minute == pytest.approx(600)


def message(**changes: Any) -> str:
    return json.dumps(
        {
            "seq": 1,
            "boxes": [[1, 2, 3, 4, 0, 0.9, None]] * 2,
            "stages_ms": {"decode": 1.0, "infer": 7.0, "encode": 2.0},
            "server_ms": 12.0,
            "received_server_ms": 1040.0,
            "sent_server_ms": 1012.0,
            "dropped": {"replaced": 1},
            **changes,
        }
    )


def test_messages_outside_the_window_do_not_count() -> None:
    messages = [Message(at_ns, message()) for at_ns in (0, NS_PER_S, 2 * NS_PER_S)]
    assert report([], messages).server.messages == 1


def test_the_servers_own_share_is_its_whole_way_without_the_same_frames_inference() -> None:
    texts = [
        # About the frame that came at 1000; the one that left before it came at 967.
        message(received_server_ms=1000.0, sent_server_ms=979.0, server_ms=12.0),
        # About the frame that came at 1033; the one that left came at 1000 and took 15.
        message(
            received_server_ms=1033.336,
            sent_server_ms=1015.004,
            server_ms=15.001,
            stages_ms={"infer": 9.0},
        ),
        message(received_server_ms=1066.667, sent_server_ms=1051.334, server_ms=18.0),
    ]
    share = server_share(texts, waits_for_boxes=True)
    assert share.own_ms is not None
    assert share.own_ms.count == 2
    assert share.own_ms.max == pytest.approx(18.0 - 9.0)
    assert share.own_ms.p50 == pytest.approx((15.001 - 7.0 + 18.0 - 9.0) / 2)
    assert share.stages_ms["infer"].max == 9.0
    assert share.boxes_per_frame == 2.0
    assert share.dropped == {"replaced": 1}


def test_in_smooth_mode_no_inference_is_in_the_way_of_a_picture() -> None:
    share = server_share([message(server_ms=5.0)], waits_for_boxes=False)
    assert share.own_ms is not None
    assert share.own_ms.p50 == 5.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not JSON",
        "[]",
        "3",
        '{"type": "hello", "names": []}',
        '{"type": "pong", "t": 1}',
        '{"stages_ms": 3}',
    ],
)
def test_other_messages_are_passed_over(text: str) -> None:
    assert server_share([text], waits_for_boxes=True).messages == 0


def test_a_message_with_nothing_but_stages_is_enough() -> None:
    share = server_share(['{"stages_ms": {"decode": 1.5}, "more": 1}'], waits_for_boxes=True)
    assert share.messages == 1
    assert share.own_ms is None
