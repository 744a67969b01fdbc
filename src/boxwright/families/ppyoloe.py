"""PP-YOLOE: boxes (B, A, 4) xyxy in input pixels and scores (B, classes, A), with an input
`scale_factor` that divides the boxes; with NMS inside rows (M, 6) of class, score, xyxy and the
number of each picture's (B,); MMYOLO's raw export gives a map per level instead.
Source: PaddleDetection 2.6, `ppdet/modeling/heads/ppyoloe_head.py`; arXiv:2203.16250.
"""

from __future__ import annotations

from boxwright.families import Family, Match, level_maps
from boxwright.types import GraphSignature, HeadJoin, HeadLayout, Preprocess

__all__ = ["FAMILY", "recognise"]

_BINS = 17
_FIXED = ("scale_factor", "im_shape")


def recognise(signature: GraphSignature, named: bool) -> Match | None:
    """Read a graph of either version: nothing in it tells the two apart."""
    maps = level_maps(signature)
    if maps is not None:
        classes = maps.channels - 4 * _BINS
        if classes < 1:
            return None
        join = HeadJoin("point_levels", maps.names, maps.strides, bins=_BINS)
        layout = HeadLayout(axes="nac", box_format="xyxy", strides=maps.strides)
        return Match(layout, classes, certain=False, join=join)
    others = [i.name for i in signature.inputs if len(i.shape) != 4]
    if any(name not in _FIXED for name in others) or not (others or named):
        return None
    stacked = _stacked(signature, others)
    if stacked is not None:
        return stacked
    three = [o for o in signature.outputs if len(o.shape) == 3]
    boxes = [o for o in three if o.shape[2] == 4]
    scores = [o for o in three if o not in boxes]
    if len(signature.outputs) != 2 or len(boxes) != 1 or len(scores) != 1:
        return None
    count = scores[0].shape[1]
    if not isinstance(count, int):
        return None
    join = HeadJoin(
        "boxes_scores",
        (boxes[0].name, scores[0].name),
        class_count=count,
        fixed_inputs=tuple((name, (1.0, 1.0)) for name in others),
    )
    layout = HeadLayout(axes="nac", box_format="xyxy", strides=(32, 16, 8))
    return Match(layout, count, certain=False, join=join)


def _stacked(signature: GraphSignature, others: list[str]) -> Match | None:
    rows = [o for o in signature.outputs if len(o.shape) == 2 and o.shape[1] == 6]
    counts = [o for o in signature.outputs if len(o.shape) == 1 and "int" in o.dtype]
    if len(signature.outputs) != 2 or len(rows) != 1 or len(counts) != 1:
        return None
    join = HeadJoin(
        "stacked",
        (rows[0].name, counts[0].name),
        fixed_inputs=tuple((name, (1.0, 1.0)) for name in others),
    )
    layout = HeadLayout(axes="nac", box_format="xyxy", nms_free=True)
    return Match(layout, 0, certain=False, join=join)


FAMILY = Family(
    name="ppyoloe",
    title="PP-YOLOE (export with or without NMS; MMYOLO's raw levels)",
    preprocess=Preprocess(
        resize="stretch",
        scale=1.0,
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
        interpolation="cubic",
    ),
    recognise=recognise,
    evaluation_iou=0.7,
)
