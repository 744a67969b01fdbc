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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.scoring import Labelled
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
]

RESAMPLES = 2000  # a second's work on hundreds of pictures
LEAST_PICTURES = 5  # that show objects; fewer say nothing about how far pictures differ
_FEWEST = 100
_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_ALL = np.uint16((1 << len(_THRESHOLDS)) - 1)
_LARGEST_AREA = 1e10  # square pixels; COCO ignores a detection that is larger, or inside out
_RECALLS = np.linspace(0.0, 1.0, 101)
_COST = 5e8  # about five seconds on one core, see `default_resamples`
_BLOCK_VALUES = 1 << 21  # of the largest array while a block of draws is measured

Int32 = npt.NDArray[np.int32]
Bits = npt.NDArray[np.uint16]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """What of a file's detections on a data set makes its mAP.

    Detections are sorted by class, then best first as COCO has it: equal scores in the order of
    the pictures. Those that no figure depends on are left out: of classes without objects, in
    crowd regions at every IoU, and below the last of their class that is right.

    Attributes:
        fingerprint: Of the data set.
        pictures, classes: How many were measured.
        object_picture, object_class, object_count: (M,) int32: how many objects, crowd regions
            left out, each picture shows of each class; by class, then picture.
        picture, class_id: (N,) int32, of each detection.
        score: (N,) float32.
        right: (N,) uint16: bit t is set where it is right at IoU 0.5 + 0.05 t.
        ignored: (N,) uint16: the same where it lies in a crowd region.
    """

    fingerprint: str
    pictures: int
    classes: int
    object_picture: Int32
    object_class: Int32
    object_count: Int32
    picture: Int32
    class_id: Int32
    score: npt.NDArray[np.float32]
    right: Bits
    ignored: Bits


def matches_from_pictures(
    pictures: Sequence[Labelled], class_count: int, max_detections: int, fingerprint: str
) -> Matches:
    """Match detections with objects by COCO's rules.

    Args:
        pictures: Truth and detections.
        class_count: Of the model.
        max_detections: How many detections of a class in a picture count.
        fingerprint: Of the data set.
    """
    shown = _objects(pictures)
    measured = np.zeros(class_count, bool)
    measured[shown[1]] = True
    parts = [_matched(i, p, measured, max_detections) for i, p in enumerate(pictures)]
    columns = [np.concatenate(c) for c in zip(*parts, strict=True)] or [np.empty(0)] * 5
    picture, class_id, score, right, ignored = columns
    order = np.lexsort((-score, class_id))  # stable: equal scores stay in the pictures' order
    matters = _matters(class_id[order], right[order], ignored[order])
    order = order[matters]
    return Matches(
        fingerprint,
        len(pictures),
        class_count,
        *shown,
        picture[order].astype(np.int32),
        class_id[order].astype(np.int32),
        score[order].astype(np.float32),
        right[order].astype(np.uint16),
        ignored[order].astype(np.uint16),
    )


def _objects(pictures: Sequence[Labelled]) -> tuple[Int32, Int32, Int32]:
    """Return picture, class and number of objects, by class, then picture."""
    rows = []
    for index, picture in enumerate(pictures):
        ids, counts = np.unique(picture.class_ids[~picture.crowd], return_counts=True)
        rows += [(int(c), index, int(n)) for c, n in zip(ids, counts, strict=True)]
    table = np.array(sorted(rows), np.int32).reshape(-1, 3)
    return table[:, 1].copy(), table[:, 0].copy(), table[:, 2].copy()


def _matched(
    index: int, picture: Labelled, measured: npt.NDArray[np.bool_], limit: int
) -> tuple[npt.NDArray[Any], ...]:
    """Return picture, class, score, right and ignored of a picture's detections that count."""
    ids = picture.found_class_ids
    order = np.lexsort((-picture.found_scores, ids))
    ids = ids[order]
    rank = np.arange(len(ids)) - np.searchsorted(ids, ids)
    counts = (rank < limit) & measured[ids]
    order, ids = order[counts], ids[counts]
    right, ignored = np.zeros(len(ids), np.uint16), np.zeros(len(ids), np.uint16)
    for class_id in np.unique(picture.class_ids):
        rows = slice(*np.searchsorted(ids, [class_id, class_id + 1]))
        objects = np.flatnonzero(picture.class_ids == class_id)
        objects = objects[np.argsort(picture.crowd[objects], kind="stable")]  # crowd regions last
        crowd = picture.crowd[objects]
        overlaps = _overlaps(picture.found_xyxy[order[rows]], picture.xyxy[objects], crowd)
        right[rows], ignored[rows] = _assigned(overlaps, crowd)
    sides = picture.found_xyxy[order, 2:].astype(np.float64) - picture.found_xyxy[order, :2]
    areas = sides.prod(axis=1)
    odd = (areas < 0) | (areas > _LARGEST_AREA)
    ignored[odd] |= _ALL & ~right[odd]
    pictures = np.full(len(ids), index, np.int32)
    return pictures, ids, picture.found_scores[order], right, ignored


def _overlaps(
    found: npt.NDArray[np.float32],
    objects: npt.NDArray[np.float32],
    crowd: npt.NDArray[np.bool_],
) -> Doubles:
    """Return the IoU (D, G), with a crowd region the share of the detection that lies in it.

    In the order of COCO's own arithmetic, from corner and size in double precision, so that an
    overlap that is just at a threshold falls on the same side.
    """
    a, b = found.astype(np.float64)[:, None], objects.astype(np.float64)[None]
    sides_a, sides_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + sides_a, b[..., :2] + sides_b)
    shared = np.maximum(high - low, 0.0).prod(axis=-1)
    area_a, area_b = sides_a.prod(axis=-1), sides_b.prod(axis=-1)
    union = np.where(crowd, area_a, area_a + area_b - shared)
    overlaps: Doubles = np.zeros_like(shared)
    np.divide(shared, union, out=overlaps, where=shared > 0)
    return overlaps


def _assigned(overlaps: Doubles, crowd: npt.NDArray[np.bool_]) -> tuple[Bits, Bits]:
    """Return the bits of right and of ignored, (D,) each, of detections best first.

    At each IoU on its own, a detection takes the free object that it overlaps most, of equal ones
    the last; only without one it may lie in a crowd region.
    """
    right, ignored = np.zeros(len(overlaps), np.uint16), np.zeros(len(overlaps), np.uint16)
    thresholds, is_crowd = _THRESHOLDS.tolist(), crowd.tolist()
    free = [[True] * len(is_crowd) for _ in thresholds]
    for row in np.flatnonzero((overlaps >= thresholds[0]).any(axis=1)):
        values = overlaps[row].tolist()
        near = [g for g, value in enumerate(values) if value >= thresholds[0]]
        for t, threshold in enumerate(thresholds):
            best, match = threshold, -1
            for g in near:
                if match >= 0 and is_crowd[g] and not is_crowd[match]:
                    break
                if free[t][g] and values[g] >= best:
                    best, match = values[g], g
            if match >= 0 and is_crowd[match]:
                ignored[row] |= 1 << t
            elif match >= 0:
                right[row] |= 1 << t
                free[t][match] = False
    return right, ignored


def _matters(
    class_id: npt.NDArray[Any], right: npt.NDArray[Any], ignored: npt.NDArray[Any]
) -> npt.NDArray[np.bool_]:
    """Return which detections, sorted, a figure depends on: (N,) bool."""
    places = np.flatnonzero(right)
    last = np.full(int(class_id.max(initial=-1)) + 1, -1)
    last[class_id[places].astype(np.int64)] = places  # of equal classes the last place stays
    upto = np.arange(len(class_id)) <= last[class_id.astype(np.int64)]
    matters: npt.NDArray[np.bool_] = upto & (ignored != _ALL)
    return matters


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


def _curves(matches: Matches) -> list[_Curve]:
    """Return the classes that have objects."""
    curves = []
    bits = 1 << np.arange(len(_THRESHOLDS), dtype=np.uint16)[:, None]
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


def _measured(curves: Sequence[_Curve], weights: Int32) -> Doubles:
    """Return the mAP50-95 of draws: (B,) for weights (pictures, B); NaN without objects."""
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
    for t in range(len(_THRESHOLDS)):
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
    return total / (len(_RECALLS) * len(_THRESHOLDS))


def map_of(matches: Matches, weights: npt.ArrayLike | None = None) -> float:
    """Return mAP50-95 with every picture counted as often as it was drawn; NaN without objects.

    Args:
        matches: Of a file.
        weights: (pictures,) whole numbers; None counts each once.

    Raises:
        ValueError: There are not as many weights as pictures.
    """
    counts = np.ones(matches.pictures) if weights is None else np.asarray(weights)
    if counts.shape != (matches.pictures,):
        raise ValueError(f"{counts.shape} weights for {matches.pictures} pictures")
    return float(_measured(_curves(matches), counts.astype(np.int32)[:, None])[0])


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
    curves = [_curves(m) for m in files]
    longest = max(len(c.picture) + 10 * len(c.at) for own in curves for c in own)
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


_ARRAYS: Mapping[str, type[np.generic]] = {
    "object_picture": np.int32,
    "object_class": np.int32,
    "object_count": np.int32,
    "picture": np.int32,
    "class_id": np.int32,
    "score": np.float32,
    "right": np.uint16,
    "ignored": np.uint16,
}


def arrays_from_matches(matches: Matches) -> dict[str, npt.NDArray[Any]]:
    """Return plain arrays, by name."""
    return {
        "fingerprint": np.array(matches.fingerprint),
        "sizes": np.array([matches.pictures, matches.classes], np.int64),
        **{name: getattr(matches, name) for name in _ARRAYS},
    }


def matches_from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> Matches:
    """Read what `arrays_from_matches` returned.

    Raises:
        ValueError: Something is missing, or the arrays do not fit each other.
    """
    missing = {"fingerprint", "sizes", *_ARRAYS} - set(arrays)
    if missing:
        raise ValueError(f"{', '.join(sorted(missing))} is missing")
    for name, kind in _ARRAYS.items():
        if arrays[name].ndim != 1 or arrays[name].dtype != kind:
            raise ValueError(f"{name} is {arrays[name].dtype} {arrays[name].shape}")
    fingerprint, sizes = arrays["fingerprint"], arrays["sizes"]
    if fingerprint.shape != () or fingerprint.dtype.kind != "U":
        raise ValueError(f"fingerprint is {fingerprint.dtype} {fingerprint.shape}")
    if sizes.shape != (2,) or sizes.dtype != np.int64:
        raise ValueError(f"sizes is {sizes.dtype} {sizes.shape}")
    values: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
    matches = Matches(str(fingerprint[()]), int(sizes[0]), int(sizes[1]), **values)
    _check(matches)
    return matches


def _check(matches: Matches) -> None:
    """Refuse arrays that no pictures give."""
    m = matches
    lengths = (
        len({len(c) for c in (m.object_picture, m.object_class, m.object_count)}),
        len({len(c) for c in (m.picture, m.class_id, m.score, m.right, m.ignored)}),
    )
    if lengths != (1, 1):
        raise ValueError("the columns differ in length")
    for name, limit in (("picture", m.pictures), ("class", m.classes)):
        own = m.picture if name == "picture" else m.class_id
        for values in (own, getattr(m, f"object_{name}")):
            if len(values) and not 0 <= values.min() <= values.max() < limit:
                raise ValueError(f"a {name} is out of range")
    places = m.object_class.astype(np.int64) * m.pictures + m.object_picture
    if (m.object_count < 1).any() or (np.diff(places) <= 0).any():
        raise ValueError("the objects are not in order")
    better = np.diff(m.score) <= 0
    later = np.diff(m.class_id)
    if not np.isfinite(m.score).all() or not ((later > 0) | ((later == 0) & better)).all():
        raise ValueError("the detections are not in order")
    if ((m.right | m.ignored) > _ALL).any() or (m.right & m.ignored).any():
        raise ValueError("a detection is right and in a crowd region")
