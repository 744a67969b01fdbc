"""What verification needs of files that take pictures: fitting sizes, grey levels, box gaps."""

from __future__ import annotations

import cv2
import numpy as np

from boxwright.boxes import iou_matrix
from boxwright.types import Detections, FloatArray, Image, Preprocess

__all__ = ["box_gap", "fitted", "grey_gap"]


def fitted(image: Image, size: tuple[int, int] | None) -> Image:
    """Return a picture stretched to (height, width); as it is where `size` is None or its own."""
    if size is None or image.shape[:2] == size:
        return image
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA), np.uint8)


def grey_gap(first: FloatArray, second: FloatArray, rules: Preprocess) -> float:
    """Return by how many grey levels (of 255) two input tensors differ at most.

    Args:
        first, second: (3, H, W) float32, as `boxwright.preprocess.prepare` makes them.
        rules: What they were made by.

    >>> rules = Preprocess()
    >>> grey_gap(np.zeros((3, 1, 1), np.float32), np.full((3, 1, 1), 1 / 255, np.float32), rules)
    1.0
    """
    worst = [float(np.abs(a - b).max()) for a, b in zip(first, second, strict=True)]
    return max(round(w * s / rules.scale, 4) for w, s in zip(worst, rules.std, strict=True))


def box_gap(expected: Detections, found: Detections) -> float:
    """Return the largest difference of a coordinate, in source pixels, between like detections.

    Like are those of one class that overlap by half, each with its nearest; others are not counted.
    """
    if not len(expected) or not len(found):
        return 0.0
    alike = iou_matrix(expected.xyxy, found.xyxy) >= 0.5
    alike &= expected.class_ids[:, None] == found.class_ids[None]
    gaps = np.abs(expected.xyxy[:, None] - found.xyxy[None]).max(axis=2)
    nearest = np.where(alike, gaps, np.inf).min(axis=1)
    counted = nearest[np.isfinite(nearest)]
    return float(counted.max()) if len(counted) else 0.0
