"""MMYOLO's YOLOv7 L, X and Tiny. Source: MMYOLO 0.6, `models/`; arXiv:2207.02696."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from boxwright.nets import OpenmmlabConfig
from boxwright.nets.blocks import Act, Chain, Rep, Unit, Upsample, chain, pooled
from boxwright.nets.heads import AnchorDecode, Net
from boxwright.nets.openmmlab import AnchorHead, acts_of, parts_of
from boxwright.nets.pyramid import Body, Parts, Pyramid, Stages
from boxwright.nets.weights import Weights

__all__ = ["build"]


class Elan(nn.Module):
    """Two 1x1 units; blocks follow the first; everything on the way joins the last 1x1."""

    def __init__(self, w: Weights, inputs: int, act: Act) -> None:
        super().__init__()
        self.main = Unit(w.at("main_conv"), inputs, 1, act=act)
        self.short = Unit(w.at("short_conv"), inputs, 1, act=act)

        def unit(part: Weights, channels: int) -> nn.Module:
            return Unit(part, channels, 3, act=act)

        blocks: list[nn.Module] = []
        channels = self.main.outputs
        for index in range(w.count("blocks")):
            part = w.at(f"blocks.{index}")
            blocks.append(unit(part, channels) if "conv" in part else chain(part, channels, unit))
            channels = blocks[-1].outputs
        self.blocks = nn.ModuleList(blocks)
        joined = sum(b.outputs for b in blocks) + self.main.outputs + self.short.outputs
        self.final = Unit(w.at("final_conv"), joined, 1, act=act)
        self.outputs = self.final.outputs

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.short(x), self.main(x)]
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.final(torch.cat([*parts[:1:-1], parts[1], parts[0]], dim=1))


class TinyElan(nn.Module):
    """The small one: 1x1, 3x3, 3x3 units behind each other and a 1x1 around them."""

    def __init__(self, w: Weights, inputs: int, act: Act) -> None:
        super().__init__()
        self.short = Unit(w.at("short_conv"), inputs, 1, act=act)
        units: list[nn.Module] = []
        channels = inputs
        for index in range(w.count("main_convs")):
            kernel = 3 if index else 1
            units.append(Unit(w.at(f"main_convs.{index}"), channels, kernel, act=act))
            channels = units[-1].outputs
        self.units = nn.ModuleList(units)
        joined = self.short.outputs + sum(u.outputs for u in units)
        self.final = Unit(w.at("final_conv"), joined, 1, act=act)
        self.outputs = self.final.outputs

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.short(x)]
        for unit in self.units:
            x = unit(x)
            parts.insert(0, x)
        return self.final(torch.cat(parts, dim=1))


class MaxAndStride(nn.Module):
    """Half the size twice over: by a strided 3x3 unit and by maxima, side by side."""

    def __init__(self, w: Weights, inputs: int, act: Act) -> None:
        super().__init__()
        self.pooled = Unit(w.at("maxpool_branches.1"), inputs, 1, act=act)
        self.narrow = Unit(w.at("stride_conv_branches.0"), inputs, 1, act=act)
        part = w.at("stride_conv_branches.1")
        self.strided = Unit(part, self.narrow.outputs, 3, 2, act=act)
        self.outputs = self.pooled.outputs + self.strided.outputs

    def forward(self, x: Tensor) -> Tensor:
        by_maximum = self.pooled(functional.max_pool2d(x, 2, 2))
        return torch.cat((self.strided(self.narrow(x)), by_maximum), dim=1)


class Halved(nn.Module):
    """Maxima of 2x2 blocks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.outputs = channels

    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, 2, 2)


class PyramidCsp(nn.Module):
    """SPPFCSP: three maxima inside a CSP layer; in Tiny one unit each, maxima last first."""

    def __init__(self, w: Weights, inputs: int, act: Act) -> None:
        super().__init__()

        def units(part: Weights, channels: int, kernels: tuple[int, ...]) -> Chain:
            if "conv" in part:
                return Chain([Unit(part, channels, 1, act=act)], channels)
            built: list[nn.Module] = []
            width = channels
            for index, kernel in enumerate(kernels):
                built.append(Unit(part.at(str(index)), width, kernel, act=act))
                width = built[-1].outputs
            return Chain(built, channels)

        self.reverse = "main_layers.conv" in w
        self.main = units(w.at("main_layers"), inputs, (1, 3, 1))
        self.fuse = units(w.at("fuse_layers"), 4 * self.main.outputs, (1, 3))
        self.short = Unit(w.at("short_layer"), inputs, 1, act=act)
        self.final = Unit(w.at("final_conv"), self.fuse.outputs + self.short.outputs, 1, act=act)
        self.outputs = self.final.outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.main(x)
        parts = [y, *pooled(y, (5, 9, 13))]
        fused = self.fuse(torch.cat(parts[::-1] if self.reverse else parts, dim=1))
        return self.final(torch.cat((fused, self.short(x)), dim=1))


def _elan(w: Weights, inputs: int, act: Act) -> nn.Module:
    return TinyElan(w, inputs, act) if "main_convs" in w else Elan(w, inputs, act)


def _down(w: Weights, inputs: int, act: Act) -> nn.Module:
    if "maxpool_branches" in w:
        return MaxAndStride(w, inputs, act)
    return Unit(w, inputs, 3, 2, act=act)


def _stages(w: Weights, act: Act, count: int) -> Stages:
    stem: list[nn.Module] = []
    channels = 3
    total = w.count("stem")
    for index in range(total):
        # Three units halve the size once, in the middle; Tiny's two halve it twice.
        stride = 2 if total == 2 or index == 1 else 1
        stem.append(Unit(w.at(f"stem.{index}"), channels, 3, stride, act=act))
        channels = stem[-1].outputs
    stages: list[Chain] = []
    for index in range(1, sum(f"stage{i}" in w for i in range(1, 8)) + 1):
        part = w.at(f"stage{index}")
        first: nn.Module | None = None
        if "0" not in part:
            first = Halved(channels)
        elif "0.main_convs" not in part:
            first = _down(part.at("0"), channels, act)
        blocks = [] if first is None else [first]
        place = "0" if first is None else "1"
        inputs = channels if first is None else first.outputs
        blocks.append(_elan(part.at(place), inputs, act))
        stages.append(Chain(blocks, channels))
        channels = blocks[-1].outputs
    return Stages(Chain(stem, 3), stages, count)


def build(config: OpenmmlabConfig, w: Weights) -> Net:
    """Build the network; its size is the one that the weights are of."""
    back, neck, head = parts_of(config, w)
    act, neck_act, _ = acts_of(config)
    backbone = _stages(back, act, len(config.strides))

    def reduce(part: Weights, inputs: int) -> nn.Module:
        if "main_layers" in part:
            return PyramidCsp(part, inputs, neck_act)
        return Unit(part, inputs, 1, act=neck_act)

    def out(part: Weights, inputs: int) -> nn.Module:
        if "rbr_dense" in part:
            return Rep(part, inputs, act=neck_act)
        return Unit(part, inputs, 3, act=neck_act)

    parts = Parts(
        reduce=reduce,
        up=lambda p, n: Upsample(p.at("0"), n, neck_act),
        join=lambda p, n: _elan(p, n, neck_act),
        down=lambda p, n: _down(p, n, neck_act),
        bottom=lambda p, n: _elan(p, n, neck_act),
        out=out,
        lateral_first=True,
    )
    body = Body(backbone, Pyramid(neck, backbone.widths, parts))
    anchors = torch.tensor(config.anchors)
    branches = AnchorHead(head, body.neck.widths, config.class_count, anchors.shape[1])
    return Net(body, branches, AnchorDecode(config.strides, anchors, anchor_last=True))
