"""MMYOLO's PP-YOLOE and PP-YOLOE+. Source: MMYOLO 0.6, `models/`; arXiv:2203.16250."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from boxwright.nets import OpenmmlabConfig
from boxwright.nets.blocks import Act, Chain, Plain, Rep, Unit, Upsample, pooled
from boxwright.nets.heads import Maps, Net, PointDecode
from boxwright.nets.openmmlab import acts_of, parts_of, with_distances
from boxwright.nets.pyramid import Body, Parts, Pyramid, Stages
from boxwright.nets.weights import Weights

__all__ = ["build"]


class ResBlock(nn.Module):
    """A 3x3 unit and a re-parameterised one, the input added where asked."""

    def __init__(self, w: Weights, inputs: int, act: Act, shortcut: bool) -> None:
        super().__init__()
        self.first = Unit(w.at("conv1"), inputs, 3, act=act)
        self.second = Rep(w.at("conv2"), self.first.outputs, act=act)
        self.outputs = self.second.outputs
        self.adds = shortcut and self.outputs == inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        return x + y if self.adds else y


class PoolJoin(nn.Module):
    """Maxima over 5, 9, 13 beside the map, then a 1x1 unit."""

    def __init__(self, w: Weights, inputs: int, act: Act) -> None:
        super().__init__()
        self.unit = Unit(w.at("conv2"), 4 * inputs, 1, act=act)
        self.outputs = self.unit.outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(torch.cat([x, *pooled(x, (5, 9, 13))], dim=1))


class CspRes(nn.Module):
    """A CSP layer of residual blocks, after a strided unit and before attention where they are."""

    def __init__(self, w: Weights, inputs: int, act: Act, shortcut: bool) -> None:
        super().__init__()
        down = "conv_down" in w
        self.down = Unit(w.at("conv_down"), inputs, 3, 2, act=act) if down else None
        middle = inputs if self.down is None else self.down.outputs
        self.around = Unit(w.at("conv1"), middle, 1, act=act)
        self.main = Unit(w.at("conv2"), middle, 1, act=act)
        blocks: list[nn.Module] = []
        channels, count = self.main.outputs, w.count("blocks")
        for index in range(count):
            blocks.append(ResBlock(w.at(f"blocks.{index}"), channels, act, shortcut))
            channels = blocks[-1].outputs
            if "blocks.spp" in w and index == (count - 1) // 2:
                blocks.append(PoolJoin(w.at("blocks.spp"), channels, act))
                channels = blocks[-1].outputs
        self.blocks = Chain(blocks, self.main.outputs)
        joined = self.around.outputs + channels
        self.attention = Plain(w.at("attn.fc.conv"), joined) if "attn" in w else None
        self.final = Unit(w.at("conv3"), joined, 1, act=act)
        self.outputs = self.final.outputs

    def forward(self, x: Tensor) -> Tensor:
        if self.down is not None:
            x = self.down(x)
        y = torch.cat((self.around(x), self.blocks(self.main(x))), dim=1)
        if self.attention is not None:
            y = y * functional.hardsigmoid(self.attention(y.mean((2, 3), keepdim=True)))
        return self.final(y)


class Gate(nn.Module):
    """Channels weighted by their mean over the picture, then a 1x1 unit."""

    def __init__(self, w: Weights, inputs: int, act: Act) -> None:
        super().__init__()
        self.weigh = Plain(w.at("fc"), inputs, outputs=inputs)
        self.unit = Unit(w.at("conv"), inputs, 1, act=act)
        self.outputs = self.unit.outputs

    def forward(self, x: Tensor, mean: Tensor) -> Tensor:
        return self.unit(x * self.weigh(mean).sigmoid())


class GatedHead(nn.Module):
    """Per level a gate and a 3x3 convolution for the classes, and the same for the boxes."""

    def __init__(self, w: Weights, widths: tuple[int, ...], act: Act, class_count: int) -> None:
        super().__init__()

        def gates(name: str) -> nn.ModuleList:
            return nn.ModuleList(Gate(w.at(f"{name}.{i}"), n, act) for i, n in enumerate(widths))

        def last(name: str, outputs: int | None) -> nn.ModuleList:
            return nn.ModuleList(
                Plain(w.at(f"{name}.{i}"), n, 3, outputs) for i, n in enumerate(widths)
            )

        self.class_gates, self.box_gates = gates("cls_stems"), gates("reg_stems")
        self.classes, self.boxes = last("cls_preds", class_count), last("reg_preds", None)

    def forward(self, features: list[Tensor]) -> Maps:
        classes, boxes = [], []
        for index, x in enumerate(features):
            mean = x.mean((2, 3), keepdim=True)
            classes.append(self.classes[index](self.class_gates[index](x, mean) + x))
            boxes.append(self.boxes[index](self.box_gates[index](x, mean)))
        return with_distances(classes, boxes)


def _stages(w: Weights, act: Act, count: int) -> Stages:
    stem: list[nn.Module] = []
    channels = 3
    for index in range(w.count("stem")):
        stride = 1 if index else 2
        stem.append(Unit(w.at(f"stem.{index}"), channels, 3, stride, act=act))
        channels = stem[-1].outputs
    stages: list[Chain] = []
    for index in range(1, sum(f"stage{i}" in w for i in range(1, 8)) + 1):
        block = CspRes(w.at(f"stage{index}.0"), channels, act, True)
        stages.append(Chain([block], channels))
        channels = block.outputs
    return Stages(Chain(stem, 3), stages, count)


def build(config: OpenmmlabConfig, w: Weights) -> Net:
    """Build the network; the plus version differs in its weights alone."""
    back, neck, head = parts_of(config, w)
    act, neck_act, head_act = acts_of(config)
    backbone = _stages(back, act, len(config.strides))

    def layers(part: Weights, inputs: int) -> nn.Module:
        blocks: list[nn.Module] = []
        channels = inputs
        for index in range(part.count()):
            blocks.append(CspRes(part.at(str(index)), channels, neck_act, False))
            channels = blocks[-1].outputs
        if not blocks:
            part.shape("0.conv1.conv.weight")  # raises: nothing is there
        return Chain(blocks, inputs)

    parts = Parts(
        reduce=layers,
        up=lambda p, n: Upsample(p.at("0"), n, neck_act),
        join=layers,
        down=lambda p, n: Unit(p, n, 3, 2, act=neck_act),
        bottom=layers,
        out=layers,
    )
    body = Body(backbone, Pyramid(neck, backbone.widths, parts))
    branches = GatedHead(head, body.neck.widths, head_act, config.class_count)
    return Net(body, branches, PointDecode(config.strides))
