"""What accuracy means for each task, and which overlap of detection and object it counts by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from boxwright.coco_matches import TOP1, Matches, matches_from_pictures, top1_matches
from boxwright.datasets import Dataset, Truth
from boxwright.errors import RequestError
from boxwright.overlaps import Labelled, Overlap, found_masks
from boxwright.scoring import Precisions
from boxwright.types import Detections, ModelSpec, TaskName

__all__ = [
    "Measure",
    "check_budget_measure",
    "figures_beside",
    "labelled_from_detections",
    "matches_by",
    "measure_for",
]

# What is measured beside, by what is measured; and how it is called.
_BESIDE: Mapping[Overlap, Overlap] = {"mask": "box", "keypoints": "box", "rotated": "exact"}
_BESIDE_NAMES: Mapping[Overlap, str] = {"box": "box", "exact": "exact rotated"}


@dataclass(frozen=True, slots=True)
class Measure:
    """What is measured of a model on a data set.

    Attributes:
        name: Of the figure that stands for all: the one that budgets hold.
        by: What its average precision compares; `box` for top-1, which has none.
        counted_by: What precision and recall at the operating point compare.
        warning: What the data do not let be measured, or "".
    """

    name: str
    by: Overlap
    counted_by: Overlap = "box"
    warning: str = ""

    @property
    def compared(self) -> tuple[Overlap, ...]:
        """What average precision is made of: what is measured, then what is beside it."""
        if self.name == TOP1:
            return ()
        return (self.by, _BESIDE[self.by]) if self.by in _BESIDE else (self.by,)


_OF_TASK: dict[TaskName, Measure] = {
    "detect": Measure("mAP50-95", "box"),
    "segment": Measure("mask mAP50-95", "mask"),
    "pose": Measure("OKS mAP50-95", "keypoints"),
    "obb": Measure("rotated mAP50-95", "rotated", "rotated"),
    "classify": Measure(TOP1, "box"),
}
_MISSING = {"segment": "masks", "pose": "keypoints"}


def measure_for(spec: ModelSpec, dataset: Dataset) -> Measure:
    """Return what is measured of a model: its task's figure where the labels hold what it needs.

    Of `segment` and `pose` on labels of boxes alone it is the boxes' figure, under that name.

    Raises:
        RequestError: The data was opened for another task.
    """
    task, wanted = spec.task, dataset.wanted
    points = spec.layout.keypoint_shape[0] if task == "pose" else 0
    if task in _MISSING and (wanted.task, wanted.keypoints) == (task, points):
        if dataset.has_shapes or not dataset.objects:
            return _OF_TASK[task]
    elif task == wanted.task or (task == "detect" and wanted.task in _MISSING):
        return _OF_TASK[task]
    if task in _MISSING and wanted.task in ("detect", task):
        what = _MISSING[task]
        warning = f"the labels have no {what}: only the boxes are measured, not the {what}"
        return Measure("box mAP50-95", "box", warning=warning)
    raise RequestError(
        f"accuracy of {spec.name} on {dataset.name}",
        f"the model's task is {task}, and the data was opened for {wanted.task}",
        "evaluate models of one task together; in Python open the data with wanted_of(spec)",
    )


def check_budget_measure(spec: ModelSpec, dataset: Dataset, option: str) -> None:
    """Refuse a budget that would say nothing of what the model is for.

    Raises:
        RequestError: The labels hold boxes alone, and the task is more than boxes.
    """
    if measure_for(spec, dataset).warning:
        raise RequestError(
            f"{option} of {spec.name} on {dataset.name}",
            f"the labels have boxes and no {_MISSING[spec.task]}, so that a loss of these would "
            "not be seen",
            f"give labels with {_MISSING[spec.task]}, or drop {option}",
        )


def labelled_from_detections(
    truth: Truth, found: Detections, limit: int | None, measure: Measure
) -> Labelled:
    """Return one picture's truth and detections, with what the measure compares.

    Args:
        truth: Of the picture.
        found: In it, best first.
        limit: How many of them count.
        measure: What is compared.
    """
    points, rotated = found.keypoints, found.rotated
    by_points, by_turn = measure.by == "keypoints", measure.by == "rotated"
    masks = None
    if measure.by == "mask":
        masks = found_masks(found)[:limit]
    return Labelled(
        xyxy=truth.xyxy,
        class_ids=truth.class_ids,
        crowd=truth.crowd,
        areas=truth.areas,
        found_xyxy=found.xyxy[:limit],
        found_scores=found.scores[:limit],
        found_class_ids=found.class_ids[:limit],
        image_size=found.image_size,
        masks=truth.masks if measure.by == "mask" else None,
        found_masks=masks,
        keypoints=truth.keypoints if by_points else None,
        found_keypoints=points[:limit] if by_points and points is not None else None,
        rotated=truth.rotated if by_turn else None,
        found_rotated=rotated[:limit] if by_turn and rotated is not None else None,
        shape_areas=truth.shape_areas if measure.by != "box" else None,
    )


def figures_beside(
    measure: Measure, tables: Mapping[Overlap, Precisions], top5: float | None
) -> dict[str, float | None]:
    """Return further figures by name: of the boxes, of exact overlaps, of the best five.

    Args:
        measure: What is measured.
        tables: The average precisions, by what they compare.
        top5: Of a classifier.
    """
    if measure.name == TOP1:
        return {"top-5": top5}
    found: dict[str, float | None] = {}
    for by in measure.compared[1:]:
        name = _BESIDE_NAMES[by]
        found[f"{name} mAP50-95"] = _known(tables[by].mean)
        found[f"{name} mAP50"] = _known(tables[by].mean_50)
    return found


def matches_by(
    pictures: Sequence[Labelled], class_count: int, limit: int, dataset: Dataset, measure: Measure
) -> Matches:
    """Return what intervals and comparisons of the measure are made from."""
    if measure.name == TOP1:
        return top1_matches(pictures, class_count, dataset.fingerprint)
    fingerprint = dataset.fingerprint
    return matches_from_pictures(
        pictures, class_count, limit, fingerprint, measure.by, measure.name
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
