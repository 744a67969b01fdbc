"""From a picture to the network's input tensor, and boxes back to the picture.

Pure functions on arrays; OpenCV does the resampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from boxwright.errors import ImageError
from boxwright.types import FloatArray, Image, Preprocess

__all__ = [
    "Placement",
    "antialiased",
    "bgr_from_array",
    "place",
    "points_from_input",
    "prepare",
    "rotated_from_input",
    "source_from_input",
    "sources_from_inputs",
]

_FIXED_BITS = 22
_FILTERS = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a resized picture lies inside the network input.

    Attributes:
        source_size: Picture (height, width) in pixels.
        resized_size: Picture (height, width) after resizing, each at least 1.
        left, top: Position of its first pixel in the network input.
    """

    source_size: tuple[int, int]
    resized_size: tuple[int, int]
    left: int
    top: int

    @property
    def scale(self) -> tuple[float, float]:
        """Input pixels per source pixel (x, y): the real ratios, after rounding to whole pixels."""
        return (
            self.resized_size[1] / self.source_size[1],
            self.resized_size[0] / self.source_size[0],
        )


def place(
    source_size: tuple[int, int], input_size: tuple[int, int], rules: Preprocess
) -> Placement:
    """Compute where a picture lands in the network input.

    Letterbox as the YOLO projects define it: ratio = min(target / source), sides rounded (YOLOX:
    floored), centred with left = round((W - w) / 2 - 0.1).

    Args:
        source_size: Picture (height, width) in pixels.
        input_size: Network input (height, width) in pixels.
        rules: Resize mode and rounding.

    >>> place((1080, 810), (640, 640), Preprocess())
    Placement(source_size=(1080, 810), resized_size=(640, 480), left=80, top=0)
    """
    height, width = source_size
    if rules.resize == "stretch":
        return Placement(source_size, input_size, 0, 0)
    if rules.resize == "crop":
        return _cropped(source_size, input_size)
    if rules.resize == "letterbox_twice":
        height, width = _first_size(source_size, input_size)
        # The second step never grows a picture.
        ratio = min(input_size[0] / height, input_size[1] / width, 1.0)
        resized = (max(1, round(height * ratio)), max(1, round(width * ratio)))
        return _centred(source_size, resized, input_size)
    ratio = min(input_size[0] / height, input_size[1] / width)
    whole = round if rules.rounding == "round" else int
    resized = (
        min(max(1, whole(height * ratio)), input_size[0]),
        min(max(1, whole(width * ratio)), input_size[1]),
    )
    if rules.resize == "letterbox_top_left":
        return Placement(source_size, resized, 0, 0)
    return _centred(source_size, resized, input_size)


def _centred(
    source_size: tuple[int, int], resized: tuple[int, int], input_size: tuple[int, int]
) -> Placement:
    return Placement(
        source_size,
        resized,
        left=max(0, round((input_size[1] - resized[1]) / 2 - 0.1)),
        top=max(0, round((input_size[0] - resized[0]) / 2 - 0.1)),
    )


def _first_size(source_size: tuple[int, int], input_size: tuple[int, int]) -> tuple[int, int]:
    """Return the size between the two steps of `letterbox_twice`.

    As MMYOLO 0.6, `YOLOv5KeepRatioResize`: the longer side of one is held against the longer of the
    other, so that a picture that lies does not fit an input that stands.
    """
    height, width = source_size
    ratio = min(
        max(input_size) / max(source_size),
        min(input_size) / min(source_size),
    )
    return max(1, int(height * ratio)), max(1, int(width * ratio))


def _cropped(source_size: tuple[int, int], input_size: tuple[int, int]) -> Placement:
    """Scale the shorter side to a square input's, or both sides to another one's; take the centre.

    As torchvision's Resize and CenterCrop do, which Ultralytics classifies behind. What is cut off
    lies at negative places.
    """
    height, width = source_size
    side = input_size[0]
    if input_size[0] != input_size[1]:
        resized = input_size
    elif width <= height:
        resized = (int(side * height / width), side)
    else:
        resized = (side, int(side * width / height))
    return Placement(
        source_size,
        resized,
        left=-round((resized[1] - input_size[1]) / 2),
        top=-round((resized[0] - input_size[0]) / 2),
    )


def antialiased(image: Image, size: tuple[int, int]) -> Image:
    """Return a picture resized to (height, width) as Pillow's bilinear filter does it.

    To the bit where both sides are scaled much alike, as before a crop; otherwise Pillow 13 takes
    the two passes the other way round, and a grey level may differ.

    Formula: Pillow 12, `src/libImaging/Resample.c`: a triangle as wide as the step, in fixed point
    of 22 bits, across and then down, each rounded to whole grey levels.
    """
    across = _antialiased_rows(np.ascontiguousarray(image.swapaxes(0, 1)), size[1])
    return _antialiased_rows(np.ascontiguousarray(across.swapaxes(0, 1)), size[0])


def _antialiased_rows(image: Image, target: int) -> Image:
    """Resample the first axis of (S, T, 3) to `target`."""
    source = image.shape[0]
    if source == target:
        return image
    step = source / target
    support = max(step, 1.0)
    centre = (np.arange(target) + 0.5) * step
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), source)
    offsets = np.arange(int((last - first).max()))
    places = first[:, None] + offsets
    weights = np.maximum(1 - np.abs((places - centre[:, None] + 0.5) * (1 / support)), 0.0)
    weights[places >= last[:, None]] = 0
    weights *= 1 / np.cumsum(weights, axis=1)[:, -1:]  # summed one by one, as there
    fixed = (weights * (1 << _FIXED_BITS) + 0.5).astype(np.int32)
    places = np.minimum(places, source - 1)
    total = np.full((target, *image.shape[1:]), 1 << (_FIXED_BITS - 1), np.int32)
    for tap in range(len(offsets)):
        total += image[places[:, tap]] * fixed[:, tap, None, None]
    result: Image = np.clip(total >> _FIXED_BITS, 0, 255).astype(np.uint8)
    return result


def prepare(
    image: Image, input_size: tuple[int, int], rules: Preprocess, out: FloatArray
) -> Placement:
    """Write one picture into its slice of the input batch.

    Args:
        image: (H, W, 3) uint8 BGR.
        input_size: Network input (height, width) in pixels.
        rules: The family's preprocessing.
        out: (3, height, width) float32, contiguous; every element is written.

    Returns:
        Where the picture lies, for `source_from_input`.
    """
    where = place((image.shape[0], image.shape[1]), input_size, rules)
    (height, width), left, top = where.resized_size, where.left, where.top
    resized = _resize(image, where, rules, input_size)
    if rules.resize == "crop":
        resized = resized[-top : input_size[0] - top, -left : input_size[1] - left]
        (height, width), left, top = input_size, 0, 0
    planes = cv2.split(resized)  # contiguous planes convert at full speed
    for channel, plane in enumerate(planes[::-1] if rules.color == "rgb" else planes):
        factor = np.float32(rules.scale / rules.std[channel])
        shift = np.float32(-rules.mean[channel] / rules.std[channel])
        target = out[channel]
        padding = np.float32(rules.pad_value) * factor + shift
        target[:top] = padding
        target[top + height :] = padding
        target[top : top + height, :left] = padding
        target[top : top + height, left + width :] = padding
        inner = target[top : top + height, left : left + width]
        np.multiply(plane, factor, out=inner, dtype=np.float32)
        if shift:
            inner += shift
    return where


def _resized_twice(image: Image, where: Placement, input_size: tuple[int, int]) -> Image:
    """Resize by area where that shrinks, otherwise linearly; then linearly to the final size."""
    for height, width in (_first_size(where.source_size, input_size), where.resized_size):
        if image.shape[:2] == (height, width):
            continue
        first = image.shape[:2] == where.source_size
        shrinks = first and height * width < image.shape[0] * image.shape[1]
        kernel = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        image = np.asarray(cv2.resize(image, (width, height), interpolation=kernel), np.uint8)
    return image


def _resize(
    image: Image, where: Placement, rules: Preprocess, input_size: tuple[int, int]
) -> Image:
    height, width = where.resized_size
    if where.source_size == (height, width):
        return image
    if rules.resize == "crop":
        return antialiased(image, (height, width))
    if rules.resize == "letterbox_twice":
        return _resized_twice(image, where, input_size)
    kernel = _FILTERS[rules.interpolation]
    if rules.interpolation == "area" and min(where.scale) >= 1:
        kernel = cv2.INTER_LINEAR  # as MMYOLO does: area is for shrinking
    return np.asarray(cv2.resize(image, (width, height), interpolation=kernel), np.uint8)


def source_from_input(boxes: FloatArray, where: Placement) -> FloatArray:
    """Map xyxy boxes from input pixels to source pixels and clip them to the picture.

    Args:
        boxes: (N, 4) float32 xyxy in pixels of the network input.
        where: The picture's placement.

    Returns:
        (N, 4) float32 xyxy in pixels of the source picture.
    """
    return _in_source(boxes, *_mapping(where))


@lru_cache(1024)
def _mapping(where: Placement) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return shift, scale and limit of a placement's boxes, (4,) each; kept, so never written."""
    height, width = where.source_size
    scale = np.array(where.scale * 2, np.float32)
    shift = np.array((where.left, where.top) * 2, np.float32)
    limit = np.array((width, height) * 2, np.float32)
    return shift, scale, limit


def sources_from_inputs(
    boxes: FloatArray, places: Sequence[Placement], counts: Sequence[int]
) -> FloatArray:
    """Map the boxes of several pictures as `source_from_input` does, to the same bits.

    Args:
        boxes: (N, 4) float32 xyxy in pixels of the network input, one picture's after the other's.
        places: The pictures' placements.
        counts: How many boxes each has.

    Returns:
        (N, 4) float32 xyxy in pixels of the source pictures.
    """
    rules = [(w.left, w.top, *w.scale, w.source_size[1], w.source_size[0]) for w in places]
    pairs = np.array(rules, np.float32).reshape(-1, 3, 2).swapaxes(0, 1)
    each = np.repeat(np.concatenate([pairs, pairs], axis=2), counts, axis=1)
    return _in_source(boxes, *each)


def _in_source(
    boxes: FloatArray, shift: FloatArray, scale: FloatArray, limit: FloatArray
) -> FloatArray:
    result: FloatArray = boxes - shift
    result /= scale  # step by step: np.clip costs more than all the rest on a few boxes
    np.maximum(result, np.float32(0), out=result)
    np.minimum(result, limit, out=result)
    return result


def points_from_input(points: FloatArray, where: Placement) -> FloatArray:
    """Map x and y, the first two of (..., D) numbers, to source pixels, clipped to the picture."""
    result: FloatArray = points.astype(np.float32)  # a copy
    height, width = where.source_size
    scale = np.array(where.scale, np.float32)
    place = (result[..., :2] - np.array((where.left, where.top), np.float32)) / scale
    result[..., :2] = np.clip(place, np.float32(0), np.array((width, height), np.float32))
    return result


def rotated_from_input(rotated: FloatArray, where: Placement) -> FloatArray:
    """Map rotated boxes (N, 5) to source pixels; they are not clipped, and the angle stays."""
    result: FloatArray = rotated.astype(np.float32)  # a copy
    scale = np.array(where.scale, np.float32)
    result[:, :2] = (result[:, :2] - np.array((where.left, where.top), np.float32)) / scale
    result[:, 2:4] /= scale
    return result


def bgr_from_array(array: npt.NDArray[Any], what: str = "image") -> Image:
    """Return a picture array as (H, W, 3) uint8 BGR.

    Args:
        array: uint8 or uint16, shape (H, W), (H, W, 1), (H, W, 3) BGR or (H, W, 4) BGRA. Alpha is
            dropped, grey is repeated, 16 bits are cut to the upper 8: what OpenCV does on reading.
        what: What to call it in errors.

    Raises:
        ImageError: Another shape or dtype, or no pixels.
    """
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise ImageError(
            what,
            f"an array of shape {array.shape} is not a picture",
            "give (H, W), (H, W, 3) BGR or (H, W, 4) BGRA",
        )
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ImageError(
            what, f"dtype {array.dtype} is not a picture's", "give uint8 (or uint16) pixels"
        )
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array[..., :3])
