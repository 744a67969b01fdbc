"""YOLOv5 (all versions) and YOLOv7: networks that are a list of layers, each with its sources.

A checkpoint of these projects says of every layer its class, where its input comes from and its
plain attributes; the network is rebuilt from those and its weights, whatever its yaml was.
Sources: YOLOv5 v1 to v7.0 and WongKinYiu YOLOv7, `models/common.py`, `models/yolo.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from boxwright.nets.blocks import (
    Chain,
    Csp,
    Plain,
    PoolPyramid,
    Rep,
    Unit,
    Upsample,
    act_of,
    chain,
)
from boxwright.nets.heads import AnchorDecode, Maps, Net
from boxwright.nets.openmmlab import Focus, Implicit, fold_implicit
from boxwright.nets.rep_blocks import CspPyramid
from boxwright.nets.weights import Weights, WeightsDifferError

__all__ = ["HEADS", "build"]

HEADS = ("Detect", "IDetect", "IAuxDetect")
_SEVEN = tuple(f"cv{i}" for i in range(1, 8))
_MOST_LAYERS = 1000


def _unit(w: Weights, inputs: int) -> Unit:
    """Return a `Conv` as the file describes it."""
    kernel = w.whole("conv", "kernel_size", 1)
    return Unit(
        w,
        inputs,
        kernel,
        w.whole("conv", "stride", 1),
        act=nn.Identity,
        groups=w.whole("conv", "groups", 1) or 1,
        padding=w.whole("conv", "padding", kernel // 2),
    )


class _Two(Chain):
    """Two `Conv`s behind each other, the input added where the file says so."""

    def __init__(self, w: Weights, inputs: int) -> None:
        first = _unit(w.at("cv1"), inputs)
        super().__init__([first, _unit(w.at("cv2"), first.outputs)], inputs)
        self.adds = w.fact("", "add") is True and self.outputs == inputs

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return x + y if self.adds else y


def _c3(w: Weights, inputs: int) -> nn.Module:
    return Csp(w, inputs, _Two, act=nn.SiLU, names=("cv1", "cv2", "cv3", "m"))


class BottleneckCsp(nn.Module):
    """YOLOv5's first CSP layer: the norm and the activation follow the concatenation."""

    def __init__(self, w: Weights, inputs: int) -> None:
        super().__init__()
        self.first = _unit(w.at("cv1"), inputs)
        self.blocks = chain(w.at("m"), self.first.outputs, _Two)
        self.behind = _bare(w.at("cv3"), self.blocks.outputs)
        self.around = _bare(w.at("cv2"), inputs)
        width = self.behind.out_channels + self.around.out_channels
        self.norm = nn.BatchNorm2d(width, eps=w.eps)
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(self.norm, name).data.copy_(w.take(f"bn.{name}", (width,)))
        self.act = act_of(w, nn.SiLU)()
        self.final = _unit(w.at("cv4"), width)
        self.outputs = self.final.outputs

    def forward(self, x: Tensor) -> Tensor:
        pair = (self.behind(self.blocks(self.first(x))), self.around(x))
        return self.final(self.act(self.norm(torch.cat(pair, dim=1))))


def _bare(w: Weights, inputs: int) -> nn.Conv2d:
    weight = w.take("weight", (None, inputs, 1, 1))
    layer = nn.Conv2d(inputs, len(weight), 1, bias=False)
    layer.weight.data.copy_(weight)
    return layer


def _pool_sizes(w: Weights) -> tuple[int, ...]:
    return tuple(w.whole(f"m.{i}", "kernel_size", k) for i, k in enumerate((5, 9, 13)))


def _spp(w: Weights, inputs: int) -> nn.Module:
    return PoolPyramid(w, inputs, act=nn.SiLU, names=("cv1", "cv2"), sizes=_pool_sizes(w))


class Pool(nn.Module):
    """Maxima of a neighbourhood, as the file describes it."""

    def __init__(self, w: Weights, inputs: int) -> None:
        super().__init__()
        place = "m" if w.fact("m", "class") else ""
        self.kernel = w.whole(place, "kernel_size", 2)
        self.stride = w.whole(place, "stride", self.kernel)
        self.padding = w.whole(place, "padding", 0)
        self.outputs = inputs

    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, self.kernel, self.stride, self.padding)


class ReOrg(nn.Module):
    """Every 2x2 block of pixels becomes 4 times the channels."""

    def __init__(self, w: Weights, inputs: int) -> None:
        super().__init__()
        self.outputs = 4 * inputs

    def forward(self, x: Tensor) -> Tensor:
        corners = ((0, 0), (1, 0), (0, 1), (1, 1))
        return torch.cat([x[..., a::2, b::2] for a, b in corners], dim=1)


class DownC(nn.Module):
    """Half the size by a strided unit and by maxima, side by side."""

    def __init__(self, w: Weights, inputs: int) -> None:
        super().__init__()
        self.strided = _Two(w, inputs)
        self.pool = Pool(w.at("mp"), inputs)
        self.behind = _unit(w.at("cv3"), inputs)
        self.outputs = self.strided.outputs + self.behind.outputs

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.strided(x), self.behind(self.pool(x))), dim=1)


class Same(nn.Module):
    """Nothing."""

    def __init__(self, w: Weights, inputs: int) -> None:
        super().__init__()
        self.outputs = inputs

    def forward(self, x: Tensor) -> Tensor:
        return x


class Padded(nn.Module):
    """Zeros around, as YOLOv3-tiny pads."""

    def __init__(self, w: Weights, inputs: int) -> None:
        super().__init__()
        found = w.fact("", "padding")
        if not (isinstance(found, tuple) and len(found) == 4 and set(found) <= {0, 1, 2}):
            raise WeightsDifferError("a padding layer has no usable padding")
        self.padding, self.outputs = list(found), inputs

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x, self.padding)


def _up(w: Weights, inputs: int) -> nn.Module:
    factor, mode = w.fact("", "scale_factor"), w.fact("", "mode")
    if factor not in (2, 2.0, None) or mode not in ("nearest", None):
        raise WeightsDifferError(f"an upsampling layer has factor {factor} and mode {mode}")
    return Upsample(None, inputs, nn.Identity)


def _rep(w: Weights, inputs: int) -> nn.Module:
    return Rep(w, inputs, w.whole("rbr_dense.0", "stride", 1), act=nn.SiLU, names=("0", "1"))


def _sppcspc(w: Weights, inputs: int) -> nn.Module:
    return CspPyramid(w, inputs, act=nn.SiLU, names=_SEVEN, around_first=False)


_LAYERS: dict[str, Callable[[Weights, int], nn.Module]] = {
    "Conv": _unit,
    "DWConv": _unit,
    "Focus": lambda w, inputs: Focus(w, nn.SiLU),
    "Bottleneck": _Two,
    "BottleneckCSP": BottleneckCsp,
    "C3": _c3,
    "SPP": _spp,
    "SPPF": lambda w, inputs: PoolPyramid(w, inputs, act=nn.SiLU, names=("cv1", "cv2")),
    "Upsample": _up,
    "MaxPool2d": Pool,
    "MP": Pool,
    "SP": Pool,
    "ReOrg": ReOrg,
    "DownC": DownC,
    "SPPCSPC": _sppcspc,
    "RepConv": _rep,
    "Identity": Same,
    "ZeroPad2d": Padded,
}


class Layers(nn.Module):
    """The layers before the head; the maps that the head asks for come out."""

    def __init__(self, w: Weights) -> None:
        super().__init__()
        self.layers, self.sources = nn.ModuleList(), []
        widths: list[int] = []
        count = w.count_layers()
        for index in range(count - 1):
            part = w.at(str(index))
            sources = _sources(part, index)
            inputs = [3 if index == 0 else widths[s] for s in sources]
            kind = str(part.fact("", "class"))
            layer: nn.Module
            if kind in ("Concat", "Shortcut"):
                layer = Same(part, sum(inputs) if kind == "Concat" else inputs[0])
            elif kind in ("Sequential", *_LAYERS) and len(inputs) == 1:
                layer = _repeated(part, inputs[0]) if kind == "Sequential" else None
                layer = layer or _LAYERS[kind](part, inputs[0])
            else:
                raise WeightsDifferError(f"layer {index} is a {kind[:40]}, which is not supported")
            self.layers.append(layer)
            self.sources.append((kind, sources))
            widths.append(layer.outputs)
        self.taken = _sources(w.at(str(count - 1)), count - 1)
        self.widths = tuple(widths[s] for s in self.taken)

    def forward(self, images: Tensor) -> list[Tensor]:
        kept: list[Tensor] = []
        for layer, (kind, sources) in zip(self.layers, self.sources, strict=True):
            inputs = [kept[s] if kept else images for s in sources]
            if kind == "Concat":
                kept.append(torch.cat(inputs, dim=1))
            elif kind == "Shortcut":
                kept.append(inputs[0] + inputs[1])
            else:
                kept.append(layer(inputs[0]))
        return [kept[s] for s in self.taken]


def _repeated(w: Weights, inputs: int) -> Chain:
    def one(part: Weights, channels: int) -> nn.Module:
        kind = str(part.fact("", "class"))
        if kind not in _LAYERS:
            raise WeightsDifferError(f"a layer is a {kind[:40]}, which is not supported")
        return _LAYERS[kind](part, channels)

    return chain(w, inputs, one)


def _sources(w: Weights, index: int) -> tuple[int, ...]:
    """Return where a layer's inputs come from, as absolute positions."""
    found = w.fact("", "f")
    values = found if isinstance(found, tuple) else (found,)
    if index == 0:
        return (0,)
    if not values or any(type(v) is not int for v in values):
        raise WeightsDifferError(f"layer {index} does not say where its input comes from")
    absolute = tuple(index + v if v < 0 else v for v in values)
    if any(not 0 <= a < index for a in absolute):
        raise WeightsDifferError(f"layer {index} takes its input from layer {max(absolute)}")
    return absolute


class Anchors(nn.Module):
    """The head: a 1x1 convolution per level, with implicit knowledge folded (arXiv:2105.04206)."""

    def __init__(self, w: Weights, widths: tuple[int, ...], anchors: int, class_count: int) -> None:
        super().__init__()
        self.count, self.channels = anchors, 5 + class_count
        self.layers = nn.ModuleList(
            self._level(w, index, width) for index, width in enumerate(widths)
        )

    def _level(self, w: Weights, index: int, width: int) -> nn.Module:
        outputs = self.count * self.channels
        conv = Plain(w.at(f"m.{index}"), width, outputs=outputs)
        if f"ia.{index}" not in w:
            return conv
        added = w.take(f"ia.{index}.implicit", (1, width, 1, 1))
        factor = w.take(f"im.{index}.implicit", (1, outputs, 1, 1))
        if not w.fused:
            return Implicit(conv, added, factor)
        fold_implicit(conv, added, factor)
        return conv

    def forward(self, features: list[Tensor]) -> Maps:
        raw = []
        for layer, x in zip(self.layers, features, strict=True):
            y = layer(x)
            height, width = int(y.shape[2]), int(y.shape[3])
            level = y.reshape(-1, self.count, self.channels, height, width)
            raw.append(level.permute(0, 1, 3, 4, 2))
        return {"raw": raw}


def build(w: Weights, class_count: int, *, single_by_objectness: bool = False) -> Net:
    """Build the network around all of its weights.

    Args:
        w: Of the file's `model`, with its facts.
        class_count: Of the head.
        single_by_objectness: With one class the score is the objectness alone (YOLOv7).

    Raises:
        WeightsDifferError: A layer is not known, or the weights are not those of the layers.
    """
    part = w.at("model")
    body = Layers(part)
    head = part.at(str(len(body.layers)))
    levels, widths = head.shape("anchors")[0], body.widths
    if not 1 <= levels <= len(widths):
        raise WeightsDifferError(f"the head has anchors of {levels} levels and {len(widths)} maps")
    anchors = head.take("anchors", (levels, None, 2))
    strides = head.fact("", "strides")
    if not isinstance(strides, tuple) or len(strides) != levels:
        raise WeightsDifferError("the head does not say its strides")
    for name in ("anchor_grid", "m2"):
        head.pass_over(name)
    body.taken, body.widths = body.taken[:levels], widths[:levels]
    layers = Anchors(head, body.widths, int(anchors.shape[1]), class_count)
    pixels = anchors * torch.tensor(strides).reshape(-1, 1, 1)
    decode = AnchorDecode(
        strides, pixels, objectness_only=single_by_objectness and class_count == 1
    )
    if levels == len(widths):
        w.check_all_taken()
    else:
        w.pass_over("model")
    return Net(body, layers, decode)
