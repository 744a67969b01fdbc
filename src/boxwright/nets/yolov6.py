"""Meituan's YOLOv6 N, S, M, L, their P6 and MBLA forms, each built around its weights.

Source: meituan YOLOv6 0.4, `models/` and `layers/common.py`; arXiv:2209.02976, 2301.05586.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from boxwright.nets.blocks import Act, Chain, PoolPyramid, Unit
from boxwright.nets.heads import Maps, Net, PointDecode
from boxwright.nets.openmmlab_yolov6 import StemHead
from boxwright.nets.rep_blocks import (
    BiFusion,
    CspPyramid,
    RepCsp,
    ScaledBottle,
    rep_or_unit,
    rep_stack,
)
from boxwright.nets.weights import Weights

__all__ = ["build"]

_SEVEN = tuple(f"cv{i}" for i in range(1, 8))
_TRAINING_ONLY = ("proj", "proj_conv", "cls_preds_ab", "reg_preds_ab", "reg_preds_dist")


class Mbla(nn.Module):
    """MBLA: a 1x1 unit in parts; each part but the first passes its own number of bottles."""

    def __init__(self, w: Weights, inputs: int, act: Act) -> None:
        super().__init__()
        self.first = Unit(w.at("cv1"), inputs, 1, act=act)
        branches = w.count("m")
        width = self.first.outputs // (branches + 1)
        built = []
        for index in range(branches):
            part = w.at(f"m.{index}")
            bottles = [ScaledBottle(part.at(str(i)), width, act) for i in range(part.count())]
            built.append(nn.ModuleList(bottles))
        self.branches = nn.ModuleList(built)
        joined = (branches + 1 + sum(len(b) for b in built)) * width
        self.final = Unit(w.at("cv2"), joined, 1, act=act)
        self.outputs = self.final.outputs

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(len(self.branches) + 1, dim=1))
        joined = [parts[0]]
        for part, bottles in zip(parts[1:], self.branches, strict=True):
            joined.append(part)
            for bottle in bottles:
                joined.append(bottle(joined[-1]))
        return self.final(torch.cat(joined, dim=1))


def _block(w: Weights, inputs: int) -> nn.Module:
    """Return a stage's block; the file says which activation each unit has."""
    if "cv3" in w:
        return RepCsp(w, inputs, act=nn.ReLU, names=("cv1", "cv2", "cv3", "m"))
    if "cv1" in w:
        return Mbla(w, inputs, nn.SiLU)
    return rep_stack(w, inputs, act=nn.ReLU)


def _pooling(w: Weights, inputs: int) -> nn.Module:
    if "cspsppf" in w:
        return CspPyramid(w.at("cspsppf"), inputs, act=nn.ReLU, names=_SEVEN)
    inner = w.at("sppf") if "sppf" in w else w
    if "cv7" in inner:
        return CspPyramid(inner, inputs, act=nn.ReLU, names=_SEVEN)
    return PoolPyramid(inner, inputs, act=nn.ReLU, names=("cv1", "cv2"))


class Backbone(nn.Module):
    """A stem and stages 2, 3, 4, 5 (, 6), each half the size of the one before."""

    def __init__(self, w: Weights) -> None:
        super().__init__()
        self.stem = rep_or_unit(w.at("stem"), 3, 2, nn.ReLU)
        stages: list[Chain] = []
        channels = self.stem.outputs
        while f"ERBlock_{len(stages) + 2}" in w:
            part = w.at(f"ERBlock_{len(stages) + 2}")
            blocks: list[nn.Module] = [rep_or_unit(part.at("0"), channels, 2, nn.ReLU)]
            blocks.append(_block(part.at("1"), blocks[-1].outputs))
            if "2" in part:
                blocks.append(_pooling(part.at("2"), blocks[-1].outputs))
            stages.append(Chain(blocks, channels))
            channels = blocks[-1].outputs
        if len(stages) < 4:
            w.shape(f"ERBlock_{len(stages) + 2}.0.rbr_dense.conv.weight")  # raises: not there
        self.stages = nn.ModuleList(stages)
        self.widths = tuple(s.outputs for s in stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        x, maps = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Neck(nn.Module):
    """BiFPAN: coarse maps flow up by fusions with the maps around them, then back down."""

    def __init__(self, w: Weights, widths: tuple[int, ...]) -> None:
        super().__init__()
        steps = len(widths) - 2  # the finest map only helps
        top = steps + 2
        self.reduce, self.fuse, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels, inner = widths[-1], []
        for step in range(steps):
            reduce = Unit(w.at(f"reduce_layer{step}"), channels, 1, act=nn.ReLU)
            inner.append(reduce.outputs)
            level = len(widths) - 2 - step
            fuse = BiFusion(
                w.at(f"Bifusion{step}"),
                reduce.outputs,
                widths[level],
                widths[level - 1],
                act=nn.ReLU,
                names=("cv1", "cv2", "cv3", "upsample.upsample_transpose", "downsample"),
            )
            block = _block(w.at(f"Rep_p{top - step}"), fuse.outputs)
            channels = block.outputs
            for rows, made in zip(
                (self.reduce, self.fuse, self.up), (reduce, fuse, block), strict=True
            ):
                rows.append(made)
        self.halve, self.down = nn.ModuleList(), nn.ModuleList()
        outs = [channels]
        for step in range(steps):
            halve = Unit(w.at(f"downsample{2 - step}"), outs[-1], 3, 2, act=nn.ReLU)
            joined = halve.outputs + inner[-1 - step]
            self.halve.append(halve)
            self.down.append(_block(w.at(f"Rep_n{top - 1 + step}"), joined))
            outs.append(self.down[-1].outputs)
        self.widths = tuple(outs)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        x, inner = maps[-1], []
        upward = zip(self.reduce, self.fuse, self.up, strict=True)
        for step, (reduce, fuse, block) in enumerate(upward):
            level = len(maps) - 2 - step
            inner.append(reduce(x))
            x = block(fuse(inner[-1], maps[level], maps[level - 1]))
        outs = [x]
        for step, (halve, block) in enumerate(zip(self.halve, self.down, strict=True)):
            outs.append(block(torch.cat((halve(outs[-1]), inner[-1 - step]), dim=1)))
        return outs


class Renamed(nn.Module):
    """The head's maps by this project's names."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: list[Tensor]) -> Maps:
        maps = self.head(features)
        raw = maps.get("bbox_dist_logits", maps["bbox_pred"])
        return {"cls": maps["cls_score"], "reg": raw, "distances": maps["bbox_pred"]}


class Body(nn.Module):
    """Backbone and neck."""

    def __init__(self, backbone: Backbone, neck: Neck) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.neck(self.backbone(images))
        return maps


def build(w: Weights, class_count: int) -> Net:
    """Build the network around all of its weights.

    Raises:
        WeightsDifferError: They are not those of a YOLOv6.
    """
    backbone = Backbone(w.at("backbone"))
    body = Body(backbone, Neck(w.at("neck"), backbone.widths))
    head = w.at("detect")
    for name in _TRAINING_ONLY:
        head.pass_over(name)
    widths = body.neck.widths
    branches = StemHead(head, widths, nn.SiLU, class_count, block="block")
    strides = tuple(8 * 2**i for i in range(len(widths)))
    decode = PointDecode(strides, names=("cls", "distances"))
    w.check_all_taken()
    return Net(body, Renamed(branches), decode)
