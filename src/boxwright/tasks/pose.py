"""Pose estimation: boxes with keypoints, joined to skeletons where they are COCO's 17."""

from __future__ import annotations

import cv2

from boxwright.tasks import Task
from boxwright.tasks.detect import color_of_class, draw_boxes
from boxwright.types import Detections, Image

__all__ = ["COCO_SKELETON", "TASK", "draw_keypoints"]

_VISIBLE = 0.5  # points that are less likely to be seen are not drawn
# Pairs of COCO's keypoints, counted from 0: nose, eyes, ears, shoulders, elbows, wrists, hips,
# knees, ankles; left before right (cocodataset.org, person keypoints).
COCO_SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
_LEFT, _RIGHT, _MIDDLE = (80, 200, 0), (0, 130, 255), (235, 200, 60)


def draw_keypoints(image: Image, detections: Detections) -> Image:
    """Return a copy of a picture with boxes, keypoints and, of 17 points, COCO's skeleton.

    The person's left is green, the right orange. Points of any other number are drawn alone.

    Args:
        image: (H, W, 3) uint8 BGR.
        detections: In this picture's pixels. The best are drawn last, on top.
    """
    canvas = draw_boxes(image, detections)
    line = max(1, round(sum(canvas.shape[:2]) / 2 * 0.003))
    if detections.keypoints is None:
        return canvas
    for points in detections.keypoints[::-1]:
        places = [(round(float(x)), round(float(y))) for x, y in points[:, :2]]
        seen = [points.shape[1] == 2 or float(p[2]) > _VISIBLE for p in points]
        people = len(points) == 17
        for first, second in COCO_SKELETON if people else ():
            if seen[first] and seen[second]:
                color = _color((first, second))
                cv2.line(canvas, places[first], places[second], color, line, cv2.LINE_AA)
        for index, (place, visible) in enumerate(zip(places, seen, strict=True)):
            if visible:
                color = _color((index,)) if people else color_of_class(index)
                cv2.circle(canvas, place, line + 1, (255, 255, 255), -1, cv2.LINE_AA)
                cv2.circle(canvas, place, line, color, -1, cv2.LINE_AA)
    return canvas


def _color(points: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the colour of a side; the nose and what joins both sides have their own."""
    odd = [p % 2 for p in points if p]
    if not odd or len(set(odd)) > 1:
        return _MIDDLE
    return _LEFT if odd[0] else _RIGHT


TASK = Task(name="pose", draw=draw_keypoints)
