"""Blocks of YOLOv6 that re-parameterised units are stacked in, for both projects that have it.

Sources: meituan YOLOv6 0.4, `layers/common.py`; MMYOLO 0.6, `models/layers/yolo_bricks.py`. The
names of the weights differ between the two: a block takes the names as an argument.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from boxwright.nets.blocks import Act, Chain, Rep, Unit, pooled
from boxwright.nets.weights import Weights

__all__ = [
    "BiFusion",
    "CspPyramid",
    "RepCsp",
    "ScaledBottle",
    "rep_or_unit",
    "rep_stack",
]

SEVEN = tuple(f"conv{i}" for i in range(1, 8))


def rep_or_unit(w: Weights, inputs: int, stride: int, act: Act) -> nn.Module:
    """Return a 3x3 re-parameterised unit, or a plain one where the weights are of that."""
    if "rbr_dense" in w or "rbr_reparam" in w:
        return Rep(w, inputs, stride, act=act)
    return Unit(w, inputs, 3, stride, act=act)


class ScaledBottle(nn.Module):
    """Units conv1, conv2 (, conv3) behind each other, plus alpha times the input."""

    def __init__(self, w: Weights, inputs: int, act: Act) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = inputs
        while f"conv{len(blocks) + 1}" in w:
            blocks.append(rep_or_unit(w.at(f"conv{len(blocks) + 1}"), channels, 1, act))
            channels = blocks[-1].outputs
        if not blocks:
            w.shape("conv1.rbr_dense.conv.weight")  # raises: nothing is there
        self.blocks, self.outputs = Chain(blocks, inputs), channels
        self.adds = channels == inputs
        alpha = w.take("alpha", (1,)) if "alpha" in w else torch.ones(1)
        self.alpha = nn.Parameter(alpha.clone())

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(x)
        return y + self.alpha * x if self.adds else y


def rep_stack(w: Weights, inputs: int, *, act: Act) -> Chain:
    """Return `conv1`, then `block.0`, `block.1` …: plain or bottle blocks."""

    def one(part: Weights, channels: int) -> nn.Module:
        if "conv1" in part:
            return ScaledBottle(part, channels, act)
        return rep_or_unit(part, channels, 1, act)

    blocks = [one(w.at("conv1"), inputs)]
    for index in range(w.count("block")):
        blocks.append(one(w.at(f"block.{index}"), blocks[-1].outputs))
    return Chain(blocks, inputs)


class RepCsp(nn.Module):
    """BepC3: a stack behind one 1x1 unit, another 1x1 unit around it, a third joins both."""

    def __init__(
        self,
        w: Weights,
        inputs: int,
        *,
        act: Act,
        names: tuple[str, str, str, str] = ("conv1", "conv2", "conv3", "block"),
    ) -> None:
        super().__init__()
        self.main = Unit(w.at(names[0]), inputs, 1, act=act)
        self.short = Unit(w.at(names[1]), inputs, 1, act=act)
        self.stack = rep_stack(w.at(names[3]), self.main.outputs, act=act)
        self.final = Unit(w.at(names[2]), self.stack.outputs + self.short.outputs, 1, act=act)
        self.outputs = self.final.outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.final(torch.cat((self.stack(self.main(x)), self.short(x)), dim=1))


class CspPyramid(nn.Module):
    """CSPSPPF: maxima over three neighbourhoods inside a CSP layer of seven units.

    Args:
        w: With the seven names.
        inputs: Channels that come in.
        act: Of every unit.
        names: Of the units 1 to 7; 2 goes around, 7 joins.
        around_first: In the last concatenation unit 2 comes first (YOLOv6), or last (YOLOv7).
    """

    def __init__(
        self,
        w: Weights,
        inputs: int,
        *,
        act: Act,
        names: tuple[str, ...] = SEVEN,
        around_first: bool = True,
    ) -> None:
        super().__init__()

        def unit(place: int, channels: int, kernel: int) -> Unit:
            return Unit(w.at(names[place - 1]), channels, kernel, act=act)

        self.first = unit(1, inputs, 1)
        self.around = unit(2, inputs, 1)
        self.third = unit(3, self.first.outputs, 3)
        self.fourth = unit(4, self.third.outputs, 1)
        self.fifth = unit(5, 4 * self.fourth.outputs, 1)
        self.sixth = unit(6, self.fifth.outputs, 3)
        self.last = unit(7, self.sixth.outputs + self.around.outputs, 1)
        self.around_first, self.outputs = around_first, self.last.outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.fourth(self.third(self.first(x)))
        y = self.sixth(self.fifth(torch.cat([y, *pooled(y, (5, 9, 13))], dim=1)))
        pair = (self.around(x), y)
        return self.last(torch.cat(pair if self.around_first else pair[::-1], dim=1))


class BiFusion(nn.Module):
    """A coarse map twice its size, the map of this level and a finer one at half its size."""

    def __init__(
        self,
        w: Weights,
        high: int,
        same: int,
        low: int,
        *,
        act: Act,
        names: tuple[str, str, str, str, str] = (
            "conv1",
            "conv2",
            "conv3",
            "upsample",
            "downsample",
        ),
    ) -> None:
        super().__init__()
        self.same = Unit(w.at(names[0]), same, 1, act=act)
        self.low = Unit(w.at(names[1]), low, 1, act=act)
        self.down = Unit(w.at(names[4]), self.low.outputs, 3, 2, act=act)
        place = w.at(names[3])
        weight = place.take("weight", (high, None, 2, 2))
        channels = int(weight.shape[1])
        self.up = nn.ConvTranspose2d(high, channels, 2, 2)
        self.up.weight.data.copy_(weight)
        self.up.bias.data.copy_(place.take("bias", (channels,)))
        joined = channels + self.same.outputs + self.down.outputs
        self.final = Unit(w.at(names[2]), joined, 1, act=act)
        self.outputs = self.final.outputs

    def forward(self, high: Tensor, same: Tensor, low: Tensor) -> Tensor:
        parts = (self.up(high), self.same(same), self.down(self.low(low)))
        return self.final(torch.cat(parts, dim=1))
