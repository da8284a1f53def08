"""Whatever the network does, the assembler gives frames in order or says what it dropped."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.clock import NS_PER_MS
from server.rtc.assembly import AssemblyPacket, EncodedFrame
from tests.rtc.streams import DEADLINE_NS, FREEZE_LIMIT_NS, Camera, data_of, make_assembler

pytestmark = pytest.mark.unit

DEPTH = 40


@st.composite
def streams(draw: st.DrawFn, more_keys: bool = True) -> list[list[AssemblyPacket]]:
    """Frames of a camera, with padding here and there, beginning with a key frame."""
    camera = Camera(
        codec=draw(st.sampled_from(["VP8", "H264"])),
        sequence=draw(st.integers(0, 0xFFFF)),
        timestamp=draw(st.integers(0, 0xFFFFFFFF)),
        picture_id=draw(st.one_of(st.none(), st.integers(0, 0x7FFF))),
    )
    frames = []
    for index in range(draw(st.integers(1, 12))):
        key = index == 0 or (more_keys and draw(st.integers(0, 9)) == 0)
        frames.append(camera.frame(packets=draw(st.integers(1, 6)), key=key))
        frames[-1] += [camera.padding() for _ in range(draw(st.integers(0, 2)))]
    return frames


@st.composite
def shuffled(draw: st.DrawFn, packets: list[AssemblyPacket]) -> list[AssemblyPacket]:
    """The packets in another order, none more than `DEPTH` places away, some twice."""
    keyed: list[tuple[int, int, AssemblyPacket]] = []
    for place, packet in enumerate(packets):
        for _ in range(1 + (draw(st.integers(0, 7)) == 0)):
            keyed.append((place + draw(st.integers(0, DEPTH)), len(keyed), packet))
    return [packet for _, _, packet in sorted(keyed, key=lambda item: item[:2])]


def play(packets: list[AssemblyPacket], step_ns: int = NS_PER_MS) -> tuple[list[EncodedFrame], int]:
    """Let packets arrive one by one; returns the frames and the instant after them."""
    assembler = make_assembler()
    frames = []
    now_ns = 10**12
    for packet in packets:
        now_ns += step_ns
        frames += assembler.add(replace(packet, received_at_ns=now_ns), now_ns)
        frames += assembler.expire(now_ns)
    return frames, now_ns


@given(st.data())
def test_any_order_with_duplicates_gives_the_same_frames(data: st.DataObject) -> None:
    # With one key frame: a second one that overtakes the first is where the picture begins.
    sent = data.draw(streams(more_keys=False))
    arrived = data.draw(shuffled([packet for frame in sent for packet in frame]))
    # Everything arrives before any deadline: an uncertain beginning is resolved at the end.
    assembler = make_assembler()
    now_ns = 10**12
    frames = []
    for packet in arrived:
        frames += assembler.add(replace(packet, received_at_ns=now_ns), now_ns)
    frames += assembler.expire(now_ns + DEADLINE_NS)
    assert [frame.data for frame in frames] == [data_of(frame) for frame in sent]
    assert assembler.counters.frames_dropped == 0
    assert assembler.counters.losses == 0
    assert assembler.key_frame_wanted_at_ns is None


@given(st.data())
def test_losses_give_frames_in_order_and_whole_and_a_wish_for_a_key_frame(
    data: st.DataObject,
) -> None:
    sent = data.draw(streams())
    packets = [packet for frame in sent for packet in frame]
    kept = data.draw(st.lists(st.booleans(), min_size=len(packets), max_size=len(packets)))
    arrived = data.draw(shuffled([p for p, keep in zip(packets, kept, strict=True) if keep]))
    frames, now_ns = play(arrived)
    whole = {data_of(frame): index for index, frame in enumerate(sent)}
    indices = [whole.get(frame.data) for frame in frames if frame.data in whole]
    # H264 has no mark for a frame's first packet. After a gap the rest of a key frame may pass
    # for the whole, if its parameter sets were what was lost; a decoder keeps the older ones.
    incomplete = [frame for frame in frames if frame.data not in whole]
    assert all(frame.codec_name == "H264" and frame.is_key for frame in incomplete)
    numbers = [index for index in indices if index is not None]
    assert numbers == sorted(set(numbers))
    # Between neighbours that were released, nothing is missing unless a key frame restarted.
    for before, after in itertools.pairwise(frames):
        first, second = whole.get(before.data), whole.get(after.data)
        if first is not None and second is not None and second != first + 1:
            assert after.is_key
    assert not any(frame.follows_loss for frame in frames)
    assert now_ns < 10**12 + FREEZE_LIMIT_NS


@given(st.data())
def test_after_any_trouble_the_next_key_frame_is_shown(data: st.DataObject) -> None:
    sent = data.draw(streams())
    packets = [packet for frame in sent for packet in frame]
    kept = data.draw(st.lists(st.booleans(), min_size=len(packets), max_size=len(packets)))
    arrived = data.draw(shuffled([p for p, keep in zip(packets, kept, strict=True) if keep]))
    assembler = make_assembler()
    now_ns = 10**12
    for packet in arrived:
        assembler.add(replace(packet, received_at_ns=now_ns), now_ns)
    last = packets[-1]
    camera = Camera(
        codec=last.codec_name,
        sequence=(last.sequence_number + 1) & 0xFFFF,
        timestamp=(last.rtp_timestamp + 9000) & 0xFFFFFFFF,
        now_ns=now_ns,
    )
    key = camera.frame(packets=3, key=True)
    frames = []
    for packet in key:
        frames += assembler.add(packet, now_ns)
    frames += assembler.expire(now_ns + DEADLINE_NS)
    assert data_of(key) in [frame.data for frame in frames]
    assert assembler.key_frame_wanted_at_ns is None
    assert not assembler._packets


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 3), st.booleans()), max_size=300))
def test_no_sequence_of_packets_breaks_the_bounds(
    arrivals: list[tuple[int, int, bool]],
) -> None:
    assembler = make_assembler(max_packets=64)
    now_ns = 10**12
    for sequence, kind, marker in arrivals:
        now_ns += 3 * NS_PER_MS
        source = Camera(sequence=sequence, timestamp=sequence * 3000, now_ns=now_ns)
        packet = source.padding() if kind == 0 else source.frame(packets=1, key=kind == 1)[0]
        assembler.add(replace(packet, marker=marker, sequence_number=sequence), now_ns)
        assembler.expire(now_ns)
        deadline_ns = assembler.next_deadline_ns
        assert deadline_ns is None or deadline_ns > now_ns
        assert len(assembler._packets) <= 64
        counters = assembler.counters
        assert min(counters.packets_late, counters.frames_dropped, counters.packets_duplicate) >= 0
