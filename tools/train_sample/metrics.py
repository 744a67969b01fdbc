"""Average precision of one class, for guidance while training.

A short COCO-style matcher in NumPy, so that the training machine needs nothing else; published
figures come from faster-coco-eval on the exported files, not from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from boxwright.boxes import iou_matrix, nms

VALID = 1  # as in data.py
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
SCORE_THRESHOLD = 0.005
NMS_IOU = 0.65
PRE_TOPK = 500
MAX_DETECTIONS = 100
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Precision:
    """Average precision over a set of pages.

    Attributes:
        ap50, ap50_95: 0..1; NaN when there is nothing to find.
        pages, boxes: How many were evaluated; ignored boxes are not counted.
        recall50: Share of the boxes found at IoU 0.5 with at most 100 detections a page.
    """

    ap50: float
    ap50_95: float
    recall50: float
    pages: int
    boxes: int


def detections_from_raw(boxes: FloatArray, scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Reduce one page's decoded anchors to its detections.

    Args:
        boxes: (A, 4) float32 xyxy.
        scores: (A,) float32, objectness times class.

    Returns:
        boxes (N, 4) and scores (N,), best first, at most MAX_DETECTIONS.
    """
    chosen = np.flatnonzero(scores > SCORE_THRESHOLD)
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")][:PRE_TOPK]
    kept = chosen[nms(boxes[chosen], NMS_IOU)][:MAX_DETECTIONS]
    return boxes[kept], scores[kept]


def match_page(
    detected: FloatArray, boxes: FloatArray, valid: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Match detections (best first) to boxes at every IoU threshold, as COCO does.

    A detection takes the free box of greatest IoU; ignored boxes only when no valid one fits, any
    number of times, and such a detection counts neither way.

    Args:
        detected: (N, 4) float32 xyxy, best first.
        boxes: (M, 4) float32 xyxy.
        valid: (M,) bool; the others are ignored.

    Returns:
        hit and neutral, both (10, N) bool.
    """
    hit = np.zeros((len(THRESHOLDS), len(detected)), bool)
    neutral = np.zeros_like(hit)
    if not len(boxes):
        return hit, neutral
    free = np.repeat(valid[None, :], len(THRESHOLDS), axis=0)
    limits = THRESHOLDS - 1e-10
    every = np.arange(len(THRESHOLDS))
    ious = iou_matrix(detected, boxes)
    for i, row in enumerate(ious):
        if row.max() < limits[0]:
            continue
        candidates = np.where(free, row, -1.0)
        best = candidates.argmax(axis=1)
        hit[:, i] = candidates[every, best] >= limits
        free[every[hit[:, i]], best[hit[:, i]]] = False
        neutral[:, i] = ~hit[:, i] & (np.max(row[~valid], initial=-1.0) >= limits)
    return hit, neutral


def average_precision(
    hit: npt.NDArray[np.bool_], neutral: npt.NDArray[np.bool_], scores: FloatArray, total: int
) -> tuple[float, float]:
    """Return AP by 101-point interpolation, and the recall reached, at one threshold.

    Args:
        hit, neutral: (N,) bool, of all pages.
        scores: (N,) float32.
        total: Valid boxes of all pages.
    """
    if not total:
        return float("nan"), float("nan")
    order = np.argsort(-scores, kind="stable")
    order = order[~neutral[order]]
    found = np.cumsum(hit[order])
    if not len(found):
        return 0.0, 0.0
    recall = found / total
    precision = np.maximum.accumulate((found / np.arange(1, len(found) + 1))[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    values = np.where(at < len(precision), precision[np.minimum(at, len(precision) - 1)], 0.0)
    return float(values.mean()), float(recall[-1])


def evaluate(
    detections: Sequence[tuple[FloatArray, FloatArray]],
    boxes: Sequence[FloatArray],
    flags: Sequence[npt.NDArray[np.uint8]],
) -> Precision:
    """Return the average precision of all pages.

    Args:
        detections: Per page boxes (N, 4) and scores (N,), best first.
        boxes: Per page (M, 4) float32 xyxy.
        flags: Per page (M,) uint8; VALID counts, anything else is ignored.
    """
    matches = [
        match_page(found, wanted, flag == VALID)
        for (found, _), wanted, flag in zip(detections, boxes, flags, strict=True)
    ]
    total = sum(int((flag == VALID).sum()) for flag in flags)
    scores = np.concatenate([s for _, s in detections] or [np.zeros(0, np.float32)])
    empty = np.zeros((len(THRESHOLDS), 0), bool)
    hits = np.concatenate([empty, *(hit for hit, _ in matches)], axis=1)
    neutrals = np.concatenate([empty, *(neutral for _, neutral in matches)], axis=1)
    results = [
        average_precision(hit, neutral, scores, total)
        for hit, neutral in zip(hits, neutrals, strict=True)
    ]
    return Precision(
        results[0][0], float(np.mean([ap for ap, _ in results])), results[0][1], len(flags), total
    )
