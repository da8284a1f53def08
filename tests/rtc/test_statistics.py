import pytest

from server.clock import NS_PER_MS, NS_PER_S
from server.rtc.statistics import SourceStatistics

pytestmark = pytest.mark.unit

FRAME_NS = NS_PER_S // 30


def test_losses_are_counted_across_a_wrap() -> None:
    source = SourceStatistics(90_000)
    for index, sequence in enumerate([0xFFFE, 0xFFFF, 1, 2]):
        source.packet(sequence, index * 3000, 100, index * FRAME_NS)
    assert source.packets_expected == 5
    assert source.packets_lost == 1
    assert source.highest_sequence == 0x10002
    assert source.bytes_received == 400
    assert source.take_fraction_lost() == 256 // 5
    assert source.take_fraction_lost() == 0


def test_late_packets_and_duplicates_reduce_the_loss() -> None:
    source = SourceStatistics(90_000)
    for sequence in [1, 4, 3, 3]:
        source.packet(sequence, 0, 1, 0)
    assert source.packets_lost == 0
    assert source.highest_sequence == 4


def test_a_steady_stream_has_no_jitter_whatever_its_timestamps_begin_with() -> None:
    source = SourceStatistics(90_000)
    for index in range(200):
        source.packet(index, (0xFFFFF000 + index * 3000) & 0xFFFFFFFF, 1, index * FRAME_NS)
    assert source.jitter <= 1


def test_jitter_follows_the_delays() -> None:
    source = SourceStatistics(90_000)
    for index in range(200):
        delay_ns = 10 * NS_PER_MS if index % 2 else 0
        source.packet(index, index * 3000, 1, index * FRAME_NS + delay_ns)
    assert source.jitter_ms == pytest.approx(10, rel=0.1)


def test_reports_refer_to_the_last_sender_report() -> None:
    source = SourceStatistics(90_000)
    assert source.last_sender_report(5) == (0, 0)
    source.sender_report(0x1234_5678_9ABC_DEF0, NS_PER_S)
    assert source.last_sender_report(2 * NS_PER_S) == (0x5678_9ABC, 65536)
