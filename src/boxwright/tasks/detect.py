"""Detection: boxes with class and score."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2

from boxwright.tasks import Task
from boxwright.types import Detections, Image

__all__ = ["TASK", "color_of_class", "draw_boxes", "draw_labels", "printable"]

_FONT = cv2.FONT_HERSHEY_SIMPLEX


def color_of_class(class_id: int, own: Sequence[str] = ()) -> tuple[int, int, int]:
    """Return a BGR colour; neighbours in number are far apart in hue (golden-ratio steps).

    >>> color_of_class(1, ("", "#0a141e"))
    (30, 20, 10)
    """
    if 0 <= class_id < len(own) and own[class_id]:
        red, green, blue = bytes.fromhex(own[class_id][1:])
        return blue, green, red
    hue = (0.02 + class_id * 0.6180339887) % 1.0
    r, g, b = colorsys.hsv_to_rgb(hue, 0.85, 0.9)
    return int(b * 255), int(g * 255), int(r * 255)


def draw_boxes(image: Image, detections: Detections) -> Image:
    """Return a copy of a picture with boxes, class names and scores drawn on it.

    Args:
        image: (H, W, 3) uint8 BGR.
        detections: In this picture's pixels. The best are drawn last, on top.
    """
    return draw_labels(image.copy(), detections, boxes=True)


def draw_labels(canvas: Image, detections: Detections, boxes: bool = False) -> Image:
    """Draw class names and scores at the boxes, and with `boxes` each box before its own."""
    height, width = canvas.shape[:2]
    line = max(1, round((height + width) / 2 * 0.0025))
    font = max(0.35, line * 0.3)
    for box, score, class_id in reversed(list(detections)):
        color = color_of_class(class_id, detections.class_colors)
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        if boxes:
            cv2.rectangle(canvas, (x1, y1), (x2, y2), color, line, cv2.LINE_AA)
        label = printable(f"{detections.class_name(class_id)} {score:.2f}")
        (text_w, text_h), base = cv2.getTextSize(label, _FONT, font, max(1, line // 2))
        top = y1 - text_h - base - line if y1 - text_h - base - line >= 0 else y1
        left = max(0, min(x1, width - text_w - 2 * line))
        bottom = top + text_h + base + line
        cv2.rectangle(canvas, (left, top), (left + text_w + 2 * line, bottom), color, -1)
        blue, green, red = color
        bright = 0.114 * blue + 0.587 * green + 0.299 * red > 140
        ink = (0, 0, 0) if bright else (255, 255, 255)
        origin = (left + line, bottom - base)
        cv2.putText(canvas, label, origin, _FONT, font, ink, max(1, line // 2), cv2.LINE_AA)
    return canvas


def printable(text: str) -> str:
    """Replace what OpenCV's built-in font cannot draw; it knows ASCII alone."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)


TASK = Task(name="detect", draw=draw_boxes)
