"""RTMDet of MMDetection as MMDeploy writes it, NMS inside: `dets` (B, K, 5) of xyxy in input pixels
and score, `labels` (B, K). Its raw levels are six or eight maps: class logits (B, classes, h, w) of
each level, then distances in pixels (B, 4, h, w), to which `exp_on_reg` was applied already. Input
BGR, padded right and bottom.
Source: MMDetection 3.3, `configs/rtmdet/`; MMDeploy 1.3.
"""

from __future__ import annotations

import dataclasses

from boxwright.families import Family, Match, level_maps
from boxwright.types import GraphSignature, HeadJoin, HeadLayout, Preprocess

__all__ = ["FAMILY"]


def _recognise(signature: GraphSignature, named: bool) -> Match | None:
    outputs = {o.name: o for o in signature.outputs}
    if named and len(outputs) in (6, 8):
        return _levels(signature)
    if not {"dets", "labels"} <= outputs.keys():
        return None
    dets, labels = outputs["dets"].shape, outputs["labels"].shape
    if len(dets) != 3 or dets[2] != 5 or len(labels) != 2:
        return None
    join = HeadJoin("detections", ("dets", "labels"))
    layout = HeadLayout(axes="nac", box_format="xyxy", nms_free=True)
    return Match(layout, 0, certain=False, join=join)


def _levels(signature: GraphSignature) -> Match | None:
    """Read the maps as the network returns them: of all levels the classes, then the distances."""
    half = len(signature.outputs) // 2
    first, second = (
        level_maps(dataclasses.replace(signature, outputs=part))
        for part in (signature.outputs[:half], signature.outputs[half:])
    )
    if first is None or second is None or first.strides != second.strides:
        return None
    if second.channels != 4:
        return None
    join = HeadJoin("pixel_levels", first.names + second.names, first.strides, offset=0.0)
    layout = HeadLayout(axes="nac", box_format="xyxy", strides=first.strides)
    return Match(layout, first.channels, certain=False, join=join)


FAMILY = Family(
    name="rtmdet-mmdet",
    title="RTMDet of MMDetection (MMDeploy's export, NMS inside; raw levels)",
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
