"""Ultralytics' RT-DETR: one output of normalised cxcywh, (B, Q, 6) with score and class, or
(B, Q, 4 + classes) with all scores after the sigmoid; no NMS, pictures are stretched.
Source: Ultralytics 8.4.190, `nn/modules/head.py`, `models/rtdetr/predict.py`.
"""

from __future__ import annotations

from boxwright.families import Family, Match, class_names_from_metadata, head_shape
from boxwright.types import GraphSignature, HeadJoin, HeadLayout, Preprocess

__all__ = ["FAMILY"]


def _recognise(signature: GraphSignature, named: bool) -> Match | None:
    shape = head_shape(signature)
    metadata = signature.metadata
    text = f"{metadata.get('head', '')} {metadata.get('description', '')}".lower()
    says = "rtdetr" in text or "rt-detr" in text
    if shape is None or shape[1] < 5 or not (says or named):
        return None
    names = len(class_names_from_metadata(signature))
    final = shape[1] == 6 and names != 2
    layout = HeadLayout(axes="nac", nms_free=True, normalised=True)
    if final:
        return Match(layout, names, certain=says)
    classes = shape[1] - 4
    join = HeadJoin("query_rows", (signature.outputs[0].name,), class_count=classes)
    return Match(layout, classes, certain=says, join=join)


FAMILY = Family(
    name="ultralytics-rtdetr",
    title="RT-DETR of Ultralytics",
    preprocess=Preprocess(resize="stretch"),
    recognise=_recognise,
)
