"""RT-DETR, RT-DETRv2 and D-FINE: labels (B, K), boxes (B, K, 4) xyxy and scores (B, K), the boxes
in pixels of the size that the input `orig_target_sizes` (width, height) gives; no NMS.
Source: lyuwenyu RT-DETR, `tools/export_onnx.py`; Peterande D-FINE, the same file; arXiv:2304.08069.
"""

from __future__ import annotations

from boxwright.families import Family, Match
from boxwright.types import GraphSignature, HeadJoin, HeadLayout, Preprocess

__all__ = ["FAMILY"]

_NAMES = ("labels", "boxes", "scores")


def _recognise(signature: GraphSignature, named: bool) -> Match | None:
    outputs = {o.name: o for o in signature.outputs}
    if set(outputs) != set(_NAMES) or len(outputs["boxes"].shape) != 3:
        return None
    pictures = [i for i in signature.inputs if len(i.shape) == 4]
    sizes = [i.name for i in signature.inputs if len(i.shape) == 2]
    if len(pictures) != 1 or len(sizes) != 1 or len(signature.inputs) != 2:
        return None
    height, width = pictures[0].shape[2:]
    if not isinstance(height, int) or not isinstance(width, int):
        return None
    fixed = ((sizes[0], (float(width), float(height))),)
    join = HeadJoin("labels_boxes_scores", _NAMES, fixed_inputs=fixed)
    layout = HeadLayout(axes="nac", box_format="xyxy", nms_free=True)
    return Match(layout, 0, certain=sizes[0] == "orig_target_sizes", join=join)


FAMILY = Family(
    name="rtdetr",
    title="RT-DETR, RT-DETRv2, D-FINE (export with post-processing)",
    preprocess=Preprocess(resize="stretch"),
    recognise=_recognise,
    aliases=("rtdetrv2", "rt-detr", "dfine", "d-fine"),
)
