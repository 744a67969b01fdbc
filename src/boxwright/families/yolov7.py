"""YOLOv7: decoded (`--grid`) as YOLOv5, or three raw maps (B, 3, h, w, 5 + classes) before the
sigmoid. Its anchors are its own; those of YOLOv7-tiny are YOLOv5's, so that it is of that family.
Source: WongKinYiu YOLOv7, `models/yolo.py`, `export.py`, `cfg/training/yolov7.yaml`.
"""

from __future__ import annotations

from boxwright.families import Family, Match, anchor_match, head_shape, strides_that_fit
from boxwright.types import GraphSignature, HeadJoin, HeadLayout, Preprocess

__all__ = ["FAMILY"]

_ANCHORS = {
    3: (
        ((12, 16), (19, 36), (40, 28)),
        ((36, 75), (76, 55), (72, 146)),
        ((142, 110), (192, 243), (459, 401)),
    ),
    # Of w6, e6, d6 and e6e: `cfg/training/yolov7-w6.yaml`.
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
    finished = _indexed(signature)
    if finished is not None:
        return finished if named else None
    shape = head_shape(signature)
    if shape is None or shape[1] < 6 or not named:
        return None  # unnamed, a decoded export is YOLOv5's: the two are alike
    strides = strides_that_fit(signature, shape[0], per_cell=3)
    if not strides:
        return None
    layout = HeadLayout(axes="nac", objectness=True, strides=strides)
    return Match(layout, shape[1] - 5, certain=True)


def _indexed(signature: GraphSignature) -> Match | None:
    """Read `--end2end --max-wh`: rows of picture, xyxy, class, score behind NMS."""
    if len(signature.outputs) != 1 or signature.outputs[0].shape[1:] != (7,):
        return None
    layout = HeadLayout(axes="nac", box_format="xyxy", nms_free=True)
    join = HeadJoin("indexed", (signature.outputs[0].name,))
    return Match(layout, 0, certain=False, join=join)


FAMILY = Family(
    name="yolov7",
    title="YOLOv7 (raw maps; decoded export, with NMS for ONNX Runtime, too)",
    preprocess=Preprocess(),
    recognise=_recognise,
    iou_threshold=0.45,
    evaluation_iou=0.65,
)
