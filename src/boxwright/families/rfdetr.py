"""RF-DETR: `dets` (B, Q, 4) of normalised cxcywh and `labels` (B, Q, C + 1) of logits; the best Q
of all queries and classes, no NMS. The last slot is the background, but for the 91 slots of COCO.
Source: roboflow rf-detr, `rfdetr/models/lwdetr.py`, `rfdetr/datasets/`.
"""

from __future__ import annotations

from boxwright.families import Family, Match
from boxwright.types import GraphSignature, HeadJoin, HeadLayout, Preprocess

__all__ = ["FAMILY"]

_COCO_SLOTS = 91


def _recognise(signature: GraphSignature, named: bool) -> Match | None:
    outputs = {o.name: o.shape for o in signature.outputs}
    boxes, labels = outputs.get("dets", ()), outputs.get("labels", ())
    if len(boxes) != 3 or boxes[2] != 4 or len(labels) != 3 or len(signature.inputs) != 1:
        return None
    slots = labels[2]
    if not isinstance(slots, int) or slots < 2:
        return None
    classes = slots if slots == _COCO_SLOTS else slots - 1
    join = HeadJoin("queries", ("dets", "labels"), class_count=classes)
    layout = HeadLayout(axes="nac", nms_free=True, normalised=True)
    return Match(layout, classes, certain=True, join=join)


FAMILY = Family(
    name="rfdetr",
    title="RF-DETR",
    preprocess=Preprocess(
        resize="stretch",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    recognise=_recognise,
    aliases=("rf-detr",),
)
