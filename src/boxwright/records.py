"""Detections as plain records: our own JSON, COCO results and YOLO text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from boxwright.rle import rle_from_mask
from boxwright.rotated import corners_from_rotated

if TYPE_CHECKING:
    from boxwright.types import Detections, FloatArray, MaskCrop

__all__ = [
    "coco_from_detections",
    "dicts_from_detections",
    "outline",
    "yolo_lines_from_detections",
]


def _rounded(values: npt.NDArray[Any], digits: int = 3) -> list[Any]:
    result: list[Any] = np.round(values.astype(np.float64), digits).tolist()
    return result


def dicts_from_detections(found: Detections) -> list[dict[str, Any]]:
    """Return what `Detections.as_dicts` promises."""
    records: list[dict[str, Any]] = []
    for index, (box, score, class_id) in enumerate(found):
        record: dict[str, Any] = {
            "xyxy": [round(float(v), 3) for v in box],
            "score": round(score, 6),
            "class_id": class_id,
            "class_name": found.class_name(class_id),
        }
        if found.mask_crops is not None:
            record["mask"] = rle_from_mask(found.mask_crops[index].within(found.image_size))
        if found.keypoints is not None:
            record["keypoints"] = _rounded(found.keypoints[index])
        if found.rotated is not None:
            record["rotated"] = _rounded(found.rotated[index], 5)
            record["corners"] = _rounded(corners_from_rotated(found.rotated[index : index + 1])[0])
        records.append(record)
    return records


def coco_from_detections(
    found: Detections, image_id: int | str, category_ids: Sequence[int] | None
) -> list[dict[str, Any]]:
    """Return what `Detections.as_coco` promises."""
    records: list[dict[str, Any]] = []
    for index, (box, score, class_id) in enumerate(found):
        x1, y1, x2, y2 = box
        record: dict[str, Any] = {
            "image_id": image_id,
            "category_id": class_id if category_ids is None else category_ids[class_id],
            "bbox": [round(float(v), 3) for v in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 6),
        }
        if found.task == "classify":
            del record["bbox"]
        if found.mask_crops is not None:
            record["segmentation"] = rle_from_mask(found.mask_crops[index].within(found.image_size))
        if found.keypoints is not None:
            record["keypoints"] = _rounded(_with_visibility(found.keypoints[index]).ravel())
        if found.rotated is not None:
            corners = corners_from_rotated(found.rotated[index : index + 1])[0]
            record["rbox"] = _rounded(found.rotated[index], 5)
            record["poly"] = _rounded(corners.ravel())
        records.append(record)
    return records


def _with_visibility(points: FloatArray) -> FloatArray:
    """Return (K, 3): points of two numbers count as visible."""
    if points.shape[1] == 3:
        return points
    return np.concatenate([points, np.ones((len(points), 1), np.float32)], axis=1)


def yolo_lines_from_detections(found: Detections, with_score: bool) -> list[str]:
    """Return what `Detections.as_yolo_lines` promises."""
    if found.task == "classify":
        return [f"{score:.4f} {found.class_name(class_id)}" for _, score, class_id in found]
    height, width = found.image_size
    size = np.array([width, height], np.float64)
    lines = []
    for index, (box, score, class_id) in enumerate(found):
        if found.mask_crops is not None:
            crop = found.mask_crops[index]
            place = outline(crop) / size
            if not len(place):  # no outline: one that has no area says where it is, at least
                place = np.array([[crop.left, crop.top]]) / size
        elif found.rotated is not None:
            place = corners_from_rotated(found.rotated[index : index + 1])[0] / size
        else:
            x1, y1, x2, y2 = box
            place = np.array([[(x1 + x2) / 2, (y1 + y2) / 2], [x2 - x1, y2 - y1]]) / size
        values = place.ravel()
        if found.keypoints is not None:
            points = found.keypoints[index].astype(np.float64)
            points[:, :2] /= size
            values = np.concatenate([values, points.ravel()])
        line = " ".join([str(class_id), *(f"{v:.6f}" for v in values)])
        lines.append(f"{line} {score:.6f}" if with_score else line)
    return lines


def outline(crop: MaskCrop) -> npt.NDArray[np.float64]:
    """Return the outline of a mask's largest part, (P, 2) x, y in pixels of the picture."""
    contours, _ = cv2.findContours(
        crop.pixels.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    if not contours:
        return np.zeros((0, 2))
    largest = max(contours, key=cv2.contourArea)
    points: npt.NDArray[np.float64] = np.array(largest, np.float64).reshape(-1, 2)
    points += np.array([crop.left, crop.top])
    return points
