"""Pages: panels, balloons, captions and sound effects, and where the text is.

`generate_page` is a function of its seed alone. The truth of a page is exact: the box of a text
block is the extent of the outlines that were drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from boxwright.sample.chance import Chance
from boxwright.sample.fonts import require_cjk
from boxwright.sample.lettering import (
    Lettering,
    grown,
    plain_block,
    script_for,
    sound_effect,
)
from boxwright.sample.raster import FULL, Canvas, Color, coverage_of
from boxwright.sample.scan import scanned
from boxwright.sample.scenery import Palette, draw_scene
from boxwright.sample.shapes import (
    Box,
    burst,
    cloud,
    oval,
    polygon,
    rectangle,
    rounded,
    stroke,
)
from boxwright.types import Image

__all__ = ["Page", "TextBlock", "generate_page"]

Kind = Literal["balloon", "caption", "sound", "free", "sign", "paragraph"]


@dataclass(frozen=True, slots=True)
class TextBlock:
    """One block of text on a page.

    Attributes:
        xyxy: Tight box in pixels of the page, clipped to it.
        letter_height_px: Median height of its letters.
        kind: Where it stands.
        script: Name of its script.
    """

    xyxy: tuple[float, float, float, float]
    letter_height_px: float
    kind: Kind
    script: str


@dataclass(frozen=True, slots=True)
class Page:
    """A page and its truth.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        blocks: Its text blocks.
        lettering: (H, W) uint8, 255 where ink of the lettering is; only when asked for.
    """

    image: Image
    blocks: tuple[TextBlock, ...]
    lettering: npt.NDArray[np.uint8] | None = None

    @property
    def boxes(self) -> npt.NDArray[np.float32]:
        """(N, 4) float32 xyxy in pixels."""
        return np.array([b.xyxy for b in self.blocks], np.float32).reshape(-1, 4)


class _Draft:
    """A page while it is drawn: what is taken, and what was lettered."""

    def __init__(self, canvas: Canvas, chance: Chance, palette: Palette, cjk: bool) -> None:
        self.canvas = canvas
        self.chance = chance
        self.palette = palette
        self.cjk = cjk
        self.blocks: list[TextBlock] = []
        self._taken: list[Box] = []

    @property
    def whole(self) -> Box:
        height, width = self.canvas.size
        return 0.0, 0.0, float(width), float(height)

    def is_free(self, box: Box, margin: float = 6.0) -> bool:
        """Whether nothing that must stay visible lies there."""
        x1, y1, x2, y2 = box
        return all(
            x2 + margin <= a1 or a2 + margin <= x1 or y2 + margin <= b1 or b2 + margin <= y1
            for a1, b1, a2, b2 in self._taken
        )

    def take(self, box: Box) -> None:
        self._taken.append(box)

    def letter(self, text: Lettering, color: Color, kind: Kind) -> None:
        """Draw lettering that must stay readable, and record its block."""
        self.canvas.fill(text.polygons, color, text=True, sample_rows=8)
        height, width = self.canvas.size
        x1, y1, x2, y2 = text.extent
        box = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        self.blocks.append(TextBlock(box, text.letter_height, kind, text.script))

    def inside(self, box: Box, margin: float = 3.0) -> bool:
        """Whether a box lies on the page."""
        height, width = self.canvas.size
        return (
            box[0] >= margin
            and box[1] >= margin
            and box[2] <= width - margin
            and box[3] <= height - margin
        )

    def brightness(self, box: Box) -> tuple[float, float]:
        """Return mean and spread of the light below a box, 0..255."""
        x1, y1, x2, y2 = (int(v) for v in box)
        part = self.canvas.pixels[max(y1, 0) : y2, max(x1, 0) : x2].astype(np.int64)
        light = part.sum(2)  # sums of whole numbers: exact
        count = max(light.size, 1)
        mean = int(light.sum()) / count / 3
        spread = int(np.abs(light - int(mean * 3)).sum()) / count / 3
        return mean, spread


def _expanded(box: Box, x: float, y: float) -> Box:
    return box[0] - x, box[1] - y, box[2] + x, box[3] + y


def _letter_size(chance: Chance) -> float:
    """Return the em of running text in pixels; small sizes are the most frequent."""
    return chance.pick_weighted(
        [
            (chance.between(11, 16), 3.0),
            (chance.between(16, 24), 4.0),
            (chance.between(24, 38), 2.0),
            (chance.between(38, 64), 0.5),
        ]
    )


def _slots(draft: _Draft, panels: list[Box]) -> tuple[float, float]:
    """Return a point where a text may stand: mostly near the edges of a panel."""
    x1, y1, x2, y2 = draft.chance.pick(panels)
    chance = draft.chance
    v = chance.between(0.08, 0.4) if chance.happens(0.6) else chance.between(0.1, 0.95)
    return x1 + (x2 - x1) * chance.between(0.08, 0.92), y1 + (y2 - y1) * v


def _balloon(draft: _Draft, panels: list[Box], em: float) -> None:
    """Text in a balloon: an oval, a box, a cloud or a burst, with a tail or two."""
    chance = draft.chance
    script = script_for(chance, draft.cjk)
    text = plain_block(
        chance,
        script,
        em,
        chance.pick_weighted(
            [(chance.whole(1, 3), 2.0), (chance.whole(3, 12), 5.0), (chance.whole(12, 24), 1.0)]
        ),
    )
    if chance.happens(0.04):
        text = text.turned(chance.between(-12, 12))
    text = text.centred(*_slots(draft, panels))
    box = text.extent
    if not draft.inside(box):
        return
    w, h = box[2] - box[0], box[3] - box[1]
    kind = chance.pick_weighted(
        [("oval", 5.0), ("box", 1.6), ("cloud", 0.8), ("burst", 0.9), ("open", 0.5)]
    )
    pad = em * chance.between(0.35, 1.1)
    if kind in ("oval", "burst", "cloud"):
        rim = _expanded(
            box,
            w * chance.between(0.16, 0.3) + pad * 0.6,
            h * chance.between(0.16, 0.3) + pad * 0.6,
        )
    else:
        rim = _expanded(box, pad, pad * 0.8)
    if not draft.is_free(rim):
        return
    draft.take(rim)
    if kind == "oval":
        shapes = [oval(rim, square=chance.between(0.6, 1.0))]
    elif kind == "cloud":
        shapes = cloud(rim, chance.whole(9, 18))
    elif kind == "burst":
        shapes = [burst(chance, rim, chance.whole(9, 24), chance.between(0.08, 0.3))]
    else:
        shapes = [rounded(rim, pad * chance.between(0.0, 1.5))]
    cx, cy = (rim[0] + rim[2]) / 2, (rim[1] + rim[3]) / 2
    if kind in ("oval", "box") and chance.happens(0.8):
        reach = max(w, h) * chance.between(0.5, 1.1)
        tip = (cx + chance.between(-1, 1) * reach, rim[3] + reach * chance.between(0.1, 0.5))
        base = em * chance.between(0.3, 0.8)
        tail = polygon((cx - base, cy), tip, (cx + base, cy))
        shapes.append(tail if _clockwise(tail) == _clockwise(shapes[0]) else tail[::-1])
    elif kind == "cloud":
        size, x, y = em * 0.5, cx, rim[3]
        for _ in range(3):
            y += size * 2
            x += chance.between(-1, 1) * size * 2
            shapes.append(oval((x - size, y - size * 0.8, x + size, y + size * 0.8), 20))
            size *= 0.65
    inverse = chance.happens(0.07)
    paper = draft.palette.paper if chance.happens(0.8) else draft.palette.pale(chance)
    fill, ink = (draft.palette.ink, paper) if inverse else (paper, draft.palette.ink)
    if kind != "open":
        pen = chance.between(1.2, 4.5)
        edges = [e for s in shapes for e in stroke(np.concatenate([s, s[:1]]), pen * 2)]
        draft.canvas.fill([*edges], draft.palette.ink if not inverse else paper)
    draft.canvas.fill(shapes, fill, opacity=FULL if chance.happens(0.93) else 225)
    draft.letter(text, ink, "balloon")


def _clockwise(shape: np.ndarray) -> bool:
    x, y = shape[:, 0], shape[:, 1]
    return bool(float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) > 0)


def _caption(draft: _Draft, panels: list[Box], em: float) -> None:
    """Narration in a box, at a corner of a panel or across it."""
    chance = draft.chance
    text = plain_block(
        chance,
        script_for(chance, draft.cjk),
        em,
        chance.whole(2, 18),
        align=chance.pick((0.0, 0.5)),
    )
    w, h = _size_of(text)
    pad = em * chance.between(0.3, 0.9)
    x1, y1, x2, y2 = chance.pick(panels)
    inset = chance.between(-4, 14)
    at_right, at_bottom = chance.happens(0.35), chance.happens(0.3)
    x = x2 - inset - pad - w / 2 if at_right else x1 + inset + pad + w / 2
    y = y2 - inset - pad - h / 2 if at_bottom else y1 + inset + pad + h / 2
    text = text.centred(x, y)
    rim = _expanded(text.extent, pad, pad)
    if not draft.inside(text.extent) or not draft.is_free(rim):
        return
    draft.take(rim)
    dark = chance.happens(0.12)
    fill = (
        draft.palette.ink
        if dark
        else draft.palette.pale(chance)
        if chance.happens(0.5)
        else draft.palette.paper
    )
    if chance.happens(0.85):
        draft.canvas.fill([rectangle(_expanded(rim, 2, 2))], draft.palette.ink)
    draft.canvas.fill([rectangle(rim)], fill)
    draft.letter(text, draft.palette.paper if dark else draft.palette.ink, "caption")


def _size_of(text: Lettering) -> tuple[float, float]:
    x1, y1, x2, y2 = text.extent
    return x2 - x1, y2 - y1


def _readable_ink(draft: _Draft, box: Box) -> tuple[Color, bool]:
    """Return a colour that stands out from what lies below, and whether a halo is needed."""
    chance = draft.chance
    light, spread = draft.brightness(box)
    ink, paper = draft.palette.ink, draft.palette.paper
    color = ink if light > 128 else paper
    if draft.palette.coloured and chance.happens(0.5):
        bright = chance.whole(150, 255), chance.whole(150, 255), chance.whole(150, 255)
        deep = chance.whole(0, 110), chance.whole(0, 90), chance.whole(0, 110)
        color = deep if light > 128 else bright
    far = abs(sum(color) / 3 - light)
    return color, spread > 34 or far < 90


def _opposite(draft: _Draft, color: Color) -> Color:
    return draft.palette.paper if sum(color) < 384 else draft.palette.ink


def _sound(draft: _Draft, panels: list[Box], em: float) -> None:
    """A sound effect across the art, outlined, at an angle, in one or two colours."""
    chance = draft.chance
    size = em * chance.between(1.5, 5.5)
    text = sound_effect(chance, script_for(chance, draft.cjk), size)
    text = (
        text.turned(chance.between(-40, 40), chance.between(-0.25, 0.25))
        if chance.happens(0.8)
        else text
    )
    x1, y1, x2, y2 = chance.pick(panels)
    text = text.centred(chance.between(x1, x2), chance.between(y1, y2))
    _on_art(draft, text, "sound", size)


def _free(draft: _Draft, panels: list[Box], em: float) -> None:
    """Words on the art, without a balloon."""
    chance = draft.chance
    text = plain_block(
        chance, script_for(chance, draft.cjk), em * chance.between(1.0, 1.6), chance.whole(1, 8)
    )
    text = text.centred(*_slots(draft, panels))
    _on_art(draft, text, "free", em)


def _on_art(draft: _Draft, text: Lettering, kind: Kind, size: float) -> None:
    chance = draft.chance
    box = text.extent
    rim = max(1.6, size * chance.between(0.04, 0.1))
    if not draft.inside(box) or not draft.is_free(_expanded(box, rim, rim)):
        return
    draft.take(_expanded(box, rim, rim))
    color, halo = _readable_ink(draft, box)
    if halo or chance.happens(0.4):
        draft.canvas.fill(grown(text.polygons, rim), _opposite(draft, color))
        if kind == "sound" and chance.happens(0.2):  # a second rim
            draft.canvas.fill(grown(text.polygons, rim * 0.5), draft.palette.fill(chance))
            draft.canvas.fill(grown(text.polygons, rim * 0.3), _opposite(draft, color))
    draft.letter(text, color, kind)


def _panels(chance: Chance, width: float, height: float) -> list[Box]:
    """Return the panels of a page: rows of different heights, cut into columns."""
    margin, gutter = chance.between(0.015, 0.06) * width, chance.between(4, 26)
    rows = chance.whole(1, 5)
    shares = [chance.between(0.6, 1.6) for _ in range(rows)]
    top, usable = margin, height - 2 * margin - gutter * (rows - 1)
    panels: list[Box] = []
    for share in shares:
        high = usable * share / sum(shares)
        columns = chance.pick_weighted([(1, 2.0), (2, 4.0), (3, 2.5), (4, 0.6)])
        parts = [chance.between(0.6, 1.6) for _ in range(columns)]
        left, wide = margin, width - 2 * margin - gutter * (columns - 1)
        for part in parts:
            panels.append((left, top, left + wide * part / sum(parts), top + high))
            left += wide * part / sum(parts) + gutter
        top += high + gutter
    return panels


def _draw_panels(draft: _Draft, panels: list[Box]) -> None:
    chance = draft.chance
    slant = chance.between(-18, 18) if chance.happens(0.25) else 0.0
    pen = chance.between(1.5, 6.0)
    for x1, y1, x2, y2 in panels:
        lean = slant * chance.between(0.3, 1.0)
        shape = polygon((x1, y1), (x2 + lean, y1), (x2, y2), (x1 - lean, y2))
        bleed = chance.happens(0.06)
        clip = coverage_of([rectangle(draft.whole) if bleed else shape], draft.canvas.size)
        if clip is None:
            continue
        draw_scene(draft.canvas, chance.child(), (x1, y1, x2, y2), clip, draft.palette)
        if chance.happens(0.9):
            edge = stroke(np.concatenate([shape, shape[:1]]), pen)
            draft.canvas.fill(edge, draft.palette.ink)


def _comic(draft: _Draft) -> None:
    chance = draft.chance
    _, _, width, height = draft.whole
    panels = _panels(chance, width, height)
    _draw_panels(draft, panels)
    em = _letter_size(chance)
    makers = [(_balloon, 6.0), (_caption, 1.6), (_sound, 1.7), (_free, 0.9)]
    for _ in range(chance.whole(0, 3) if chance.happens(0.08) else chance.whole(5, 40)):
        chance.pick_weighted(makers)(draft, panels, em * chance.between(0.85, 1.2))
    if chance.happens(0.35):  # a page number or a footer
        text = plain_block(
            chance,
            script_for(chance, draft.cjk),
            chance.between(12, 20),
            1 if chance.happens(0.6) else 4,
            letters_in_line=60,
        )
        text = text.centred(width * chance.pick((0.1, 0.5, 0.9)), height - 13)
        if draft.inside(text.extent, 1.0) and draft.is_free(text.extent):
            _on_art(draft, text, "free", 16)
    if chance.happens(0.12):  # a title
        text = plain_block(
            chance,
            script_for(chance, draft.cjk),
            chance.between(50, 110),
            chance.whole(1, 3),
            display=True,
        )
        _on_art(draft, text.centred(width / 2, height * chance.between(0.08, 0.3)), "free", 70)


def _signs(draft: _Draft) -> None:
    """A scene with boards, labels and posters, as a camera or a scanner sees them."""
    chance = draft.chance
    clip = coverage_of([rectangle(draft.whole)], draft.canvas.size)
    assert clip is not None, "a page has an area"
    for _ in range(chance.whole(1, 3)):
        draw_scene(draft.canvas, chance.child(), draft.whole, clip, draft.palette)
    x1, y1, x2, y2 = draft.whole
    for _ in range(chance.whole(1, 6)):
        em = chance.between(16, 110)
        text = plain_block(
            chance,
            script_for(chance, draft.cjk),
            em,
            chance.whole(1, 9),
            display=chance.happens(0.7),
            capitals=chance.happens(0.7),
        )
        angle = chance.between(-14, 14) if chance.happens(0.5) else 0.0
        board = rounded(
            _expanded(text.extent, em * chance.between(0.3, 1.4), em * chance.between(0.3, 1.0)),
            em * chance.between(0.0, 0.4),
        )
        middle = text.centred(0, 0).polygons[0][0] - text.polygons[0][0]
        whole = Lettering([board + middle], text.script, 0.0, 0).turned(angle)
        place = (chance.between(x1, x2), chance.between(y1, y2))
        board_there = whole.moved(*place)
        text = text.centred(0, 0).turned(angle).moved(*place)
        if not draft.inside(text.extent) or not draft.is_free(board_there.extent):
            continue
        draft.take(board_there.extent)
        light = chance.happens(0.5)
        deep = (chance.whole(0, 110), chance.whole(0, 100), chance.whole(0, 130))
        pale = (chance.whole(170, 255), chance.whole(170, 255), chance.whole(170, 255))
        if not draft.palette.coloured:
            deep, pale = draft.palette.ink, draft.palette.paper
        fill, ink = (pale, deep) if light else (deep, pale)
        edge = board_there.polygons[0]
        draft.canvas.fill(stroke(np.concatenate([edge, edge[:1]]), chance.between(2, 10)), ink)
        draft.canvas.fill(board_there.polygons, fill)
        draft.letter(text, ink, "sign")


def _letters_page(draft: _Draft) -> None:
    """Paragraphs in columns, with headings and pictures: the page of readers' letters."""
    chance = draft.chance
    _, _, width, height = draft.whole
    columns = chance.whole(1, 3)
    margin, em = width * chance.between(0.05, 0.1), chance.between(14, 26)
    wide = (width - 2 * margin) / columns - em
    script = script_for(chance, draft.cjk)
    for column in range(columns):
        x, y = margin + column * (wide + em), height * chance.between(0.04, 0.12)
        while y < height * 0.88:
            if chance.happens(0.2):
                box = (x, y, x + wide, y + wide * chance.between(0.3, 0.8))
                clip = coverage_of([rectangle(box)], draft.canvas.size)
                if clip is not None:
                    draw_scene(draft.canvas, chance.child(), box, clip, draft.palette)
                y = box[3] + em
                continue
            size = em * (1.7 if chance.happens(0.2) else 1.0)
            words = chance.whole(2, 4) if size > em else chance.whole(8, 50)
            text = plain_block(
                chance,
                script,
                size,
                words,
                capitals=False,
                align=0.0,
                letters_in_line=max(6, int(wide / size * 1.7)),
            )
            x1, y1, _, y2 = text.extent
            text = text.moved(x - x1, y - y1)
            if not draft.inside(text.extent) or text.extent[2] > x + wide + em:
                y += em
                continue
            draft.letter(text, draft.palette.ink, "paragraph")
            y += y2 - y1 + size * chance.between(1.2, 2.5)


def generate_page(seed: int, *, cjk: bool = False, with_lettering: bool = False) -> Page:
    """Draw a page.

    Args:
        seed: Decides everything.
        cjk: Chinese, Japanese and Korean lettering, from an optional font package.
        with_lettering: Also return where ink of the lettering is.

    Raises:
        MissingExtraError: The CJK letters are asked for and not installed.
    """
    if cjk:
        require_cjk()
    chance = Chance(seed * 2 + int(cjk))
    height = chance.whole(720, 1240)
    width = int(height * chance.between(0.6, 0.78))
    kind = chance.pick_weighted([("comic", 8.0), ("signs", 1.3), ("letters", 0.7)])
    if kind == "signs" or chance.happens(0.12):
        height, width = (width, height) if chance.happens(0.6) else (width, width)
    palette = _palette(chance)
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = palette.paper
    canvas = Canvas(pixels, np.zeros((height, width), np.uint8) if with_lettering else None)
    draft = _Draft(canvas, chance.child(), palette, cjk)
    if kind == "comic":
        if chance.happens(0.08):
            pixels[:] = palette.ink  # black gutters
        _comic(draft)
    elif kind == "signs":
        _signs(draft)
    else:
        _letters_page(draft)
    return Page(scanned(canvas.pixels, chance.child()), tuple(draft.blocks), canvas.lettering)


def _palette(chance: Chance) -> Palette:
    coloured = chance.happens(0.45)
    paper, ink = (255, 255, 255), (0, 0, 0)
    if chance.happens(0.35):
        paper = (chance.whole(215, 255), chance.whole(228, 255), chance.whole(235, 255))
    if chance.happens(0.3):
        ink = (chance.whole(0, 60), chance.whole(0, 45), chance.whole(0, 45))
    return Palette(paper, ink, coloured)
