"""Ultralytics' anchor-free models: YOLOv3u, v5u, v6u, v8, v9, 11, 12, and v10's and 26's
one-to-many heads, of all tasks. Output (B, 4 + classes + extras, A): centre x, centre y, width,
height in pixels, then class scores after the sigmoid, then what the task adds; a classifier's is
(B, classes). MMYOLO's raw export of YOLOv8 gives a map per level: class logits, then 4 x 16 logits.
Source: Ultralytics 8.4.190, `nn/modules/head.py`; MMYOLO 0.6, `projects/easydeploy/`.
"""

from __future__ import annotations

import dataclasses

from boxwright.families import (
    Family,
    Match,
    level_maps,
    strides_that_fit,
    ultralytics_head,
)
from boxwright.types import GraphSignature, HeadJoin, HeadLayout, Preprocess

__all__ = ["FAMILY"]

_BINS = 16


def _recognise(signature: GraphSignature, named: bool) -> Match | None:
    maps = level_maps(signature)
    if maps is not None:
        return _levels(signature, named)
    head = ultralytics_head(signature)
    if head is None:
        return None
    certain = "stride" in signature.metadata and "names" in signature.metadata
    if head.task == "classify":
        rules = dataclasses.replace(FAMILY.preprocess, resize="crop")
        layout = HeadLayout(axes="nca", strides=())
        return Match(layout, head.channels, certain, task="classify", preprocess=rules)
    classes = head.channels - 4 - head.extras
    if classes < 1 or head.channels >= head.anchors:
        return None
    strides = strides_that_fit(signature, head.anchors)
    if not strides and not named:
        return None
    layout = head.layout(HeadLayout(axes="nca", strides=strides or (8, 16, 32)))
    return Match(layout, classes, certain, task=head.task)


def _levels(signature: GraphSignature, named: bool) -> Match | None:
    maps = level_maps(signature)
    if maps is None or not named or maps.channels < 4 * _BINS + 1:
        return None
    join = HeadJoin("point_levels", maps.names, maps.strides, offset=0.5, bins=_BINS)
    layout = HeadLayout(axes="nac", box_format="xyxy", strides=maps.strides)
    return Match(layout, maps.channels - 4 * _BINS, certain=False, join=join)


FAMILY = Family(
    name="ultralytics",
    title="Ultralytics anchor-free (v3u, v5u, v6u, v8, v9, 11, 12; one-to-many v10, 26)",
    preprocess=Preprocess(),
    recognise=_recognise,
    aliases=("yolov8", "yolo11", "yolo12", "yolov9", "yolov3u", "yolov5u", "yolov6u"),
)
