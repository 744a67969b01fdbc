"""The pyramid of MMYOLO's necks: coarse maps flow up to the fine ones, then back down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from boxwright.nets.blocks import Block, Chain
from boxwright.nets.weights import Weights

__all__ = ["Body", "Parts", "Pyramid", "Stages"]


class Same(nn.Module):
    """Nothing; it tells its channels as other blocks do."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.outputs = channels

    def forward(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True, slots=True)
class Parts:
    """How a family makes the parts of its neck; each takes the weights of its place.

    Attributes:
        reduce: Of one backbone map; None keeps it. Used where the weights have the place.
        up: From a coarse map to twice its size.
        join: Of a top-down step, over the concatenated maps.
        down: From a fine map to half its size.
        bottom: Of a bottom-up step.
        out: Of one result.
        lateral_first: The backbone's map comes first in the top-down concatenation.
        fuse: Makes a block of (coarse, same, finer) in place of `up` and the concatenation.
    """

    reduce: Block
    up: Block
    join: Block
    down: Block
    bottom: Block
    out: Block
    lateral_first: bool = False
    fuse: Callable[[Weights, int, int, int], nn.Module] | None = None


def _maybe(w: Weights, name: str, channels: int, block: Block) -> nn.Module:
    return block(w.at(name), channels) if name in w else Same(channels)


class Pyramid(nn.Module):
    """The neck over the backbone's maps, fine to coarse.

    Args:
        w: With `reduce_layers`, `upsample_layers`, `top_down_layers`, `downsample_layers`,
            `bottom_up_layers` and `out_layers`, numbered.
        widths: Channels of the maps; one more than levels where `fuse` needs a finer one.
        parts: The family's.
    """

    def __init__(self, w: Weights, widths: Sequence[int], parts: Parts) -> None:
        super().__init__()
        self.extra = 1 if parts.fuse else 0
        self.lateral_first = parts.lateral_first
        levels = len(widths) - self.extra
        self.reduce = nn.ModuleList(
            _maybe(w, f"reduce_layers.{i}", widths[i + self.extra], parts.reduce)
            for i in range(levels)
        )
        lateral = [r.outputs for r in self.reduce]
        inner = [lateral[-1]]
        self.up, self.join = nn.ModuleList(), nn.ModuleList()
        for step in range(levels - 1):
            level = levels - 2 - step
            place = w.at(f"upsample_layers.{step}")
            if parts.fuse:
                finer = lateral[level - 1] if level else widths[0]
                self.up.append(parts.fuse(place, inner[0], lateral[level], finer))
                joined = self.up[-1].outputs
            else:
                self.up.append(parts.up(place, inner[0]))
                joined = self.up[-1].outputs + lateral[level]
            self.join.append(parts.join(w.at(f"top_down_layers.{step}"), joined))
            inner.insert(0, self.join[-1].outputs)
        outs = [inner[0]]
        self.down, self.bottom = nn.ModuleList(), nn.ModuleList()
        for step in range(levels - 1):
            self.down.append(parts.down(w.at(f"downsample_layers.{step}"), outs[-1]))
            joined = self.down[-1].outputs + inner[step + 1]
            self.bottom.append(parts.bottom(w.at(f"bottom_up_layers.{step}"), joined))
            outs.append(self.bottom[-1].outputs)
        self.out = nn.ModuleList(
            _maybe(w, f"out_layers.{i}", outs[i], parts.out) for i in range(levels)
        )
        self.widths = tuple(o.outputs for o in self.out)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        finer, used = maps[: self.extra], maps[self.extra :]
        lateral = [r(m) for r, m in zip(self.reduce, used, strict=True)]
        inner = [lateral[-1]]
        for step, (up, join) in enumerate(zip(self.up, self.join, strict=True)):
            level = len(lateral) - 2 - step
            if self.extra:
                below = lateral[level - 1] if level else finer[0]
                joined = up(inner[0], lateral[level], below)
            else:
                pair = [up(inner[0]), lateral[level]]
                joined = torch.cat(pair[::-1] if self.lateral_first else pair, dim=1)
            inner.insert(0, join(joined))
        outs = [inner[0]]
        for step, (down, bottom) in enumerate(zip(self.down, self.bottom, strict=True)):
            outs.append(bottom(torch.cat((down(outs[-1]), inner[step + 1]), dim=1)))
        return [o(m) for o, m in zip(self.out, outs, strict=True)]


class Stages(nn.Module):
    """A backbone of numbered stages; the maps of the last `count` of them come out."""

    def __init__(self, stem: nn.Module, stages: Sequence[Chain], count: int) -> None:
        super().__init__()
        self.stem, self.stages, self.count = stem, nn.ModuleList(stages), count
        self.widths = tuple(s.outputs for s in stages[-count:])

    def forward(self, images: Tensor) -> list[Tensor]:
        x, maps = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[-self.count :]


class Body(nn.Module):
    """Backbone and neck."""

    def __init__(self, backbone: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.neck(self.backbone(images))
        return maps
