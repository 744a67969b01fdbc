"""YOLOX: output (B, A, 5 + classes) of box values, objectness and class scores, both after the
sigmoid; the boxes undecoded (the official export) or decoded in the graph. MMYOLO's raw export
gives a map (B, classes + 5, h, w) per level: classes, box, objectness. Input BGR 0..255.
Source: Megvii YOLOX, `yolox/models/yolo_head.py`, `yolox/data/data_augment.py`; arXiv:2107.08430;
MMYOLO 0.6, `projects/easydeploy/`.
"""

from __future__ import annotations

from boxwright.families import Family, Match, head_shape, level_maps, strides_that_fit
from boxwright.types import GraphSignature, HeadJoin, HeadLayout, Preprocess

__all__ = ["FAMILY"]


def _recognise(signature: GraphSignature, named: bool) -> Match | None:
    maps = level_maps(signature)
    if maps is not None:
        if maps.channels < 6:
            return None
        raw = HeadLayout(axes="nac", box_encoding="grid_exp", objectness=True, strides=maps.strides)
        join = HeadJoin("exp_levels", maps.names, maps.strides)
        return Match(raw, maps.channels - 5, certain=False, join=join)
    shape = head_shape(signature)
    if shape is None or shape[1] < 6:
        return None
    anchors, channels = shape
    strides = strides_that_fit(signature, anchors)
    if not strides:
        return None
    decoded = "Exp" in signature.tail_ops
    arithmetic = signature.tail_ops & {"Mul", "Add", "Sub", "Div", "Pow", "Softmax"}
    if arithmetic and not decoded:
        return None  # it decodes by other rules than YOLOX's, which needs Exp
    layout = HeadLayout(
        axes="nac",
        box_encoding="pixels" if decoded else "grid_exp",
        objectness=True,
        strides=strides,
    )
    # One anchor per cell, an objectness column, and no arithmetic but exp: nothing else is so.
    return Match(layout, channels - 5, "Sigmoid" in signature.tail_ops)


FAMILY = Family(
    name="yolox",
    title="YOLOX (undecoded or decoded export; MMYOLO's raw levels)",
    preprocess=Preprocess(
        resize="letterbox_top_left", rounding="floor", color="bgr", scale=1.0, pad_value=114
    ),
    recognise=_recognise,
    iou_threshold=0.45,
    score_threshold=0.25,
    evaluation_iou=0.65,  # Megvii YOLOX 0.3.0, `yolox/exp/yolox_base.py`: nmsthre
)
