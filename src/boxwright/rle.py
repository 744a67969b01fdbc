"""COCO's run-length encoding of masks, in NumPy. Pure.

Runs go down the columns, zeros first; the compressed form writes each run's difference to the run
two before in groups of five bits, as characters from `0` on (pycocotools, `maskApi.c`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["mask_from_rle", "rle_from_mask"]


def rle_from_mask(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return `{size: [H, W], counts: text}` of an (H, W) bool mask.

    >>> rle_from_mask(np.array([[0, 1], [1, 1]], bool))
    {'size': [2, 2], 'counts': '13'}
    """
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], edges, [flat.size]])
    runs = np.diff(bounds).tolist()
    if flat.size and flat[0]:
        runs.insert(0, 0)
    height, width = mask.shape
    return {"size": [int(height), int(width)], "counts": _compressed(runs)}


def _compressed(runs: list[int]) -> str:
    text = []
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        while True:
            five = value & 0x1F
            value >>= 5
            more = value != (-1 if five & 0x10 else 0)
            text.append(chr((five | (0x20 if more else 0)) + 48))
            if not more:
                break
    return "".join(text)


def mask_from_rle(rle: dict[str, Any]) -> npt.NDArray[np.bool_]:
    """Return the (H, W) bool mask of a compressed or plain RLE.

    Raises:
        ValueError: The runs do not fill the size, or a character is no count.

    >>> mask_from_rle({"size": [2, 2], "counts": "13"}).astype(int).tolist()
    [[0, 1], [1, 1]]
    """
    height, width = rle["size"]
    counts = rle["counts"]
    runs = _expanded(counts) if isinstance(counts, str) else [int(c) for c in counts]
    if sum(runs) != height * width or any(r < 0 for r in runs):
        raise ValueError(f"the runs hold {sum(runs)} pixels, not {height} x {width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def _expanded(text: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"character {character!r} is no count")
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("the last count is cut off")
    return runs
