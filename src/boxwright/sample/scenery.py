"""What happens in the panels: figures, buildings, tones and lines, none of it text.

Much of it is there to be mistaken for text: rows of windows, bricks, hatching, piano keys,
scribbles, empty balloons. A detector that never saw such things calls every even pattern text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from boxwright.sample.chance import Chance, cos_deg, sin_deg
from boxwright.sample.raster import FULL, Canvas, Color, Window
from boxwright.sample.shapes import (
    Box,
    bezier,
    cloud,
    frame,
    oval,
    polygon,
    rectangle,
    rounded,
    stroke,
    wobbly_line,
)

__all__ = ["Palette", "draw_scene"]


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of a page.

    Attributes:
        paper, ink: The lightest and the darkest.
        coloured: Fills have colours; otherwise they are greys and tones.
    """

    paper: Color
    ink: Color
    coloured: bool

    def fill(self, chance: Chance) -> Color:
        """Return a colour for a surface."""
        if not self.coloured:
            if chance.happens(0.35):
                return self.paper
            level = chance.whole(40, 245)
            return level, level, level
        return chance.whole(20, 250), chance.whole(20, 250), chance.whole(20, 250)

    def pale(self, chance: Chance) -> Color:
        """Return a light colour."""
        if not self.coloured:
            level = chance.whole(190, 250)
            return level, level, level
        return chance.whole(150, 252), chance.whole(150, 252), chance.whole(150, 252)


@dataclass(frozen=True, slots=True)
class Panel:
    """A place to draw in: only inside `clip` anything shows."""

    canvas: Canvas
    chance: Chance
    box: Box
    clip: Window
    palette: Palette

    @property
    def side(self) -> float:
        """The shorter side in pixels."""
        return min(self.box[2] - self.box[0], self.box[3] - self.box[1])

    def point(self) -> tuple[float, float]:
        """Return a point inside."""
        x1, y1, x2, y2 = self.box
        return self.chance.between(x1, x2), self.chance.between(y1, y2)

    def spot(self, low: float, high: float) -> Box:
        """Return a box inside whose sides are a share of the panel's shorter one."""
        w, h = (
            self.side * self.chance.between(low, high),
            self.side * self.chance.between(low, high),
        )
        x, y = self.point()
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2

    def paint(self, polygons: list[np.ndarray], color: Color, opacity: int = FULL) -> None:
        """Paint inside the panel."""
        self.canvas.fill(polygons, color, clip=self.clip, opacity=opacity)


def _ground(panel: Panel) -> None:
    """A flat colour, a gradient in bands, a texture, or paper."""
    chance, (x1, y1, x2, y2) = panel.chance, panel.box
    kind = chance.pick_weighted(
        [("paper", 3.0), ("flat", 3.0), ("bands", 2.0), ("dark", 0.7), ("texture", 1.2)]
    )
    if kind == "texture":
        _texture(panel)
    if kind == "flat":
        panel.paint([rectangle(panel.box)], panel.palette.fill(chance))
    elif kind == "dark":
        panel.paint([rectangle(panel.box)], panel.palette.ink)
    elif kind == "bands":
        a, b = panel.palette.fill(chance), panel.palette.pale(chance)
        steps = 24
        for i in range(steps):
            color = (
                (a[0] * (steps - i) + b[0] * i) // steps,
                (a[1] * (steps - i) + b[1] * i) // steps,
                (a[2] * (steps - i) + b[2] * i) // steps,
            )
            low, high = (y1 + (y2 - y1) * part / steps for part in (i, i + 1))
            panel.paint([rectangle((x1, low, x2, high + 1))], color)


def _screentone(panel: Panel) -> None:
    """Dots in a turned grid whose size may grow along the panel: a printed half-tone."""
    chance = panel.chance
    x1, y1, x2, y2 = (int(v) for v in panel.box)
    if x2 - x1 < 8 or y2 - y1 < 8:
        return
    pitch, angle = chance.between(4.0, 11.0), chance.pick((0, 15, 30, 45, 60, 75))
    c, s = cos_deg(angle) / pitch, sin_deg(angle) / pitch
    x = np.arange(x1, x2, dtype=np.float64)[None, :]
    y = np.arange(y1, y2, dtype=np.float64)[:, None]
    u, v = x * c + y * s, y * c - x * s
    du, dv = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
    if chance.happens(0.25):
        distance = np.abs(dv) * 1.0  # lines in the place of dots
    else:
        distance = np.sqrt(du * du + dv * dv)
    radius = np.full_like(distance, chance.between(0.15, 0.42))
    if chance.happens(0.5):
        ramp = (y - y1) / (y2 - y1) if chance.happens(0.6) else (x - x1) / (x2 - x1)
        radius = radius * (ramp if chance.happens(0.5) else 1 - ramp) * 1.3
    covered = np.clip((radius - distance) * pitch + 0.5, 0.0, 1.0) * FULL
    window = Window(x1, y1, np.floor(covered).astype(np.uint16))
    height, width = panel.canvas.size
    top, left = max(0, -y1), max(0, -x1)
    window = Window(
        max(x1, 0),
        max(y1, 0),
        window.coverage[top : top + height - max(y1, 0), left : left + width - max(x1, 0)],
    )
    color = panel.palette.ink if chance.happens(0.7) else panel.palette.fill(chance)
    opacity = FULL if chance.happens(0.6) else chance.whole(90, 200)
    panel.canvas.stamp(window, color, clip=panel.clip, opacity=opacity)


def _speed_lines(panel: Panel) -> None:
    """Lines that meet in a point, or run side by side."""
    chance, (x1, y1, x2, y2) = panel.chance, panel.box
    lines = []
    if chance.happens(0.6):
        cx, cy = panel.point()
        reach = (x2 - x1) + (y2 - y1)
        for _ in range(chance.whole(30, 110)):
            angle, width = chance.between(0, 360), chance.between(0.3, 1.6)
            near = panel.side * chance.between(0.2, 0.6)
            a = (cx + near * cos_deg(angle), cy + near * sin_deg(angle))
            b = (cx + reach * cos_deg(angle - width), cy + reach * sin_deg(angle - width))
            c = (cx + reach * cos_deg(angle + width), cy + reach * sin_deg(angle + width))
            lines.append(polygon(a, b, c))
    else:
        flat = chance.happens(0.5)
        for _ in range(chance.whole(15, 70)):
            at, width = panel.point(), chance.between(0.8, 4.0)
            run = panel.side * chance.between(0.2, 1.2)
            end = (at[0] + run, at[1]) if flat else (at[0], at[1] + run)
            lines += stroke(np.array([at, end]), width, taper=True)
    panel.paint(lines, panel.palette.ink if chance.happens(0.8) else panel.palette.paper)


def _hatching(panel: Panel) -> None:
    """Parallel strokes, crossed or not."""
    chance = panel.chance
    x1, y1, x2, y2 = panel.spot(0.2, 0.7)
    angle, gap = chance.between(0, 180), chance.between(3.5, 9.0)
    lines = []
    for turn in (0, 90) if chance.happens(0.4) else (0,):
        c, s = cos_deg(angle + turn), sin_deg(angle + turn)
        half = (x2 - x1) / 2
        for i in range(int((y2 - y1) / gap)):
            off = -(y2 - y1) / 2 + i * gap
            jitter = half * chance.between(0.7, 1.0)
            mid = ((x1 + x2) / 2 - s * off, (y1 + y2) / 2 + c * off)
            path = np.array(
                [
                    (mid[0] - c * jitter, mid[1] - s * jitter),
                    (mid[0] + c * jitter, mid[1] + s * jitter),
                ]
            )
            lines += stroke(path, chance.between(0.8, 1.8))
    panel.paint(lines, panel.palette.ink)


def _head(panel: Panel) -> None:
    """A face with hair: curves, dots, and strokes as small as letters."""
    chance = panel.chance
    size = panel.side * chance.between(0.2, 0.6)
    x, y = panel.point()
    face: Box = (x - size * 0.4, y - size * 0.5, x + size * 0.4, y + size * 0.5)
    ink, pen = panel.palette.ink, max(1.2, size * 0.018)
    body = polygon(
        (x - size * 0.75, y + size * 1.6),
        (x - size * 0.5, y + size * 0.62),
        (x - size * 0.15, y + size * 0.5),
        (x + size * 0.15, y + size * 0.5),
        (x + size * 0.5, y + size * 0.62),
        (x + size * 0.75, y + size * 1.6),
    )
    cloth = panel.palette.fill(chance)
    panel.paint([body], cloth)
    panel.paint(stroke(np.concatenate([body, body[:1]]), pen), ink)
    panel.paint([oval(face)], panel.palette.pale(chance))
    panel.paint(stroke(np.concatenate([oval(face), oval(face)[:1]]), pen), ink)
    hair = []
    for _ in range(chance.whole(8, 40)):
        angle = chance.between(180, 360)
        root = (x + size * 0.4 * cos_deg(angle), y + size * 0.5 * sin_deg(angle))
        tip = (
            root[0] + size * chance.between(-0.25, 0.25),
            root[1] + size * chance.between(-0.1, 0.4),
        )
        hair += stroke(
            wobbly_line(chance, root, tip, size * 0.12), pen * chance.between(0.8, 4.0), taper=True
        )
    panel.paint(hair, ink if chance.happens(0.7) else panel.palette.fill(chance))
    for side in (-1, 1):
        ex, ey, w = x + side * size * 0.16, y - size * 0.02, size * chance.between(0.05, 0.09)
        panel.paint([oval((ex - w, ey - w * 1.3, ex + w, ey + w * 1.3), 16)], panel.palette.paper)
        panel.paint([oval((ex - w * 0.6, ey - w, ex + w * 0.6, ey + w), 16)], ink)
        brow = wobbly_line(chance, (ex - w * 1.4, ey - w * 2), (ex + w * 1.4, ey - w * 2.2), w)
        panel.paint(stroke(brow, pen * 1.3), ink)
    mouth = wobbly_line(
        chance, (x - size * 0.1, y + size * 0.25), (x + size * 0.1, y + size * 0.25), size * 0.08
    )
    panel.paint(stroke(mouth, pen), ink)


def _building(panel: Panel) -> None:
    """A wall with rows of windows, bricks or shutters: as regular as lines of text."""
    chance = panel.chance
    x1, y1, x2, y2 = panel.spot(0.35, 1.1)
    panel.paint([rectangle((x1, y1, x2, y2))], panel.palette.fill(chance))
    ink = panel.palette.ink
    panel.paint(frame((x1, y1, x2, y2), chance.between(1.0, 3.0)), ink)
    rows, columns = chance.whole(2, 9), chance.whole(2, 9)
    w, h = (x2 - x1) / columns, (y2 - y1) / rows
    brick, fill = chance.happens(0.4), chance.happens(0.6)
    marks = []
    for row in range(rows):
        for column in range(columns):
            if chance.happens(0.1):
                continue
            left = x1 + (column + (0.5 if brick and row % 2 else 0.0)) * w
            pane: Box = (
                left + w * 0.15,
                y1 + (row + 0.2) * h,
                left + w * 0.85,
                y1 + (row + 0.8) * h,
            )
            if pane[2] > x2:
                continue
            marks += [rectangle(pane)] if fill else frame(pane, max(1.0, w * 0.05))
    panel.paint(marks, ink if chance.happens(0.7) else panel.palette.pale(chance))


def _foliage(panel: Panel) -> None:
    """Leaves, grass or scribbles."""
    chance = panel.chance
    x1, y1, x2, y2 = panel.spot(0.2, 0.8)
    marks = []
    reach = panel.side * chance.between(0.02, 0.09)
    for _ in range(chance.whole(20, 120)):
        x, y = chance.between(x1, x2), chance.between(y1, y2)
        end = (x + chance.between(-reach, reach), y + chance.between(-reach, reach))
        marks += stroke(
            wobbly_line(chance, (x, y), end, reach * 0.7),
            chance.between(0.8, 3.0),
            taper=chance.happens(0.5),
        )
    panel.paint(marks, panel.palette.ink if chance.happens(0.7) else panel.palette.fill(chance))


def _blob(panel: Panel) -> None:
    """Something with a smooth outline."""
    chance = panel.chance
    x1, y1, x2, y2 = panel.spot(0.2, 0.9)
    cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
    ring = []
    corners = chance.whole(4, 8)
    for i in range(corners):
        reach = chance.between(0.5, 1.0)
        ring.append(
            (
                cx + (x2 - cx) * reach * cos_deg(360 * i / corners),
                cy + (y2 - cy) * reach * sin_deg(360 * i / corners),
            )
        )
    points = np.array(ring)
    outline = []
    for i in range(corners):
        a, b, c = points[i], points[(i + 1) % corners], points[(i + 2) % corners]
        outline.append(bezier(np.array([(a + b) / 2, b, b, (b + c) / 2]), 8)[:-1])
    shape = np.concatenate(outline)
    panel.paint([shape], panel.palette.fill(chance))
    if chance.happens(0.8):
        panel.paint(
            stroke(np.concatenate([shape, shape[:1]]), chance.between(1.0, 4.0)), panel.palette.ink
        )


def _curves(panel: Panel) -> None:
    """Long sweeping strokes: drapery, smoke, water, hair in the wind."""
    chance = panel.chance
    x1, y1, x2, y2 = panel.spot(0.3, 1.2)
    w, h = x2 - x1, y2 - y1
    control = np.array([(chance.between(x1, x2), chance.between(y1, y2)) for _ in range(4)])
    drift = np.array(
        [(chance.between(-0.2, 0.2) * w, chance.between(-0.2, 0.2) * h) for _ in range(4)]
    )
    count, pen, taper = chance.whole(3, 24), chance.between(0.8, 3.5), chance.happens(0.7)
    marks = []
    for i in range(count):
        stray = np.array(
            [(chance.between(-0.04, 0.04) * w, chance.between(-0.04, 0.04) * h) for _ in range(4)]
        )
        marks += stroke(bezier(control + drift * (3.0 * i / count) + stray, 16), pen, taper=taper)
    panel.paint(marks, panel.palette.ink if chance.happens(0.75) else panel.palette.fill(chance))


def _keys(panel: Panel) -> None:
    """Bars, fences, keys or a bar code: upright strokes in a row."""
    chance = panel.chance
    x1, y1, x2, y2 = panel.spot(0.15, 0.7)
    bars, x = [], x1
    gap, even = chance.between(3, 14), chance.happens(0.5)
    high = (y2 - y1) * chance.between(0.1, 1.0)
    while x < x2:
        width = gap * 0.45 if even else gap * chance.between(0.15, 0.9)
        bars.append(
            rectangle((x, y1, x + width, y1 + high * (1.0 if even else chance.between(0.85, 1.0))))
        )
        x += gap if even else width + gap * chance.between(0.2, 0.9)
    panel.paint(bars, panel.palette.ink if chance.happens(0.75) else panel.palette.fill(chance))


def _small_things(panel: Panel) -> None:
    """Rows of dots, rings, crosses, ticks or boxes, about as big as letters."""
    chance = panel.chance
    x, y = panel.point()
    size = panel.side * chance.between(0.012, 0.05) + 2
    kind = chance.pick(("dots", "rings", "ticks", "zigzag", "boxes"))
    marks: list[np.ndarray] = []
    for row in range(chance.whole(1, 3)):
        for i in range(chance.whole(3, 12)):
            cx, cy = x + i * size * 1.5, y + row * size * 1.7
            cell: Box = (cx - size / 2, cy - size / 2, cx + size / 2, cy + size / 2)
            if kind == "dots":
                marks.append(oval(cell, 14))
            elif kind == "rings":
                marks += [
                    oval(cell, 14),
                    oval(
                        (
                            cell[0] + size * 0.2,
                            cell[1] + size * 0.2,
                            cell[2] - size * 0.2,
                            cell[3] - size * 0.2,
                        ),
                        14,
                    )[::-1],
                ]
            elif kind == "ticks":
                marks += stroke(np.array([(cell[0], cell[3]), (cell[2], cell[1])]), size * 0.2)
            elif kind == "zigzag":
                marks += stroke(
                    np.array([(cell[0], cell[3]), (cx, cell[1]), (cx + size * 0.75, cell[3])]),
                    size * 0.18,
                )
            else:
                marks += frame(cell, size * 0.18)
    panel.paint(marks, panel.palette.ink)


def _empty_balloon(panel: Panel) -> None:
    """A balloon or a box without text."""
    chance = panel.chance
    spot = panel.spot(0.15, 0.45)
    kind = chance.pick(("oval", "box", "cloud"))
    shape = (
        [oval(spot)] if kind == "oval" else [rounded(spot, 8)] if kind == "box" else cloud(spot, 12)
    )
    panel.paint([p for s in shape for p in _ringed(s)], panel.palette.ink)
    panel.paint(shape, panel.palette.paper if chance.happens(0.7) else panel.palette.pale(chance))


def _ringed(shape: np.ndarray) -> list[np.ndarray]:
    return [shape, *stroke(np.concatenate([shape, shape[:1]]), 4.0)]


def _texture(panel: Panel) -> None:
    """Blotches of colour at two scales: a painted or photographed ground."""
    chance = panel.chance
    top, left = panel.clip.y, panel.clip.x
    height, width = panel.clip.coverage.shape
    total = np.zeros((height, width, 3), np.int32)
    cell = chance.whole(24, 120)
    for share, side in ((3, cell), (1, max(4, cell // 6))):
        channels = 3 if panel.palette.coloured else 1
        coarse = chance.octets(height // side + 2, width // side + 2, channels).astype(np.int32)
        total += share * _stretched(coarse, side, height, width)
    base = panel.palette.fill(chance)
    depth = chance.whole(20, 120)
    view = panel.canvas.pixels[top : top + height, left : left + width]
    mixed = np.clip(np.array(base) + (total // 4 - 128) * depth // 128, 0, 255).astype(np.uint8)
    np.copyto(view, mixed, where=(panel.clip.coverage > FULL // 2)[..., None])


def _stretched(coarse: np.ndarray, side: int, height: int, width: int) -> np.ndarray:
    """Return a grid (rows, columns, channels) spread linearly over (height, width) pixels."""
    y, x = np.arange(height), np.arange(width)
    row, column = y // side, x // side
    v, u = (y % side)[:, None, None], (x % side)[None, :, None]
    bands = (coarse[row] * (side - v) + coarse[row + 1] * v) // side
    return np.asarray((bands[:, column] * (side - u) + bands[:, column + 1] * u) // side)


_THINGS = (
    (_screentone, 2.2),
    (_speed_lines, 1.3),
    (_hatching, 1.5),
    (_head, 2.6),
    (_building, 1.6),
    (_foliage, 1.4),
    (_blob, 2.2),
    (_curves, 1.8),
    (_keys, 0.8),
    (_small_things, 0.8),
    (_empty_balloon, 0.5),
)


def draw_scene(canvas: Canvas, chance: Chance, box: Box, clip: Window, palette: Palette) -> None:
    """Fill a panel.

    Args:
        canvas: To draw on.
        chance: Decides.
        box: The panel, in pixels.
        clip: Where the panel shows.
        palette: Colours.
    """
    panel = Panel(canvas, chance, box, clip, palette)
    _ground(panel)
    for _ in range(chance.whole(1, 7)):
        chance.pick_weighted(_THINGS)(panel)
