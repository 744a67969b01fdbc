"""Ultralytics' NMS-free heads: YOLOv10 and YOLO26 one-to-one, of all tasks that find boxes. Output
(B, K, 6 + extras): x1, y1, x2, y2 in pixels (OBB: centre, size), score, class id, then what the
task adds, best first. Source: Ultralytics 8.4.190, `nn/modules/head.py`.
"""

from __future__ import annotations

from boxwright.families import Family, Match, class_names_from_metadata, ultralytics_head
from boxwright.types import GraphSignature, HeadLayout, Preprocess

__all__ = ["FAMILY"]


def _recognise(signature: GraphSignature, named: bool) -> Match | None:
    metadata = signature.metadata
    if "RTDETR" in metadata.get("head", "") or "rtdetr" in metadata.get("description", "").lower():
        return None
    head = ultralytics_head(signature)
    if head is None or head.task == "classify":
        return None
    if head.anchors != 6 + head.extras or head.channels > 3840:
        return None
    # RT-DETR exports have this very shape with normalised boxes: only metadata or TopK tell.
    certain = metadata.get("end2end", "").lower() == "true" or (
        "stride" in metadata and "TopK" in signature.tail_ops
    )
    if not certain and not named:
        return None
    layout = head.layout(HeadLayout(axes="nac", box_format="xyxy", nms_free=True))
    names = len(class_names_from_metadata(signature))
    return Match(layout, names, certain, task=head.task)


FAMILY = Family(
    name="ultralytics-nms-free",
    title="Ultralytics NMS-free heads (YOLOv10, YOLO26)",
    preprocess=Preprocess(),
    recognise=_recognise,
    aliases=("yolov10", "yolo10", "yolo26"),
)
