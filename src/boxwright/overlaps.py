"""How much detections overlap objects, by what each task finds: the one thing that its AP changes.

Boxes and masks by intersection over union; keypoints by COCO's object keypoint similarity;
rotated boxes by probabilistic IoU, as Ultralytics' validation of OBB has it, and exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from boxwright.rotated import probiou_matrix, rotated_iou
from boxwright.types import Detections, FloatArray, IntArray

__all__ = [
    "COCO_SIGMAS",
    "Labelled",
    "Overlap",
    "found_areas",
    "found_masks",
    "ignored_objects",
    "object_areas",
    "object_masks",
    "overlaps",
    "rectangle_mask",
    "sigmas_of",
]

Overlap: TypeAlias = Literal["box", "mask", "keypoints", "rotated", "exact"]
Doubles: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = dict[str, Any]  # COCO's compressed RLE

# Of COCO's 17 keypoints of a person (cocodataset.org, "Keypoint evaluation").
COCO_SIGMAS = np.array(
    [26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89], np.float32
) / np.float32(1000)
_LEAST = 0.5  # of the IoU that counts; under it an exact one need not be known


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """One picture's truth and detections, boxes (N, 4) float32 xyxy in its pixels.

    Attributes:
        xyxy, class_ids, crowd, areas: Of the objects; `crowd` (N,) bool, `areas` (N,) float64.
        found_xyxy, found_scores, found_class_ids: Of the detections, best first.
        image_size: (height, width), for masks.
        masks, found_masks: COCO's compressed RLE; None for an object without a mask.
        keypoints, found_keypoints: (N, K, 3) with the label's visibility, and (N, K, 2 or 3).
        rotated, found_rotated: (N, 5).
        shape_areas: (N,) float64 areas of the objects' masks, poses or rotated boxes.
    """

    xyxy: FloatArray
    class_ids: IntArray
    crowd: npt.NDArray[np.bool_]
    areas: Doubles
    found_xyxy: FloatArray
    found_scores: FloatArray
    found_class_ids: IntArray
    image_size: tuple[int, int] = (0, 0)
    masks: tuple[Mask | None, ...] | None = None
    found_masks: tuple[Mask, ...] | None = None
    keypoints: FloatArray | None = None
    found_keypoints: FloatArray | None = None
    rotated: FloatArray | None = None
    found_rotated: FloatArray | None = None
    shape_areas: Doubles | None = None


def sigmas_of(count: int) -> FloatArray:
    """Return how far labels of each keypoint scatter: COCO's for 17, else 1 / K as Ultralytics."""
    if count == len(COCO_SIGMAS):
        return COCO_SIGMAS
    return np.full(count, 1 / count, np.float32)


def ignored_objects(picture: Labelled, by: Overlap) -> npt.NDArray[np.bool_]:
    """Return which objects are neither to be found nor wrong to find: (N,) bool.

    Crowd regions; for masks objects that have none; for keypoints those of which none is labelled.
    """
    if by == "mask" and picture.masks is not None:
        none = np.array([m is None for m in picture.masks], bool)
        return np.asarray(picture.crowd | none, bool)
    if by == "keypoints" and picture.keypoints is not None:
        bare = ~(picture.keypoints[:, :, 2] > 0).any(axis=1)
        return np.asarray(picture.crowd | bare, bool)
    return picture.crowd


def object_areas(picture: Labelled, by: Overlap) -> Doubles:
    """Return by which areas objects are small, medium or large."""
    if by == "box" or picture.shape_areas is None:
        return picture.areas
    return picture.shape_areas


def found_areas(picture: Labelled, by: Overlap) -> Doubles:
    """Return the areas of the detections, (N,): of poses that of the box round the points."""
    if by == "mask" and picture.found_masks is not None:
        from faster_coco_eval.core import mask as coco_mask

        return np.array([float(coco_mask.area(m)) for m in picture.found_masks], np.float64)
    if by == "keypoints" and picture.found_keypoints is not None:
        points = picture.found_keypoints[:, :, :2].astype(np.float64)
        return np.asarray(np.ptp(points, axis=1).prod(axis=1), np.float64)
    if by in ("rotated", "exact") and picture.found_rotated is not None:
        return np.asarray(picture.found_rotated[:, 2:4].astype(np.float64).prod(axis=1), np.float64)
    sides = picture.found_xyxy[:, 2:].astype(np.float64) - picture.found_xyxy[:, :2]
    return np.asarray(sides.prod(axis=1), np.float64)


def found_masks(found: Detections) -> tuple[Mask, ...]:
    """Return the masks of detections as compressed RLE of the whole picture."""
    from faster_coco_eval.core import mask as coco_mask

    height, width = found.image_size
    masks = []
    for crop in found.mask_crops or ():
        runs = _runs(crop.pixels, crop.left, crop.top, height, width)
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
        masks.append(_plain(rle))
    return tuple(masks)


def _runs(pixels: npt.NDArray[np.bool_], left: int, top: int, height: int, width: int) -> list[int]:
    """Return the lengths of runs, zeros first, down the columns of a picture that holds a crop."""
    high, wide = pixels.shape
    edges = np.zeros((wide, high + 2), np.int8)
    edges[:, 1:-1] = pixels.T
    steps = np.diff(edges, axis=1)
    columns, rows = np.nonzero(steps > 0)
    starts = (left + columns) * height + top + rows
    columns, rows = np.nonzero(steps < 0)
    ends = (left + columns) * height + top + rows
    joined = starts[1:] == ends[:-1]  # a run that goes on in the next column
    starts = starts[np.concatenate([[True], ~joined])] if len(starts) else starts
    ends = ends[np.concatenate([~joined, [True]])] if len(ends) else ends
    bounds = np.stack([starts, ends], axis=1).ravel()
    lengths: list[int] = np.diff(np.concatenate([[0], bounds, [height * width]])).tolist()
    return lengths if lengths[-1] else lengths[:-1]


def object_masks(picture: Labelled) -> list[Mask]:
    """Return the objects' masks; where there is none the box, all filled."""
    masks = picture.masks or ()
    pairs = zip(masks, picture.xyxy, strict=True)
    return [rectangle_mask(b, picture.image_size) if m is None else m for m, b in pairs]


def rectangle_mask(box: FloatArray, size: tuple[int, int]) -> Mask:
    """Return a filled box (x1, y1, x2, y2) as compressed RLE."""
    from faster_coco_eval.core import mask as coco_mask

    x1, y1, x2, y2 = (float(v) for v in box)
    outline = [x1, y1, x2, y1, x2, y2, x1, y2]
    return _plain(coco_mask.frPyObjects([outline], size[0], size[1])[0])


def _plain(rle: Mask) -> Mask:
    counts = rle["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else str(counts)
    return {"size": [int(v) for v in rle["size"]], "counts": text}


def overlaps(
    picture: Labelled, found: npt.NDArray[np.intp], objects: npt.NDArray[np.intp], by: Overlap
) -> Doubles:
    """Return how much each of some detections overlaps each of some objects: (D, G), 0..1.

    With a crowd region it is the share of the detection that lies in it.

    Args:
        picture: Truth and detections.
        found, objects: Positions of the detections and of the objects.
        by: What is compared.
    """
    if not len(found) or not len(objects):
        return np.zeros((len(found), len(objects)))
    if by == "mask":
        return _of_masks(picture, found, objects)
    if by == "keypoints":
        return _of_keypoints(picture, found, objects)
    if by == "box":
        crowd = picture.crowd[objects]
        return _of_boxes(picture.found_xyxy[found], picture.xyxy[objects], crowd)
    assert picture.found_rotated is not None and picture.rotated is not None, "the task is obb"
    first, second = picture.found_rotated[found], picture.rotated[objects]
    if by == "exact":
        return _of_polygons(first, second)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = probiou_matrix(first, second).astype(np.float64)
    return np.nan_to_num(values, nan=0.0)


def _of_boxes(found: FloatArray, objects: FloatArray, crowd: npt.NDArray[np.bool_]) -> Doubles:
    """Return the IoU of boxes in the order of COCO's own arithmetic.

    From corner and size in double precision, so that an overlap that is just at a threshold falls
    on the same side.
    """
    a, b = found.astype(np.float64)[:, None], objects.astype(np.float64)[None]
    sides_a, sides_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + sides_a, b[..., :2] + sides_b)
    shared = np.maximum(high - low, 0.0).prod(axis=-1)
    area_a, area_b = sides_a.prod(axis=-1), sides_b.prod(axis=-1)
    union = np.where(crowd, area_a, area_a + area_b - shared)
    values: Doubles = np.zeros_like(shared)
    np.divide(shared, union, out=values, where=shared > 0)
    return values


def _of_masks(
    picture: Labelled, found: npt.NDArray[np.intp], objects: npt.NDArray[np.intp]
) -> Doubles:
    from faster_coco_eval.core import mask as coco_mask

    assert picture.found_masks is not None, "the task is segment"
    truth = object_masks(picture)
    crowd = ignored_objects(picture, "mask")[objects].astype(int).tolist()
    ours = [picture.found_masks[i] for i in found]
    return np.asarray(coco_mask.iou(ours, [truth[i] for i in objects], crowd), np.float64)


def _of_keypoints(
    picture: Labelled, found: npt.NDArray[np.intp], objects: npt.NDArray[np.intp]
) -> Doubles:
    """Return COCO's OKS, over the labelled points (pycocotools, `computeOks`).

    An object without any is compared with the distance to its box, doubled in size.
    """
    assert picture.found_keypoints is not None and picture.keypoints is not None, "task pose"
    points = picture.found_keypoints[found, :, :2].astype(np.float64)
    variances = (sigmas_of(points.shape[1]).astype(np.float64) * 2) ** 2
    areas = object_areas(picture, "keypoints")
    result = np.zeros((len(found), len(objects)))
    for column, index in enumerate(objects):
        truth = picture.keypoints[index].astype(np.float64)
        labelled = truth[:, 2] > 0
        if labelled.any():
            away = points - truth[None, :, :2]
        else:
            box = picture.xyxy[index].astype(np.float64)
            sides = box[2:] - box[:2]
            away = np.maximum(box[:2] - sides - points, 0) + np.maximum(points - box[2:] - sides, 0)
            labelled = np.ones(len(truth), bool)
        error = (away**2).sum(axis=2) / variances / (areas[index] + np.spacing(1)) / 2
        similar = np.exp(-error[:, labelled])
        result[:, column] = [np.sum(row) / row.shape[0] for row in similar]
    return result


def _of_polygons(first: FloatArray, second: FloatArray) -> Doubles:
    """Return the exact IoU of rotated boxes; 0 where it cannot reach a half."""
    size_a, size_b = (r[:, 2:4].astype(np.float64).prod(axis=1) for r in (first, second))
    larger = np.maximum(size_a[:, None], size_b[None, :])
    alike = np.minimum(size_a[:, None], size_b[None, :]) >= _LEAST * larger * 0.999
    reach_a, reach_b = (np.hypot(r[:, 2], r[:, 3]) / 2 for r in (first, second))
    apart = np.hypot(first[:, None, 0] - second[None, :, 0], first[:, None, 1] - second[None, :, 1])
    near = alike & (apart < reach_a[:, None] + reach_b[None, :])
    result = np.zeros(near.shape)
    for i, j in zip(*np.nonzero(near), strict=True):
        result[i, j] = rotated_iou(first[i], second[j])
    return result
