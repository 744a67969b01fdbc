"""YOLOv6: output (B, A, 5 + classes) of centre x, centre y, width, height in pixels, a constant 1
and class scores after the sigmoid; MMYOLO's raw export gives a map per level instead.
Source: meituan YOLOv6 0.4, `models/effidehead.py`, `yolov6/core/evaler.py`.
"""

from __future__ import annotations

from boxwright.families import Family, Match, head_shape, level_maps, strides_that_fit
from boxwright.types import GraphSignature, HeadJoin, HeadLayout, Preprocess

__all__ = ["FAMILY"]


def _recognise(signature: GraphSignature, named: bool) -> Match | None:
    maps = level_maps(signature)
    if maps is not None:
        classes = maps.channels - 4
        if classes < 1:
            return None
        join = HeadJoin("point_levels", maps.names, maps.strides, offset=0.5)
        layout = HeadLayout(axes="nac", box_format="xyxy", strides=maps.strides)
        return Match(layout, classes, certain=False, join=join)
    shape = head_shape(signature)
    if shape is None or shape[1] < 6:
        return None
    anchors, channels = shape
    strides = strides_that_fit(signature, anchors)
    # YOLOX has the same columns; it decodes with Exp, or not at all.
    decodes = bool(signature.tail_ops & {"Sub", "Add"}) and "Exp" not in signature.tail_ops
    if not strides or not (decodes or named):
        return None
    return Match(HeadLayout(axes="nac", objectness=True, strides=strides), channels - 5, decodes)


FAMILY = Family(
    name="yolov6",
    title="YOLOv6 (decoded export; MMYOLO's raw levels)",
    preprocess=Preprocess(),
    recognise=_recognise,
    iou_threshold=0.45,
    evaluation_iou=0.65,
)
