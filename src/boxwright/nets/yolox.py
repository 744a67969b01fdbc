"""YOLOX in torch: CSPDarknet, PAFPN and the decoupled head, by the paper and the weights' names.

Parameters are called as in official checkpoints (`backbone.backbone.stem.conv.conv.weight`, …,
`head.cls_preds.0.bias`), so that those load strictly. Source of the structure: Megvii YOLOX,
`yolox/models/`; arXiv:2107.08430.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from boxwright.nets import Activation, YoloxConfig

__all__ = ["Yolox", "YoloxConfig", "build_yolox", "fused"]

# Neither is stored in a checkpoint; the original sets both after construction.
_NORM_EPS, _NORM_MOMENTUM = 1e-3, 0.03
_PRIOR = 0.01  # of an untrained head's scores, so that the many empty cells do not swamp the loss
_STRIDES = (8, 16, 32)
_POOLS = (5, 9, 13)


def _activation(name: Activation) -> nn.Module:
    if name == "silu":
        return nn.SiLU(inplace=True)
    if name == "relu":
        return nn.ReLU(inplace=True)
    return nn.LeakyReLU(0.1, inplace=True)


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm, activation; the size is kept or divided by `stride`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs, eps=_NORM_EPS, momentum=_NORM_MOMENTUM)
        self.act = _activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class SeparableUnit(nn.Module):
    """A depthwise convolution unit and a 1x1 one behind it."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, activation: Activation
    ) -> None:
        super().__init__()
        self.dconv = ConvUnit(inputs, inputs, kernel, stride, groups=inputs, activation=activation)
        self.pconv = ConvUnit(inputs, outputs, 1, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.pconv(self.dconv(x))


class Focus(nn.Module):
    """Every 2x2 block of pixels becomes 4 times the channels, then a 3x3 convolution unit."""

    def __init__(self, outputs: int, activation: Activation) -> None:
        super().__init__()
        self.conv = ConvUnit(12, outputs, 3, activation=activation)

    def forward(self, images: Tensor) -> Tensor:
        corners = ((0, 0), (1, 0), (0, 1), (1, 1))  # (row, column): the order of the weights
        return self.conv(torch.cat([images[..., y::2, x::2] for y, x in corners], dim=1))


class Bottleneck(nn.Module):
    """1x1 then 3x3, with the input added when `shortcut`."""

    def __init__(self, channels: int, shortcut: bool, config: YoloxConfig) -> None:
        super().__init__()
        self.conv1 = ConvUnit(channels, channels, 1, activation=config.activation)
        self.conv2 = _spatial(channels, channels, 1, config)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y


class CspLayer(nn.Module):
    """Half of the channels pass `count` bottlenecks, half go around; a 1x1 joins them."""

    def __init__(
        self, inputs: int, outputs: int, count: int, shortcut: bool, config: YoloxConfig
    ) -> None:
        super().__init__()
        hidden = outputs // 2
        self.conv1 = ConvUnit(inputs, hidden, 1, activation=config.activation)
        self.conv2 = ConvUnit(inputs, hidden, 1, activation=config.activation)
        self.conv3 = ConvUnit(2 * hidden, outputs, 1, activation=config.activation)
        self.m = nn.Sequential(*(Bottleneck(hidden, shortcut, config) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        through, around = self.conv1(x), self.conv2(x)
        return self.conv3(torch.cat((self.m(through), around), dim=1))


class SpatialPyramid(nn.Module):
    """Maxima over three neighbourhoods beside the map itself, between two 1x1."""

    def __init__(self, channels: int, activation: Activation) -> None:
        super().__init__()
        hidden = channels // 2
        self.conv1 = ConvUnit(channels, hidden, 1, activation=activation)
        self.m = nn.ModuleList(nn.MaxPool2d(k, stride=1, padding=k // 2) for k in _POOLS)
        self.conv2 = ConvUnit(hidden * 4, channels, 1, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.conv2(torch.cat((x, *(pool(x) for pool in self.m)), dim=1))


def _spatial(inputs: int, outputs: int, stride: int, config: YoloxConfig) -> nn.Module:
    """Return a 3x3 convolution unit, separable where the configuration says so."""
    unit: Callable[..., nn.Module] = SeparableUnit if config.depthwise else ConvUnit
    return unit(inputs, outputs, 3, stride, activation=config.activation)


class Darknet(nn.Module):
    """The CSPDarknet backbone: maps of strides 8, 16, 32 with 4, 8, 16 times the stem's width."""

    def __init__(self, config: YoloxConfig) -> None:
        super().__init__()
        stem = int(64 * config.width)
        blocks = max(round(3 * config.depth), 1)
        self.stem = Focus(stem, config.activation)
        w3, w4, w5 = _level_widths(config)
        self.dark2 = nn.Sequential(*_stage(stem, stem * 2, blocks, config))
        self.dark3 = nn.Sequential(*_stage(stem * 2, w3, blocks * 3, config))
        self.dark4 = nn.Sequential(*_stage(w3, w4, blocks * 3, config))
        self.dark5 = nn.Sequential(
            _spatial(w4, w5, 2, config),
            SpatialPyramid(w5, config.activation),
            CspLayer(w5, w5, blocks, False, config),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c3 = self.dark3(self.dark2(self.stem(images)))
        c4 = self.dark4(c3)
        return c3, c4, self.dark5(c4)


def _stage(
    inputs: int, outputs: int, blocks: int, config: YoloxConfig
) -> tuple[nn.Module, nn.Module]:
    return (
        _spatial(inputs, outputs, 2, config),
        CspLayer(outputs, outputs, blocks, True, config),
    )


class Pyramid(nn.Module):
    """Backbone and PAFPN: coarse maps flow up to the fine ones, then back down."""

    def __init__(self, config: YoloxConfig) -> None:
        super().__init__()
        self.backbone = Darknet(config)
        w3, w4, w5 = _level_widths(config)
        blocks, act = round(3 * config.depth), config.activation
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.lateral_conv0 = ConvUnit(w5, w4, 1, activation=act)
        self.C3_p4 = CspLayer(2 * w4, w4, blocks, False, config)
        self.reduce_conv1 = ConvUnit(w4, w3, 1, activation=act)
        self.C3_p3 = CspLayer(2 * w3, w3, blocks, False, config)
        self.bu_conv2 = _spatial(w3, w3, 2, config)
        self.C3_n3 = CspLayer(2 * w3, w4, blocks, False, config)
        self.bu_conv1 = _spatial(w4, w4, 2, config)
        self.C3_n4 = CspLayer(2 * w4, w5, blocks, False, config)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c3, c4, c5 = self.backbone(images)
        lateral5 = self.lateral_conv0(c5)
        lateral4 = self.reduce_conv1(self.C3_p4(torch.cat((self.upsample(lateral5), c4), dim=1)))
        p3 = self.C3_p3(torch.cat((self.upsample(lateral4), c3), dim=1))
        p4 = self.C3_n3(torch.cat((self.bu_conv2(p3), lateral4), dim=1))
        p5 = self.C3_n4(torch.cat((self.bu_conv1(p4), lateral5), dim=1))
        return p3, p4, p5


def _level_widths(config: YoloxConfig) -> tuple[int, int, int]:
    stem = int(64 * config.width)
    w3, w4, w5 = (min(stem * factor, config.widest or stem * factor) for factor in (4, 8, 16))
    return w3, w4, w5


class DecoupledHead(nn.Module):
    """Per level one branch for the classes and one for boxes and objectness."""

    def __init__(self, config: YoloxConfig) -> None:
        super().__init__()
        width, act = config.head_width or int(256 * config.width), config.activation
        widths = _level_widths(config)

        def branch() -> nn.Module:
            return nn.Sequential(*(_spatial(width, width, 1, config) for _ in range(2)))

        self.cls_convs = nn.ModuleList(branch() for _ in widths)
        self.reg_convs = nn.ModuleList(branch() for _ in widths)
        self.cls_preds = nn.ModuleList(nn.Conv2d(width, config.class_count, 1) for _ in widths)
        self.reg_preds = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in widths)
        self.obj_preds = nn.ModuleList(nn.Conv2d(width, 1, 1) for _ in widths)
        self.stems = nn.ModuleList(ConvUnit(w, width, 1, activation=act) for w in widths)
        for layer in (*self.cls_preds, *self.obj_preds):
            nn.init.constant_(layer.bias, -math.log((1 - _PRIOR) / _PRIOR))

    def forward(self, maps: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return (box values, objectness, classes) of each level, each (B, channels, h, w)."""
        levels = []
        for index, features in enumerate(maps):
            stem = self.stems[index](features)
            classes = self.cls_preds[index](self.cls_convs[index](stem))
            regression = self.reg_convs[index](stem)
            boxes, objectness = self.reg_preds[index](regression), self.obj_preds[index](regression)
            levels.append((boxes, objectness, classes))
        return levels


class Yolox(nn.Module):
    """The whole network over (B, 3, H, W) float32, H and W multiples of 32.

    There are A = sum of (H / stride) * (W / stride) cells, ordered by stride, then row by row.

    - Training mode returns box values (B, A, 4), objectness (B, A) and classes (B, A, C); the
      scores as logits. The box values t are not decoded: centre = (t + cell) * stride,
      size = exp(t) * stride, in input pixels.
    - Evaluation mode returns (B, A, 5 + C) as the official export does: the same box values,
      then objectness and classes after the sigmoid.
    """

    strides = _STRIDES

    def __init__(self, config: YoloxConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Pyramid(config)
        self.head = DecoupledHead(config)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        levels = self.head(self.backbone(images))
        if self.training:
            boxes, objectness, classes = (
                torch.cat([part.flatten(2) for part in parts], dim=2)
                for parts in zip(*levels, strict=True)
            )
            return boxes.transpose(1, 2), objectness[:, 0], classes.transpose(1, 2)
        activated = [
            torch.cat((boxes, objectness.sigmoid(), classes.sigmoid()), dim=1).flatten(2)
            for boxes, objectness, classes in levels
        ]
        return torch.cat(activated, dim=2).transpose(1, 2)


def build_yolox(config: YoloxConfig) -> Yolox:
    """Build the network with fresh weights, in training mode; seed torch for the same weights."""
    return Yolox(config)


def fused(model: Yolox) -> Yolox:
    """Return a copy in evaluation mode whose batch norms are folded into the convolutions."""
    copied: Yolox = copy.deepcopy(model).eval()
    for unit in [m for m in copied.modules() if isinstance(m, ConvUnit)]:
        unit.conv = fuse_conv_bn_eval(unit.conv, unit.bn)
        unit.bn = nn.Identity()
    return copied
