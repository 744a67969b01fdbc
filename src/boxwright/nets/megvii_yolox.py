"""Megvii's YOLOX checkpoints on our own `nets.yolox`, whose size is read from the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from boxwright.nets import YoloxConfig
from boxwright.nets.heads import Maps
from boxwright.nets.weights import Weights, WeightsDifferError
from boxwright.nets.yolox import Yolox, build_yolox
from boxwright.nets.yolox import fused as fused_yolox

__all__ = ["YoloxNet", "build"]


class YoloxNet(nn.Module):
    """The network behind the interface of `nets.heads.Net`."""

    def __init__(self, inner: Yolox) -> None:
        super().__init__()
        self.inner = inner

    def maps(self, images: Tensor) -> Maps:
        """Return the raw outputs by name, one per level."""
        levels = self.inner.head(self.inner.backbone(images))
        names = ("reg", "obj", "cls")
        return {name: [level[i] for level in levels] for i, name in enumerate(names)}

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images)


def _config(w: Weights, class_count: int) -> YoloxConfig:
    body = w.at("backbone.backbone")
    stem = body.shape("stem.conv.conv.weight")[0]
    blocks = body.count("dark2.1.m")
    try:
        return YoloxConfig(
            class_count=class_count,
            depth=max(blocks, 1) / 3,
            width=stem / 64,
            depthwise="dark2.0.dconv" in body,
            head_width=w.shape("head.stems.0.conv.weight")[0],
        )
    except ValueError as error:
        raise WeightsDifferError(f"they are of no YOLOX that is known ({error})") from None


def build(w: Weights, class_count: int) -> YoloxNet:
    """Build the network around all of its weights.

    Raises:
        WeightsDifferError: They are not those of a YOLOX.
    """
    config = _config(w, class_count)
    with torch.device("meta"):
        wanted = build_yolox(config).state_dict()
    weights = {
        name: w.take(name, tuple(tensor.shape))
        for name, tensor in wanted.items()
        if not name.endswith("num_batches_tracked")
    }
    w.check_all_taken()
    network = build_yolox(config)
    network.load_state_dict(weights, strict=False)
    network.eval()
    return YoloxNet(fused_yolox(network) if w.fused else network)
