"""MMYOLO's YOLOv6, versions 2 and 3.

Source: MMYOLO 0.6, `models/`; arXiv:2209.02976, 2301.05586.
"""

from __future__ import annotations

from torch import Tensor, nn

from boxwright.nets import OpenmmlabConfig
from boxwright.nets.blocks import Act, Chain, Plain, PoolPyramid, Unit
from boxwright.nets.heads import Maps, Net, PointDecode
from boxwright.nets.openmmlab import acts_of, parts_of, with_distances
from boxwright.nets.pyramid import Body, Parts, Pyramid, Stages
from boxwright.nets.rep_blocks import BiFusion, CspPyramid, RepCsp, rep_or_unit, rep_stack
from boxwright.nets.weights import Weights

__all__ = ["StemHead", "build"]


def _block(w: Weights, inputs: int, act: Act) -> nn.Module:
    return RepCsp(w, inputs, act=act) if "conv3" in w else rep_stack(w, inputs, act=act)


def _stages(w: Weights, act: Act, count: int) -> Stages:
    stem = rep_or_unit(w.at("stem"), 3, 2, act)
    stages: list[Chain] = []
    channels = stem.outputs
    for index in range(1, sum(f"stage{i}" in w for i in range(1, 8)) + 1):
        part = w.at(f"stage{index}")
        first = part.at("0")
        blocks: list[nn.Module] = [rep_or_unit(first.at("0"), channels, 2, act)]
        blocks.append(_block(first.at("1"), blocks[-1].outputs, act))
        if "1" in part:
            pooling = CspPyramid if "1.conv7" in part else PoolPyramid
            blocks.append(pooling(part.at("1"), blocks[-1].outputs, act=act))
        stages.append(Chain(blocks, channels))
        channels = blocks[-1].outputs
    return Stages(stem, stages, count)


class Transposed(nn.Module):
    """Twice the size by a transposed 2x2 convolution with bias."""

    def __init__(self, w: Weights, inputs: int) -> None:
        super().__init__()
        weight = w.take("weight", (inputs, None, 2, 2))
        self.outputs = int(weight.shape[1])
        self.conv = nn.ConvTranspose2d(inputs, self.outputs, 2, 2)
        self.conv.weight.data.copy_(weight)
        self.conv.bias.data.copy_(w.take("bias", (self.outputs,)))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class StemHead(nn.Module):
    """Per level a 1x1 unit, then a 3x3 unit and a 1x1 convolution for classes and for boxes."""

    def __init__(
        self, w: Weights, widths: tuple[int, ...], act: Act, class_count: int, block: str = ""
    ) -> None:
        super().__init__()

        def unit(part: Weights, inputs: int, kernel: int) -> Unit:
            return Unit(part.at(block) if block else part, inputs, kernel, act=act)

        def branch(name: str, outputs: int | None) -> nn.ModuleList:
            built = []
            for index, stem in enumerate(self.stems):
                first = unit(w.at(f"{name}_convs.{index}"), stem.outputs, 3)
                last = Plain(w.at(f"{name}_preds.{index}"), first.outputs, outputs=outputs)
                built.append(Chain([first, last], stem.outputs))
            return nn.ModuleList(built)

        self.stems = nn.ModuleList(unit(w.at(f"stems.{i}"), n, 1) for i, n in enumerate(widths))
        self.classes, self.boxes = branch("cls", class_count), branch("reg", None)

    def forward(self, features: list[Tensor]) -> Maps:
        stems = [s(x) for s, x in zip(self.stems, features, strict=True)]
        classes = [b(x) for b, x in zip(self.classes, stems, strict=True)]
        return with_distances(classes, [b(x) for b, x in zip(self.boxes, stems, strict=True)])


def build(config: OpenmmlabConfig, w: Weights) -> Net:
    """Build the network; the version is the one that the neck's weights are of."""
    back, neck, head = parts_of(config, w)
    act, neck_act, head_act = acts_of(config)
    fused = "upsample_layers.0.conv3" in neck
    backbone = _stages(back, act, len(config.strides) + fused)

    def join(part: Weights, inputs: int) -> nn.Module:
        if "1.conv" not in part or "0" not in part:
            return _block(part, inputs, neck_act)
        inner = _block(part.at("0"), inputs, neck_act)
        return Chain([inner, Unit(part.at("1"), inner.outputs, 1, act=neck_act)], inputs)

    def fuse(part: Weights, high: int, same: int, low: int) -> nn.Module:
        return BiFusion(part, high, same, low, act=neck_act)

    parts = Parts(
        reduce=lambda p, n: Unit(p, n, 1, act=neck_act),
        up=Transposed,
        join=join,
        down=lambda p, n: Unit(p, n, 3, 2, act=neck_act),
        bottom=lambda p, n: _block(p, n, neck_act),
        out=lambda p, n: Unit(p, n, 1, act=neck_act),
        fuse=fuse if fused else None,
    )
    body = Body(backbone, Pyramid(neck, backbone.widths, parts))
    branches = StemHead(head, body.neck.widths, head_act, config.class_count)
    return Net(body, branches, PointDecode(config.strides))
