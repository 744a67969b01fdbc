"""Box geometry, decode of raw heads and NMS on the host, in NumPy.

Everything here is pure: arrays in, arrays out. `decode` is the NumPy interpreter of
`HeadLayout`; `boxwright.graph.decode` holds the same rules as ONNX nodes, and a test keeps the
two equal. Boxes are float32 in pixels; xyxy means x1, y1, x2, y2.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from boxwright.types import FloatArray, HeadLayout, IntArray, NmsSettings

__all__ = [
    "batched_nms",
    "cxcywh_from_xyxy",
    "decode",
    "grid_cells",
    "iou_matrix",
    "nms",
    "select_candidates",
    "select_class_scores",
    "select_with_extras",
    "sigmoid",
    "xywh_from_xyxy",
    "xyxy_from_cxcywh",
    "xyxy_from_xywh",
]

_MATRIX_NMS_LIMIT = 320  # up to this many boxes one IoU matrix beats a loop over the kept boxes
_MASKED_NMS_LIMIT = 128  # up to this many, of all classes, one masked matrix beats one per class


def xyxy_from_cxcywh(boxes: FloatArray) -> FloatArray:
    """Convert (..., 4) centre x, centre y, width, height to x1, y1, x2, y2.

    >>> xyxy_from_cxcywh(np.array([[5, 5, 4, 2]], np.float32)).tolist()
    [[3.0, 4.0, 7.0, 6.0]]
    """
    half = boxes[..., 2:] * np.float32(0.5)
    centre = boxes[..., :2]
    return np.concatenate([centre - half, centre + half], axis=-1)


def cxcywh_from_xyxy(boxes: FloatArray) -> FloatArray:
    """Convert (..., 4) x1, y1, x2, y2 to centre x, centre y, width, height.

    >>> cxcywh_from_xyxy(np.array([[3, 4, 7, 6]], np.float32)).tolist()
    [[5.0, 5.0, 4.0, 2.0]]
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([(low + high) * np.float32(0.5), high - low], axis=-1)


def xywh_from_xyxy(boxes: FloatArray) -> FloatArray:
    """Convert (..., 4) x1, y1, x2, y2 to corner x, corner y, width, height (COCO).

    >>> xywh_from_xyxy(np.array([[3, 4, 7, 6]], np.float32)).tolist()
    [[3.0, 4.0, 4.0, 2.0]]
    """
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def xyxy_from_xywh(boxes: FloatArray) -> FloatArray:
    """Convert (..., 4) corner x, corner y, width, height (COCO) to x1, y1, x2, y2.

    >>> xyxy_from_xywh(np.array([[3, 4, 4, 2]], np.float32)).tolist()
    [[3.0, 4.0, 7.0, 6.0]]
    """
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def sigmoid(x: FloatArray) -> FloatArray:
    """Logistic function in float32, without overflow for large negative input.

    >>> sigmoid(np.array([0.0, -200.0, 200.0], np.float32)).tolist()
    [0.5, 0.0, 1.0]
    """
    positive = np.exp(-np.abs(x))
    result: FloatArray = np.where(x >= 0, 1 / (1 + positive), positive / (1 + positive))
    return result.astype(np.float32, copy=False)


@lru_cache(maxsize=16)
def grid_cells(
    input_size: tuple[int, int], strides: tuple[int, ...]
) -> tuple[FloatArray, FloatArray]:
    """Return the cell and the stride of every anchor of a one-anchor-per-cell head.

    Args:
        input_size: Network input (height, width) in pixels.
        strides: Of the levels, in their order; each level runs row by row.

    Returns:
        cells (A, 2) float32 of integer x, y and strides (A, 1) float32. Read only: they are shared.
    """
    cells, steps = [], []
    for stride in strides:
        height, width = -(-input_size[0] // stride), -(-input_size[1] // stride)
        y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        cells.append(np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float32))
        steps.append(np.full((height * width, 1), stride, np.float32))
    grid, step = np.concatenate(cells), np.concatenate(steps)
    grid.setflags(write=False)
    step.setflags(write=False)
    return grid, step


def _decode_boxes(
    values: FloatArray,
    layout: HeadLayout,
    input_size: tuple[int, int],
    anchors: npt.NDArray[np.intp] | None = None,
) -> FloatArray:
    """Decode (..., A, 4) raw box values of the given anchors (all without) to xyxy pixels."""
    if layout.box_encoding == "grid_exp":
        cells, steps = grid_cells(input_size, layout.strides)
        if anchors is not None:
            cells, steps = cells[anchors], steps[anchors]
        centre = (values[..., :2] + cells) * steps
        values = np.concatenate([centre, np.exp(values[..., 2:]) * steps], axis=-1)
    if layout.normalised:
        height, width = input_size
        values = values * np.array([width, height, width, height], np.float32)
    return xyxy_from_cxcywh(values) if layout.box_format == "cxcywh" else values


def decode(
    raw: FloatArray, layout: HeadLayout, input_size: tuple[int, int]
) -> tuple[FloatArray, FloatArray]:
    """Read boxes and scores out of a raw head: the NumPy interpreter of `HeadLayout`.

    Formulas: YOLOX `(t + g) * s`, `exp(t) * s` (Ge et al. 2021, arXiv:2107.08430, project code);
    the other encodings arrive decoded.

    Args:
        raw: (B, C, A) or (B, A, C) float32 as `layout.axes` says.
        layout: How to read it.
        input_size: Network input (height, width) in pixels.

    Returns:
        boxes (B, A, 4) float32 xyxy in input pixels, not clipped; and scores (B, A, classes)
        float32. For `nms_free` heads scores is (B, A, 2): the score and the class id as float.
    """
    rows = raw.swapaxes(1, 2) if layout.axes == "nca" else raw
    boxes = _decode_boxes(rows[..., :4], layout, input_size)
    if layout.nms_free:
        scores = rows[..., 4:6]
        if not layout.scores_activated:
            scores = np.concatenate([sigmoid(scores[..., :1]), scores[..., 1:]], axis=-1)
        return boxes, scores
    end = rows.shape[-1] - layout.extras
    first = 5 if layout.objectness else 4
    scores = rows[..., first:end]
    if not layout.scores_activated:
        scores = sigmoid(scores)
    if layout.objectness:
        objectness = rows[..., 4:5]
        scores = scores * (objectness if layout.scores_activated else sigmoid(objectness))
    return boxes, scores


def select_candidates(
    raw: FloatArray, layout: HeadLayout, input_size: tuple[int, int], settings: NmsSettings
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Do `select_with_extras`, without the extra columns."""
    return select_with_extras(raw, layout, input_size, settings)[:3]


def select_with_extras(
    raw: FloatArray, layout: HeadLayout, input_size: tuple[int, int], settings: NmsSettings
) -> tuple[FloatArray, FloatArray, IntArray, FloatArray]:
    """Decode one picture's raw head, only where the score exceeds the threshold.

    Equal to `decode` followed by steps 1 and 2 of `NmsSettings`, but it touches the boxes of the
    survivors alone, which is what makes the host path fast.

    Args:
        raw: (C, A) or (A, C) float32 as `layout.axes` says.
        layout: How to read it.
        input_size: Network input (height, width) in pixels.
        settings: Threshold, candidate limit and label mode.

    Returns:
        boxes (K, 4) xyxy float32 in input pixels (of a rotated head before the turn), scores (K,),
        class ids (K,) int64, and the extra columns (K, extras); best first.
    """
    columns = raw if layout.axes == "nca" else raw.T  # (C, A) view
    if layout.nms_free:
        return _select_final_rows(columns, layout, input_size, settings)
    chosen, labels, best = _select_anchors(columns, layout, settings)
    boxes = _decode_boxes(columns[:4, chosen].T, layout, input_size, chosen)
    extras = columns[columns.shape[0] - layout.extras :, chosen].T
    return boxes, np.ascontiguousarray(best), labels.astype(np.int64), extras


def select_class_scores(raw: FloatArray, layout: HeadLayout, settings: NmsSettings) -> FloatArray:
    """Return what each row of `select_with_extras` scores in every class: (K, classes) float32.

    Args:
        raw: (C, A) or (A, C) float32 as `layout.axes` says, of a head that is not NMS-free.
        layout: How to read it.
        settings: Threshold, candidate limit and label mode.
    """
    columns = raw if layout.axes == "nca" else raw.T
    chosen = _select_anchors(columns, layout, settings)[0]
    end = columns.shape[0] - layout.extras
    scores = columns[(5 if layout.objectness else 4) : end, chosen].T
    if not layout.scores_activated:
        scores = sigmoid(scores)
    if layout.objectness:
        objectness = columns[4, chosen, None]
        scores = scores * (objectness if layout.scores_activated else sigmoid(objectness))
    return scores


def _select_anchors(
    columns: FloatArray, layout: HeadLayout, settings: NmsSettings
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], FloatArray]:
    """Return which anchors of (channels, A) are candidates, their classes and scores, best first.

    With `multi_label` an anchor may be there several times.
    """
    end = columns.shape[0] - layout.extras
    scores = columns[(5 if layout.objectness else 4) : end]  # (classes, A)
    threshold = np.float32(settings.score_threshold)
    objectness: FloatArray | None = None
    anchors: npt.NDArray[np.intp] | None = None
    if layout.objectness:
        objectness = columns[4] if layout.scores_activated else sigmoid(columns[4])
        anchors = np.flatnonzero(objectness > threshold)  # a score never exceeds its objectness
        scores, objectness = scores[:, anchors], objectness[anchors]
    if not layout.scores_activated:
        scores = sigmoid(scores)
    if objectness is not None:
        scores = scores * objectness
    if settings.multi_label:
        where, labels = np.nonzero(threshold < scores.T)
        best = scores[labels, where]
    else:
        top = scores.max(axis=0, initial=-np.inf)
        where = np.flatnonzero(top > threshold)
        best = top[where]
        labels = scores[:, where].argmax(axis=0) if len(where) else where
    order = np.argsort(-best, kind="stable")[: settings.pre_topk]
    where, labels, best = where[order], labels[order], best[order]
    return (where if anchors is None else anchors[where]), labels, best


def _select_final_rows(
    columns: FloatArray, layout: HeadLayout, input_size: tuple[int, int], settings: NmsSettings
) -> tuple[FloatArray, FloatArray, IntArray, FloatArray]:
    """Threshold and sort the rows of an NMS-free head, given as (channels, rows)."""
    scores = columns[4] if layout.scores_activated else sigmoid(columns[4])
    keep = np.flatnonzero(scores > np.float32(settings.score_threshold))
    keep = keep[np.argsort(-scores[keep], kind="stable")]
    boxes = _decode_boxes(columns[:4, keep].T, layout, input_size, None)
    labels = np.rint(columns[5, keep]).astype(np.int64)
    return boxes, scores[keep], labels, columns[6:, keep].T


def iou_matrix(first: FloatArray, second: FloatArray) -> FloatArray:
    """Intersection over union of every pair; a box without area overlaps nothing.

    Args:
        first, second: (N, 4) and (M, 4) xyxy float32; a negative side counts as zero.

    Returns:
        (N, M) float32.

    >>> a = np.array([[0, 0, 10, 10]], np.float32)
    >>> iou_matrix(a, np.array([[0, 0, 10, 5], [20, 20, 30, 30]], np.float32)).tolist()
    [[0.5, 0.0]]
    """
    # Side by side, not as (N, M, 2): contiguous planes are three times as fast.
    overlap = _shared_side(first, second, 0)
    overlap *= _shared_side(first, second, 1)
    union = _areas(first)[:, None] + _areas(second)[None, :] - overlap
    result: FloatArray = np.divide(overlap, union, out=np.zeros_like(overlap), where=overlap > 0)
    return result


def _shared_side(first: FloatArray, second: FloatArray, axis: int) -> FloatArray:
    """Return how far every pair overlaps along x (0) or y (1), as (N, M), zero or more."""
    side: FloatArray = np.minimum(first[:, axis + 2, None], second[None, :, axis + 2])
    side -= np.maximum(first[:, axis, None], second[None, :, axis])
    return np.maximum(side, np.float32(0), out=side)


def _areas(boxes: FloatArray) -> FloatArray:
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], np.float32(0))
    area: FloatArray = sides[:, 0] * sides[:, 1]
    return area


def nms(boxes: FloatArray, iou_threshold: float) -> npt.NDArray[np.intp]:
    """Greedy non-maximum suppression of boxes that are sorted best first.

    A box goes when its IoU with a kept, better box is greater than `iou_threshold`.

    Args:
        boxes: (N, 4) xyxy float32, best first.
        iou_threshold: 0..1.

    Returns:
        Positions of the kept boxes, ascending.

    >>> nms(np.array([[0, 0, 10, 10], [1, 0, 10, 10], [20, 0, 30, 10]], np.float32), 0.5).tolist()
    [0, 2]
    """
    count, limit = len(boxes), np.float32(iou_threshold)
    if count <= _MATRIX_NMS_LIMIT:
        return _survivors(iou_matrix(boxes, boxes) > limit)
    kept: list[int] = []
    left = np.arange(count)
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        left = left[iou_matrix(boxes[best : best + 1], boxes[left])[0] <= limit]
    return np.array(kept, np.intp)


def _survivors(over: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Return what greedy NMS keeps, from (N, N): which box overlaps which; best first."""
    removed = np.zeros(len(over), bool)
    for i in np.flatnonzero(over.sum(axis=1) > 1):  # only boxes that overlap another one act
        if not removed[i]:
            removed[i + 1 :] |= over[i, i + 1 :]
    return np.flatnonzero(~removed)


def batched_nms(
    boxes: FloatArray, scores: FloatArray, class_ids: IntArray, settings: NmsSettings
) -> npt.NDArray[np.intp]:
    """Steps 3 and 4 of `NmsSettings`: NMS per class (or across classes), then the best.

    Boxes are never shifted by their class: that trick costs float32 digits in the IoU.

    Args:
        boxes: (N, 4) xyxy float32.
        scores: (N,) float32, best first.
        class_ids: (N,) int64.
        settings: IoU threshold, class mode, `keep_topk`.

    Returns:
        Positions of the kept boxes, best first.
    """
    if settings.class_agnostic or len(boxes) < 2:
        return nms(boxes, settings.iou_threshold)[: settings.keep_topk]
    if len(boxes) <= _MASKED_NMS_LIMIT:  # one masked matrix costs less than a small one per class
        over = iou_matrix(boxes, boxes) > np.float32(settings.iou_threshold)
        over &= class_ids[:, None] == class_ids[None, :]
        return _survivors(over)[: settings.keep_topk]
    order = np.argsort(class_ids, kind="stable")  # stable: stays best first within a class
    starts = np.flatnonzero(np.diff(class_ids[order], prepend=class_ids[order[0]] - 1))
    keep = np.zeros(len(boxes), bool)
    for members in np.split(order, starts[1:]):
        keep[
            members[nms(boxes[members], settings.iou_threshold)] if len(members) > 1 else members
        ] = True
    return np.flatnonzero(keep)[: settings.keep_topk]
