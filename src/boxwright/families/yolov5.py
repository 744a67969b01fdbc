"""YOLOv5 with anchors, decoded export: output (B, 3 * cells, 5 + classes) of centre x, centre y,
width, height in pixels, objectness and class scores, both after the sigmoid. YOLOv7's decoded
(`--grid`) export has the same layout. Source: YOLOv5 v7.0, `models/yolo.py`.
"""

from __future__ import annotations

from boxwright.families import Family, Match, anchor_match, head_shape, strides_that_fit
from boxwright.types import GraphSignature, HeadLayout, Preprocess

__all__ = ["FAMILY"]


_ANCHORS = {
    3: (
        ((10, 13), (16, 30), (33, 23)),
        ((30, 61), (62, 45), (59, 119)),
        ((116, 90), (156, 198), (373, 326)),
    ),
    4: (
        ((19, 27), (44, 40), (38, 94)),
        ((96, 68), (86, 152), (180, 137)),
        ((140, 301), (303, 264), (238, 542)),
        ((436, 615), (739, 380), (925, 792)),
    ),
}


def _recognise(signature: GraphSignature, named: bool) -> Match | None:
    raw = anchor_match(signature, _ANCHORS)
    if raw is not None:
        return raw
    shape = head_shape(signature)
    if shape is None or shape[1] < 6:
        return None
    anchors, channels = shape
    strides = strides_that_fit(signature, anchors, per_cell=3)
    if not strides:
        return None
    return Match(
        HeadLayout(axes="nac", objectness=True, strides=strides), channels - 5, certain=True
    )


FAMILY = Family(
    name="yolov5",
    title="YOLOv5 with anchors (decoded export, YOLOv7's is alike; raw maps, YOLOv7-tiny's too)",
    preprocess=Preprocess(),
    recognise=_recognise,
    iou_threshold=0.45,
    evaluation_iou=0.6,  # YOLOv5 v7.0, `val.py`: --iou-thres
    aliases=("yolov7-tiny",),
)
