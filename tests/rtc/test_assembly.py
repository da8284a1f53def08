"""The frame assembler, case by case. Times are injected; nothing waits."""

from dataclasses import replace

import pytest

from server.clock import NS_PER_MS
from server.rtc.assembly import FrameAssembler
from tests.rtc.streams import (
    DEADLINE_NS,
    FRAME_NS,
    FRAME_TICKS,
    FREEZE_LIMIT_NS,
    Camera,
    data_of,
    feed,
    make_assembler,
    stamps,
)

pytestmark = pytest.mark.unit


def wanted_at_ns(assembler: FrameAssembler) -> int | None:
    """Asked anew each time: the type checker takes a property for a constant."""
    return assembler.key_frame_wanted_at_ns


def deadline_ns(assembler: FrameAssembler) -> int | None:
    return assembler.next_deadline_ns


both_codecs = pytest.mark.parametrize("codec", ["VP8", "H264"])


@both_codecs
@pytest.mark.parametrize("packets", [1, 2, 7])
def test_a_frame_leaves_with_its_marker_packet(codec: str, packets: int) -> None:
    camera, assembler = Camera(codec), make_assembler()
    for index in range(5):
        sent = camera.frame(packets=packets, key=index == 0)
        assert feed(assembler, sent[:-1]) == []
        [frame] = feed(assembler, sent[-1:])
        assert frame.rtp_timestamp == sent[0].rtp_timestamp
        assert frame.data == data_of(sent)
        assert frame.is_key == (index == 0)
        assert not frame.follows_loss
    assert wanted_at_ns(assembler) is None
    assert deadline_ns(assembler) is None


@both_codecs
def test_without_a_marker_a_frame_leaves_when_the_next_begins(codec: str) -> None:
    camera, assembler = Camera(codec, marker=False), make_assembler()
    sent = [camera.frame(key=index == 0) for index in range(4)]
    for index, packets in enumerate(sent):
        frames = feed(assembler, packets)
        assert stamps(frames) == ([sent[index - 1][0].rtp_timestamp] if index else [])


def test_frames_held_up_by_one_packet_all_leave_with_it() -> None:
    camera, assembler = Camera(), make_assembler()
    feed(assembler, camera.frame(key=True))
    late, *rest = camera.frame()
    more = [camera.frame(packets=1) for _ in range(4)]
    assert feed(assembler, rest + [packet for frame in more for packet in frame]) == []
    frames = feed(assembler, [late])
    assert stamps(frames) == [late.rtp_timestamp, *(frame[0].rtp_timestamp for frame in more)]


def test_arrival_is_that_of_the_earliest_packet() -> None:
    camera, assembler = Camera(), make_assembler()
    feed(assembler, camera.frame(key=True))
    first, second, third = camera.frame()
    first = replace(first, received_at_ns=second.received_at_ns + 5 * NS_PER_MS)
    third = replace(third, received_at_ns=second.received_at_ns + NS_PER_MS)
    [frame] = feed(assembler, [second, third, first])
    assert frame.received_at_ns == second.received_at_ns
    assert frame.assembled_at_ns == first.received_at_ns


@both_codecs
def test_order_around_the_marker_does_not_matter(codec: str) -> None:
    camera, assembler = Camera(codec), make_assembler()
    feed(assembler, camera.frame(key=True))
    one, two = camera.frame(packets=3), camera.frame(packets=3)
    mixed = [one[0], two[0], one[2], two[2], one[1], two[1]]
    frames = feed(assembler, mixed)
    assert [frame.data for frame in frames] == [data_of(one), data_of(two)]


@both_codecs
def test_padding_after_the_marker_neither_begins_nor_enters_a_frame(codec: str) -> None:
    camera, assembler = Camera(codec), make_assembler()
    frames = []
    sent = []
    for index in range(6):
        packets = camera.frame(key=index == 0)
        sent.append(packets)
        frames += feed(assembler, [*packets, camera.padding(), camera.padding()])
    assert [frame.data for frame in frames] == [data_of(packets) for packets in sent]
    assert assembler.counters.packets_padding == 12
    assert wanted_at_ns(assembler) is None
    assert deadline_ns(assembler) is None


def test_padding_inside_a_frame_does_not_break_it() -> None:
    camera, assembler = Camera(), make_assembler()
    feed(assembler, camera.frame(key=True))
    first = camera.frame(packets=1)[0]
    padding = replace(camera.padding(), rtp_timestamp=first.rtp_timestamp)
    last = replace(camera.frame(packets=1)[0], rtp_timestamp=first.rtp_timestamp)
    [frame] = feed(assembler, [replace(first, marker=False), padding, last])
    assert frame.data == data_of([first, last])


def test_padding_that_arrives_late_does_not_hold_frames_up_twice() -> None:
    camera, assembler = Camera(), make_assembler()
    feed(assembler, camera.frame(key=True))
    padding = camera.padding()
    packets = camera.frame()
    assert feed(assembler, packets) == []
    assert stamps(feed(assembler, [padding])) == [packets[0].rtp_timestamp]


def test_lost_padding_is_bridged_when_picture_ids_prove_that_no_picture_is_missing() -> None:
    camera = Camera(picture_id=0x7FFE)
    assembler = make_assembler()
    feed(assembler, camera.frame(key=True))
    for _ in range(3):
        camera.padding()
        packets = camera.frame()
        assert stamps(feed(assembler, packets)) == [packets[0].rtp_timestamp]
    assert assembler.counters.losses == 0


def test_a_lost_picture_is_not_taken_for_padding() -> None:
    camera = Camera(picture_id=7)
    assembler = make_assembler()
    feed(assembler, camera.frame(key=True))
    camera.frame()
    assert feed(assembler, camera.frame()) == []
    assert deadline_ns(assembler) is not None


@both_codecs
@pytest.mark.parametrize("sequence", [0xFFF0, 0xFFFF, 0])
@pytest.mark.parametrize("timestamp", [0xFFFFFFFF - 2 * FRAME_TICKS, 0])
def test_sequence_and_timestamp_wrap(codec: str, sequence: int, timestamp: int) -> None:
    camera = Camera(codec, sequence=sequence, timestamp=timestamp)
    assembler = make_assembler()
    sent = [camera.frame(packets=4, key=index == 0) for index in range(12)]
    swapped = [packets[1:] + packets[:1] for packets in sent]
    frames = feed(assembler, [packet for packets in swapped for packet in packets])
    assert [frame.data for frame in frames] == [data_of(packets) for packets in sent]


def test_duplicates_are_counted_and_change_nothing() -> None:
    camera, assembler = Camera(), make_assembler()
    frames = []
    for index in range(4):
        packets = camera.frame(key=index == 0)
        frames += feed(assembler, [packets[0], packets[0], *packets[1:], *packets])
    assert len(frames) == 4
    counters = assembler.counters
    assert counters.packets_duplicate == 4
    assert counters.packets_late == 12
    assert counters.frames_dropped == 0


@both_codecs
def test_a_hole_is_given_up_at_the_deadline_and_a_key_frame_asked_for(codec: str) -> None:
    camera, assembler = Camera(codec), make_assembler()
    feed(assembler, camera.frame(key=True))
    first, _, *rest = camera.frame(packets=4)
    noticed_at_ns = first.received_at_ns
    assert feed(assembler, [first, *rest]) == []
    assert deadline_ns(assembler) == noticed_at_ns + DEADLINE_NS
    assert feed(assembler, camera.frame()) == []
    assert assembler.expire(noticed_at_ns + DEADLINE_NS - 1) == []
    assert wanted_at_ns(assembler) is None
    assert assembler.expire(noticed_at_ns + DEADLINE_NS) == []
    assert wanted_at_ns(assembler) == noticed_at_ns + DEADLINE_NS
    assert deadline_ns(assembler) is None
    # Frozen until a key frame is complete, and as before from then on.
    assert feed(assembler, camera.frame()) == []
    key, after = camera.frame(key=True), camera.frame()
    frames = feed(assembler, key + after)
    assert stamps(frames) == [key[0].rtp_timestamp, after[0].rtp_timestamp]
    assert not any(frame.follows_loss for frame in frames)
    assert wanted_at_ns(assembler) is None
    assert assembler.counters.losses == 1
    assert assembler.counters.frames_dropped == 3


@both_codecs
def test_a_key_frame_behind_the_hole_leaves_when_the_hole_expires(codec: str) -> None:
    camera, assembler = Camera(codec), make_assembler()
    feed(assembler, camera.frame(key=True))
    camera.skip(2)
    lost, key, after = camera.frame(), camera.frame(key=True), camera.frame()
    assert feed(assembler, lost + key + after) == []
    frames = assembler.expire(lost[0].received_at_ns + DEADLINE_NS)
    assert stamps(frames) == [key[0].rtp_timestamp, after[0].rtp_timestamp]
    assert wanted_at_ns(assembler) is None


@both_codecs
def test_a_packet_that_comes_in_time_fills_the_hole(codec: str) -> None:
    camera, assembler = Camera(codec), make_assembler()
    feed(assembler, camera.frame(key=True))
    lost = camera.frame(packets=3)
    next_frame = camera.frame()
    assert feed(assembler, [lost[0], lost[2], *next_frame]) == []
    frames = feed(assembler, [lost[1]])
    assert [frame.data for frame in frames] == [data_of(lost), data_of(next_frame)]
    assert deadline_ns(assembler) is None


def test_the_deadline_of_a_second_hole_counts_from_its_own_evidence() -> None:
    camera, assembler = Camera(), make_assembler()
    feed(assembler, camera.frame(key=True))
    one, two = camera.frame(packets=3), camera.frame(packets=3)
    feed(assembler, [one[0], one[2], two[0], two[2]])
    frames = feed(assembler, [one[1]])
    assert stamps(frames) == [one[0].rtp_timestamp]
    assert deadline_ns(assembler) == two[2].received_at_ns + DEADLINE_NS


def test_a_late_packet_of_a_frame_given_up_is_counted() -> None:
    camera, assembler = Camera(), make_assembler()
    feed(assembler, camera.frame(key=True))
    first, second, third = camera.frame()
    feed(assembler, [first, third])
    assembler.expire(third.received_at_ns + DEADLINE_NS)
    assert feed(assembler, [second]) == []
    assert assembler.counters.packets_late == 1


@both_codecs
def test_a_stream_joined_in_the_middle_waits_for_its_key_frame(codec: str) -> None:
    camera, assembler = Camera(codec), make_assembler()
    begun_at_ns = camera.now_ns
    assert feed(assembler, camera.frame()) == []
    assert feed(assembler, camera.frame()) == []
    assert wanted_at_ns(assembler) == begun_at_ns + DEADLINE_NS
    key = camera.frame(key=True)
    assert stamps(feed(assembler, key)) == [key[0].rtp_timestamp]


@both_codecs
def test_a_first_key_frame_whose_packets_come_in_reverse_is_complete(codec: str) -> None:
    camera, assembler = Camera(codec), make_assembler()
    key, after = camera.frame(packets=5, key=True), camera.frame()
    frames = feed(assembler, list(reversed(key)) + after)
    assert [frame.data for frame in frames] == [data_of(key), data_of(after)]


def test_an_unanswered_freeze_ends_with_damage_rather_than_never() -> None:
    camera, assembler = Camera(), make_assembler()
    feed(assembler, camera.frame(key=True))
    camera.skip(1)
    lost = camera.frame()
    feed(assembler, lost)
    frozen_at_ns = lost[0].received_at_ns + DEADLINE_NS
    assembler.expire(frozen_at_ns)
    released = []
    while camera.now_ns < frozen_at_ns + FREEZE_LIMIT_NS + 10 * FRAME_NS:
        released += feed(assembler, camera.frame())
        assembler.expire(camera.now_ns)
    assert released
    assert all(frame.follows_loss for frame in released)
    assert released[0].received_at_ns >= frozen_at_ns + FREEZE_LIMIT_NS
    # The wish stays, and a key frame heals it.
    assert wanted_at_ns(assembler) is not None
    [key] = feed(assembler, camera.frame(key=True))
    assert not key.follows_loss
    assert wanted_at_ns(assembler) is None


def test_the_decoder_may_report_a_loss() -> None:
    camera, assembler = Camera(), make_assembler()
    [key] = feed(assembler, camera.frame(key=True))
    [broken] = feed(assembler, camera.frame())
    now_ns = camera.now_ns
    assert assembler.reference_lost(broken.rtp_timestamp, now_ns) == []
    assert wanted_at_ns(assembler) == now_ns
    assert feed(assembler, camera.frame()) == []
    assert len(feed(assembler, camera.frame(key=True))) == 1
    # A report about a frame before that key frame is stale.
    assembler.reference_lost(key.rtp_timestamp, camera.now_ns)
    assert wanted_at_ns(assembler) is None
    assert len(feed(assembler, camera.frame())) == 1


@pytest.mark.parametrize("jump", [-30_000, -2_000, 9_000, 30_000])
def test_a_sender_that_starts_its_sequence_anew_is_followed(jump: int) -> None:
    camera, assembler = Camera(sequence=40_000), make_assembler()
    feed(assembler, camera.frame(key=True))
    feed(assembler, camera.frame())
    camera.sequence = (camera.sequence + jump) & 0xFFFF
    key, after = camera.frame(key=True), camera.frame()
    frames = feed(assembler, key + after)
    assert [frame.data for frame in frames] == [data_of(key), data_of(after)]
    assert assembler.counters.restarts == 1


def test_a_restart_across_a_wrap_is_followed() -> None:
    camera, assembler = Camera(sequence=30_000), make_assembler()
    feed(assembler, camera.frame(key=True))
    camera.sequence = 0xFFFF
    key = camera.frame(key=True)
    assert [frame.data for frame in feed(assembler, key)] == [data_of(key)]


def test_a_single_stray_packet_is_not_a_restart() -> None:
    camera, assembler = Camera(), make_assembler()
    feed(assembler, camera.frame(key=True))
    [stray] = Camera(sequence=50_000).frame(packets=1, key=True)
    assert feed(assembler, [stray]) == []
    packets = camera.frame()
    assert stamps(feed(assembler, packets)) == [packets[0].rtp_timestamp]
    assert assembler.counters.restarts == 0


def test_old_retransmissions_are_never_a_restart() -> None:
    camera, assembler = Camera(sequence=40_000), make_assembler()
    feed(assembler, camera.frame(key=True))
    probes = [
        replace(packet, retransmitted=True)
        for packet in Camera(sequence=30_000).frame(packets=20, key=True)
    ]
    assert feed(assembler, probes) == []
    assert assembler.counters.restarts == 0
    assert len(feed(assembler, camera.frame())) == 1


def test_the_buffer_is_bounded_in_packets() -> None:
    camera, assembler = Camera(), make_assembler(max_packets=64)
    feed(assembler, camera.frame(key=True))
    camera.skip(1)
    for _ in range(60):
        feed(assembler, camera.frame())
        assert len(assembler._packets) <= 64
    assert assembler.counters.losses == 1
    assert wanted_at_ns(assembler) is not None
    key = camera.frame(key=True)
    assert stamps(feed(assembler, key)) == [key[0].rtp_timestamp]


def test_seeking_for_long_stays_bounded_and_finds_the_key_frame() -> None:
    camera, assembler = Camera(sequence=65_000), make_assembler(max_packets=128)
    for _ in range(500):
        camera.now_ns += 1 - FRAME_NS
        assert feed(assembler, camera.frame()) == []
        assert len(assembler._packets) <= 128
    key = camera.frame(key=True)
    assert stamps(feed(assembler, key)) == [key[0].rtp_timestamp]
    assert assembler.counters.restarts == 0


def test_an_outage_is_given_up_at_once_when_told() -> None:
    camera, assembler = Camera(), make_assembler()
    feed(assembler, camera.frame(key=True))
    camera.skip(400)
    feed(assembler, camera.frame())
    now_ns = camera.now_ns
    assert assembler.abandon_hole(now_ns) == []
    assert wanted_at_ns(assembler) == now_ns
    assert assembler.abandon_hole(now_ns) == []


def test_while_frozen_with_damage_a_key_frame_is_not_held_up_by_a_hole_before_it() -> None:
    camera, assembler = Camera(), make_assembler()
    begun_at_ns = camera.now_ns
    while camera.now_ns < begun_at_ns + FREEZE_LIMIT_NS + 2 * FRAME_NS:
        feed(assembler, camera.frame())
    camera.skip(1)
    assert feed(assembler, camera.frame()) == []
    key = camera.frame(key=True)
    assert stamps(feed(assembler, key)) == [key[0].rtp_timestamp]


def test_a_frame_whose_end_is_lost_before_a_pause_is_given_up_in_time() -> None:
    camera, assembler = Camera(), make_assembler()
    assert len(feed(assembler, camera.frame(key=True))) == 1
    frame = camera.frame(packets=3)
    at_ns = frame[0].received_at_ns
    assert feed(assembler, frame[:2]) == []
    assert assembler.open_since_ns == at_ns
    assert assembler.next_deadline_ns == at_ns + DEADLINE_NS
    assert assembler.expire(at_ns + DEADLINE_NS) == []
    assert assembler.key_frame_wanted_at_ns == at_ns + DEADLINE_NS
    # What comes after the pause is taken whole.
    assert len(feed(assembler, camera.frame(key=True))) == 1


def test_a_frame_whose_end_comes_late_is_whole() -> None:
    camera, assembler = Camera(), make_assembler()
    feed(assembler, camera.frame(key=True))
    frame = camera.frame(packets=3)
    assert feed(assembler, frame[:2]) == []
    assert stamps(feed(assembler, frame[2:])) == [frame[0].rtp_timestamp]
    assert assembler.next_deadline_ns is None


def test_a_sender_without_marker_may_pause_within_what_looks_like_a_frame() -> None:
    camera, assembler = Camera(marker=False), make_assembler()
    feed(assembler, camera.frame(key=True))
    assert assembler.open_since_ns is None
    assert assembler.next_deadline_ns is None
