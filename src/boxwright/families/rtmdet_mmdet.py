"""RTMDet of MMDetection as MMDeploy writes it, NMS inside: `dets` (B, K, 5) of xyxy in input pixels
and score, `labels` (B, K). Input BGR, padded right and bottom.
Source: MMDetection 3.3, `configs/rtmdet/`; MMDeploy 1.3.
"""

from __future__ import annotations

from boxwright.families import Family, Match
from boxwright.types import GraphSignature, HeadJoin, HeadLayout, Preprocess

__all__ = ["FAMILY"]


def _recognise(signature: GraphSignature, named: bool) -> Match | None:
    outputs = {o.name: o for o in signature.outputs}
    if not {"dets", "labels"} <= outputs.keys():
        return None
    dets, labels = outputs["dets"].shape, outputs["labels"].shape
    if len(dets) != 3 or dets[2] != 5 or len(labels) != 2:
        return None
    join = HeadJoin("detections", ("dets", "labels"))
    layout = HeadLayout(axes="nac", box_format="xyxy", nms_free=True)
    return Match(layout, 0, certain=False, join=join)


FAMILY = Family(
    name="rtmdet-mmdet",
    title="RTMDet of MMDetection (MMDeploy's export, NMS inside)",
    preprocess=Preprocess(
        resize="letterbox_top_left",
        color="bgr",
        scale=1.0,
        mean=(103.53, 116.28, 123.675),
        std=(57.375, 57.12, 58.395),
    ),
    recognise=_recognise,
    iou_threshold=0.65,
    evaluation_iou=0.65,
)
