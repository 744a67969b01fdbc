"""Polygons to pixels in whole numbers: anti-aliased, and the same on every machine.

Drawing libraries change their rounding between versions; a page must not. The coverage of a pixel
is its exact area under each of a few sample rows: the accumulation of signed areas that FreeType's
and font-rs' rasterisers are known for, written with NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from boxwright.types import Image

__all__ = ["FULL", "Canvas", "Color", "Polygon", "Window", "coverage_of", "extent_of"]

Polygon = npt.NDArray[np.float64]  # (N, 2) x, y in pixels
Color = tuple[int, int, int]  # blue, green, red, 0..255
FULL = 256  # coverage of a pixel that lies inside
_UNIT = 64  # steps in a pixel


@dataclass(frozen=True, slots=True)
class Window:
    """A part of the canvas and how far a shape covers each of its pixels.

    Attributes:
        x, y: Of its first pixel.
        coverage: (height, width) uint16, 0 to `FULL`.
    """

    x: int
    y: int
    coverage: npt.NDArray[np.uint16]

    @property
    def slices(self) -> tuple[slice, slice]:
        """Where it lies in an image."""
        height, width = self.coverage.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)


def extent_of(polygons: Sequence[Polygon]) -> tuple[float, float, float, float]:
    """Return x1, y1, x2, y2 of what polygons cover, in pixels, on the rasteriser's own grid.

    >>> extent_of([np.array([[0.5, 1.0], [2.0, 1.0], [2.0, 3.25]])])
    (0.5, 1.0, 2.0, 3.25)
    """
    points = _quantised(np.concatenate(polygons))
    low, high = points.min(0) / _UNIT, points.max(0) / _UNIT
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _quantised(points: Polygon) -> npt.NDArray[np.int64]:
    return np.floor(points * _UNIT + 0.5).astype(np.int64)


def coverage_of(
    polygons: Sequence[Polygon],
    size: tuple[int, int],
    *,
    within: Window | None = None,
    sample_rows: int = 4,
) -> Window | None:
    """Return how far polygons cover the pixels of a canvas; None when they cover none.

    Polygons that run the same way round unite where they overlap; one that runs the other way
    round inside another cuts a hole (the non-zero rule).

    Args:
        polygons: Closed outlines.
        size: (height, width) of the canvas.
        within: Only this window's pixels are wanted.
        sample_rows: Rows sampled in a pixel: 4, 8 or 16.
    """
    polygons = [p for p in polygons if len(p) >= 3]
    if not polygons:
        return None
    start = _quantised(np.concatenate(polygons))
    left, top, right, bottom = _bounds(start, size, within)
    if right <= left or bottom <= top:
        return None
    counts = np.array([len(p) for p in polygons])
    ends = np.cumsum(counts)
    following = np.arange(1, len(start) + 1)
    following[ends - 1] = ends - counts
    start = start - np.array([left, top]) * _UNIT
    edges = np.concatenate([start, start[following]], axis=1)
    # Sample row k lies at height k * step + step / 2; an edge crosses those from first to last.
    step = _UNIT // sample_rows
    rows, columns = (bottom - top) * sample_rows, right - left
    sign = np.where(edges[:, 3] > edges[:, 1], 1, -1)
    x0, y0, x1, y1 = np.where((sign == 1)[:, None], edges, edges[:, [2, 3, 0, 1]]).T
    first = np.clip(-(-(y0 - step // 2) // step), 0, rows)
    last = np.clip(-(-(y1 - step // 2) // step), 0, rows)
    crossed = last - first
    edge = np.repeat(np.arange(len(edges)), crossed)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(crossed) - crossed, crossed)
    y = row * step + step // 2
    x = x0[edge] + (x1 - x0)[edge] * (y - y0[edge]) // (y1 - y0)[edge]
    x = np.clip(x, 0, columns * _UNIT)
    part = x % _UNIT
    cell = (row // sample_rows) * (columns + 2) + x // _UNIT
    # Sums of small whole numbers in float64 are exact, in any order.
    delta = np.bincount(
        np.concatenate([cell, cell + 1]),
        np.concatenate([sign[edge] * (_UNIT - part), sign[edge] * part]),
        (bottom - top) * (columns + 2),
    )
    area = delta.astype(np.int32).reshape(-1, columns + 2)
    np.cumsum(area, axis=1, out=area)
    np.abs(area, out=area)
    full = _UNIT * sample_rows
    np.minimum(area, full, out=area)
    covered = area[:, :columns].astype(np.uint16)
    if full != FULL:
        covered //= full // FULL
    return Window(left, top, covered)


def _bounds(
    points: npt.NDArray[np.int64], size: tuple[int, int], within: Window | None
) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of the pixels that points can touch."""
    left, top = (max(int(v), 0) for v in points.min(0) // _UNIT)
    right, bottom = (
        min(int(v), side) for v, side in zip(-(-points.max(0) // _UNIT), size[::-1], strict=True)
    )
    if within is not None:
        height, width = within.coverage.shape
        left, top = max(left, within.x), max(top, within.y)
        right, bottom = min(right, within.x + width), min(bottom, within.y + height)
    return left, top, right, bottom


@dataclass(slots=True)
class Canvas:
    """A picture that is drawn on.

    Attributes:
        pixels: (H, W, 3) uint8 BGR.
        lettering: (H, W) uint8: 255 where text was drawn last; None when nobody asked for it.
    """

    pixels: Image
    lettering: npt.NDArray[np.uint8] | None = field(default=None)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def fill(
        self,
        polygons: Sequence[Polygon],
        color: Color,
        *,
        opacity: int = FULL,
        clip: Window | None = None,
        text: bool = False,
        sample_rows: int = 4,
    ) -> None:
        """Paint polygons.

        Args:
            polygons: Closed outlines in pixels.
            color: Of the paint.
            opacity: 0 to `FULL`.
            clip: Paint only where this covers.
            text: It is lettering; otherwise it hides lettering that lies below.
            sample_rows: As in `coverage_of`.
        """
        window = coverage_of(polygons, self.size, within=clip, sample_rows=sample_rows)
        if window is not None:
            self.stamp(window, color, opacity=opacity, clip=clip, text=text)

    def stamp(
        self,
        window: Window,
        color: Color,
        *,
        opacity: int = FULL,
        clip: Window | None = None,
        text: bool = False,
    ) -> None:
        """Paint where a window covers."""
        if clip is not None:
            cut = _overlap(window, clip)
            if cut is None:
                return
            window = cut
        weight = window.coverage
        if opacity != FULL:
            weight = (weight.astype(np.uint32) * opacity // FULL).astype(np.uint16)
        view = self.pixels[window.slices]
        covered = weight == FULL
        np.copyto(view, np.array(color, np.uint8), where=covered[..., None])
        edge = np.nonzero((weight != 0) & ~covered)
        view[edge] = _mixed(view[edge], color, weight[edge])
        if self.lettering is not None:
            if text:
                self.lettering[window.slices][weight > 0] = 255
            else:
                self.lettering[window.slices][weight > FULL // 2] = 0


def _mixed(below: Image, color: Color, weight: npt.NDArray[np.uint16]) -> Image:
    """Return pixels (N, 3) with paint over them, as much as `weight` (N,) says."""
    w = weight[:, None]  # 255 * 256 + 128 fits its 16 bits
    paint = np.array(color, np.uint16)
    return ((below * (FULL - w) + paint * w + FULL // 2) >> 8).astype(np.uint8)


def _overlap(window: Window, clip: Window) -> Window | None:
    """Return a window narrowed to another, coverage times coverage."""
    height, width = window.coverage.shape
    other_height, other_width = clip.coverage.shape
    x1, y1 = max(window.x, clip.x), max(window.y, clip.y)
    x2 = min(window.x + width, clip.x + other_width)
    y2 = min(window.y + height, clip.y + other_height)
    if x2 <= x1 or y2 <= y1:
        return None
    mine = window.coverage[y1 - window.y : y2 - window.y, x1 - window.x : x2 - window.x]
    theirs = clip.coverage[y1 - clip.y : y2 - clip.y, x1 - clip.x : x2 - clip.x]
    return Window(x1, y1, (mine.astype(np.uint32) * theirs // FULL).astype(np.uint16))
