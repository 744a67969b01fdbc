"""Ultralytics' NMS-free heads: YOLOv10 and YOLO26 one-to-one. Output (B, K, 6): x1, y1, x2, y2 in
pixels, score, class id, best first. Source: Ultralytics 8.4.190, `nn/modules/head.py`.
"""

from __future__ import annotations

from boxwright.families import Family, Match, class_names_from_metadata, head_shape
from boxwright.types import GraphSignature, HeadLayout, Preprocess

__all__ = ["FAMILY"]


def _recognise(signature: GraphSignature, named: bool) -> Match | None:
    shape = head_shape(signature)
    if shape is None or shape[1] != 6 or shape[0] > 3840:
        return None
    metadata = signature.metadata
    if "RTDETR" in metadata.get("head", "") or "rtdetr" in metadata.get("description", "").lower():
        return None
    if metadata.get("task", "detect") != "detect":
        return None
    # RT-DETR exports have this very shape with normalised boxes: only metadata or TopK tell.
    certain = metadata.get("end2end", "").lower() == "true" or (
        "stride" in metadata and "TopK" in signature.tail_ops
    )
    if not certain and not named:
        return None
    layout = HeadLayout(axes="nac", box_format="xyxy", nms_free=True)
    return Match(layout, len(class_names_from_metadata(signature)), certain)


FAMILY = Family(
    name="ultralytics-nms-free",
    title="Ultralytics NMS-free heads (YOLOv10, YOLO26)",
    preprocess=Preprocess(),
    recognise=_recognise,
    aliases=("yolov10", "yolo10", "yolo26"),
)
