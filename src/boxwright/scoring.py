"""Scores of detections against the truth: COCO's average precision, and precision and recall.

`average_precision` leaves the counting to faster-coco-eval (COCO's rules: Lin et al. 2014,
arXiv:1405.0312, and cocodataset.org, "Detection evaluation"). What it is given does not depend on
the order of files or batches: pictures count in the order given, detections best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.boxes import iou_matrix
from boxwright.types import FloatArray, IntArray

__all__ = [
    "Counts",
    "Labelled",
    "Precisions",
    "average_precision",
    "count_matches",
    "precisions_from_table",
]

MATCHING_IOU = 0.5  # of precision and recall at the operating point
_AREAS = ("all", "small", "medium", "large")  # in the order in which faster-coco-eval has them


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """One picture's truth and detections, boxes (N, 4) float32 xyxy in its pixels.

    Attributes:
        xyxy, class_ids, crowd, areas: Of the objects; `crowd` (N,) bool, `areas` (N,) float64.
        found_xyxy, found_scores, found_class_ids: Of the detections, best first.
    """

    xyxy: FloatArray
    class_ids: IntArray
    crowd: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float64]
    found_xyxy: FloatArray
    found_scores: FloatArray
    found_class_ids: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Precisions:
    """Average precisions; NaN where no object is.

    Attributes:
        by_class: (classes,) float64, mean over IoU 0.5 to 0.95.
        by_class_50: (classes,) at IoU 0.5.
        mean, mean_50, mean_75: Over the classes that have objects.
        by_area: The mean for small, medium and large objects.
        curves: (classes, 101) float64: precision at recall 0, 0.01, ... 1, IoU 0.5.
    """

    by_class: npt.NDArray[np.float64]
    by_class_50: npt.NDArray[np.float64]
    mean: float
    mean_50: float
    mean_75: float
    by_area: tuple[float, float, float]
    curves: npt.NDArray[np.float64]


@dataclass(slots=True)
class Counts:
    """Detections that are right and wrong, and objects that are missed, at one threshold."""

    right: int = 0
    wrong: int = 0
    missed: int = 0

    @property
    def precision(self) -> float | None:
        """The share of the detections that is right; None without detections."""
        return _ratio(self.right, self.right + self.wrong)

    @property
    def recall(self) -> float | None:
        """The share of the objects that is found; None without objects."""
        return _ratio(self.right, self.right + self.missed)

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall; None without objects and detections."""
        return _ratio(2 * self.right, 2 * self.right + self.wrong + self.missed)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def average_precision(
    pictures: Sequence[Labelled], class_count: int, max_detections: int
) -> Precisions:
    """Compute COCO's average precision.

    Args:
        pictures: Truth and detections.
        class_count: Of the model.
        max_detections: How many detections of a class in a picture count; COCO's own is 100.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    frame = {
        "images": [{"id": i} for i in range(1, len(pictures) + 1)],
        "categories": [{"id": c, "name": str(c)} for c in range(1, class_count + 1)],
    }
    truth = COCO({**frame, "annotations": _truth_records(pictures)})
    found = COCO({**frame, "annotations": _found_records(pictures)})
    evaluation = COCOeval_faster(truth, found, "bbox")
    evaluation.params.maxDets = [max_detections]
    evaluation.params.imgIds = list(range(1, len(pictures) + 1))
    evaluation.params.catIds = list(range(1, class_count + 1))
    evaluation.evaluate()
    evaluation.accumulate()
    # (IoU 10, recall 101, classes, areas 4, limits 1), -1 where a class has no objects
    table = np.asarray(evaluation.eval["precision"], np.float64)
    table = table.reshape(10, 101, class_count, len(_AREAS))
    return precisions_from_table(np.where(table < 0, np.nan, table))


def precisions_from_table(table: npt.NDArray[np.float64]) -> Precisions:
    """Return the figures of a whole table.

    Args:
        table: (IoU 10, recall 101, classes, areas 4) precision; NaN where a class has no objects.
    """
    everything = table[..., 0]
    areas = [_mean(table[..., i]) for i in range(1, len(_AREAS))]
    return Precisions(
        by_class=everything.mean(axis=(0, 1)),
        by_class_50=everything[0].mean(axis=0),
        mean=_mean(everything),
        mean_50=_mean(everything[0]),
        mean_75=_mean(everything[5]),
        by_area=(areas[0], areas[1], areas[2]),
        curves=everything[0].T,
    )


def _mean(values: npt.NDArray[np.float64]) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")


def _truth_records(pictures: Sequence[Labelled]) -> list[dict[str, Any]]:
    """Return COCO annotations; ids count from 1, since 0 means unmatched to COCO's code."""
    records: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures, 1):
        rows = zip(
            _xywh(picture.xyxy), picture.class_ids, picture.crowd, picture.areas, strict=True
        )
        for box, class_id, crowd, area in rows:
            records.append(
                {
                    "id": len(records) + 1,
                    "image_id": image_id,
                    "category_id": int(class_id) + 1,
                    "bbox": box,
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
    return records


def _found_records(pictures: Sequence[Labelled]) -> list[dict[str, Any]]:
    """Return COCO results, as `loadRes` would complete them, without its copies."""
    records: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures, 1):
        boxes, scores = _xywh(picture.found_xyxy), picture.found_scores.tolist()
        for box, score, class_id in zip(boxes, scores, picture.found_class_ids, strict=True):
            records.append(
                {
                    "id": len(records) + 1,
                    "image_id": image_id,
                    "category_id": int(class_id) + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "score": score,
                    "iscrowd": 0,
                }
            )
    return records


def _xywh(xyxy: FloatArray) -> list[list[float]]:
    boxes = xyxy.astype(np.float64)
    rows: list[list[float]] = np.concatenate(
        [boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1
    ).tolist()
    return rows


def count_matches(picture: Labelled, counts: Counts) -> None:
    """Add one picture to the counts, by COCO's rules at IoU 0.5.

    Best score first, each detection takes the free object of its class that it overlaps most; one
    without such an object is wrong, unless half of it lies in a crowd region of its class.
    """
    single = np.flatnonzero(~picture.crowd)
    free = np.ones(len(single), bool)
    overlap = iou_matrix(picture.found_xyxy, picture.xyxy[single])
    same = picture.found_class_ids[:, None] == picture.class_ids[single][None, :]
    overlap = np.where(same, overlap, np.float32(0))
    in_crowd = _in_crowd(picture)
    right = 0
    for row, excused in zip(overlap, in_crowd, strict=True):
        row = np.where(free, row, np.float32(0))
        best = int(row.argmax()) if len(row) else -1
        if best >= 0 and row[best] >= MATCHING_IOU:
            free[best] = False
            right += 1
        elif not excused:
            counts.wrong += 1
    counts.right += right
    counts.missed += len(single) - right


def _in_crowd(picture: Labelled) -> npt.NDArray[np.bool_]:
    """Whether at least half of each detection lies in a crowd region of its class."""
    crowd = np.flatnonzero(picture.crowd)
    found, regions = picture.found_xyxy, picture.xyxy[crowd]
    low = np.maximum(found[:, None, :2], regions[None, :, :2])
    high = np.minimum(found[:, None, 2:], regions[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(axis=2)
    own = np.maximum((found[:, 2:] - found[:, :2]).prod(axis=1), np.float32(1e-9))
    same = picture.found_class_ids[:, None] == picture.class_ids[crowd][None, :]
    inside: npt.NDArray[np.bool_] = ((shared / own[:, None] >= MATCHING_IOU) & same).any(axis=1)
    return inside
