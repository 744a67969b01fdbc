"""Geometry of rotated boxes, and their NMS, in NumPy. Pure.

A rotated box is centre x, centre y, width, height and the angle in radians by which it is turned
about its centre, clockwise in the picture, whose y axis points down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from boxwright.types import FloatArray, IntArray

__all__ = [
    "corners_from_rotated",
    "enclosing_boxes",
    "probiou_matrix",
    "rotated_iou",
    "rotated_nms",
]

_EPSILON = np.float32(1e-7)


def corners_from_rotated(rotated: FloatArray) -> FloatArray:
    """Return the four corners of each box, in its own order round it.

    Args:
        rotated: (N, 5) float32.

    Returns:
        (N, 4, 2) float32.

    >>> corners_from_rotated(np.array([[5, 5, 4, 2, 0]], np.float32))[0].tolist()
    [[7.0, 6.0], [7.0, 4.0], [3.0, 4.0], [3.0, 6.0]]
    """
    corners: FloatArray = _corners(rotated).astype(np.float32, copy=False)
    return corners


def _corners(rotated: npt.NDArray[Any]) -> npt.NDArray[Any]:
    centre, angle = rotated[:, None, :2], rotated[:, 4:5]
    cos, sin = np.cos(angle), np.sin(angle)
    along = np.concatenate([cos, sin], axis=1) * rotated[:, 2:3] / 2
    across = np.concatenate([-sin, cos], axis=1) * rotated[:, 3:4] / 2
    corners = np.stack([along + across, along - across, -along - across, across - along], axis=1)
    return np.asarray(centre + corners)


def enclosing_boxes(rotated: FloatArray, image_size: tuple[int, int]) -> FloatArray:
    """Return the upright xyxy boxes around rotated ones, (N, 4) float32, clipped to (H, W)."""
    corners = corners_from_rotated(rotated)
    limit = np.array([image_size[1], image_size[0]] * 2, np.float32)
    around = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    result: FloatArray = np.clip(around, np.float32(0), limit)
    return result


def _covariances(rotated: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return a, b, c of each box's Gaussian [[a, c], [c, b]], (N,) each."""
    wide = rotated[:, 2] ** 2 / np.float32(12)
    high = rotated[:, 3] ** 2 / np.float32(12)
    cos, sin = np.cos(rotated[:, 4]), np.sin(rotated[:, 4])
    return (
        wide * cos**2 + high * sin**2,
        wide * sin**2 + high * cos**2,
        (wide - high) * cos * sin,
    )


def probiou_matrix(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return the probabilistic IoU of every pair: 1 - Hellinger distance of the boxes' Gaussians.

    Formula: Llerena et al. 2021, arXiv:2106.06072, with the epsilons of Ultralytics 8.4.190.

    Args:
        first, second: (N, 5) and (M, 5) float32.

    Returns:
        (N, M) float32.

    >>> a = np.array([[5, 5, 4, 2, 0.3]], np.float32)
    >>> bool(probiou_matrix(a, a)[0, 0] > 0.999)
    True
    """
    eps = _EPSILON
    a1, b1, c1 = (v[:, None] for v in _covariances(first))
    a2, b2, c2 = (v[None, :] for v in _covariances(second))
    dx = second[None, :, 0] - first[:, None, 0]
    dy = first[:, None, 1] - second[None, :, 1]
    a, b, c = a1 + a2, b1 + b2, c1 + c2
    whole = a * b - c**2
    near = (a * dy**2 + b * dx**2) / (whole + eps) * np.float32(0.25)
    turned = (c * dx * dy) / (whole + eps) * np.float32(0.5)
    own = np.maximum(a1 * b1 - c1**2, 0) * np.maximum(a2 * b2 - c2**2, 0)
    shape = np.log(whole / (4 * np.sqrt(own) + eps) + eps) * np.float32(0.5)
    distance = np.clip(near + turned + shape, eps, np.float32(100))
    result: FloatArray = 1 - np.sqrt(1 - np.exp(-distance) + eps)
    return result


def rotated_iou(first: FloatArray, second: FloatArray) -> float:
    """Return the exact intersection over union of two rotated boxes, (5,) each.

    The corners of one are cut along each side of the other (Sutherland and Hodgman 1974).

    >>> square, turned = np.array([5, 5, 4, 4, 0]), np.array([5, 5, 4, 4, np.pi / 2])
    >>> round(rotated_iou(square, turned), 6)
    1.0
    >>> round(rotated_iou(square, np.array([7, 5, 4, 4, 0])), 6)
    0.333333
    """
    boxes = np.stack([first, second]).astype(np.float64)
    area = float(np.prod(boxes[0, 2:4])), float(np.prod(boxes[1, 2:4]))
    polygon, window = _corners(boxes)
    middle = window.mean(axis=0)
    for start, end in zip(window, np.roll(window, -1, axis=0), strict=True):
        normal = np.array([end[1] - start[1], start[0] - end[0]])
        if (middle - start) @ normal < 0:
            normal = -normal
        side = (polygon - start) @ normal
        kept = []
        for i in range(len(polygon)):
            j = (i + 1) % len(polygon)
            if side[i] >= 0:
                kept.append(polygon[i])
            if (side[i] < 0) != (side[j] < 0):
                share = side[i] / (side[i] - side[j])
                kept.append(polygon[i] + share * (polygon[j] - polygon[i]))
        if len(kept) < 3:
            return 0.0
        polygon = np.array(kept)
    x, y = (polygon - middle).T
    overlap = abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    union = area[0] + area[1] - overlap
    return overlap / union if union > 0 else 0.0


def rotated_nms(
    rotated: FloatArray, class_ids: IntArray, iou_threshold: float, class_agnostic: bool = False
) -> npt.NDArray[np.intp]:
    """Fast NMS of rotated boxes: a box goes when any better one of its class overlaps it too much.

    Unlike greedy NMS, a better box that went itself counts, too (Bolya et al. 2019,
    arXiv:1904.02689). Ultralytics does the same with rotated boxes.

    Args:
        rotated: (N, 5) float32, best first.
        class_ids: (N,) int64.
        iou_threshold: Of the probabilistic IoU, 0..1.
        class_agnostic: Boxes of other classes count.

    Returns:
        Positions of the kept boxes, ascending.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        over = probiou_matrix(rotated, rotated) > np.float32(iou_threshold)
    if not class_agnostic:
        over &= class_ids[:, None] == class_ids[None, :]
    return np.flatnonzero(~np.triu(over, 1).any(axis=0))
