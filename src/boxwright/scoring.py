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

from boxwright.overlaps import (
    Labelled,
    Overlap,
    found_areas,
    ignored_objects,
    object_areas,
    object_masks,
    overlaps,
    sigmas_of,
)
from boxwright.types import FloatArray

__all__ = [
    "Counts",
    "Labelled",
    "Precisions",
    "average_precision",
    "count_matches",
    "count_top",
    "precisions_from_table",
]

MATCHING_IOU = 0.5  # of precision and recall at the operating point
# In the order in which faster-coco-eval has them; people under 32 x 32 have no keypoints in COCO.
_AREAS = ("all", "small", "medium", "large")
_KINDS = {"box": "bbox", "mask": "segm", "keypoints": "keypoints"}


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
    pictures: Sequence[Labelled], class_count: int, max_detections: int, by: Overlap = "box"
) -> Precisions:
    """Compute COCO's average precision.

    Rotated boxes are counted by the same code; only how much two of them overlap is ours.

    Args:
        pictures: Truth and detections.
        class_count: Of the model.
        max_detections: How many detections of a class in a picture count; COCO's own is 100, of
            keypoints 20.
        by: What is compared.
    """
    from faster_coco_eval import COCO

    sizes = [p.image_size for p in pictures]
    frame = {
        "images": [
            {"id": i, "height": size[0], "width": size[1]} for i, size in enumerate(sizes, 1)
        ],
        "categories": [{"id": c, "name": str(c)} for c in range(1, class_count + 1)],
    }
    truth = COCO({**frame, "annotations": _truth_records(pictures, by)})
    found = COCO({**frame, "annotations": _found_records(pictures, by)})
    evaluation = _evaluation(truth, found, pictures, by)
    evaluation.params.maxDets = [max_detections]
    evaluation.params.imgIds = list(range(1, len(pictures) + 1))
    evaluation.params.catIds = list(range(1, class_count + 1))
    evaluation.evaluate()
    evaluation.accumulate()
    names = tuple(n for n in _AREAS if n != "small") if by == "keypoints" else _AREAS
    # (IoU 10, recall 101, classes, areas 4 or 3, limits 1), -1 where a class has no objects
    table = np.asarray(evaluation.eval["precision"], np.float64)
    table = table.reshape(10, 101, class_count, len(names))
    if by == "keypoints":
        table = np.insert(table, _AREAS.index("small"), np.nan, axis=3)
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


def _evaluation(truth: Any, found: Any, pictures: Sequence[Labelled], by: Overlap) -> Any:
    """Return faster-coco-eval's evaluation; of rotated boxes with overlaps of our own."""
    from faster_coco_eval import COCOeval_faster

    if by == "keypoints":
        points = next((p.keypoints.shape[1] for p in pictures if p.keypoints is not None), 17)
        sigmas = sigmas_of(points).astype(np.float64)
        return COCOeval_faster(truth, found, "keypoints", kpt_oks_sigmas=sigmas)
    if by in _KINDS:
        return COCOeval_faster(truth, found, _KINDS[by])

    class Rotated(COCOeval_faster):  # type: ignore[misc]
        def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803 - its own names
            picture = pictures[imgId - 1]
            mine = np.flatnonzero(picture.found_class_ids == catId - 1)
            mine = mine[np.argsort(-picture.found_scores[mine], kind="stable")]
            theirs = np.flatnonzero(picture.class_ids == catId - 1)
            if not len(mine) or not len(theirs):
                return []
            return overlaps(picture, mine[: self.params.maxDets[-1]], theirs, by)

    return Rotated(truth, found, "bbox")


def _mean(values: npt.NDArray[np.float64]) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")


def _truth_records(pictures: Sequence[Labelled], by: Overlap) -> list[dict[str, Any]]:
    """Return COCO annotations; ids count from 1, since 0 means unmatched to COCO's code."""
    records: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures, 1):
        crowd = ignored_objects(picture, by) if by == "mask" else picture.crowd
        areas = object_areas(picture, by)
        masks = object_masks(picture) if by == "mask" else []
        for index, box in enumerate(_xywh(picture.xyxy)):
            record: dict[str, Any] = {
                "id": len(records) + 1,
                "image_id": image_id,
                "category_id": int(picture.class_ids[index]) + 1,
                "bbox": box,
                "area": float(areas[index]),
                "iscrowd": int(crowd[index]),
            }
            if by == "mask":
                record["segmentation"] = masks[index]
            elif by == "keypoints" and picture.keypoints is not None:
                points = picture.keypoints[index].astype(np.float64)
                record["keypoints"] = points.ravel().tolist()
                record["num_keypoints"] = int((points[:, 2] > 0).sum())
            records.append(record)
    return records


def _found_records(pictures: Sequence[Labelled], by: Overlap) -> list[dict[str, Any]]:
    """Return COCO results, as `loadRes` would complete them, without its copies."""
    records: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures, 1):
        boxes, areas = _xywh(picture.found_xyxy), found_areas(picture, by)
        for index, box in enumerate(boxes):
            record: dict[str, Any] = {
                "id": len(records) + 1,
                "image_id": image_id,
                "category_id": int(picture.found_class_ids[index]) + 1,
                "bbox": box,
                "area": box[2] * box[3] if by == "box" else float(areas[index]),
                "score": float(picture.found_scores[index]),
                "iscrowd": 0,
            }
            if by == "mask" and picture.found_masks is not None:
                record["segmentation"] = picture.found_masks[index]
            elif by == "keypoints" and picture.found_keypoints is not None:
                points = picture.found_keypoints[index].astype(np.float64)
                seen = np.ones((len(points), 1))
                record["keypoints"] = np.concatenate([points[:, :2], seen], 1).ravel().tolist()
            records.append(record)
    return records


def _xywh(xyxy: FloatArray) -> list[list[float]]:
    boxes = xyxy.astype(np.float64)
    rows: list[list[float]] = np.concatenate(
        [boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1
    ).tolist()
    return rows


def count_matches(picture: Labelled, counts: Counts, by: Overlap = "box") -> None:
    """Add one picture to the counts, by COCO's rules at IoU 0.5.

    Best score first, each detection takes the free object of its class that it overlaps most; one
    without such an object is wrong, unless half of it lies in a crowd region of its class.
    """
    found = np.arange(len(picture.found_class_ids))
    single, regions = np.flatnonzero(~picture.crowd), np.flatnonzero(picture.crowd)
    free = np.ones(len(single), bool)
    shared = _same_class(picture, overlaps(picture, found, single, by), single)
    inside = _same_class(picture, overlaps(picture, found, regions, by), regions)
    right = 0
    excuses: list[bool] = np.asarray((inside >= MATCHING_IOU).any(axis=1)).tolist()
    for row, excused in zip(shared, excuses, strict=True):
        row = np.where(free, row, 0.0)
        best = int(row.argmax()) if len(row) else -1
        if best >= 0 and row[best] >= MATCHING_IOU:
            free[best] = False
            right += 1
        elif not excused:
            counts.wrong += 1
    counts.right += right
    counts.missed += len(single) - right


def _same_class(
    picture: Labelled, shared: npt.NDArray[np.float64], objects: npt.NDArray[np.intp]
) -> npt.NDArray[np.float64]:
    same = picture.found_class_ids[:, None] == picture.class_ids[objects][None, :]
    return np.where(same, shared, 0.0)


def count_top(pictures: Sequence[Labelled], best: int) -> int:
    """Return in how many pictures the class is among the `best` ones that were found."""
    return sum(int(p.class_ids[0]) in p.found_class_ids[:best].tolist() for p in pictures)
