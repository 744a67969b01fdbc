"""How sure an mAP is: intervals by bootstrap over the pictures, of COCO's very figure.

The pictures of a data set are a sample, and another sample would give another mAP. The bootstrap
draws as many pictures from them, with replacement, measures again, and repeats: the middle 95 % of
the figures are the interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter
13, "the percentile interval"). Two files are compared on the same draws, so that what both find
hard cancels out. The figure is COCO's mAP50-95 (Lin et al. 2014, arXiv:1405.0312, and
cocodataset.org, "Detection evaluation"): 101 recall points, IoU 0.5 to 0.95, the mean over the
classes that have objects; a draw without objects of a class has no figure for it.

Detections are matched once; a draw only counts every picture as often as it was drawn. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from boxwright.coco_matches import (
    THRESHOLDS,
    TOP1,
    Int32,
    Matches,
    arrays_from_matches,
    matches_from_arrays,
    matches_from_pictures,
    top1_matches,
)
from boxwright.types import Change

__all__ = [
    "LEAST_PICTURES",
    "RESAMPLES",
    "Matches",
    "arrays_from_matches",
    "change",
    "default_resamples",
    "difference_of_pictures",
    "interval",
    "map_of",
    "matches_from_arrays",
    "matches_from_pictures",
    "top1_matches",
]

RESAMPLES = 2000  # a second's work on hundreds of pictures
LEAST_PICTURES = 5  # that show objects; fewer say nothing about how far pictures differ
_FEWEST = 100
_RECALLS = np.linspace(0.0, 1.0, 101)
_COST = 5e8  # about five seconds on one core, see `default_resamples`
_BLOCK_VALUES = 1 << 21  # of the largest array while a block of draws is measured

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class _Curve:
    """One class, prepared for many draws.

    Attributes:
        object_picture, object_count: Of the class.
        picture: (N,) of its detections, best first.
        at: (m,) places of those that are right at any IoU.
        right: (10, m) whether they are, by IoU.
        ignored_picture: (v,) of the detections that lie in a crowd region at any IoU.
        ignored: (10, v) whether they do.
        ignored_before: (m,) how many of them are not below each of `at`.
    """

    object_picture: Int32
    object_count: Int32
    picture: Int32
    at: npt.NDArray[np.intp]
    right: npt.NDArray[np.bool_]
    ignored_picture: Int32
    ignored: npt.NDArray[np.bool_]
    ignored_before: npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class _Hits:
    """Pictures whose best class is right, (n,): top-1 is their share."""

    picture: Int32


def _prepared(matches: Matches) -> list[_Curve] | _Hits:
    if matches.measure == TOP1:
        return _Hits(matches.picture[matches.right > 0])
    return _curves(matches)


def _curves(matches: Matches) -> list[_Curve]:
    """Return the classes that have objects."""
    curves = []
    bits = 1 << np.arange(len(THRESHOLDS), dtype=np.uint16)[:, None]
    for class_id in np.unique(matches.object_class):
        objects = slice(*np.searchsorted(matches.object_class, [class_id, class_id + 1]))
        rows = slice(*np.searchsorted(matches.class_id, [class_id, class_id + 1]))
        picture, right, ignored = matches.picture[rows], matches.right[rows], matches.ignored[rows]
        at, inside = np.flatnonzero(right), np.flatnonzero(ignored)
        curves.append(
            _Curve(
                matches.object_picture[objects],
                matches.object_count[objects],
                picture,
                at,
                (right[at] & bits) > 0,
                picture[inside],
                (ignored[inside] & bits) > 0,
                np.searchsorted(inside, at, side="right"),
            )
        )
    return curves


def _measured(curves: Sequence[_Curve] | _Hits, weights: Int32) -> Doubles:
    """Return the figure of draws: (B,) for weights (pictures, B); NaN without objects."""
    if isinstance(curves, _Hits):
        shares = weights[curves.picture].sum(axis=0) / np.maximum(weights.sum(axis=0), 1)
        return np.asarray(shares, np.float64)
    total, present = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    for curve in curves:
        objects = curve.object_count @ weights[curve.object_picture]
        shown = objects > 0
        present += shown
        if len(curve.at):
            total += np.where(shown, _average_precision(curve, weights, objects), 0.0)
    means = np.full(len(total), np.nan)
    np.divide(total, present, out=means, where=present > 0)
    return means


def _average_precision(curve: _Curve, weights: Int32, objects: Int32) -> Doubles:
    """Return AP50-95 of one class in draws: (B,) for weights (pictures, B).

    COCO takes at each recall point the best precision from there on. The first detection that
    reaches a recall is right, and precision only falls between two that are right; so it is enough
    to look at those, and to count the recall points that each newly reaches.
    """
    starts = np.concatenate([[0], curve.at[:-1] + 1])
    found = np.cumsum(np.add.reduceat(weights[curve.picture], starts, axis=0), axis=0)
    own = weights[curve.picture[curve.at]]
    many = np.maximum(objects, 1)
    total = np.zeros(weights.shape[1])
    for t in range(len(THRESHOLDS)):
        counted, right = found, np.cumsum(own * curve.right[t][:, None], axis=0)
        if len(curve.ignored_picture):
            inside = weights[curve.ignored_picture] * curve.ignored[t][:, None]
            before = np.concatenate([np.zeros_like(inside[:1]), inside]).cumsum(axis=0)
            counted = found - before[curve.ignored_before]
        precision = right / np.maximum(counted, 1)
        best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        reached = np.searchsorted(_RECALLS, right / many, side="right")
        reached[1:] -= reached[:-1].copy()
        total += np.einsum("mb,mb->b", best, reached)
    return total / (len(_RECALLS) * len(THRESHOLDS))


def map_of(matches: Matches, weights: npt.ArrayLike | None = None) -> float:
    """Return the figure with every picture counted as often as it was drawn; NaN without objects.

    It is mAP50-95 by what was compared, or top-1.

    Args:
        matches: Of a file.
        weights: (pictures,) whole numbers; None counts each once.

    Raises:
        ValueError: There are not as many weights as pictures.
    """
    counts = np.ones(matches.pictures) if weights is None else np.asarray(weights)
    if counts.shape != (matches.pictures,):
        raise ValueError(f"{counts.shape} weights for {matches.pictures} pictures")
    return float(_measured(_prepared(matches), counts.astype(np.int32)[:, None])[0])


def default_resamples(*matches: Matches) -> int:
    """Return how many draws stay within about five seconds a file, 100 to 2000."""
    rights = [int(np.count_nonzero(m.right)) for m in matches]
    cost = max(len(m.picture) + 50 * r for m, r in zip(matches, rights, strict=True))
    return int(np.clip(_COST / max(cost, 1), _FEWEST, RESAMPLES))


def interval(
    matches: Matches, seed: int = 0, resamples: int | None = None
) -> tuple[float, float] | None:
    """Return the 95 % interval of mAP50-95, or None where too few pictures show objects.

    Args:
        matches: Of a file.
        seed: Of the draws.
        resamples: How many; None takes `default_resamples`.
    """
    if not _enough(matches):
        return None
    drawn = _drawn([matches], seed, resamples or default_resamples(matches))
    return _middle(drawn[0])


def change(
    candidate: Matches,
    baseline: Matches,
    baseline_name: str,
    seed: int = 0,
    resamples: int | None = None,
) -> Change:
    """Return by how much a file's mAP50-95 differs from another's, with its paired 95 % interval.

    Both are measured on the same draws. The interval is None where too few pictures show objects.

    Args:
        candidate, baseline: On the same pictures.
        baseline_name: Recorded in the result.
        seed: Of the draws.
        resamples: How many; None takes `default_resamples`.

    Raises:
        ValueError: They are of different pictures, or these show no objects.
    """
    difference = difference_of_pictures(candidate, baseline)
    if difference:
        raise ValueError(difference)
    ends = None
    if _enough(baseline):
        count = resamples or default_resamples(candidate, baseline)
        first, second = _drawn([candidate, baseline], seed, count)
        ends = _middle(first - second)
    low, high = ends or (None, None)
    return Change(baseline_name, map_of(candidate) - map_of(baseline), low, high)


def difference_of_pictures(first: Matches, second: Matches) -> str:
    """Return in what the pictures of two files differ, in words, or ""."""
    if first.measure != second.measure:
        return f"one is {first.measure}, the other {second.measure}"
    if first.fingerprint != second.fingerprint:
        return "they are of different data sets"
    if first.pictures != second.pictures:
        return f"one was measured on {first.pictures} pictures, the other on {second.pictures}"
    for name in ("object_picture", "object_class", "object_count"):
        if not np.array_equal(getattr(first, name), getattr(second, name)):
            return "the pictures show different objects"
    return "" if len(first.object_count) else "the pictures show no objects"


def _enough(matches: Matches) -> bool:
    return len(np.unique(matches.object_picture)) >= LEAST_PICTURES


def _drawn(files: Sequence[Matches], seed: int, resamples: int) -> list[Doubles]:
    """Return the mAP50-95 of each file in each draw, (resamples,) each; the draws are the same."""
    curves = [_prepared(m) for m in files]
    longest = max(
        1 if isinstance(own, _Hits) else max(len(c.picture) + 10 * len(c.at) for c in own)
        for own in curves
    )
    block = int(np.clip(_BLOCK_VALUES // max(longest, 1), 8, 512))
    parts: list[list[Doubles]] = [[] for _ in files]
    for weights in _draws(files[0].pictures, seed, resamples, block):
        for own, found in zip(curves, parts, strict=True):
            found.append(_measured(own, weights))
    return [np.concatenate(p) for p in parts]


def _draws(pictures: int, seed: int, resamples: int, block: int) -> Iterator[Int32]:
    """Yield how often each picture is drawn: (pictures, at most `block`)."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        chosen = rng.integers(0, pictures, (count, pictures)) + pictures * np.arange(count)[:, None]
        counts = np.bincount(chosen.ravel(), minlength=count * pictures)
        yield np.ascontiguousarray(counts.reshape(count, pictures).T.astype(np.int32))


def _middle(values: Doubles) -> tuple[float, float] | None:
    """Return the ends of the middle 95 %; draws without any object say nothing."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)
