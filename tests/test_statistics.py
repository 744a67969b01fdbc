"""Percentiles, bootstrap intervals and the noise verdict, against NumPy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.machine import CpuCounters, CpuUsage, counters_from_stat, usage_between
from boxwright.measurement.noise import LIMITS, drift_percent, judge_noise
from boxwright.measurement.statistics import median_ratio_interval, samples_by_round
from boxwright.types import Latency

QUIET = CpuUsage(10.0, 95.0, 1.0, 0.1)

# name: (samples, percentile, wanted)
BY_HAND = {
    "single": ((7.0,), 99, 7.0),
    "middle of two": ((1.0, 2.0), 50, 1.5),
    "unsorted": ((3.0, 1.0, 2.0), 50, 2.0),
    "between samples": ((0.0, 10.0), 95, 9.5),
    "quarter": ((1.0, 2.0, 3.0, 4.0, 5.0), 25, 2.0),
    "interpolated": ((10.0, 20.0, 30.0, 40.0), 95, 38.5),  # position 2.85
    "largest": ((1.0, 9.0, 4.0), 100, 9.0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_percentiles_by_hand(name):
    samples, q, wanted = BY_HAND[name]
    assert Latency("total", 1, samples).percentile(q) == pytest.approx(wanted)


@given(st.lists(st.floats(0.001, 1e5), min_size=1, max_size=60))
def test_latency_agrees_with_numpy(values):
    timed = Latency("infer", 2, tuple(values))
    assert timed.p50 == pytest.approx(np.median(values))
    assert timed.p95 == pytest.approx(np.percentile(values, 95))
    assert timed.p99 == pytest.approx(np.percentile(values, 99))
    assert timed.mean == pytest.approx(np.mean(values))
    assert timed.std == pytest.approx(np.std(values, ddof=1) if len(values) > 1 else 0.0)
    assert (timed.min, timed.max) == (min(values), max(values))
    assert timed.min <= timed.p50 <= timed.p95 <= timed.p99 <= timed.max


def test_latency_travels_and_stores_no_percentile_alone():
    timed = Latency("copy_in", 4, (1.0, 2.0, 4.0))
    data = timed.as_dict()
    assert data["samples_ms"] == [1.0, 2.0, 4.0]
    assert data["p50_ms"] == 2.0
    assert Latency.from_dict({**data, "p50_ms": 99.0}) == timed, "percentiles are derived again"
    assert Latency("infer", 1, (0.0, 0.0)).cv_percent == 0.0
    with pytest.raises(ValueError, match="no samples"):
        Latency("infer", 1, ())


def _rounds(rng: np.random.Generator, count: int, level: float, drift: np.ndarray) -> list:
    noise = rng.normal(0.0, 0.3, (count, 5))
    return (level * drift[:, None] + noise).tolist()


def test_the_interval_covers_the_truth():
    """Both sides share a drift of the machine that is larger than their difference."""
    rng = np.random.default_rng(7)
    inside, trials = 0, 60
    for _ in range(trials):
        drift = 1.0 + 0.3 * rng.random(16)
        base, candidate = (_rounds(rng, 16, level, drift) for level in (10.0, 8.0))
        ratio, low, high = median_ratio_interval(base, candidate, resamples=300)
        assert low <= high
        assert ratio == pytest.approx(1.25, abs=0.1)
        inside += low <= 1.25 <= high
    assert inside >= 0.85 * trials


def test_pairing_by_round_cancels_a_shared_drift():
    rng = np.random.default_rng(3)
    drift = np.linspace(1.0, 2.0, 20)
    base, candidate = (_rounds(rng, 20, level, drift) for level in (10.0, 9.0))
    _, low, high = median_ratio_interval(base, candidate)
    shuffled = [candidate[i] for i in rng.permutation(20)]
    _, loose_low, loose_high = median_ratio_interval(base, shuffled)
    assert low > 1.0
    assert high - low < (loose_high - loose_low) / 2


def test_intervals_are_seeded_and_need_rounds():
    rng = np.random.default_rng(0)
    one, two = rng.random((8, 3)).tolist(), rng.random((8, 3)).tolist()
    assert median_ratio_interval(one, two, seed=1) == median_ratio_interval(one, two, seed=1)
    assert median_ratio_interval(one, two, seed=1) != median_ratio_interval(one, two, seed=2)
    assert median_ratio_interval(one[:4], two[:4]) is None
    with pytest.raises(ValueError, match="rounds"):
        median_ratio_interval(one, two[:7])
    ragged = [[1.0], [1.0, 1.0], [1.0], [1.0], [1.0] * 3]
    assert median_ratio_interval(ragged, one[:5], resamples=10) is not None


def test_samples_find_their_rounds():
    assert samples_by_round([1, 2, 3, 4], [0, 1, 0, 2]) == [[1, 3], [2], [4]]


# name: (rounds, usage, verdict, beginnings of the reasons)
_FLAT = [[10.0, 10.1, 9.9]] * 9
VERDICTS = {
    "quiet": (_FLAT, QUIET, "quiet", []),
    "slower": ([[10.0 + i, 10.1 + i] for i in range(9)], QUIET, "noisy", ["drift", "spread"]),
    "slow end": ([*[[10.0] * 3] * 6, *[[10.6] * 3] * 3], QUIET, "noisy", ["drift"]),
    "fast end": ([*[[10.6] * 3] * 3, *[[10.0] * 3] * 6], QUIET, "noisy", ["drift"]),
    "spread": ([[10.0, 10.0, 14.0]] * 6, QUIET, "noisy", ["spread"]),
    "steal": (_FLAT, CpuUsage(10.0, 90.0, 0.0, 3.0), "noisy", ["steal"]),
    "load": (_FLAT, CpuUsage(10.0, 50.0, 40.0, 0.0), "noisy", ["load"]),
    "no counters": (_FLAT, None, "unknown", []),
    "counters of an instant": (_FLAT, CpuUsage(0.2, 10.0, 80.0, 9.0), "unknown", []),
    "few rounds": ([[10.0, 10.0]] * 2, QUIET, "unknown", []),
    "one sample": ([[10.0]], QUIET, "unknown", []),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_noise_verdicts(name):
    rounds, usage, verdict, reasons = VERDICTS[name]
    noise = judge_noise(rounds, usage)
    assert noise.verdict == verdict
    assert [r.split(":")[0] for r in noise.reasons] == reasons
    assert bool(noise.advice) == (verdict == "noisy")


def test_drift_has_a_sign():
    assert drift_percent([[10.0], [10.0], [11.0]]) == 10.0
    assert drift_percent([[10.0], [10.0], [9.0]]) == -10.0
    assert drift_percent([[10.0], [10.0]]) is None


def test_limits_are_those_of_the_page():
    from pathlib import Path

    page = Path(__file__).resolve().parents[1] / "docs" / "benchmark.md"
    text = page.read_text(encoding="utf-8")
    for name, value in (
        ("drift", LIMITS.drift_percent),
        ("spread", LIMITS.cv_percent),
        ("steal", LIMITS.steal_percent),
        ("load", LIMITS.other_percent),
    ):
        assert f"| {name} | {value:g} % |" in text, name


def test_cpu_counters():
    text = "cpu  9 9 9 9 9 9 9 9\ncpu0 100 0 50 800 30 10 5 5 0 0\ncpu1 7 0 0 7 0 0 0 0 0 0\n"
    found = counters_from_stat(text, {0}, 1.5)
    assert found is not None
    ticks_per_s = 1000 / found.total_s
    assert found.busy_s * ticks_per_s == pytest.approx(165)
    assert found.steal_s * ticks_per_s == pytest.approx(5)
    assert counters_from_stat("", {0}, 0.0) is None
    assert counters_from_stat("cpu0 1 2 3\n", {0}, 0.0) is None
    still = CpuCounters(1.0, 1.0, 0.0, 0.0)
    assert usage_between(still, still) is None
    assert usage_between(None, still) is None
