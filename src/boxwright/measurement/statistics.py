"""The statistics of a comparison: a bootstrap interval of the ratio of two medians."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = [
    "RESAMPLES",
    "median",
    "median_interval",
    "median_ratio_interval",
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


def median_interval(
    rounds: Rounds, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> tuple[float, float, float] | None:
    """Return the median and its interval, by percentile bootstrap over whole rounds.

    Args:
        rounds: Samples of each round.
        seed: Of the draws.
        resamples: How many.
        confidence: Of the interval, 0..1.

    Returns:
        (median, low, high), or None with fewer than five rounds.

    >>> median_interval([[4.0]] * 6), median_interval([[4.0]] * 4)
    ((4.0, 4.0, 4.0), None)
    """
    if len(rounds) < _LEAST_ROUNDS:
        return None
    rng = np.random.default_rng(seed)
    medians = _medians(rounds, rng.integers(0, len(rounds), (resamples, len(rounds))))
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(medians, [tail, 100.0 - tail])
    return median([v for r in rounds for v in r]), float(low), float(high)


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
    ratios = _medians(baseline, draws) / _medians(candidate, draws)
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(ratios, [tail, 100.0 - tail])
    ratio = median([v for r in baseline for v in r]) / median([v for r in candidate for v in r])
    return ratio, float(low), float(high)


def _medians(rounds: Rounds, draws: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the median over the rounds of each draw: (resamples,) for draws (resamples, R)."""
    arrays = [np.asarray(r, np.float64) for r in rounds]
    return np.array([np.median(np.concatenate([arrays[i] for i in draw])) for draw in draws])
