"""COCO's average precision from parts of a data set, equal to the last bit to that of the whole.

COCO's rules (Lin et al. 2014, arXiv:1405.0312, and cocodataset.org, "Detection evaluation") match
each picture on its own; only the order of the detections by score joins the pictures. So a part
keeps of each detection its score and at which IoU it is right or to be left out, for each of COCO's
four areas; the parts of a class, one after the other, sorted stably by score, are then what the
whole would have been. What is compared, boxes, masks, keypoints or rotated boxes, is gone once they
are matched. The arithmetic of the curve is that of faster-coco-eval's `accumulate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.coco_matches import THRESHOLDS
from boxwright.overlaps import (
    Labelled,
    Overlap,
    found_areas,
    ignored_objects,
    object_areas,
    overlaps,
)

__all__ = ["AREAS", "Part", "part_from_pictures", "table_from_parts"]

AREAS = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))  # of COCO, square pixels
_SMALL = 1  # of AREAS; keypoints have none
_RECALLS = np.linspace(0.0, 1.0, 101)
_SLACK = 1e-10  # COCO: an IoU of 1 passes a threshold of 1
_GROUP_ROWS = 20_000_000  # detections that are sorted at a time

Bits = npt.NDArray[np.uint16]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some neighbouring pictures of a data set.

    Attributes:
        objects: (4, classes) int64: how many objects count, by area.
        class_id: (N,) int32 of each detection, ascending; within a class by picture, best first.
        score: (N,) float32.
        right, ignored: (4, N) uint16, by area: bit t is set where the detection is right, or left
            out, at IoU 0.5 + 0.05 t.
    """

    objects: npt.NDArray[np.int64]
    class_id: npt.NDArray[np.int32]
    score: npt.NDArray[np.float32]
    right: Bits
    ignored: Bits

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return plain arrays, by name."""
        return {name: getattr(self, name) for name in Part.__slots__}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Part:
        """Read what `arrays` returned."""
        return cls(**{name: arrays[name] for name in Part.__slots__})


def part_from_pictures(
    pictures: Sequence[Labelled], class_count: int, max_detections: int, by: Overlap = "box"
) -> Part:
    """Match the detections of some pictures.

    Args:
        pictures: Truth and detections, in the order of the data set.
        class_count: Of the model.
        max_detections: How many detections of a class in a picture count.
        by: What is compared.
    """
    objects = np.zeros((len(AREAS), class_count), np.int64)
    columns: list[tuple[Any, Any, Any, Any]] = []
    for picture in pictures:
        areas = found_areas(picture, by)
        for class_id in np.unique(np.concatenate([picture.class_ids, picture.found_class_ids])):
            columns.append(_matched(picture, int(class_id), max_detections, by, areas, objects))
    if not columns:
        empty = np.zeros((len(AREAS), 0), np.uint16)
        return Part(objects, np.zeros(0, np.int32), np.zeros(0, np.float32), empty, empty)
    class_id = np.concatenate([c[0] for c in columns])
    score = np.concatenate([c[1] for c in columns])
    right = np.concatenate([c[2] for c in columns], axis=1)
    ignored = np.concatenate([c[3] for c in columns], axis=1)
    order = np.argsort(class_id, kind="stable")
    return Part(objects, class_id[order], score[order], right[:, order], ignored[:, order])


def _matched(
    picture: Labelled,
    class_id: int,
    limit: int,
    by: Overlap,
    own_areas: Doubles,
    objects: npt.NDArray[np.int64],
) -> tuple[Any, Any, Any, Any]:
    """Return class, score, right and ignored of a class's detections; count its objects.

    `own_areas` are those of all detections of the picture.
    """
    found = np.flatnonzero(picture.found_class_ids == class_id)
    found = found[np.argsort(-picture.found_scores[found], kind="stable")][:limit]
    truth = np.flatnonzero(picture.class_ids == class_id)
    passed_over, areas = ignored_objects(picture, by)[truth], object_areas(picture, by)[truth]
    again = picture.crowd[truth] if by == "keypoints" else passed_over
    # One column an object; its values do not depend on the order in which objects are tried.
    shared = overlaps(picture, found, truth, by)
    right = np.zeros((len(AREAS), len(found)), np.uint16)
    ignored = np.zeros((len(AREAS), len(found)), np.uint16)
    for number, (low, high) in enumerate(AREAS):
        if by == "keypoints" and number == _SMALL:
            continue
        left_out = passed_over | (areas < low) | (areas > high)
        objects[number, class_id] += int((~left_out).sum())
        outside = (own_areas[found] < low) | (own_areas[found] > high)
        right[number], ignored[number] = _assigned(shared, left_out, again, outside)
    return (
        np.full(len(found), class_id, np.int32),
        picture.found_scores[found].astype(np.float32, copy=False),
        right,
        ignored,
    )


def _assigned(
    shared: Doubles,
    left_out: npt.NDArray[np.bool_],
    again: npt.NDArray[np.bool_],
    outside: npt.NDArray[np.bool_],
) -> tuple[Bits, Bits]:
    """Return the bits of right and of ignored, (D,) each, of detections best first.

    At each IoU on its own, a detection takes the free object that it overlaps most, of equal ones
    the last; only without one it may take an object that is left out, some of them `again` and
    again. One that takes nothing is left out where its own area is outside of the range.
    """
    right, ignored = np.zeros(len(shared), np.uint16), np.zeros(len(shared), np.uint16)
    order = np.argsort(left_out, kind="stable").tolist()
    is_out, is_crowd = left_out.tolist(), again.tolist()
    thresholds = [min(t, 1 - _SLACK) for t in THRESHOLDS.tolist()]
    free = [[True] * len(order) for _ in thresholds]
    for row, values in enumerate(shared.tolist()):
        near = [g for g in order if values[g] >= thresholds[0]]
        for t, threshold in enumerate(thresholds):
            best, match = threshold, -1
            for g in near:
                if not (free[t][g] or is_crowd[g]):
                    continue
                if match >= 0 and is_out[g] and not is_out[match]:
                    break
                if values[g] >= best:
                    best, match = values[g], g
            if match >= 0:
                free[t][match] = False
            if match >= 0 and not is_out[match]:
                right[row] |= 1 << t
            elif match >= 0 or outside[row]:
                ignored[row] |= 1 << t
    return right, ignored


def table_from_parts(parts: Iterable[Part], class_count: int) -> Doubles:
    """Return COCO's table of precision, (IoU 10, recall 101, classes, areas 4).

    NaN stands where a class has no objects.

    Args:
        parts: In the order of the data set; they are gone through several times, so that a list, or
            something that reads files anew each time.
        class_count: Of the model.
    """
    objects = np.zeros((len(AREAS), class_count), np.int64)
    rows = np.zeros(class_count, np.int64)
    for part in parts:
        objects += part.objects
        rows += np.bincount(part.class_id, minlength=class_count)
    table = np.full((len(THRESHOLDS), len(_RECALLS), class_count, len(AREAS)), np.nan)
    for low, high in _groups(rows):
        scores: list[list[Any]] = [[] for _ in range(low, high)]
        bits: list[list[Any]] = [[] for _ in range(low, high)]
        for part in parts:
            ends = np.searchsorted(part.class_id, np.arange(low, high + 1))
            for i in range(high - low):
                own = slice(int(ends[i]), int(ends[i + 1]))
                scores[i].append(part.score[own])
                bits[i].append(np.stack([part.right[:, own], part.ignored[:, own]]))
        for i, class_id in enumerate(range(low, high)):
            _fill(table, class_id, objects[:, class_id], scores[i], bits[i])
            scores[i], bits[i] = [], []
    return table


def _groups(rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield ranges of classes whose detections fit into memory together."""
    low, held = 0, 0
    for class_id, count in enumerate(rows.tolist()):
        if held and held + count > _GROUP_ROWS:
            yield low, class_id
            low, held = class_id, 0
        held += count
    if low < len(rows):
        yield low, len(rows)


def _fill(
    table: Doubles,
    class_id: int,
    objects: npt.NDArray[np.int64],
    scores: Sequence[Any],
    bits: Sequence[Any],
) -> None:
    """Put the curves of a class into the table."""
    score = np.concatenate([np.zeros(0, np.float32), *scores])
    order = np.argsort(-score, kind="stable")
    empty = np.zeros((2, len(AREAS), 0), np.uint16)
    right, ignored = np.concatenate([empty, *bits], axis=2)[:, :, order]
    for area, count in enumerate(objects.tolist()):
        if not count:
            continue
        for t in range(len(THRESHOLDS)):
            is_right = (right[area] >> t) & 1 == 1
            is_wrong = ~is_right & ((ignored[area] >> t) & 1 == 0)
            table[t, :, class_id, area] = _curve(is_right, is_wrong, count)


def _curve(
    is_right: npt.NDArray[np.bool_], is_wrong: npt.NDArray[np.bool_], objects: int
) -> Doubles:
    """Return the best precision from each of 101 recalls on, (101,); 0 beyond the last recall."""
    rights, wrongs = np.cumsum(is_right), np.cumsum(is_wrong)
    seen = rights + wrongs
    recall = rights / objects
    precision = np.zeros(len(rights))
    np.divide(rights, seen, out=precision, where=seen > 0)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, _RECALLS, side="left")
    curve = np.zeros(len(_RECALLS))
    inside = places < len(best)
    curve[inside] = best[places[inside]]
    return curve
