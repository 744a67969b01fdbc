"""Masks from prototypes and coefficients, in NumPy. Pure.

A mask's logits are coefficients times prototypes, at a quarter of the network input's size.
Ultralytics 8.4.190 (`utils/ops.py`) makes masks of them in two ways, and so do we:
`masks_in_source` is its `retina_masks=True` (`process_mask_native`), in the size of the picture,
which `Detector` returns; `masks_in_input` its default (`process_mask`), in the network input's.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from boxwright.preprocess import Placement
from boxwright.types import FloatArray, MaskCrop

__all__ = ["mask_logits", "masks_in_input", "masks_in_source"]

_STRIDE = 4  # input pixels of a prototype's pixel


def mask_logits(coefficients: FloatArray, prototypes: FloatArray) -> FloatArray:
    """Return (N, h, w) float32 from coefficients (N, M) and prototypes (M, h, w)."""
    count, height, width = prototypes.shape
    flat = prototypes.reshape(count, -1)
    return (coefficients @ flat).reshape(-1, height, width).astype(np.float32, copy=False)


def masks_in_source(logits: FloatArray, xyxy: FloatArray, where: Placement) -> tuple[MaskCrop, ...]:
    """Return the masks in the picture: padding cut off, upsampled, over 0, cropped to the boxes.

    Args:
        logits: (N, h, w) float32 of the letterboxed picture.
        xyxy: (N, 4) float32 boxes in pixels of the picture.
        where: The picture's placement.
    """
    size = where.source_size
    mask_h, mask_w = logits.shape[1:]
    gain = min(_STRIDE * mask_h / size[0], _STRIDE * mask_w / size[1])
    pad = (_STRIDE * mask_h - max(round(size[0] * gain), 1)) | (
        _STRIDE * mask_w - max(round(size[1] * gain), 1)
    )
    factor = _STRIDE // math.gcd(_STRIDE, pad | pad // 2)  # cuts the padding at whole pixels
    height, width = mask_h * factor, mask_w * factor
    if (height, width) == size:
        inner = (0, 0, height, width)
    else:
        inner = _content((height, width), size)
    crops = []
    for plane, box in zip(logits, xyxy, strict=True):
        left, top, right, bottom = _pixels(box, size)
        if factor > 1:
            plane = _resampled(plane, (height, width), (0, 0, width, height))
        part = plane[inner[0] : inner[2], inner[1] : inner[3]]
        values = _resampled(part, size, (left, top, right, bottom))
        crops.append(MaskCrop(left, top, values > 0))
    return tuple(crops)


def masks_in_input(
    logits: FloatArray, xyxy: FloatArray, input_size: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Return the masks in the network input: upsampled, over 0, cropped to the boxes.

    Args:
        logits: (N, h, w) float32.
        xyxy: (N, 4) float32 boxes in input pixels.
        input_size: (height, width).

    Returns:
        (N, height, width) bool.
    """
    masks = np.zeros((len(logits), *input_size), bool)
    for mask, plane, box in zip(masks, logits, xyxy, strict=True):
        left, top, right, bottom = _pixels(box, input_size)
        values = _resampled(plane, input_size, (left, top, right, bottom))
        mask[top:bottom, left:right] = values > 0
    return masks


def _content(mask: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return top, left, bottom, right of the picture inside a letterboxed mask."""
    gain = min(mask[0] / size[0], mask[1] / size[1])
    sides = [max(round(side * gain), 1) for side in size]
    top, left = (round((m - s) / 2 - 0.1) for m, s in zip(mask, sides, strict=True))
    return top, left, top + sides[0], left + sides[1]


def _pixels(box: FloatArray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of the pixels p with x1 <= p < x2, inside the picture."""
    x1, y1, x2, y2 = (float(v) for v in box)
    left, top = max(0, math.ceil(x1)), max(0, math.ceil(y1))
    right, bottom = min(size[1], math.ceil(x2)), min(size[0], math.ceil(y2))
    left, top = min(left, size[1]), min(top, size[0])
    return left, top, max(left, right), max(top, bottom)


def _resampled(
    plane: FloatArray, size: tuple[int, int], part: tuple[int, int, int, int]
) -> FloatArray:
    """Return a part (left, top, right, bottom) of a plane that is resized to (height, width).

    Bilinear with pixel centres at halves: torch's `interpolate` with `align_corners=False`.
    """
    left, top, right, bottom = part
    low, high, weight = _taps(plane.shape[0], size[0], top, bottom)
    rows: FloatArray = plane[low] * (1 - weight)[:, None] + plane[high] * weight[:, None]
    low, high, weight = _taps(plane.shape[1], size[1], left, right)
    result: FloatArray = rows[:, low] * (1 - weight) + rows[:, high] * weight
    return result


def _taps(
    source: int, target: int, start: int, end: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], FloatArray]:
    """Return both neighbours and the second's weight of the target pixels from start to end."""
    step = np.float32(source) / np.float32(target)
    place = (np.arange(start, end, dtype=np.float32) + np.float32(0.5)) * step - np.float32(0.5)
    place = np.maximum(place, np.float32(0))
    low = place.astype(np.intp)
    high = np.minimum(low + 1, source - 1)
    weight: FloatArray = (place - low).astype(np.float32)
    return low, high, weight
