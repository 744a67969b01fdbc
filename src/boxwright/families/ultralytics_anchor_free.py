"""Ultralytics' anchor-free detectors: YOLOv3u, v5u, v6u, v8, v9, 11, 12, and v10's and 26's
one-to-many heads. Output (B, 4 + classes, A): centre x, centre y, width, height in pixels, then
class scores after the sigmoid. Source: Ultralytics 8.4.190, `nn/modules/head.py`.
"""

from __future__ import annotations

from boxwright.families import Family, Match, head_shape, strides_that_fit
from boxwright.types import GraphSignature, HeadLayout, Preprocess

__all__ = ["FAMILY"]


def _recognise(signature: GraphSignature, named: bool) -> Match | None:
    shape = head_shape(signature)
    if shape is None:
        return None
    channels, anchors = shape
    if channels < 5 or channels >= anchors:
        return None
    task = signature.metadata.get("task", "detect")
    if task != "detect":
        return None
    strides = strides_that_fit(signature, anchors)
    if not strides and not named:
        return None
    certain = "stride" in signature.metadata and "names" in signature.metadata
    layout = HeadLayout(axes="nca", strides=strides or (8, 16, 32))
    return Match(layout, channels - 4, certain)


FAMILY = Family(
    name="ultralytics",
    title="Ultralytics anchor-free (v3u, v5u, v6u, v8, v9, 11, 12; one-to-many v10, 26)",
    preprocess=Preprocess(),
    recognise=_recognise,
    aliases=("yolov8", "yolo11", "yolo12", "yolov9", "yolov3u", "yolov5u", "yolov6u"),
)
