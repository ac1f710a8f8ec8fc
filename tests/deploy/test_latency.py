import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfast.deploy import LatencyHistogram, LiveStatistics


@given(
    st.lists(st.floats(2e-6, 9e3), min_size=1, max_size=300),
    st.floats(0, 100),
)
def test_percentiles_are_those_of_numpy_within_half_a_percent(
    durations: list[float], percent: float
) -> None:
    latency = LatencyHistogram()
    for seconds in durations:
        latency.add(seconds)
    expected = np.percentile(durations, percent, method="inverted_cdf")
    assert latency.percentile(percent) == pytest.approx(expected, rel=0.0051)
    assert latency.mean == pytest.approx(np.mean(durations))
    assert latency.maximum == max(durations)


def test_durations_count_as_often_as_they_are_worth() -> None:
    latency = LatencyHistogram()
    latency.add(0.001, times=99)
    latency.add(1.0)
    assert latency.count == 100
    assert latency.percentile(99) == pytest.approx(0.001, rel=0.01)
    assert latency.percentile(100) == pytest.approx(1.0, rel=0.01)


def test_durations_beyond_the_scale_are_kept() -> None:
    latency = LatencyHistogram()
    latency.add(0.0)
    latency.add(1e6)
    assert latency.percentile(10) <= 1e-6 * 1.01
    assert latency.maximum == 1e6


def test_nothing_yet_is_all_zero() -> None:
    summary = LiveStatistics().summary()
    assert summary["ended"] == "running"
    assert summary["frames_per_second"] == 0
    assert set(summary["latency_ms"]["end_to_end"].values()) == {0.0}
