"""Blocks that the networks share, each built around its weights.

A block takes the `Weights` of its place and the number of channels that come in, and tells the
number that goes out as `outputs`. With `fused` weights a convolution swallows its batch norm, and
the branches of a re-parameterised block become one convolution, folded in float64.

Sources: RepVGG (arXiv:2101.03697), the YOLOv5, YOLOv6, YOLOv7, YOLOX and MMYOLO projects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from boxwright.nets.weights import Weights, WeightsDifferError

__all__ = [
    "Act",
    "Bottleneck",
    "Chain",
    "Csp",
    "Plain",
    "PoolPyramid",
    "Rep",
    "Separable",
    "Split",
    "Unit",
    "Upsample",
    "act_from_name",
    "act_of",
    "any_unit",
    "chain",
]

Act: TypeAlias = Callable[[], nn.Module]
Block: TypeAlias = Callable[[Weights, int], nn.Module]

_ACTS: dict[str, Act] = {
    "SiLU": nn.SiLU,
    "Swish": nn.SiLU,
    "ReLU": nn.ReLU,
    "Identity": nn.Identity,
    "Hardswish": nn.Hardswish,
    "Mish": nn.Mish,
}


def act_from_name(name: str, slope: float = 0.01) -> Act:
    """Return an activation by the name of its torch class; raises `KeyError` for others."""
    if name == "LeakyReLU":
        return lambda: nn.LeakyReLU(slope)
    return _ACTS[name]


def act_of(w: Weights, otherwise: Act) -> Act:
    """Return the activation that the file gives a layer, or `otherwise` where it gives none.

    Raises:
        WeightsDifferError: It is none that is known.
    """
    for place in ("act", "nonlinearity"):
        name = w.fact(place, "class")
        if name is not None:
            slope = w.fact(place, "negative_slope")
            try:
                return act_from_name(str(name), slope if isinstance(slope, float) else 0.01)
            except KeyError:
                raise WeightsDifferError(f"a layer has the activation {str(name)[:40]}") from None
    return otherwise


def _folded(weight: Tensor, norm: tuple[Tensor, ...], eps: float) -> tuple[Tensor, Tensor]:
    """Fold a batch norm (weight, bias, mean, variance) into a kernel, in float64."""
    gamma, beta, mean, variance = (t.double() for t in norm)
    factor = gamma / torch.sqrt(variance + eps)
    return weight.double() * factor.reshape(-1, 1, 1, 1), beta - mean * factor


def _norm(w: Weights, channels: int) -> tuple[Tensor, ...]:
    names = ("weight", "bias", "running_mean", "running_var")
    return tuple(w.take(n, (channels,)) for n in names)


def _norm_layer(norm: tuple[Tensor, ...], eps: float) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(len(norm[0]), eps=eps)
    for target, source in zip(
        (layer.weight, layer.bias, layer.running_mean, layer.running_var), norm, strict=True
    ):
        target.data.copy_(source)
    return layer


def _conv_layer(
    weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int
) -> nn.Conv2d:
    outputs, share, kernel, _ = weight.shape
    layer = nn.Conv2d(
        share * groups, outputs, kernel, stride, padding, groups=groups, bias=bias is not None
    )
    layer.weight.data.copy_(weight)
    if bias is not None:
        layer.bias.data.copy_(bias)
    return layer


class Unit(nn.Module):
    """Convolution, batch norm, activation.

    Args:
        w: With `conv` and `bn` below, or as `names` calls them.
        inputs: Channels that come in.
        kernel: Its side.
        stride: 1 or 2.
        act: Makes the activation.
        groups: Of the convolution.
        padding: None for half of the kernel.
        names: Of the convolution and the norm.
    """

    def __init__(
        self,
        w: Weights,
        inputs: int,
        kernel: int,
        stride: int = 1,
        *,
        act: Act = nn.SiLU,
        groups: int = 1,
        padding: int | None = None,
        names: tuple[str, str] = ("conv", "bn"),
    ) -> None:
        super().__init__()
        if names[0] not in w and "block" in w:
            w = w.at("block")  # a wrapper of YOLOv6 and of MMYOLO
        weight = w.take(f"{names[0]}.weight", (None, inputs // groups, kernel, kernel))
        self.outputs = len(weight)
        bias = w.take(f"{names[0]}.bias", (None,)) if f"{names[0]}.bias" in w else None
        normed = names[1] in w or bias is None  # a fused file has a bias instead of a norm
        pad = kernel // 2 if padding is None else padding
        self.bn: nn.Module = nn.Identity()
        if normed:
            norm = _norm(w.at(names[1]), self.outputs)
            if w.fused:
                carried = 0.0 if bias is None else bias.double()
                weight, shift = _folded(weight, norm, w.eps)
                factor = norm[0].double() / torch.sqrt(norm[3].double() + w.eps)
                bias = shift + carried * factor
            else:
                self.bn = _norm_layer(norm, w.eps)
        self.conv = _conv_layer(weight, bias, stride, pad, groups)
        self.act = act_of(w, act)()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Plain(nn.Module):
    """A convolution with bias and nothing else: the last layer of a head."""

    def __init__(
        self, w: Weights, inputs: int, kernel: int = 1, outputs: int | None = None
    ) -> None:
        super().__init__()
        weight = w.take("weight", (outputs, inputs, kernel, kernel))
        bias = w.take("bias", (len(weight),))
        self.outputs = len(weight)
        self.conv = _conv_layer(weight, bias, 1, kernel // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Separable(nn.Module):
    """A depthwise unit and a 1x1 one behind it, both with activation."""

    def __init__(
        self, w: Weights, inputs: int, kernel: int, stride: int = 1, *, act: Act = nn.SiLU
    ) -> None:
        super().__init__()
        self.depthwise = Unit(
            w.at("depthwise_conv"), inputs, kernel, stride, act=act, groups=inputs
        )
        self.pointwise = Unit(w.at("pointwise_conv"), inputs, 1, act=act)
        self.outputs = self.pointwise.outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


def any_unit(w: Weights, inputs: int, kernel: int, stride: int, act: Act) -> nn.Module:
    """Return a unit, separable where its weights are."""
    kind = Separable if "depthwise_conv" in w else Unit
    return kind(w, inputs, kernel, stride, act=act)


class Rep(nn.Module):
    """RepVGG: a 3x3, a 1x1 and, where it has one, an identity branch, each normed, summed.

    Args:
        w: With `rbr_dense`, `rbr_1x1`, maybe `rbr_identity` and `alpha` (factor of the 1x1).
        inputs: Channels that come in.
        stride: 1 or 2.
        act: After the sum.
        names: Of convolution and norm inside a branch.
    """

    def __init__(
        self,
        w: Weights,
        inputs: int,
        stride: int = 1,
        *,
        act: Act = nn.ReLU,
        names: tuple[str, str] = ("conv", "bn"),
    ) -> None:
        super().__init__()
        self.act = act_of(w, act)()
        if "rbr_reparam" in w:  # the file was fused already
            weight = w.take("rbr_reparam.weight", (None, inputs, 3, 3))
            self.outputs = len(weight)
            bias = w.take("rbr_reparam.bias", (self.outputs,))
            self.fused: nn.Module | None = _conv_layer(weight, bias, stride, 1, 1)
            return
        kernels, norms = [], []
        for branch, side in (("rbr_dense", 3), ("rbr_1x1", 1)):
            part = w.at(branch)
            kernels.append(part.take(f"{names[0]}.weight", (None, inputs, side, side)))
            norms.append(_norm(part.at(names[1]), len(kernels[-1])))
        self.outputs = len(kernels[0])
        identity = _norm(w.at("rbr_identity"), inputs) if "rbr_identity" in w else None
        alpha = w.take("alpha", (1,)) if "alpha" in w else torch.ones(1)
        self.fused = None
        if w.fused:
            self.fused = _merged(kernels, norms, identity, alpha, w.eps, stride)
            return
        self.dense = _conv_layer(kernels[0], None, stride, 1, 1)
        self.point = _conv_layer(kernels[1], None, stride, 0, 1)
        self.dense_norm, self.point_norm = (_norm_layer(n, w.eps) for n in norms)
        self.identity_norm = _norm_layer(identity, w.eps) if identity is not None else None
        self.alpha = nn.Parameter(alpha.clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.fused is not None:
            return self.act(self.fused(x))
        total = self.dense_norm(self.dense(x)) + self.alpha * self.point_norm(self.point(x))
        if self.identity_norm is not None:
            total = total + self.identity_norm(x)
        return self.act(total)


def _merged(
    kernels: Sequence[Tensor],
    norms: Sequence[tuple[Tensor, ...]],
    identity: tuple[Tensor, ...] | None,
    alpha: Tensor,
    eps: float,
    stride: int,
) -> nn.Conv2d:
    """Return the one 3x3 convolution that equals the branches (arXiv:2101.03697, section 3.3)."""
    weight, bias = _folded(kernels[0], norms[0], eps)
    point, shift = _folded(kernels[1], norms[1], eps)
    factor = alpha.double()
    weight = weight + factor * functional.pad(point, (1, 1, 1, 1))
    bias = bias + factor * shift
    if identity is not None:
        eye = torch.zeros_like(weight)
        for channel in range(len(eye)):
            eye[channel, channel, 1, 1] = 1
        kept, shift = _folded(eye, identity, eps)
        weight, bias = weight + kept, bias + shift
    return _conv_layer(weight, bias, stride, 1, 1)


class Chain(nn.Module):
    """Blocks one behind the other."""

    def __init__(self, blocks: Sequence[nn.Module], inputs: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.outputs: int = blocks[-1].outputs if blocks else inputs

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def chain(w: Weights, inputs: int, block: Block, count: int | None = None) -> Chain:
    """Build blocks 0, 1, 2 …: as many as the weights have, or `count`."""
    blocks: list[nn.Module] = []
    channels = inputs
    for index in range(w.count() if count is None else count):
        blocks.append(block(w.at(str(index)), channels))
        channels = blocks[-1].outputs
    return Chain(blocks, inputs)


class Bottleneck(nn.Module):
    """Two units `conv1` and `conv2`, the input added where asked and the channels allow."""

    def __init__(
        self,
        w: Weights,
        inputs: int,
        *,
        act: Act,
        kernels: tuple[int, int] = (1, 3),
        shortcut: bool,
        names: tuple[str, str] = ("conv1", "conv2"),
    ) -> None:
        super().__init__()
        self.first = any_unit(w.at(names[0]), inputs, kernels[0], 1, act)
        self.second = any_unit(w.at(names[1]), self.first.outputs, kernels[1], 1, act)
        self.outputs = self.second.outputs
        self.adds = shortcut and self.outputs == inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        return x + y if self.adds else y


class Csp(nn.Module):
    """Two 1x1 units; blocks follow the first; a 1x1 joins both, after attention where it is.

    Args:
        w: With the names below.
        inputs: Channels that come in.
        block: Makes one block of the weights 0, 1, 2 … below `names[3]`.
        act: Of the three units.
        names: Of the unit before the blocks, the one around them, the last, and the blocks.
    """

    def __init__(
        self,
        w: Weights,
        inputs: int,
        block: Block,
        *,
        act: Act,
        names: tuple[str, str, str, str] = ("main_conv", "short_conv", "final_conv", "blocks"),
    ) -> None:
        super().__init__()
        self.main = Unit(w.at(names[0]), inputs, 1, act=act)
        self.short = Unit(w.at(names[1]), inputs, 1, act=act)
        self.blocks = chain(w.at(names[3]), self.main.outputs, block)
        joined = self.blocks.outputs + self.short.outputs
        self.attention = Plain(w.at("attention.fc"), joined) if "attention" in w else None
        self.final = Unit(w.at(names[2]), joined, 1, act=act)
        self.outputs = self.final.outputs

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat((self.blocks(self.main(x)), self.short(x)), dim=1)
        if self.attention is not None:
            y = y * functional.hardsigmoid(self.attention(y.mean((2, 3), keepdim=True)))
        return self.final(y)


class Split(nn.Module):
    """YOLOv8's C2f: a 1x1 unit is split in halves, every block's result joins the last 1x1."""

    def __init__(self, w: Weights, inputs: int, *, act: Act, shortcut: bool) -> None:
        super().__init__()
        self.main = Unit(w.at("main_conv"), inputs, 1, act=act)
        half = self.main.outputs // 2
        self.blocks = nn.ModuleList(
            Bottleneck(w.at(f"blocks.{i}"), half, act=act, kernels=(3, 3), shortcut=shortcut)
            for i in range(w.count("blocks"))
        )
        self.final = Unit(w.at("final_conv"), (2 + len(self.blocks)) * half, 1, act=act)
        self.outputs = self.final.outputs

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.main(x).chunk(2, dim=1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.final(torch.cat(parts, dim=1))


def pooled(x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Return the maxima over square neighbourhoods of these sides, size kept."""
    return [functional.max_pool2d(x, k, stride=1, padding=k // 2) for k in sizes]


class PoolPyramid(nn.Module):
    """SPP and SPPF: a 1x1 unit, maxima over 5, 9, 13 (or `sizes`) beside it, a 1x1 unit."""

    def __init__(
        self,
        w: Weights,
        inputs: int,
        *,
        act: Act,
        names: tuple[str, str] = ("conv1", "conv2"),
        sizes: Sequence[int] = (5, 9, 13),
    ) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.first = Unit(w.at(names[0]), inputs, 1, act=act)
        self.second = Unit(w.at(names[1]), self.first.outputs * (1 + len(self.sizes)), 1, act=act)
        self.outputs = self.second.outputs

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(torch.cat([x, *pooled(x, self.sizes)], dim=1))


class Upsample(nn.Module):
    """Twice the size, by repetition, after a 1x1 unit where the weights have one."""

    def __init__(self, w: Weights | None, inputs: int, act: Act) -> None:
        super().__init__()
        self.unit = Unit(w, inputs, 1, act=act) if w is not None else None
        self.outputs = inputs if self.unit is None else self.unit.outputs

    def forward(self, x: Tensor) -> Tensor:
        if self.unit is not None:
            x = self.unit(x)
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")
