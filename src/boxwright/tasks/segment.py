"""Instance segmentation: boxes with masks."""

from __future__ import annotations

import cv2
import numpy as np

from boxwright.tasks import Task
from boxwright.tasks.detect import color_of_class, draw_boxes
from boxwright.types import Detections, Image

__all__ = ["TASK", "draw_masks"]

_OPACITY = 0.45


def draw_masks(image: Image, detections: Detections) -> Image:
    """Return a copy of a picture with masks tinted by class, outlined, and labelled boxes.

    Args:
        image: (H, W, 3) uint8 BGR.
        detections: In this picture's pixels. The best are drawn last, on top.
    """
    canvas = image.copy()
    line = max(1, round(sum(canvas.shape[:2]) / 2 * 0.002))
    crops = detections.mask_crops or ()
    for crop, class_id in reversed(list(zip(crops, detections.class_ids.tolist(), strict=True))):
        color = color_of_class(class_id, detections.class_colors)
        height, width = crop.pixels.shape
        part = canvas[crop.top : crop.top + height, crop.left : crop.left + width]
        tint = part[crop.pixels] * (1 - _OPACITY) + np.array(color) * _OPACITY
        part[crop.pixels] = tint.astype(np.uint8)
        contours, _ = cv2.findContours(
            crop.pixels.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        offset = (crop.left, crop.top)
        cv2.drawContours(canvas, contours, -1, color, line, cv2.LINE_AA, offset=offset)
    return draw_boxes(canvas, detections)


TASK = Task(name="segment", draw=draw_masks)
