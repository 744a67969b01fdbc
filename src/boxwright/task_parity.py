"""How far what the tasks add to a box lies from the source's: masks, keypoints, rotated boxes.

The limits below are the ones that docs/verification.md prints; a test keeps the two equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from boxwright.overlaps import COCO_SIGMAS, sigmas_of
from boxwright.rotated import rotated_iou
from boxwright.types import Check, Detections, FloatArray, MaskCrop, Precision, TaskName

__all__ = [
    "COCO_SIGMAS",
    "TASK_TOLERANCES",
    "TaskTolerance",
    "keypoint_similarity",
    "mask_iou",
    "task_checks",
    "task_gaps",
]

_SEEN = 0.5  # points that the source itself does not see may lie anywhere
_FORGIVEN_PIXELS = 2  # of a mask: which side of an edge a pixel falls on is a matter of rounding

_MEASURES: Mapping[TaskName, str] = {
    "segment": "1 - IoU of masks",
    "pose": "1 - OKS of keypoints",
    "obb": "1 - IoU of rotated boxes",
}


@dataclass(frozen=True, slots=True)
class TaskTolerance:
    """How far a file of some precision may be from its source in what its task adds.

    Attributes:
        gap: Limit on 1 - similarity: IoU of masks or rotated boxes, OKS of keypoints.
        on_average: It holds for the mean of the pairs, not for each.
    """

    gap: float
    on_average: bool


TASK_TOLERANCES: Mapping[Precision, TaskTolerance] = {
    "fp32": TaskTolerance(0.01, on_average=False),
    "fp16": TaskTolerance(0.02, on_average=True),
    "int8": TaskTolerance(0.15, on_average=True),
}


def task_gaps(
    reference: Detections, candidate: Detections, pairs: Sequence[tuple[int, int]]
) -> list[float]:
    """Return 1 - similarity of each pair; nothing for tasks of boxes alone."""
    if reference.mask_crops is not None and candidate.mask_crops is not None:
        ours, theirs = reference.mask_crops, candidate.mask_crops
        return [1 - mask_iou(ours[i], theirs[j], _FORGIVEN_PIXELS) for i, j in pairs]
    if reference.keypoints is not None and candidate.keypoints is not None:
        areas = np.prod(reference.xyxy[:, 2:] - reference.xyxy[:, :2], axis=1)
        return [
            1 - keypoint_similarity(reference.keypoints[i], candidate.keypoints[j], areas[i])
            for i, j in pairs
        ]
    if reference.rotated is not None and candidate.rotated is not None:
        return [1 - rotated_iou(reference.rotated[i], candidate.rotated[j]) for i, j in pairs]
    return []


def mask_iou(first: MaskCrop, second: MaskCrop, forgiven: int = 0) -> float:
    """Return the IoU of two masks of one picture; `forgiven` pixels that differ do not count.

    >>> full = MaskCrop(0, 0, np.ones((2, 2), bool))
    >>> round(mask_iou(full, MaskCrop(1, 0, np.ones((2, 2), bool))), 6)
    0.333333
    """
    left, top = min(first.left, second.left), min(first.top, second.top)
    right = max(c.left + c.pixels.shape[1] for c in (first, second))
    bottom = max(c.top + c.pixels.shape[0] for c in (first, second))
    size = (bottom - top, right - left)
    one, other = (
        MaskCrop(c.left - left, c.top - top, c.pixels).within(size) for c in (first, second)
    )
    union = int((one | other).sum())
    different = max(0, int((one ^ other).sum()) - forgiven)
    return 1 - different / union if union else 1.0


def keypoint_similarity(first: FloatArray, second: FloatArray, area: float) -> float:
    """Return the object keypoint similarity of (K, 2 or 3) points, over those that `first` sees.

    Formula: COCO's OKS, exp(-d² / (2 area (2 sigma)²)), with its sigmas for 17 points and 1 / K for
    any other number, as Ultralytics takes it. 1 where no point is seen.
    """
    count = len(first)
    sigmas = sigmas_of(count)
    seen = first[:, 2] > _SEEN if first.shape[1] == 3 else np.ones(count, bool)
    if not seen.any():
        return 1.0
    squared = ((first[:, :2] - second[:, :2]) ** 2).sum(axis=1)
    similar = np.exp(-squared / (2 * max(float(area), 1.0) * (2 * sigmas) ** 2))
    return float(similar[seen].mean())


def task_checks(gaps: Sequence[float], task: TaskName, precision: Precision) -> Iterator[Check]:
    """Yield the check of what the task adds; none where nothing was paired."""
    if task not in _MEASURES or not gaps:
        return
    limits, worst = TASK_TOLERANCES[precision], max(gaps)
    measured = float(np.mean(gaps)) if limits.on_average else worst
    note = f"mean of {len(gaps)}; the worst {worst:.3f}" if limits.on_average else f"of {len(gaps)}"
    yield Check(_MEASURES[task], measured, limits.gap, bool(measured <= limits.gap), note)
