"""The outputs of a network before any decode, as MMYOLO's easydeploy has them (`--model-only`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from boxwright.nets.heads import Net

__all__ = ["LevelMaps"]


class LevelMaps(nn.Module):
    """A map (B, channels, h, w) per level instead of the decoded head.

    Of anchors the channels are, for each anchor, box, objectness, class logits; otherwise class
    logits, then distances (their logits, where the network has some; of YOLOv6 always the distances
    themselves), then the objectness of YOLOX.

    Args:
        net: An MMYOLO network.
        kind: Of it.
        anchors: Of a cell; 0 without.
    """

    def __init__(self, net: Net, kind: str, anchors: int) -> None:
        super().__init__()
        self.net, self.kind, self.anchors = net, kind, anchors

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.net.maps(images)
        reach = maps["bbox_pred"]
        if self.kind in ("yolov8", "ppyoloe") and "bbox_dist_logits" in maps:
            reach = maps["bbox_dist_logits"]
        levels = []
        for index, classes in enumerate(maps["cls_score"]):
            if self.anchors:
                levels.append(self._anchored(classes, reach[index], maps["objectness"][index]))
                continue
            parts = [classes, reach[index]]
            if self.kind == "yolox":
                parts.append(maps["objectness"][index])
            levels.append(torch.cat(parts, dim=1))
        return tuple(levels)

    def _anchored(self, classes: Tensor, box: Tensor, objectness: Tensor) -> Tensor:
        height, width = int(classes.shape[2]), int(classes.shape[3])
        parts = [
            m.reshape(-1, self.anchors, int(m.shape[1]) // self.anchors, height, width)
            for m in (box, objectness, classes)
        ]
        joint = torch.cat(parts, dim=2)
        return joint.reshape(-1, self.anchors * int(joint.shape[2]), height, width)
