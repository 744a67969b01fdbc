"""Heads: what a network's feature maps say, raw and decoded, and the network around them.

A `Net` returns one tensor, (B, A, channels), as its `HeadLayout` says; `maps` gives the raw outputs
of every level by the names of the project. The formulas are those of the projects; A cells run
level by level, row by row, and anchors come where the project puts them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["AnchorDecode", "ExpDecode", "Maps", "Net", "PointDecode", "expected_distances"]

Maps = dict[str, list[Tensor]]


def _cells(levels: Sequence[Tensor]) -> list[tuple[Tensor, int, int]]:
    """Return (height * width, 2) integer x, y of every level, with its height and width."""
    found = []
    for level in levels:
        height, width = int(level.shape[-2]), int(level.shape[-1])
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        cells = torch.stack((x, y), dim=-1).reshape(-1, 2).to(level)
        found.append((cells, height, width))
    return found


def _rows(levels: Sequence[Tensor]) -> Tensor:
    """Join maps (B, C, h, w) to (B, cells, C)."""
    return torch.cat([m.flatten(2).transpose(1, 2) for m in levels], dim=1)


def expected_distances(logits: Tensor) -> Tensor:
    """Return (B, 4, h, w) distances from (B, 4 * bins, h, w) logits (DFL, arXiv:2006.04388)."""
    batch, channels, height, width = (int(s) if i else s for i, s in enumerate(logits.shape))
    bins = channels // 4
    spread = logits.reshape(batch, 4, bins, height * width).softmax(dim=2)
    steps = torch.arange(bins).to(logits).reshape(1, 1, bins, 1)
    return (spread * steps).sum(dim=2).reshape(batch, 4, height, width)


class PointDecode(nn.Module):
    """Distances left, top, right, bottom from a point of each cell; scores after the sigmoid.

    Args:
        strides: Of the levels.
        offset: Where in its cell the point is: 0.5 the centre, 0 the corner.
        names: Of the class maps and of the distance maps.
        in_pixels: The distances are pixels already, not strides.
    """

    def __init__(
        self,
        strides: Sequence[int],
        *,
        offset: float = 0.5,
        names: tuple[str, str] = ("cls_score", "bbox_pred"),
        in_pixels: bool = False,
    ) -> None:
        super().__init__()
        self.strides, self.offset, self.names = tuple(strides), offset, names
        self.in_pixels = in_pixels

    def forward(self, maps: Maps) -> Tensor:
        """Return (B, A, 4 + classes): x1, y1, x2, y2 in pixels, scores."""
        scores, distances = (maps[n] for n in self.names)
        boxes = []
        for (cells, _, _), stride, level in zip(
            _cells(distances), self.strides, distances, strict=True
        ):
            reach = _rows([level]) * (1 if self.in_pixels else stride)
            point = (cells + self.offset) * stride
            boxes.append(torch.cat((point - reach[..., :2], point + reach[..., 2:]), dim=-1))
        return torch.cat((torch.cat(boxes, dim=1), _rows(scores).sigmoid()), dim=-1)


class ExpDecode(nn.Module):
    """YOLOX: box values as they are, then objectness and scores after the sigmoid."""

    def __init__(self, names: tuple[str, str, str]) -> None:
        super().__init__()
        self.names = names

    def forward(self, maps: Maps) -> Tensor:
        """Return (B, A, 5 + classes); see `HeadLayout.box_encoding` `grid_exp`."""
        boxes, objectness, scores = (_rows(maps[n]) for n in self.names)
        return torch.cat((boxes, objectness.sigmoid(), scores.sigmoid()), dim=-1)


class AnchorDecode(nn.Module):
    """Anchors: centre = (2 s - 0.5 + cell) * stride, size = (2 s)^2 * anchor, s after the sigmoid.

    Args:
        strides: Of the levels.
        anchors: (levels, anchors, 2) width and height in pixels.
        anchor_last: A cell's anchors stand together (MMYOLO), not a level's cells of one anchor.
        objectness_only: The class scores count as 1 (YOLOv7 with a single class).
    """

    def __init__(
        self,
        strides: Sequence[int],
        anchors: Tensor,
        *,
        anchor_last: bool = False,
        objectness_only: bool = False,
    ) -> None:
        super().__init__()
        self.strides, self.anchor_last = tuple(strides), anchor_last
        self.objectness_only = objectness_only
        self.register_buffer("anchors", anchors.float())

    def forward(self, maps: Maps) -> Tensor:
        """Return (B, A, 5 + classes): cx, cy, w, h in pixels, objectness, scores.

        Takes `raw` maps of (B, anchors, h, w, 5 + classes).
        """
        levels = []
        for index, raw in enumerate(maps["raw"]):
            count, height, width, channels = (int(s) for s in raw.shape[1:])
            cells = _cells([raw[..., 0]])[0][0].reshape(1, 1, height, width, 2)
            value = raw.sigmoid()
            centre = (value[..., :2] * 2 - 0.5 + cells) * self.strides[index]
            size = (value[..., 2:4] * 2) ** 2 * self.anchors[index].reshape(1, count, 1, 1, 2)
            rest = value[..., 4:]
            if self.objectness_only:
                rest = torch.cat((rest[..., :1], torch.ones_like(rest[..., 1:])), dim=-1)
            level = torch.cat((centre, size, rest), dim=-1)
            if self.anchor_last:
                level = level.permute(0, 2, 3, 1, 4)
            levels.append(level.reshape(-1, count * height * width, channels))
        return torch.cat(levels, dim=1)


class Net(nn.Module):
    """Features, head and decode in one.

    Args:
        body: From images to the maps of every level.
        head: From those to `Maps`.
        decode: From `Maps` to (B, A, channels).
    """

    def __init__(self, body: nn.Module, head: nn.Module, decode: nn.Module) -> None:
        super().__init__()
        self.body, self.head, self.decode = body, head, decode

    def maps(self, images: Tensor) -> Maps:
        """Return the raw outputs by name, one per level."""
        maps: Maps = self.head(self.body(images))
        return maps

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.maps(images))
