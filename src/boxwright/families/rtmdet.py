"""RTMDet of MMYOLO: raw maps (B, classes + 4, h, w) per level, class logits first; a cell's point
is its corner, the distances are in strides, without exp. Input BGR.
Source: MMYOLO 0.6, `configs/rtmdet/`, `projects/easydeploy/`; arXiv:2212.07784.
"""

from __future__ import annotations

from boxwright.families import Family, Match, level_maps
from boxwright.types import GraphSignature, HeadJoin, HeadLayout, Preprocess

__all__ = ["FAMILY"]


def _recognise(signature: GraphSignature, named: bool) -> Match | None:
    maps = level_maps(signature)
    if maps is None or maps.channels < 5:
        return None
    join = HeadJoin("point_levels", maps.names, maps.strides, offset=0.0)
    layout = HeadLayout(axes="nac", box_format="xyxy", strides=maps.strides)
    return Match(layout, maps.channels - 4, certain=False, join=join)


FAMILY = Family(
    name="rtmdet",
    title="RTMDet of MMYOLO (raw levels)",
    preprocess=Preprocess(
        rounding="floor",
        color="bgr",
        scale=1.0,
        mean=(103.53, 116.28, 123.675),
        std=(57.375, 57.12, 58.395),
        interpolation="area",
    ),
    recognise=_recognise,
    iou_threshold=0.65,
    evaluation_iou=0.65,
)
