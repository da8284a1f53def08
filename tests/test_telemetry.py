import pytest

from server.clock import NS_PER_MS, NS_PER_S
from server.frame import STAGE_NAMES, Stamps
from server.telemetry import RECENT, DurationRecorder, FrameTelemetry, RateMeter, percentile

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([], 50, 0.0),  # nothing measured
        ([3.0], 99, 3.0),  # one value is every percentile
        ([1.0, 2.0, 3.0, 4.0], 50, 2.0),
        ([1.0, 2.0, 3.0, 4.0], 75, 3.0),
        ([float(value) for value in range(1, 101)], 95, 95.0),
        ([float(value) for value in range(1, 101)], 100, 100.0),
    ],
)
def test_percentile_is_the_nearest_rank(
    values: list[float], percent: float, expected: float
) -> None:
    assert percentile(values, percent) == expected


def test_buckets_count_all_and_percentiles_only_the_recent() -> None:
    recorder = DurationRecorder()
    recorder.add_ms(900.0)
    for _ in range(RECENT):
        recorder.add_ms(1.0)
    summary = recorder.statistics()
    assert summary.count == RECENT + 1
    assert sum(summary.bucket_counts) == RECENT + 1
    assert summary.max == 1.0
    assert summary.sum_ms == pytest.approx(900.0 + RECENT)


def test_rate_counts_intervals_and_falls_with_silence() -> None:
    meter = RateMeter(window_s=2.0)
    start_ns = 10 * NS_PER_S
    for index in range(61):
        meter.add(start_ns + index * NS_PER_S // 30)
    end_ns = start_ns + 2 * NS_PER_S
    assert meter.per_second(end_ns) == pytest.approx(30, abs=0.6)
    assert meter.per_second(end_ns + NS_PER_S) == pytest.approx(20, abs=1.5)
    assert meter.per_second(end_ns + 3 * NS_PER_S) == 0.0


def test_own_share_is_the_total_without_the_model() -> None:
    ms = NS_PER_MS
    stamps = Stamps(
        received_at_ns=100 * ms, assembled_at_ns=101 * ms, decoded_at_ns=102 * ms,
        taken_at_ns=105 * ms, prepared_at_ns=106 * ms, inferred_at_ns=114 * ms,
        boxed_at_ns=115 * ms, handed_out_at_ns=116 * ms, drawn_at_ns=117 * ms,
        encoded_at_ns=119 * ms, sent_at_ns=120 * ms,
    )  # fmt: skip
    assert set(stamps.stages_ms()) == set(STAGE_NAMES)
    assert sum(stamps.stages_ms().values()) == pytest.approx(20)
    telemetry = FrameTelemetry()
    telemetry.record(stamps)
    statistics = telemetry.statistics()
    assert statistics["total"].p50 == pytest.approx(20)
    assert statistics["own"].p50 == pytest.approx(20 - 3 - 8)


def test_a_frame_without_detector_has_no_inference_stages() -> None:
    stamps = Stamps(received_at_ns=1, assembled_at_ns=2, decoded_at_ns=3)
    assert set(stamps.stages_ms()) == {"assemble", "decode"}
