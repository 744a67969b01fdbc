"""Detection of rotated boxes."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from boxwright.rotated import corners_from_rotated
from boxwright.tasks import Task
from boxwright.tasks.detect import color_of_class, draw_labels
from boxwright.types import Detections, FloatArray, Image

__all__ = ["TASK", "draw_rotated"]


def draw_rotated(image: Image, detections: Detections) -> Image:
    """Return a copy of a picture with rotated boxes, class names and scores drawn on it.

    Args:
        image: (H, W, 3) uint8 BGR.
        detections: In this picture's pixels. The best are drawn last, on top.
    """
    canvas = image.copy()
    if detections.rotated is None:
        return canvas
    line = max(1, round(sum(canvas.shape[:2]) / 2 * 0.0025))
    corners = corners_from_rotated(detections.rotated)
    labels = detections.class_ids.tolist()
    for points, class_id in reversed(list(zip(corners, labels, strict=True))):
        outline = np.round(points).astype(np.int32)
        color = color_of_class(class_id, detections.class_colors)
        cv2.polylines(canvas, [outline], True, color, line, cv2.LINE_AA)
    return draw_labels(canvas, replace(detections, xyxy=_topmost(corners, detections)))


def _topmost(corners: FloatArray, detections: Detections) -> FloatArray:
    """Return boxes without area at each box's uppermost corner, inside the picture, for labels."""
    highest = corners[np.arange(len(corners)), corners[:, :, 1].argmin(axis=1)]
    height, width = detections.image_size
    points = np.clip(highest, 0, np.array([width, height], np.float32))
    return np.concatenate([points, points], axis=1)


TASK = Task(name="obb", draw=draw_rotated)
