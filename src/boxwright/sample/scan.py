"""What print and scanner do to a page: paper grain, bleeding ink, noise, faded light, JPEG blocks.

All of it in whole numbers, or in sums of whole numbers small enough to be exact, so that a page is
the same on every machine. The JPEG step is the standard's: 8 x 8 cosine transform and the example
quantisation tables of ITU-T T.81, Annex K, with libjpeg's scaling by quality; no entropy coding.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from boxwright.sample.chance import Chance, cos_deg
from boxwright.types import Image

__all__ = ["scanned"]

_LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.int64,
)
_SCALE = 1 << 14


def _cosines() -> npt.NDArray[np.float32]:
    rows = []
    for k in range(8):
        norm = (1 / 8) if k == 0 else (1 / 4)
        rows.append([float(np.sqrt(norm)) * cos_deg((2 * n + 1) * k * 11.25) for n in range(8)])
    return np.floor(np.array(rows) * _SCALE + 0.5).astype(np.float32)


_COSINES = _cosines()


def _table(quality: int) -> npt.NDArray[np.int64]:
    """Return the luminance table that libjpeg makes for a quality of 1 to 100."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((_LUMA * scale + 50) // 100, 1, 255)


def _compressed(luma: npt.NDArray[np.int16], quality: int) -> npt.NDArray[np.int16]:
    """Return brightness (H, W) 0..255 as it comes back from a JPEG file of this quality."""
    height, width = luma.shape
    padded = np.pad(luma, ((0, -height % 8), (0, -width % 8)), mode="edge").astype(np.float64) - 128
    rows, columns = padded.shape[0] // 8, padded.shape[1] // 8
    # Every product and sum below is of whole numbers under 2^53, so exact in any order.
    forward = _COSINES.astype(np.float64).T
    table = _table(quality)
    blocks = (padded.reshape(-1, 8) @ forward).reshape(rows, 8, columns, 8).transpose(0, 2, 3, 1)
    spectrum = np.ascontiguousarray(blocks).reshape(-1, 8) @ forward  # block, x frequency, y
    whole = spectrum.reshape(-1, 8, 8).transpose(0, 2, 1).astype(np.int64)
    step = table * (_SCALE * _SCALE)
    kept = np.floor_divide(whole * 2 + step, step * 2) * table
    back = kept.astype(np.float64).reshape(-1, 8) @ _COSINES.astype(np.float64)
    back = np.ascontiguousarray(back.reshape(-1, 8, 8).transpose(0, 2, 1)).reshape(-1, 8)
    pixels = (back @ _COSINES.astype(np.float64)).reshape(rows, columns, 8, 8)
    restored = np.floor(pixels / (_SCALE * _SCALE) + 0.5).astype(np.int64) + 128
    image = restored.transpose(0, 3, 1, 2).reshape(rows * 8, columns * 8)
    return np.asarray(np.clip(image[:height, :width], 0, 255), np.int16)


def _blurred(image: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """Return an image under the 3 x 3 kernel of 1 2 1."""
    wide = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    weighted: npt.NDArray[np.int16] = across[:-2] + 2 * across[1:-1] + across[2:] + 8
    weighted >>= 4
    return weighted


def _noise(chance: Chance, height: int, width: int, strength: int) -> npt.NDArray[np.int16]:
    """Return noise (H, W) that is close to normal, its deviation about strength / 4 levels."""
    octets = chance.octets(4, height, width)
    total = octets[0].astype(np.int32)
    for part in octets[1:]:
        total += part
    levels: npt.NDArray[np.int16] = ((total - 510) * strength // 590).astype(np.int16)
    return levels


def _grain(chance: Chance, height: int, width: int, strength: int) -> npt.NDArray[np.int16]:
    """Return blotches (H, W) of up to `strength` levels, some ten pixels wide."""
    cell = chance.whole(5, 16)
    coarse = chance.octets(height // cell + 2, width // cell + 2).astype(np.int32)
    smooth = (coarse[:-1, :-1] + coarse[1:, :-1] + coarse[:-1, 1:] + coarse[1:, 1:]) // 4
    fine = np.repeat(np.repeat(smooth, cell, 0), cell, 1)[:height, :width]
    return ((fine - 128) * strength // 128).astype(np.int16)


def _shadow(chance: Chance, height: int, width: int) -> npt.NDArray[np.int16]:
    """Return the dark band (1, W) along a book's spine, as levels to take away."""
    reach = max(8, width * chance.whole(4, 16) // 100)
    depth = chance.whole(20, 110)
    away = np.arange(width) if chance.happens(0.5) else np.arange(width)[::-1]
    left = np.maximum(reach - away, 0)
    return (left * left * depth // (reach * reach)).astype(np.int16)[None, :]


def scanned(image: Image, chance: Chance) -> Image:
    """Return a page as a scanner would give it; a third of the pages stay as drawn.

    Args:
        image: (H, W, 3) uint8 BGR.
        chance: Decides what happens to it.
    """
    height, width = image.shape[:2]
    page = image.astype(np.int16)
    if chance.happens(0.35):
        return image
    if chance.happens(0.45):
        page = _blurred(page)
        if chance.happens(0.25):
            page = _blurred(page)
    if chance.happens(0.5):  # faded ink, yellowed paper
        black, white = chance.whole(0, 60), chance.whole(205, 255)
        tint = (chance.whole(75, 100), chance.whole(90, 100), chance.whole(95, 100))
        page = (black + page.astype(np.int32) * (white - black) // 255).astype(np.int16)
        if chance.happens(0.5):
            page = (page.astype(np.int32) * np.array(tint) // 100).astype(np.int16)
    if chance.happens(0.4):
        page = page + _grain(chance, height, width, chance.whole(3, 16))[..., None]
    if chance.happens(0.15):
        page = page - _shadow(chance, height, width)[..., None]
    if chance.happens(0.6):
        page = page + _noise(chance, height, width, chance.whole(4, 60))[..., None]
    page = np.clip(page, 0, 255)
    if chance.happens(0.6):
        weights = np.array([29, 150, 77], np.int32)  # BT.601, in 256ths
        luma = ((page.astype(np.int32) * weights).sum(2) + 128 >> 8).astype(np.int16)
        page = np.clip(page + (_compressed(luma, chance.whole(18, 92)) - luma)[..., None], 0, 255)
    return page.astype(np.uint8)
