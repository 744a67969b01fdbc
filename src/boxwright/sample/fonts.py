"""Letter shapes out of the font packages that Boxwright depends on, all under open licences.

Outlines are read with fontTools and flattened here; nothing is hinted or rasterised by a library,
so that a letter looks the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from boxwright.errors import MissingExtraError
from boxwright.sample.raster import Polygon

__all__ = ["CJK_PACKAGE", "FACES", "SCRIPTS", "Face", "Glyph", "Script", "have_cjk", "require_cjk"]

CJK_PACKAGE = "cvttf_NotoSansCJK_Medium"


@dataclass(frozen=True, slots=True)
class Glyph:
    """One letter's shape.

    Attributes:
        polygons: Outlines, y downwards, the baseline at 0, in units of the em.
        advance: To the next letter, in units of the em.
        height: Of its ink, in units of the em.
    """

    polygons: tuple[Polygon, ...]
    advance: float
    height: float


@dataclass(frozen=True)
class Face:
    """One font at one weight.

    Attributes:
        package: Importable name of the package that holds the file.
        file: Its name below that package.
        weight: Position on the weight axis of a variable font, or None.
    """

    package: str
    file: str
    weight: int | None = None
    _glyphs: dict[str, Glyph] = field(default_factory=dict, compare=False, repr=False)

    def glyph(self, character: str) -> Glyph:
        """Return the shape of a character.

        Raises:
            KeyError: The font does not have it.
        """
        if character not in self._glyphs:
            self._glyphs[character] = self._drawn(character)
        return self._glyphs[character]

    def _drawn(self, character: str) -> Glyph:
        font, names, shapes = _opened(self.package, self.file, self.weight)
        name = names[ord(character)]
        pen = _pen(shapes)
        shapes[name].draw(pen)
        em = font["head"].unitsPerEm
        polygons = tuple(
            np.array([(x / em, -y / em) for x, y in outline], np.float64)
            for outline in pen.outlines
            if len(outline) >= 3
        )
        points = np.concatenate(polygons)[:, 1] if polygons else np.zeros(1)
        return Glyph(polygons, shapes[name].width / em, float(points.max() - points.min()))


@cache
def _opened(package: str, file: str, weight: int | None) -> tuple[Any, Mapping[int, str], Any]:
    from fontTools.ttLib import TTFont

    path = resources.files(package).joinpath(file)
    font = TTFont(str(path), lazy=True)
    location = {"wght": weight} if weight is not None else None
    return font, font.getBestCmap(), font.getGlyphSet(location=location)


def _pen(shapes: Any) -> Any:
    """Return a fontTools pen that collects outlines as straight lines, in font units."""
    from fontTools.pens.basePen import BasePen

    class Flattened(BasePen):  # type: ignore[misc]  # the names are fontTools'
        def __init__(self) -> None:
            super().__init__(shapes)
            self.outlines: list[list[tuple[float, float]]] = []

        def _moveTo(self, point: tuple[float, float]) -> None:  # noqa: N802
            self.outlines.append([_whole(point)])

        def _lineTo(self, point: tuple[float, float]) -> None:  # noqa: N802
            self.outlines[-1].append(_whole(point))

        def _qCurveToOne(self, control: tuple[float, float], end: tuple[float, float]) -> None:  # noqa: N802
            start = self._getCurrentPoint()
            for i in range(1, 5):
                t = i / 4
                a, b, c = (1 - t) * (1 - t), 2 * t * (1 - t), t * t
                self._lineTo(
                    (
                        a * start[0] + b * control[0] + c * end[0],
                        a * start[1] + b * control[1] + c * end[1],
                    )
                )

        def _curveToOne(  # noqa: N802
            self, one: tuple[float, float], two: tuple[float, float], end: tuple[float, float]
        ) -> None:
            start = self._getCurrentPoint()
            for i in range(1, 6):
                t = i / 5
                s = 1 - t
                a, b, c, d = s * s * s, 3 * s * s * t, 3 * s * t * t, t * t * t
                self._lineTo(
                    (
                        a * start[0] + b * one[0] + c * two[0] + d * end[0],
                        a * start[1] + b * one[1] + c * two[1] + d * end[1],
                    )
                )

    return Flattened()


def _whole(point: tuple[float, float]) -> tuple[float, float]:
    """Round to an eighth of a font unit, so that no library's last bit shows."""
    return math.floor(point[0] * 8 + 0.5) / 8, math.floor(point[1] * 8 + 0.5) / 8


def _noto(weight: int, italic: bool = False) -> Face:
    style = "-Italic" if italic else ""
    return Face("fontpkg_noto_sans", f"files/NotoSans{style}[wdth,wght].ttf", weight)


def _oswald(weight: int) -> Face:
    return Face("fontpkg_oswald", "files/Oswald[wght].ttf", weight)


def _ruhl(weight: int) -> Face:
    return Face("fontpkg_frank_ruhl_libre", "files/FrankRuhlLibre[wght].ttf", weight)


FACES: Mapping[str, Face] = {
    "kalam-light": Face("fontpkg_kalam", "files/Kalam-Light.ttf"),
    "kalam": Face("fontpkg_kalam", "files/Kalam-Regular.ttf"),
    "kalam-bold": Face("fontpkg_kalam", "files/Kalam-Bold.ttf"),
    "indie": Face("fontpkg_indie_flower", "files/IndieFlower-Regular.ttf"),
    "marker": Face("fontpkg_permanent_marker", "files/PermanentMarker-Regular.ttf"),
    "luckiest": Face("fontpkg_luckiest_guy", "files/LuckiestGuy-Regular.ttf"),
    "lilita": Face("fontpkg_lilita_one", "files/LilitaOne-Regular.ttf"),
    "bungee": Face("fontpkg_bungee", "files/Bungee-Regular.ttf"),
    "noto-light": _noto(300),
    "noto": _noto(450),
    "noto-bold": _noto(700),
    "noto-black": _noto(900),
    "noto-italic": _noto(600, italic=True),
    "oswald": _oswald(400),
    "oswald-bold": _oswald(700),
    "ruhl": _ruhl(400),
    "ruhl-bold": _ruhl(800),
    "thai": Face("fontpkg_noto_sans_thai", "files/NotoSansThai[wdth,wght].ttf", 500),
    "thai-bold": Face("fontpkg_noto_sans_thai", "files/NotoSansThai[wdth,wght].ttf", 800),
    "cjk": Face(CJK_PACKAGE, "NotoSansCJKtc-Medium.otf"),
}


@dataclass(frozen=True, slots=True)
class Script:
    """Letters that are written together.

    Attributes:
        name: For records.
        letters: That words are made of.
        speech: Names of faces for running text.
        display: Names of faces for titles and sound effects.
        stops: Marks that may follow a word.
        spaced: Words are set apart by spaces.
        vertical: May run in columns from right to left.
    """

    name: str
    letters: str
    speech: tuple[str, ...]
    display: tuple[str, ...]
    stops: str = ".,!?"
    spaced: bool = True
    vertical: bool = False


def _from_codec(codec: str, rows: range, columns: range) -> str:
    """Return the characters of a part of an East Asian code table (rows and cells of 94)."""
    cells = (bytes([row, column]) for row in rows for column in columns)
    return "".join(cell.decode(codec, "ignore") for cell in cells)


_LATIN_SPEECH = (
    "kalam", "kalam-bold", "kalam-light", "indie", "marker", "noto", "noto-bold", "noto-italic",
    "noto-light", "oswald", "ruhl", "lilita",
)  # fmt: skip
_LATIN_DISPLAY = (
    "luckiest", "lilita", "bungee", "marker", "noto-black", "oswald-bold", "ruhl-bold", "kalam-bold"
)  # fmt: skip

SCRIPTS: Mapping[str, Script] = {
    "latin": Script("latin", "abcdefghijklmnopqrstuvwxyz", _LATIN_SPEECH, _LATIN_DISPLAY),
    "cyrillic": Script(
        "cyrillic",
        "абвгдежзийклмнопрстуфхцчшщыьэюя",
        ("noto", "noto-bold", "noto-italic", "oswald"),
        ("noto-black", "oswald-bold"),
    ),
    "greek": Script(
        "greek", "αβγδεζηθικλμνξοπρστυφχψω", ("noto", "noto-bold", "noto-italic"), ("noto-black",)
    ),
    "hebrew": Script("hebrew", "אבגדהוזחטיכלמנסעפצקרשת", ("ruhl", "ruhl-bold"), ("ruhl-bold",)),
    "thai": Script(
        "thai",
        "กขคงจฉชซดตถทนบปผพฟมยรลวสหอะาเแโ",
        ("thai", "thai-bold"),
        ("thai-bold",),
        spaced=False,
    ),
    "devanagari": Script(
        "devanagari",
        "कखगघचछजझटठडढणतथदधनपफबभमयरलवशषसहा",
        ("kalam", "kalam-bold"),
        ("kalam-bold",),
        "।!?",
    ),
    "kana": Script(
        "kana",
        _from_codec("euc_jp", range(0xA4, 0xA5), range(0xA1, 0xF4))
        + _from_codec("euc_jp", range(0xA5, 0xA6), range(0xA1, 0xF7))
        + _from_codec("euc_jp", range(0xB0, 0xB8), range(0xA1, 0xFF)),
        ("cjk",),
        ("cjk",),
        "。、！？…",
        spaced=False,
        vertical=True,
    ),
    "han": Script(
        "han",
        _from_codec("gb2312", range(0xB0, 0xD7), range(0xA1, 0xFF)),
        ("cjk",),
        ("cjk",),
        "。，！？",
        spaced=False,
        vertical=True,
    ),
    "hangul": Script(
        "hangul",
        _from_codec("euc_kr", range(0xB0, 0xC8), range(0xA1, 0xFF)),
        ("cjk",),
        ("cjk",),
        ".,!?",
    ),
}


def have_cjk() -> bool:
    """Whether the optional package with Chinese, Japanese and Korean letters is installed."""
    from importlib.util import find_spec

    return find_spec(CJK_PACKAGE) is not None


def require_cjk() -> None:
    """Refuse when the optional CJK letters are missing.

    Raises:
        MissingExtraError: They are.
    """
    if not have_cjk():
        raise MissingExtraError("CJK lettering", "cjk")
