"""Classification: the best classes of the whole picture."""

from __future__ import annotations

import cv2

from boxwright.tasks import Task
from boxwright.tasks.detect import printable
from boxwright.types import Detections, Image

__all__ = ["TASK", "draw_classes"]

_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_classes(image: Image, detections: Detections) -> Image:
    """Return a copy of a picture with the best classes and their scores in the upper left corner.

    Args:
        image: (H, W, 3) uint8 BGR.
        detections: Of this picture, best first.
    """
    canvas = image.copy()
    if not len(detections):
        return canvas
    line = max(1, round(sum(canvas.shape[:2]) / 2 * 0.0025))
    font = max(0.4, line * 0.35)
    texts = [
        printable(f"{score:.2f} {detections.class_name(class_id)}")
        for _, score, class_id in detections
    ]
    sizes = [cv2.getTextSize(t, _FONT, font, max(1, line // 2)) for t in texts]
    step = max(size[1] + base for size, base in sizes) + 2 * line
    width = max(size[0] for size, _ in sizes) + 4 * line
    shade = canvas[: step * len(texts) + 2 * line, :width]
    shade[...] = shade // 3
    for index, text in enumerate(texts):
        origin = (2 * line, step * (index + 1) - line)
        ink = (255, 255, 255) if index else (80, 255, 255)
        cv2.putText(canvas, text, origin, _FONT, font, ink, max(1, line // 2), cv2.LINE_AA)
    return canvas


TASK = Task(name="classify", draw=draw_classes)
