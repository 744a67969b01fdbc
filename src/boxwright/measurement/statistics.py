"""The statistics of a comparison: bootstrap intervals of the ratio of two medians."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from boxwright.measurement.records import Measured

__all__ = [
    "RESAMPLES",
    "independent_ratio_interval",
    "median",
    "median_interval",
    "median_ratio_interval",
    "rounds_of",
    "samples_by_round",
]

Rounds = Sequence[Sequence[float]]

RESAMPLES = 2000
_LEAST_ROUNDS = 5  # fewer say nothing about how far rounds differ


def median(samples: Sequence[float]) -> float:
    """Return the median.

    >>> median([3, 1, 2]), median([1, 2])
    (2.0, 1.5)
    """
    return float(np.median(samples))


def samples_by_round(samples: Sequence[float], numbers: Sequence[int]) -> list[list[float]]:
    """Return the samples of each round, in the order of the round numbers.

    >>> samples_by_round([1.0, 2.0, 3.0], [0, 0, 4])
    [[1.0, 2.0], [3.0]]
    """
    rounds: dict[int, list[float]] = {}
    for sample, number in zip(samples, numbers, strict=True):
        rounds.setdefault(number, []).append(sample)
    return [rounds[number] for number in sorted(rounds)]


def rounds_of(measured: Measured) -> list[list[float]]:
    """Return what is compared of a measurement, in ms: the calls of its main span, by round.

    Under load it is the time of one picture in each round.
    """
    if measured.mode == "throughput":
        return [[1e3 / r.images_per_s] for r in measured.rounds if r.images_per_s]
    return samples_by_round(measured.main.samples_ms, measured.sample_rounds)


def median_ratio_interval(
    baseline: Rounds,
    candidate: Rounds,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> tuple[float, float, float] | None:
    """Return how many times faster a candidate is: the ratio of medians and its interval.

    Percentile bootstrap over rounds: a round is drawn for both sides at once, since both ran in it
    one after the other and met the same machine; a drift that both share cancels out.
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13.

    Args:
        baseline, candidate: Samples of each round, in ms; as many rounds on both sides.
        seed: Of the draws.
        resamples: How many.
        confidence: Of the interval, 0..1.

    Returns:
        (median of the baseline / median of the candidate, low, high), or None with fewer than
        five rounds.

    >>> median_ratio_interval([[4.0]] * 6, [[2.0]] * 6)
    (2.0, 2.0, 2.0)
    """
    if len(baseline) != len(candidate):
        raise ValueError(f"{len(baseline)} rounds against {len(candidate)}")
    if len(baseline) < _LEAST_ROUNDS:
        return None
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(baseline), (resamples, len(baseline)))
    return _ratio(baseline, candidate, draws, draws, confidence)


def independent_ratio_interval(
    first: Rounds,
    second: Rounds,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> tuple[float, float, float] | None:
    """Return the ratio of medians of two measurements that did not run in turns.

    Percentile bootstrap over whole rounds of each side on its own: calls of one round met the same
    moment of the machine, so that they are no independent samples.

    Args:
        first, second: Samples of each round, in ms.
        seed: Of the draws.
        resamples: How many.
        confidence: Of the interval, 0..1.

    Returns:
        (median of `first` / median of `second`, low, high), or None where a side has fewer than
        five rounds.

    >>> independent_ratio_interval([[4.0]] * 6, [[2.0]] * 5)
    (2.0, 2.0, 2.0)
    """
    if min(len(first), len(second)) < _LEAST_ROUNDS:
        return None
    rng = np.random.default_rng(seed)
    draws = [rng.integers(0, len(side), (resamples, len(side))) for side in (first, second)]
    return _ratio(first, second, draws[0], draws[1], confidence)


def _ratio(
    first: Rounds,
    second: Rounds,
    first_draws: npt.NDArray[np.int64],
    second_draws: npt.NDArray[np.int64],
    confidence: float,
) -> tuple[float, float, float]:
    """Return the ratio of medians and the middle of the ratios of the draws."""
    ratios = _medians(first, first_draws) / _medians(second, second_draws)
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(ratios, [tail, 100.0 - tail])
    ratio = median([v for r in first for v in r]) / median([v for r in second for v in r])
    return ratio, float(low), float(high)


def _medians(rounds: Rounds, draws: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the median over the rounds of each draw: (resamples,) for draws (resamples, R)."""
    arrays = [np.asarray(r, np.float64) for r in rounds]
    return np.array([np.median(np.concatenate([arrays[i] for i in draw])) for draw in draws])


def median_interval(
    rounds: Rounds, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Return the interval of a median: a percentile bootstrap over rounds, as of the ratio.

    Args:
        rounds: Samples of each round, in ms.
        seed: Of the draws.
        resamples: How many.
        confidence: Of the interval, 0..1.

    Returns:
        (low, high), or None with fewer than five rounds.

    >>> median_interval([[2.0]] * 6)
    (2.0, 2.0)
    """
    if len(rounds) < _LEAST_ROUNDS:
        return None
    rng = np.random.default_rng(seed)
    medians = _medians(rounds, rng.integers(0, len(rounds), (resamples, len(rounds))))
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(medians, [tail, 100.0 - tail])
    return float(low), float(high)
