"""PP-YOLOE+: outputs as PP-YOLOE, without its mean and deviation on the input."""

from __future__ import annotations

from boxwright.families import Family
from boxwright.families.ppyoloe import recognise
from boxwright.types import Preprocess

__all__ = ["FAMILY"]

FAMILY = Family(
    name="ppyoloe-plus",
    title="PP-YOLOE+ (export with or without NMS; MMYOLO's raw levels)",
    preprocess=Preprocess(resize="stretch", interpolation="cubic"),
    recognise=recognise,
    evaluation_iou=0.7,
    aliases=("ppyoloe+",),
)
