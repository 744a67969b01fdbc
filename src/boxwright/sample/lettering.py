"""Words, lines and text blocks as polygons."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from boxwright.sample.chance import Chance, cos_deg, sin_deg
from boxwright.sample.fonts import FACES, SCRIPTS, Face, Glyph, Script
from boxwright.sample.raster import Polygon, extent_of

__all__ = [
    "Lettering",
    "grown",
    "plain_block",
    "script_for",
    "set_block",
    "set_column_block",
    "sound_effect",
]

# Words that every English page has; the rest is made of syllables.
_COMMON = """
    a I no oh so we the you and but not now for how who why get run yes wait what that this here
    there they your don't it's can't stop look help never again right where could would think
    know come back time gone over just like only well okay because something
""".split()  # noqa: SIM905
_ONSETS = "b c d f g h j k l m n p r s t v w y z th sh ch br tr st pl gr sp cl".split()  # noqa: SIM905
_CORES = "a e i o u ee oo ai ou ea".split()  # noqa: SIM905
_CODAS = ["", "", "", *"n r s t l m d ck ng st rd nt sh".split()]  # noqa: SIM905
_SOUNDS = """
    bam pow wham boom crash zap bang thud krak splash whoosh click rumble sniff gasp tap slam vroom
    skree fwip thwack zoom ding grr aaah eek hah shhh snap crunch
""".split()  # noqa: SIM905


@dataclass(frozen=True, slots=True)
class Lettering:
    """A set text block.

    Attributes:
        polygons: Outlines in pixels.
        script: Name of its script.
        letter_height: Median height of its letters in pixels, as drawn.
        letters: How many there are.
    """

    polygons: list[Polygon]
    script: str
    letter_height: float
    letters: int

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 in pixels."""
        return extent_of(self.polygons)

    def moved(self, x: float, y: float) -> Lettering:
        """Return it shifted by pixels."""
        shift = np.array([x, y])
        return replace(self, polygons=[p + shift for p in self.polygons])

    def centred(self, x: float, y: float) -> Lettering:
        """Return it with the middle of its extent at a point."""
        x1, y1, x2, y2 = self.extent
        return self.moved(x - (x1 + x2) / 2, y - (y1 + y2) / 2)

    def turned(self, degrees: float, shear: float = 0.0) -> Lettering:
        """Return it slanted, then turned round the origin, clockwise on the screen."""
        c, s = cos_deg(degrees), sin_deg(degrees)
        turned = []
        for p in self.polygons:
            x, y = p[:, 0] - shear * p[:, 1], p[:, 1]
            turned.append(np.stack([x * c - y * s, x * s + y * c], axis=1))
        return replace(self, polygons=turned)

    def arched(self, bend: float) -> Lettering:
        """Return it bent upwards into a parabola: its ends go down by `bend` of its width."""
        x1, _, x2, _ = self.extent
        middle, half = (x1 + x2) / 2, max((x2 - x1) / 2, 1.0)
        bent = []
        for p in self.polygons:
            u = (p[:, 0] - middle) / half
            bent.append(np.stack([p[:, 0], p[:, 1] + bend * half * u * u], axis=1))
        return replace(self, polygons=bent)


def word(chance: Chance, script: Script) -> str:
    """Return a made-up or common word of a script, in small letters."""
    if script.name == "latin":
        if chance.happens(0.45):
            return chance.pick(_COMMON)
        count = chance.pick_weighted([(1, 4.0), (2, 4.0), (3, 1.5)])
        return "".join(
            chance.pick(_ONSETS) + chance.pick(_CORES) + chance.pick(_CODAS) for _ in range(count)
        )
    length = chance.whole(1, 9)
    return "".join(chance.pick(script.letters) for _ in range(length))


def sentence(chance: Chance, script: Script, words: int) -> list[str]:
    """Return the words of a sentence, with marks; some are numbers."""
    found = []
    for index in range(words):
        text = str(chance.whole(1, 2999)) if chance.happens(0.03) else word(chance, script)
        last = index == words - 1
        if (last and chance.happens(0.8)) or chance.happens(0.08):
            text += chance.pick(script.stops) * (chance.whole(1, 3) if chance.happens(0.1) else 1)
        found.append(text)
    return found


def sound(chance: Chance, script: Script) -> str:
    """Return a sound effect."""
    if script.name != "latin":
        text = "".join(chance.pick(script.letters) for _ in range(chance.whole(2, 5)))
    elif chance.happens(0.6):
        text = chance.pick(_SOUNDS)
    else:
        text = word(chance, script)
    if chance.happens(0.25):  # a drawn-out sound
        at = chance.whole(0, len(text) - 1)
        text = text[:at] + text[at] * chance.whole(2, 4) + text[at:]
    return text + ("!" * chance.whole(1, 2) if chance.happens(0.4) else "")


@dataclass(frozen=True, slots=True)
class _Line:
    polygons: list[Polygon]
    width: float
    heights: list[float]


def _set_line(
    text: str, face: Face, em: float, tracking: float, jitter: float, chance: Chance | None
) -> _Line:
    polygons: list[Polygon] = []
    heights = []
    x = 0.0
    for character in text:
        if character == " ":
            x += 0.28 * em + tracking
            continue
        glyph = _glyph(face, character)
        y = chance.between(-jitter, jitter) * em if chance is not None else 0.0
        shift = np.array([x, y])
        polygons += [p * em + shift for p in glyph.polygons]
        if glyph.polygons:
            heights.append(glyph.height * em)
        x += glyph.advance * em + tracking
    return _Line(polygons, x, heights)


def _glyph(face: Face, character: str) -> Glyph:
    """Return a letter's shape; marks that a face lacks come from the broadest one."""
    try:
        return face.glyph(character)
    except KeyError:
        return FACES["noto"].glyph(character)


def set_block(
    lines: list[str],
    script: Script,
    face: Face,
    em: float,
    *,
    leading: float = 1.15,
    tracking: float = 0.0,
    align: float = 0.5,
    jitter: float = 0.0,
    chance: Chance | None = None,
) -> Lettering:
    """Set lines of text; the first baseline is at y = 0.

    Args:
        lines: Text of each line.
        script: That the letters belong to.
        face: Font.
        em: Size of the font in pixels.
        leading: Distance of baselines, in ems.
        tracking: Added between letters, in pixels.
        align: 0 left, 0.5 centred, 1 right.
        jitter: How far a hand strays from the baseline, in ems; it needs `chance`.
        chance: Moves the letters.
    """
    rows = [_set_line(line, face, em, tracking, jitter, chance) for line in lines]
    widest = max(r.width for r in rows)
    polygons: list[Polygon] = []
    heights: list[float] = []
    for index, row in enumerate(rows):
        shift = np.array([(widest - row.width) * align, index * leading * em])
        polygons += [p + shift for p in row.polygons]
        heights += row.heights
    return Lettering(polygons, script.name, _median(heights), len(heights))


def set_column_block(columns: list[str], script: Script, face: Face, em: float) -> Lettering:
    """Set columns of text from right to left, each letter in a square of its own."""
    polygons: list[Polygon] = []
    heights: list[float] = []
    for index, column in enumerate(columns):
        for row, character in enumerate(column):
            glyph = _glyph(face, character)
            shift = np.array([-index * 1.25 * em - glyph.advance * em / 2, row * 1.05 * em])
            polygons += [p * em + shift for p in glyph.polygons]
            if glyph.polygons:
                heights.append(glyph.height * em)
    return Lettering(polygons, script.name, _median(heights), len(heights))


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0


def grown(polygons: list[Polygon], by: float) -> list[Polygon]:
    """Return copies of polygons that together cover them and a rim of about `by` pixels."""
    ring = [(cos_deg(a), sin_deg(a)) for a in range(0, 360, 30)]
    return [p + np.array([x * by, y * by]) for p in polygons for x, y in ring]


def broken(words: list[str], script: Script, letters_in_line: int) -> list[str]:
    """Break words into lines of about so many letters."""
    lines: list[str] = []
    line = ""
    for text in words:
        joined = f"{line} {text}" if line and script.spaced else line + text
        if line and len(joined) > letters_in_line:
            lines.append(line)
            line = text
        else:
            line = joined
    return [*lines, line]


def plain_block(
    chance: Chance,
    script: Script,
    em: float,
    words: int,
    *,
    capitals: bool | None = None,
    letters_in_line: int | None = None,
    display: bool = False,
    align: float | None = None,
) -> Lettering:
    """Return running text in a face of the script's, set in lines or, for some, in columns."""
    face = FACES[chance.pick(script.display if display else script.speech)]
    texts = sentence(chance, script, words)
    upper = chance.happens(0.6) if capitals is None else capitals
    texts = [t.upper() if upper else t for t in texts]
    if not upper and chance.happens(0.7):
        texts[0] = texts[0].capitalize()
    total = sum(len(t) + 1 for t in texts)
    width = letters_in_line or max(6, int((total * chance.between(2.0, 5.0)) ** 0.5))
    if script.vertical and chance.happens(0.7):
        text = "".join(texts)
        high = chance.whole(4, 10)
        columns = [text[i : i + high] for i in range(0, min(len(text), high * 6), high)]
        return set_column_block(columns, script, face, em)
    return set_block(
        broken(texts, script, width),
        script,
        face,
        em,
        leading=chance.between(0.98, 1.35),
        tracking=em * (chance.between(0.0, 0.12) if chance.happens(0.3) else 0.0),
        align=chance.pick_weighted([(0.5, 3.0), (0.0, 1.0)]) if align is None else align,
        jitter=chance.between(0.01, 0.06) if chance.happens(0.3) else 0.0,
        chance=chance,
    )


def sound_effect(chance: Chance, script: Script, em: float) -> Lettering:
    """Return a sound effect: big letters, slanted, arched or tumbling."""
    face = FACES[chance.pick(script.display)]
    text = sound(chance, script)
    text = text.upper() if chance.happens(0.9) else text
    if script.vertical and chance.happens(0.5):
        return set_column_block([text], script, face, em)
    if not chance.happens(0.35):
        block = set_block([text], script, face, em, tracking=em * chance.between(-0.03, 0.08))
        return block.arched(chance.between(-0.35, 0.35)) if chance.happens(0.4) else block
    x, polygons, heights = 0.0, [], []  # each letter with a size and a tilt of its own
    for character in text:
        size = em * chance.between(0.75, 1.25)
        letter = set_block([character], script, face, size)
        if not letter.polygons:
            continue
        tumbled = letter.turned(chance.between(-18, 18))
        tumbled = tumbled.moved(x, em * chance.between(-0.15, 0.15))
        polygons += tumbled.polygons
        heights.append(letter.letter_height)
        x += _glyph(face, character).advance * size * 1.05
    return Lettering(polygons, script.name, _median(heights), len(heights))


def script_for(chance: Chance, cjk: bool) -> Script:
    """Return a script as a page may have: mostly Latin, or, with `cjk`, East Asian."""
    if cjk:
        return SCRIPTS[chance.pick_weighted([("kana", 5.0), ("han", 3.0), ("hangul", 2.0)])]
    return SCRIPTS[
        chance.pick_weighted(
            [
                ("latin", 7.0),
                ("cyrillic", 1.2),
                ("greek", 0.6),
                ("hebrew", 0.4),
                ("thai", 0.4),
                ("devanagari", 0.4),
            ]
        )
    ]
