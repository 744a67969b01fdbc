"""Detections matched with objects by COCO's rules, once for all that is told from them.

COCO's rules (Lin et al. 2014, arXiv:1405.0312, and cocodataset.org, "Detection evaluation") match
each picture on its own, so that a sample of the pictures needs no matching again. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.overlaps import Labelled, Overlap, found_areas, ignored_objects, overlaps

__all__ = [
    "THRESHOLDS",
    "TOP1",
    "Int32",
    "Matches",
    "arrays_from_matches",
    "matches_from_arrays",
    "matches_from_pictures",
    "top1_matches",
]

TOP1 = "top-1"  # the one measure that is no average precision

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the IoU
_ALL = np.uint16((1 << len(THRESHOLDS)) - 1)
_LARGEST_AREA = 1e10  # square pixels; COCO ignores a detection that is larger, or inside out

Int32 = npt.NDArray[np.int32]
Bits = npt.NDArray[np.uint16]


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
        measure: Name of the figure. Of `top-1` each picture is one object, and its one detection is
            the best class.
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
    measure: str = "mAP50-95"


def matches_from_pictures(
    pictures: Sequence[Labelled],
    class_count: int,
    max_detections: int,
    fingerprint: str,
    by: Overlap = "box",
    measure: str = "mAP50-95",
) -> Matches:
    """Match detections with objects by COCO's rules.

    Args:
        pictures: Truth and detections.
        class_count: Of the model.
        max_detections: How many detections of a class in a picture count.
        fingerprint: Of the data set.
        by: What is compared.
        measure: Name of the figure that this makes.
    """
    shown = _objects(pictures, by)
    measured = np.zeros(class_count, bool)
    measured[shown[1]] = True
    parts = [_matched(i, p, measured, max_detections, by) for i, p in enumerate(pictures)]
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
        measure,
    )


def top1_matches(pictures: Sequence[Labelled], class_count: int, fingerprint: str) -> Matches:
    """Return what the best class of each picture makes of top-1."""
    truth = np.array([p.class_ids[0] for p in pictures], np.int32)
    best = [p.found_class_ids[:1] for p in pictures]
    shown = np.lexsort((np.arange(len(truth)), truth)).astype(np.int32)
    which = np.array([i for i, ids in enumerate(best) if len(ids)], np.int32)
    class_id = np.array([int(ids[0]) for ids in best if len(ids)], np.int32)
    score = np.array([float(pictures[i].found_scores[0]) for i in which], np.float32)
    right = np.where(class_id == truth[which], _ALL, np.uint16(0)).astype(np.uint16)
    order = np.lexsort((-score, class_id))
    return Matches(
        fingerprint,
        len(pictures),
        class_count,
        shown,
        truth[shown],
        np.ones(len(truth), np.int32),
        which[order],
        class_id[order],
        score[order],
        right[order],
        np.zeros(len(order), np.uint16),
        TOP1,
    )


def _objects(pictures: Sequence[Labelled], by: Overlap) -> tuple[Int32, Int32, Int32]:
    """Return picture, class and number of objects, by class, then picture."""
    rows = []
    for index, picture in enumerate(pictures):
        ids = picture.class_ids[~ignored_objects(picture, by)]
        ids, counts = np.unique(ids, return_counts=True)
        rows += [(int(c), index, int(n)) for c, n in zip(ids, counts, strict=True)]
    table = np.array(sorted(rows), np.int32).reshape(-1, 3)
    return table[:, 1].copy(), table[:, 0].copy(), table[:, 2].copy()


def _matched(
    index: int, picture: Labelled, measured: npt.NDArray[np.bool_], limit: int, by: Overlap
) -> tuple[npt.NDArray[Any], ...]:
    """Return picture, class, score, right and ignored of a picture's detections that count."""
    ids = picture.found_class_ids
    order = np.lexsort((-picture.found_scores, ids))
    ids = ids[order]
    rank = np.arange(len(ids)) - np.searchsorted(ids, ids)
    counts = (rank < limit) & measured[ids]
    order, ids = order[counts], ids[counts]
    right, ignored = np.zeros(len(ids), np.uint16), np.zeros(len(ids), np.uint16)
    passed_over = ignored_objects(picture, by)
    again = picture.crowd if by == "keypoints" else passed_over
    for class_id in np.unique(picture.class_ids):
        rows = slice(*np.searchsorted(ids, [class_id, class_id + 1]))
        objects = np.flatnonzero(picture.class_ids == class_id)
        objects = objects[np.argsort(passed_over[objects], kind="stable")]  # these come last
        values = overlaps(picture, order[rows], objects, by)
        right[rows], ignored[rows] = _assigned(values, passed_over[objects], again[objects])
    areas = found_areas(picture, by)[order]
    odd = (areas < 0) | (areas > _LARGEST_AREA)
    ignored[odd] |= _ALL & ~right[odd]
    pictures = np.full(len(ids), index, np.int32)
    return pictures, ids, picture.found_scores[order], right, ignored


def _assigned(
    shared: npt.NDArray[np.float64],
    passed_over: npt.NDArray[np.bool_],
    again: npt.NDArray[np.bool_],
) -> tuple[Bits, Bits]:
    """Return the bits of right and of ignored, (D,) each, of detections best first.

    At each IoU on its own, a detection takes the free object that it overlaps most, of equal ones
    the last; only without one it may take one that is passed over, a crowd region `again`.
    """
    right, ignored = np.zeros(len(shared), np.uint16), np.zeros(len(shared), np.uint16)
    thresholds, is_crowd = THRESHOLDS.tolist(), passed_over.tolist()
    free = [[True] * len(is_crowd) for _ in thresholds]
    for row in np.flatnonzero((shared >= thresholds[0]).any(axis=1)):
        values = shared[row].tolist()
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
                free[t][match] = bool(again[match])
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
        "measure": np.array(matches.measure),
        **{name: getattr(matches, name) for name in _ARRAYS},
    }


def matches_from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> Matches:
    """Read what `arrays_from_matches` returned.

    Raises:
        ValueError: Something is missing, or the arrays do not fit each other.
    """
    missing = {"fingerprint", "sizes", *_ARRAYS} - set(arrays)
    measure = arrays.get("measure", np.array("mAP50-95"))  # of boxes, before there were others
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
    if measure.shape != () or measure.dtype.kind != "U":
        raise ValueError(f"measure is {measure.dtype} {measure.shape}")
    counts = int(sizes[0]), int(sizes[1])
    matches = Matches(str(fingerprint[()]), *counts, **values, measure=str(measure[()]))
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
