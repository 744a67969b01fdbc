"""What labels say of an object besides its box: masks, keypoints, corners of rotated boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from boxwright.rle import mask_from_rle, rle_from_mask
from boxwright.types import FloatArray, TaskName

__all__ = [
    "BOXES_ALONE",
    "Polygons",
    "Runs",
    "Shape",
    "Wanted",
    "areas_of_masks",
    "key_of_shape",
    "keypoints_from_shapes",
    "masks_from_shapes",
    "numbers_from",
    "points_from_coco",
    "polygons_from_coco",
    "rotated_from_shapes",
]

_MOST_PIXELS = 1 << 28  # of a mask's own size; more is a mistake, not a picture

Doubles: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is read of labels besides boxes and classes.

    Attributes:
        task: Of the model.
        keypoints: How many the model has, for `pose`.
    """

    task: TaskName = "detect"
    keypoints: int = 0


BOXES_ALONE = Wanted()


@dataclass(frozen=True, slots=True, eq=False)
class Polygons:
    """A mask as one or more outlines, (P, 2) each, whose areas together are the object."""

    outlines: tuple[Doubles, ...]


@dataclass(frozen=True, slots=True)
class Runs:
    """A mask as COCO's run-length encoding of the whole picture, compressed."""

    size: tuple[int, int]
    counts: str


# Of `segment` Polygons or Runs; of `pose` (K, 3) x, y and 0 not labelled, 1 hidden, 2 visible; of
# `obb` (4, 2) corners. In the unit of the boxes. None where the labels say nothing.
Shape: TypeAlias = "Polygons | Runs | Doubles | None"


def key_of_shape(shape: Shape) -> str:
    """Return text that is equal for equal shapes, for fingerprints and repetitions."""
    if shape is None:
        return ""
    if isinstance(shape, Runs):
        return f"{shape.size} {shape.counts}"
    parts = shape.outlines if isinstance(shape, Polygons) else (shape,)
    return ";".join(",".join(f"{v:.5g}" for v in part.ravel()) for part in parts)


def masks_from_shapes(
    shapes: Sequence[Shape], size: tuple[int, int], scale: tuple[float, float]
) -> tuple[dict[str, Any] | None, ...]:
    """Return each object's mask as compressed RLE of a picture of (height, width) `size`.

    Polygons are filled as COCO's own code fills them (pycocotools, `rleFrPoly`), by
    faster-coco-eval.

    Args:
        shapes: Polygons, runs or None.
        size: Of the picture.
        scale: Factors of x and y that make pixels of the polygons' numbers.
    """
    from faster_coco_eval.core import mask as coco_mask

    factors = np.array(scale, np.float64)
    masks: list[dict[str, Any] | None] = []
    for shape in shapes:
        if isinstance(shape, Runs):
            masks.append({"size": list(shape.size), "counts": shape.counts})
        elif isinstance(shape, Polygons):
            flat = [(outline * factors).ravel().tolist() for outline in shape.outlines]
            rle = coco_mask.merge(coco_mask.frPyObjects(flat, size[0], size[1]))
            counts = rle["counts"]
            text = counts.decode("ascii") if isinstance(counts, bytes) else str(counts)
            masks.append({"size": [size[0], size[1]], "counts": text})
        else:
            masks.append(None)
    return tuple(masks)


def areas_of_masks(masks: Sequence[dict[str, Any] | None]) -> Doubles:
    """Return how many pixels each mask has, (N,); 0 where there is none."""
    from faster_coco_eval.core import mask as coco_mask

    return np.array([0.0 if m is None else float(coco_mask.area(m)) for m in masks], np.float64)


def keypoints_from_shapes(
    shapes: Sequence[Shape], scale: tuple[float, float], count: int
) -> FloatArray:
    """Return (N, K, 3) float32 in pixels; zeros, which is not labelled, where nothing is said."""
    points = np.zeros((len(shapes), count, 3), np.float64)
    for row, shape in zip(points, shapes, strict=True):
        if isinstance(shape, np.ndarray):
            row[...] = shape
    points[:, :, :2] *= np.array(scale, np.float64)
    return points.astype(np.float32)


def rotated_from_shapes(shapes: Sequence[Shape], scale: tuple[float, float]) -> FloatArray:
    """Return (N, 5) float32 centre, width, height, angle of the smallest box round the corners.

    As Ultralytics 8.4.190 (`ops.xyxyxyxy2xywhr`) does it, by OpenCV's minAreaRect.
    """
    rows = []
    for shape in shapes:
        assert isinstance(shape, np.ndarray), "labels of rotated boxes have corners"
        corners = (shape * np.array(scale, np.float64)).astype(np.float32)
        (x, y), (width, height), degrees = cv2.minAreaRect(corners)
        rows.append((x, y, width, height, math.radians(degrees)))
    return np.array(rows, np.float32).reshape(-1, 5)


def polygons_from_coco(value: Any, size: tuple[int, int]) -> Shape:
    """Return the mask that an annotation's `segmentation` says; None where it is empty.

    Args:
        value: Lists of x, y, x, y, ... in pixels; or RLE, compressed or as a list of counts.
        size: (height, width) of the picture.

    Raises:
        ValueError: It is neither, in words.
    """
    if value is None or value == []:
        return None
    if isinstance(value, dict):
        return _runs(value, size)
    if not isinstance(value, list):
        raise ValueError("segmentation is neither polygons nor RLE")
    outlines = []
    for flat in value:
        numbers = numbers_from(flat)
        if numbers is None or len(numbers) < 6 or len(numbers) % 2:
            raise ValueError("a polygon is no list of three and more points x, y")
        outlines.append(numbers.reshape(-1, 2))
    return Polygons(tuple(outlines))


def _runs(value: dict[str, Any], size: tuple[int, int]) -> Runs:
    own, counts = value.get("size"), value.get("counts")
    numbers = numbers_from(own)
    if numbers is None or len(numbers) != 2 or not isinstance(counts, (str, list)):
        raise ValueError("RLE without its size or counts")
    if tuple(int(n) for n in numbers) != size:
        raise ValueError(f"RLE of size {own}, and the picture has {list(size)}")
    if size[0] * size[1] > _MOST_PIXELS:
        raise ValueError("RLE of too large a picture")
    if isinstance(counts, list) and numbers_from(counts) is None:
        raise ValueError("RLE whose counts are no numbers")
    mask = mask_from_rle({"size": list(size), "counts": counts})
    return Runs(size, rle_from_mask(mask)["counts"])


def points_from_coco(value: Any, count: int) -> Shape:
    """Return (K, 3) of an annotation's `keypoints`; None where none of them is labelled.

    Raises:
        ValueError: They are not `count` times x, y, visibility.
    """
    if value is None or value == []:
        return None
    numbers = numbers_from(value)
    if numbers is None or len(numbers) != 3 * count:
        found = f"{len(value)}" if isinstance(value, list) else "no list of"
        raise ValueError(f"keypoints are {found} numbers, not {count} times x, y, visibility")
    points = numbers.reshape(count, 3)
    return points if (points[:, 2] > 0).any() else None


def numbers_from(value: Any) -> Doubles | None:
    """Return a list of finite numbers as an array, or None where it is none."""
    if not isinstance(value, list):
        return None
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value):
        return None
    numbers = np.array(value, np.float64)
    return numbers if np.isfinite(numbers).all() else None
