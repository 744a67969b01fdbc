"""MMYOLO's and MMDetection's detectors, each built around the weights of a checkpoint.

What the weights do not say comes as an `OpenmmlabConfig`, which is read from the checkpoint's
configuration. Sources: MMYOLO 0.6 and MMDetection 3.3, `models/`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from boxwright.nets import OpenmmlabConfig
from boxwright.nets.blocks import (
    Act,
    Bottleneck,
    Chain,
    Csp,
    Plain,
    PoolPyramid,
    Split,
    Unit,
    Upsample,
    act_from_name,
    any_unit,
    chain,
)
from boxwright.nets.heads import AnchorDecode, ExpDecode, Maps, Net, PointDecode, expected_distances
from boxwright.nets.pyramid import Body, Parts, Pyramid, Stages
from boxwright.nets.weights import Weights

__all__ = ["build"]


def build(config: OpenmmlabConfig, w: Weights) -> Net:
    """Build a network around all of its weights.

    Raises:
        WeightsDifferError: They are not those of the configuration.
    """
    net = _BUILDERS[config.kind](config, w)
    w.check_all_taken()
    return net


def parts_of(config: OpenmmlabConfig, w: Weights) -> tuple[Weights, Weights, Weights]:
    """Return the weights of backbone, neck and head, each with the eps of its norms."""
    names = ("backbone", "neck", "bbox_head.head_module")
    found = [w.at(n, eps) for n, eps in zip(names, config.eps, strict=True)]
    return found[0], found[1], found[2]


def acts_of(config: OpenmmlabConfig) -> tuple[Act, Act, Act]:
    """Return the activations of backbone, neck and head."""
    found = [act_from_name(name, slope) for name, slope in config.acts]
    return found[0], found[1], found[2]


def csp(w: Weights, inputs: int, *, act: Act, shortcut: bool) -> Csp:
    """Return a CSP layer of 1x1-3x3 bottlenecks, or of CSPNeXt's 3x3-separable 5x5."""
    next_kind = (
        "blocks.0.conv2.depthwise_conv" in w
        and w.shape("blocks.0.conv2.depthwise_conv.conv.weight")[2] == 5
    )
    kernels = (3, 5) if next_kind else (1, 3)

    def block(part: Weights, channels: int) -> nn.Module:
        return Bottleneck(part, channels, act=act, kernels=kernels, shortcut=shortcut)

    return Csp(w, inputs, block, act=act)


def _stage_part(w: Weights, inputs: int, act: Act, shortcut: bool) -> nn.Module:
    """Return what a numbered place of a stage holds, by the names of its weights."""
    if "short_conv" in w:
        return csp(w, inputs, act=act, shortcut=shortcut)
    if "main_conv" in w:
        return Split(w, inputs, act=act, shortcut=shortcut)
    if "conv1" in w:
        return PoolPyramid(w, inputs, act=act)
    return any_unit(w, inputs, 3, 2, act)


def _stages(config: OpenmmlabConfig, w: Weights, stem: nn.Module, act: Act) -> Stages:
    """Return stages of a downsampling unit, a CSP layer and, in the last, a pooling pyramid."""
    stages: list[Chain] = []
    channels = stem.outputs
    total = sum(f"stage{i}" in w for i in range(1, 8))
    for index in range(1, total + 1):
        part = w.at(f"stage{index}")
        blocks: list[nn.Module] = []
        for place in range(part.count()):
            # In YOLOX and RTMDet the last CSP layer follows the pooling and adds nothing.
            shortcut = not any(isinstance(b, PoolPyramid) for b in blocks)
            here = part.at(str(place))
            blocks.append(_stage_part(here, channels, act, shortcut))
            channels = blocks[-1].outputs
        stages.append(Chain(blocks, channels))
    return Stages(stem, stages, len(config.strides))


class Focus(nn.Module):
    """Every 2x2 block of pixels becomes 4 times the channels, then a 3x3 unit."""

    def __init__(self, w: Weights, act: Act) -> None:
        super().__init__()
        self.unit = Unit(w.at("conv"), 12, 3, act=act)
        self.outputs = self.unit.outputs

    def forward(self, images: Tensor) -> Tensor:
        corners = ((0, 0), (1, 0), (0, 1), (1, 1))  # (row, column): the order of the weights
        return self.unit(torch.cat([images[..., y::2, x::2] for y, x in corners], dim=1))


def _csp_parts(act: Act, lateral: Callable[[Weights, int], nn.Module]) -> Parts:
    def join(w: Weights, inputs: int) -> nn.Module:
        if "0" not in w:
            return csp(w, inputs, act=act, shortcut=False)
        inner = csp(w.at("0"), inputs, act=act, shortcut=False)
        return Chain([inner, Unit(w.at("1"), inner.outputs, 1, act=act)], inputs)

    def out(w: Weights, inputs: int) -> nn.Module:
        side = w.shape("conv.weight")[2]
        return Unit(w, inputs, side, act=act)

    return Parts(
        reduce=lateral,
        up=lambda w, inputs: Upsample(None, inputs, act),
        join=join,
        down=lambda w, inputs: any_unit(w, inputs, 3, 2, act),
        bottom=lambda w, inputs: csp(w, inputs, act=act, shortcut=False),
        out=out,
    )


# YOLOv5 and YOLOv7: one convolution per level


class AnchorHead(nn.Module):
    """A 1x1 convolution per level; implicit knowledge around it is folded (YOLOR)."""

    def __init__(self, w: Weights, widths: tuple[int, ...], class_count: int, anchors: int) -> None:
        super().__init__()
        self.count, self.channels = anchors, 5 + class_count
        self.layers = nn.ModuleList(
            implicit_conv(w.at(f"convs_pred.{i}"), width, anchors * self.channels)
            for i, width in enumerate(widths)
        )

    def forward(self, features: list[Tensor]) -> Maps:
        raw, maps = [], Maps(cls_score=[], bbox_pred=[], objectness=[])
        for layer, x in zip(self.layers, features, strict=True):
            y = layer(x)
            height, width = int(y.shape[2]), int(y.shape[3])
            level = y.reshape(-1, self.count, self.channels, height, width)
            maps["bbox_pred"].append(level[:, :, :4].flatten(1, 2))
            maps["objectness"].append(level[:, :, 4])
            maps["cls_score"].append(level[:, :, 5:].flatten(1, 2))
            raw.append(level.permute(0, 1, 3, 4, 2))
        return {"raw": raw, **maps}


class Implicit(nn.Module):
    """YOLOR's implicit knowledge around a convolution: added before it, multiplied behind it."""

    def __init__(self, conv: Plain, added: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.conv, self.outputs = conv, conv.outputs
        self.added, self.factor = nn.Parameter(added.clone()), nn.Parameter(factor.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x + self.added) * self.factor


def implicit_conv(
    w: Weights, inputs: int, outputs: int, names: tuple[str, str, str] = ("0", "1", "2")
) -> nn.Module:
    """Return the convolution, with its implicit layers folded into it where `w` is fused.

    W' = m W, b' = m (b + W a) (arXiv:2105.04206).
    """
    if names[0] not in w:
        return Plain(w, inputs, outputs=outputs)
    conv = Plain(w.at(names[1]), inputs, outputs=outputs)
    added = w.take(f"{names[0]}.implicit", (1, inputs, 1, 1))
    factor = w.take(f"{names[2]}.implicit", (1, outputs, 1, 1))
    if not w.fused:
        return Implicit(conv, added, factor)
    fold_implicit(conv, added, factor)
    return conv


def fold_implicit(conv: Plain, added: Tensor, factor: Tensor) -> None:
    """Fold implicit layers into a convolution, in float64."""
    layer, m = conv.conv, factor.double().flatten()
    weight = layer.weight.data.double()
    shift = (weight.flatten(1) @ added.double().flatten()) + layer.bias.data.double()
    layer.weight.data.copy_(weight * m.reshape(-1, 1, 1, 1))
    layer.bias.data.copy_(shift * m)


def _anchored(config: OpenmmlabConfig, w: Weights, body: nn.Module) -> Net:
    anchors = torch.tensor(config.anchors)
    head = AnchorHead(w, body.neck.widths, config.class_count, anchors.shape[1])
    return Net(body, head, AnchorDecode(config.strides, anchors, anchor_last=True))


def _yolov5(config: OpenmmlabConfig, w: Weights) -> Net:
    back, neck, head = parts_of(config, w)
    act, neck_act, _ = acts_of(config)
    stem = Unit(back.at("stem"), 3, 6, 2, act=act, padding=2)
    backbone = _stages(config, back, stem, act)
    parts = _csp_parts(neck_act, lambda p, inputs: Unit(p, inputs, 1, act=neck_act))
    body = Body(backbone, Pyramid(neck, backbone.widths, parts))
    return _anchored(config, head, body)


# YOLOv8


class BranchHead(nn.Module):
    """Per level one chain of units and a 1x1 convolution for the classes, one for the boxes."""

    def __init__(self, w: Weights, widths: tuple[int, ...], act: Act, class_count: int) -> None:
        super().__init__()

        def branch(part: Weights, inputs: int, outputs: int | None) -> nn.Module:
            units = [Unit(part.at("0"), inputs, 3, act=act)]
            units.append(Unit(part.at("1"), units[0].outputs, 3, act=act))
            last = Plain(part.at("2"), units[1].outputs, outputs=outputs)
            return Chain([*units, last], inputs)

        self.classes = nn.ModuleList(
            branch(w.at(f"cls_preds.{i}"), n, class_count) for i, n in enumerate(widths)
        )
        self.boxes = nn.ModuleList(
            branch(w.at(f"reg_preds.{i}"), n, None) for i, n in enumerate(widths)
        )

    def forward(self, features: list[Tensor]) -> Maps:
        classes = [b(x) for b, x in zip(self.classes, features, strict=True)]
        return with_distances(classes, [b(x) for b, x in zip(self.boxes, features, strict=True)])


def with_distances(classes: list[Tensor], boxes: list[Tensor]) -> Maps:
    """Return the maps of a head whose boxes are distances, or their spreads (DFL)."""
    if int(boxes[0].shape[1]) == 4:
        return {"cls_score": classes, "bbox_pred": boxes}
    return {
        "cls_score": classes,
        "bbox_pred": [expected_distances(b) for b in boxes],
        "bbox_dist_logits": boxes,
    }


def _yolov8(config: OpenmmlabConfig, w: Weights) -> Net:
    back, neck, head = parts_of(config, w)
    act, neck_act, head_act = acts_of(config)
    backbone = _stages(config, back, Unit(back.at("stem"), 3, 3, 2, act=act), act)
    parts = Parts(
        reduce=lambda p, inputs: Unit(p, inputs, 1, act=neck_act),
        up=lambda p, inputs: Upsample(None, inputs, neck_act),
        join=lambda p, inputs: Split(p, inputs, act=neck_act, shortcut=False),
        down=lambda p, inputs: Unit(p, inputs, 3, 2, act=neck_act),
        bottom=lambda p, inputs: Split(p, inputs, act=neck_act, shortcut=False),
        out=lambda p, inputs: Unit(p, inputs, 1, act=neck_act),
    )
    body = Body(backbone, Pyramid(neck, backbone.widths, parts))
    branches = BranchHead(head, body.neck.widths, head_act, config.class_count)
    return Net(body, branches, PointDecode(config.strides))


# YOLOX and RTMDet: convolutions, then one 1x1 per output


class TowerHead(nn.Module):
    """Two towers of 3x3 units per level; the boxes and the objectness share one."""

    def __init__(
        self,
        w: Weights,
        widths: tuple[int, ...],
        act: Act,
        towers: tuple[str, str],
        outputs: dict[str, tuple[str, int]],
    ) -> None:
        super().__init__()

        def tower(part: Weights, inputs: int) -> Chain:
            return chain(part, inputs, lambda p, n: any_unit(p, n, 3, 1, act))

        self.classes = nn.ModuleList(
            tower(w.at(f"{towers[0]}.{i}"), n) for i, n in enumerate(widths)
        )
        self.boxes = nn.ModuleList(tower(w.at(f"{towers[1]}.{i}"), n) for i, n in enumerate(widths))
        self.last = nn.ModuleDict()
        for name, (place, channels) in outputs.items():
            rows = self.classes if name == "cls_score" else self.boxes
            self.last[name] = nn.ModuleList(
                Plain(w.at(f"{place}.{i}"), r.outputs, outputs=channels) for i, r in enumerate(rows)
            )

    def forward(self, features: list[Tensor]) -> Maps:
        classes = [t(x) for t, x in zip(self.classes, features, strict=True)]
        boxes = [t(x) for t, x in zip(self.boxes, features, strict=True)]
        return {
            name: [
                p(x) for p, x in zip(layers, classes if name == "cls_score" else boxes, strict=True)
            ]
            for name, layers in self.last.items()
        }


def _yolox(config: OpenmmlabConfig, w: Weights) -> Net:
    back, neck, head = parts_of(config, w)
    act, neck_act, head_act = acts_of(config)
    backbone = _stages(config, back, Focus(back.at("stem"), act), act)
    parts = _csp_parts(neck_act, lambda p, inputs: Unit(p, inputs, 1, act=neck_act))
    body = Body(backbone, Pyramid(neck, backbone.widths, parts))
    outputs = {
        "cls_score": ("multi_level_conv_cls", config.class_count),
        "bbox_pred": ("multi_level_conv_reg", 4),
        "objectness": ("multi_level_conv_obj", 1),
    }
    names = ("multi_level_cls_convs", "multi_level_reg_convs")
    towers = TowerHead(head, body.neck.widths, head_act, names, outputs)
    return Net(body, towers, ExpDecode(("bbox_pred", "objectness", "cls_score")))


class PixelDistances(nn.Module):
    """MMDetection's RTMDet gives distances in pixels, after exp where its configuration asks."""

    def __init__(self, head: nn.Module, strides: tuple[int, ...], exp: bool) -> None:
        super().__init__()
        self.head, self.strides, self.exp = head, strides, exp

    def forward(self, features: list[Tensor]) -> Maps:
        maps: Maps = self.head(features)
        maps["bbox_pred"] = [
            (m.exp() if self.exp else m) * s
            for m, s in zip(maps["bbox_pred"], self.strides, strict=True)
        ]
        return maps


def _rtmdet(config: OpenmmlabConfig, w: Weights) -> Net:
    back, neck, head = parts_of(config, w)
    act, neck_act, head_act = acts_of(config)
    strides = (2, 1, 1)

    stem_units: list[nn.Module] = []
    channels = 3
    for index, stride in enumerate(strides):
        stem_units.append(Unit(back.at(f"stem.{index}"), channels, 3, stride, act=act))
        channels = stem_units[-1].outputs
    backbone = _stages(config, back, Chain(stem_units, 3), act)
    parts = _csp_parts(neck_act, lambda p, inputs: Unit(p, inputs, 1, act=neck_act))
    body = Body(backbone, Pyramid(neck, backbone.widths, parts))
    outputs = {"cls_score": ("rtm_cls", config.class_count), "bbox_pred": ("rtm_reg", 4)}
    towers: nn.Module = TowerHead(
        head, body.neck.widths, head_act, ("cls_convs", "reg_convs"), outputs
    )
    if config.project == "mmdet":
        towers = PixelDistances(towers, config.strides, config.exp_on_reg)
    in_pixels = config.project == "mmdet"
    return Net(body, towers, PointDecode(config.strides, offset=0.0, in_pixels=in_pixels))


def _elsewhere(kind: str) -> Callable[[OpenmmlabConfig, Weights], Net]:
    def builder(config: OpenmmlabConfig, w: Weights) -> Net:
        net: Net = importlib.import_module(f"boxwright.nets.openmmlab_{kind}").build(config, w)
        return net

    return builder


_BUILDERS: dict[str, Callable[[OpenmmlabConfig, Weights], Net]] = {
    "yolov5": _yolov5,
    "yolov6": _elsewhere("yolov6"),
    "yolov7": _elsewhere("yolov7"),
    "yolov8": _yolov8,
    "yolox": _yolox,
    "ppyoloe": _elsewhere("ppyoloe"),
    "rtmdet": _rtmdet,
}
