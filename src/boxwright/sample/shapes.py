"""Outlines that pages are drawn from: strokes, ovals, balloons, curves. Pixels throughout."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from boxwright.sample.chance import Chance, cos_deg, sin_deg
from boxwright.sample.raster import Polygon

__all__ = [
    "Box",
    "bezier",
    "burst",
    "cloud",
    "frame",
    "oval",
    "polygon",
    "rectangle",
    "rounded",
    "stroke",
    "wobbly_line",
]

Box = tuple[float, float, float, float]  # x1, y1, x2, y2
Path = npt.NDArray[np.float64]  # (N, 2), open


def polygon(*points: tuple[float, float]) -> Polygon:
    """Return a polygon from its corners."""
    return np.array(points, np.float64)


def rectangle(box: Box) -> Polygon:
    """Return a box as a polygon."""
    x1, y1, x2, y2 = box
    return polygon((x1, y1), (x2, y1), (x2, y2), (x1, y2))


def frame(box: Box, width: float) -> list[Polygon]:
    """Return a box's border; half of it lies inside."""
    x1, y1, x2, y2 = box
    h = width / 2
    outer, inner = (
        rectangle((x1 - h, y1 - h, x2 + h, y2 + h)),
        rectangle((x1 + h, y1 + h, x2 - h, y2 - h)),
    )
    return [outer, inner[::-1]]


def oval(box: Box, corners: int = 40, square: float = 1.0) -> Polygon:
    """Return an ellipse; `square` under 1 swells it towards its box (a superellipse, 0.5..1)."""
    x1, y1, x2, y2 = box
    points = []
    for i in range(corners):
        angle = 360 * i / corners
        c, s = cos_deg(angle), sin_deg(angle)
        if square != 1.0:
            # |c|^k through square roots, which are the same on every machine; k is 1/2 at most.
            blend = (1 - square) * 2
            c = _blended(c, blend)
            s = _blended(s, blend)
        points.append(((x1 + x2) / 2 + (x2 - x1) / 2 * c, (y1 + y2) / 2 + (y2 - y1) / 2 * s))
    return np.array(points, np.float64)


def _blended(value: float, blend: float) -> float:
    root = float(np.sqrt(abs(value))) * (1 if value >= 0 else -1)
    return value * (1 - blend) + root * blend


def rounded(box: Box, radius: float) -> Polygon:
    """Return a box with round corners."""
    x1, y1, x2, y2 = box
    r = min(radius, (x2 - x1) / 2, (y2 - y1) / 2)
    points = []
    for cx, cy, start in (
        (x2 - r, y2 - r, 0),
        (x1 + r, y2 - r, 90),
        (x1 + r, y1 + r, 180),
        (x2 - r, y1 + r, 270),
    ):
        for angle in range(start, start + 91, 15):
            points.append((cx + r * cos_deg(angle), cy + r * sin_deg(angle)))
    return np.array(points, np.float64)


def burst(chance: Chance, box: Box, spikes: int, depth: float) -> Polygon:
    """Return a spiky outline whose notches touch the oval in the box and whose tips leave it."""
    x1, y1, x2, y2 = box
    points = []
    for i in range(spikes * 2):
        reach = 1.0 if i % 2 else 1.0 + depth * chance.between(0.5, 1.3)
        angle = 180 * i / spikes
        points.append(
            (
                (x1 + x2) / 2 + (x2 - x1) / 2 * reach * cos_deg(angle),
                (y1 + y2) / 2 + (y2 - y1) / 2 * reach * sin_deg(angle),
            )
        )
    return np.array(points, np.float64)


def cloud(box: Box, bumps: int) -> list[Polygon]:
    """Return overlapping circles round an oval: the outline of a thought."""
    x1, y1, x2, y2 = box
    inner = (
        x1 + (x2 - x1) * 0.08,
        y1 + (y2 - y1) * 0.08,
        x2 - (x2 - x1) * 0.08,
        y2 - (y2 - y1) * 0.08,
    )
    parts = [oval(inner)]
    radius = (x2 - x1 + y2 - y1) * 1.6 / 2 / bumps
    for i in range(bumps):
        angle = 360 * i / bumps
        cx = (x1 + x2) / 2 + ((x2 - x1) / 2 - radius * 0.6) * cos_deg(angle)
        cy = (y1 + y2) / 2 + ((y2 - y1) / 2 - radius * 0.6) * sin_deg(angle)
        parts.append(oval((cx - radius, cy - radius, cx + radius, cy + radius), 20))
    return parts


def bezier(points: Path, steps: int = 12) -> Path:
    """Return a cubic Bézier curve through 4 control points as a path of `steps` + 1 points."""
    t = np.arange(steps + 1)[:, None] / steps
    s = 1 - t
    a, b, c, d = points
    return np.asarray(s * s * s * a + 3 * s * s * t * b + 3 * s * t * t * c + t * t * t * d)


def wobbly_line(
    chance: Chance, start: tuple[float, float], end: tuple[float, float], wobble: float
) -> Path:
    """Return a hand-drawn line between two points."""
    a, b = np.array(start), np.array(end)
    control = [
        a
        + (b - a) * at
        + np.array([chance.between(-wobble, wobble), chance.between(-wobble, wobble)])
        for at in (0.33, 0.67)
    ]
    return bezier(np.array([a, *control, b]), 8)


def stroke(path: Path, width: float, taper: bool = False) -> list[Polygon]:
    """Return a path drawn with a pen, one piece for each of its segments.

    Args:
        path: (N, 2) points.
        width: Of the pen, in pixels.
        taper: The pen lifts towards the end.
    """
    delta = np.diff(path, axis=0)
    length = np.sqrt(delta[:, 0] * delta[:, 0] + delta[:, 1] * delta[:, 1])
    keep = length > 1e-6
    start, delta, length = path[:-1][keep], delta[keep], length[keep]
    if not len(length):
        return []
    unit = delta / length[:, None]
    normal = np.stack([-unit[:, 1], unit[:, 0]], axis=1)
    count = len(start)
    half = np.full(count + 1, width / 2)
    if taper:
        half = half * (1 - np.arange(count + 1) / (count + 0.5))
    a, b = half[:-1, None] * normal, half[1:, None] * normal
    lap = unit * np.minimum(half[:-1], length)[:, None] * 0.3  # closes the gaps at the joints
    end = start + delta
    quads = np.stack([start - lap + a, start - lap - a, end + lap - b, end + lap + b], axis=1)
    return list(quads)
