"""The three forms of NMS inside a graph; each follows `NmsSettings` to the letter.

`onnx`: one NonMaxSuppression node for the whole batch. `efficient_nms`: TensorRT's plugin node.
`portable`: plain operators with static shapes; it builds where data-dependent shapes do not.
"""

from __future__ import annotations

import numpy as np

from boxwright.graph.builder import GraphBuilder
from boxwright.graph.decode import Candidates
from boxwright.types import NmsSettings

__all__ = [
    "Thresholds",
    "add_efficient_nms",
    "add_onnx_nms",
    "add_portable_nms",
    "add_rotated_nms",
    "keep_above_threshold",
]

_EPSILON = 1e-7  # of the probabilistic IoU
Thresholds = tuple[str, str]  # names of the score and IoU thresholds, float32 of shape (1,)


def keep_above_threshold(b: GraphBuilder, candidates: Candidates, thresholds: Thresholds) -> str:
    """Return (B, P) float32, 1 where the score exceeds the threshold."""
    return b.as_float(b.op("Greater", candidates.scores, thresholds[0]))


def _one_hot_scores(b: GraphBuilder, c: Candidates, axis: int) -> str:
    """Spread scores over classes: (B, C, P) for axis 1, (B, P, C) for axis 2; elsewhere 0."""
    shape = (1, -1, 1) if axis == 1 else (1, 1, -1)
    ids = b.constant(np.arange(c.class_count).reshape(shape), np.int64)
    match = b.op("Equal", b.unsqueeze(c.labels, axis), ids)
    return b.op("Where", match, b.unsqueeze(c.scores, axis), b.constant(0.0, np.float32))


def add_onnx_nms(
    b: GraphBuilder, c: Candidates, settings: NmsSettings, thresholds: Thresholds
) -> str:
    """Append NonMaxSuppression and return (B, P) float32, 1 where a candidate is kept.

    Each class has its own row of scores, so classes never meet and boxes need no shifting, which
    would cost float32 digits. One node serves every picture of the batch.
    """
    if settings.class_agnostic:
        scores = b.unsqueeze(c.scores, 1)
    else:
        scores = _one_hot_scores(b, c, axis=1)
    # The operator flips boxes with negative sides; the host gives them no area. Follow the host.
    low = b.slice(c.boxes, 2, 0, 2)
    boxes = b.op("Concat", low, b.op("Max", b.slice(c.boxes, 2, 2, 4), low), axis=2)
    limit = b.ints(min(settings.keep_topk, c.count))
    chosen = b.op("NonMaxSuppression", boxes, scores, limit, thresholds[1], thresholds[0])
    where = b.op("Gather", chosen, b.ints(0, 2), axis=1)  # (M, 2): picture, candidate
    zeros = b.op("Sub", c.scores, c.scores)
    rows = b.op("Slice", b.op("Shape", where), b.ints(0), b.ints(1), b.ints(0))
    ones = b.op("Expand", b.constant([1.0], np.float32), rows)
    return b.op("ScatterND", zeros, where, ones)


def add_efficient_nms(
    b: GraphBuilder, c: Candidates, settings: NmsSettings
) -> tuple[str, str, str, str]:
    """Append TensorRT's EfficientNMS_TRT node.

    Returns:
        num_dets (B, 1) int32, boxes (B, K, 4), scores (B, K), classes (B, K) int32.
    """
    outputs = b.node(
        "EfficientNMS_TRT",
        [c.boxes, _one_hot_scores(b, c, axis=2)],
        4,
        domain="TRT",
        background_class=-1,
        box_coding=0,
        class_agnostic=int(settings.class_agnostic),
        iou_threshold=float(settings.iou_threshold),
        max_output_boxes=min(settings.keep_topk, c.count),
        plugin_version="1",
        score_activation=0,
        score_threshold=float(settings.score_threshold),
    )
    return outputs[0], outputs[1], outputs[2], outputs[3]


def _portable_overlaps(b: GraphBuilder, boxes: str) -> str:
    """Return the IoU of every pair of candidates, (B, P, P)."""
    low, high = b.slice(boxes, 2, 0, 2), b.slice(boxes, 2, 2, 4)
    sides = b.op("Max", b.op("Sub", high, low), b.constant(0.0, np.float32))
    area = b.op("Mul", b.slice(sides, 2, 0, 1), b.slice(sides, 2, 1, 2))  # (B, P, 1)
    lengths = []
    for i in range(2):
        start, end = b.slice(low, 2, i, i + 1), b.slice(high, 2, i, i + 1)
        ends = b.op("Min", end, b.op("Transpose", end, perm=[0, 2, 1]))
        starts = b.op("Max", start, b.op("Transpose", start, perm=[0, 2, 1]))
        lengths.append(b.op("Max", b.op("Sub", ends, starts), b.constant(0.0, np.float32)))
    overlap = b.op("Mul", lengths[0], lengths[1])
    both = b.op("Add", area, b.op("Transpose", area, perm=[0, 2, 1]))
    union = b.op("Max", b.op("Sub", both, overlap), b.constant(1e-30, np.float32))
    return b.op("Div", overlap, union)


def add_portable_nms(
    b: GraphBuilder,
    c: Candidates,
    settings: NmsSettings,
    thresholds: Thresholds,
    iterations: int,
) -> tuple[str, str]:
    """Append greedy NMS as an unrolled fixed-point iteration of plain operators.

    With S[i, j] = 1 where candidate j is better than i, of its class, and overlaps it too much:
    keep <- valid * (S @ keep == 0), started from keep = valid. S is strictly triangular, so the
    only fixed point is the greedy result, and each step settles one more link of every chain of
    suppressions. After an even number of steps an unsettled result holds every greedy box and
    perhaps more, never fewer.

    Returns:
        (B, P) float32, 1 where a candidate is kept; and (B, 1) int32, 1 where the last step
        changed nothing, which proves that the result is the greedy one.
    """
    over = b.as_float(b.op("Greater", _portable_overlaps(b, c.boxes), thresholds[1]))
    suppress = b.op("Mul", over, _strict_triangle(b, c.count))
    if not settings.class_agnostic:
        suppress = b.op("Mul", suppress, _same_class(b, c))
    valid = b.unsqueeze(keep_above_threshold(b, c, thresholds), 2)  # (B, P, 1)
    keep = previous = valid
    for _ in range(iterations):
        previous = keep
        hits = b.op("MatMul", suppress, keep)
        free = b.as_float(b.op("Less", hits, b.constant(0.5, np.float32)))
        keep = b.op("Mul", valid, free)
    change = b.reduce("ReduceMax", b.op("Abs", b.op("Sub", keep, previous)), 1)  # (B, 1)
    settled = b.as_int32(b.op("Less", change, b.constant(0.5, np.float32)))
    return b.op("Reshape", keep, b.ints(0, -1)), settled


def add_rotated_nms(
    b: GraphBuilder, c: Candidates, angles: str, settings: NmsSettings, thresholds: Thresholds
) -> str:
    """Append the fast NMS of rotated boxes, as `boxwright.rotated.rotated_nms` does it.

    Every better box suppresses, also one that is suppressed itself, so that one step is exact. All
    are plain operators with static shapes: it builds wherever the portable form does.

    Args:
        b: Builder of the graph.
        c: The candidates; their boxes before they are turned.
        angles: (B, P, 1) float32 in radians.
        settings: Class mode.
        thresholds: Names of both.

    Returns:
        (B, P) float32, 1 where a candidate is kept.
    """
    over = b.as_float(b.op("Greater", _probiou(b, c.boxes, angles), thresholds[1]))
    suppress = b.op("Mul", over, _strict_triangle(b, c.count))
    if not settings.class_agnostic:
        suppress = b.op("Mul", suppress, _same_class(b, c))
    valid = b.unsqueeze(keep_above_threshold(b, c, thresholds), 2)
    hits = b.op("MatMul", suppress, valid)
    free = b.as_float(b.op("Less", hits, b.constant(0.5, np.float32)))
    return b.op("Reshape", b.op("Mul", valid, free), b.ints(0, -1))


def _probiou(b: GraphBuilder, boxes: str, angles: str) -> str:
    """Return the probabilistic IoU of every pair of candidates, (B, P, P)."""

    def number(value: float) -> str:
        return b.constant(value, np.float32)

    def pair(op: str, tensor: str) -> str:
        return b.op(op, tensor, b.op("Transpose", tensor, perm=[0, 2, 1]))

    def square(tensor: str) -> str:
        return b.op("Mul", tensor, tensor)

    low, high = b.slice(boxes, 2, 0, 2), b.slice(boxes, 2, 2, 4)
    centre = b.op("Mul", b.op("Add", low, high), number(0.5))
    spread = b.op("Mul", square(b.op("Sub", high, low)), number(1 / 12))
    wide, tall = b.slice(spread, 2, 0, 1), b.slice(spread, 2, 1, 2)
    cos, sin = b.op("Cos", angles), b.op("Sin", angles)
    cos2, sin2 = square(cos), square(sin)
    own_a = b.op("Add", b.op("Mul", wide, cos2), b.op("Mul", tall, sin2))
    own_b = b.op("Add", b.op("Mul", wide, sin2), b.op("Mul", tall, cos2))
    own_c = b.op("Mul", b.op("Mul", b.op("Sub", wide, tall), cos), sin)
    own = b.op("Sub", b.op("Mul", own_a, own_b), square(own_c))
    own = b.op("Max", own, number(0.0))
    a, bb, c = (pair("Add", t) for t in (own_a, own_b, own_c))
    dx, dy = (pair("Sub", b.slice(centre, 2, i, i + 1)) for i in (0, 1))
    whole = b.op("Sub", b.op("Mul", a, bb), square(c))
    safe = b.op("Add", whole, number(_EPSILON))
    near = b.op("Add", b.op("Mul", a, square(dy)), b.op("Mul", bb, square(dx)))
    near = b.op("Mul", b.op("Div", near, safe), number(0.25))
    # dx and dy here have one sign each more than in the formula's (x2 - x1)(y1 - y2)
    turned = b.op("Mul", b.op("Div", b.op("Mul", b.op("Mul", c, dx), dy), safe), number(-0.5))
    root = b.op("Sqrt", pair("Mul", own))
    root = b.op("Add", b.op("Mul", root, number(4.0)), number(_EPSILON))
    shape = b.op("Log", b.op("Add", b.op("Div", whole, root), number(_EPSILON)))
    shape = b.op("Mul", shape, number(0.5))
    distance = b.op("Add", b.op("Add", near, turned), shape)
    distance = b.op("Min", b.op("Max", distance, number(_EPSILON)), number(100.0))
    alike = b.op("Exp", b.op("Neg", distance))
    apart = b.op("Add", b.op("Sub", number(1.0), alike), number(_EPSILON))
    return b.op("Sub", number(1.0), b.op("Sqrt", apart))


def _same_class(b: GraphBuilder, c: Candidates) -> str:
    """Return (B, P, P) float32, 1 where two candidates are of one class."""
    labels = b.as_float(c.labels)
    gap = b.op("Sub", b.unsqueeze(labels, 2), b.unsqueeze(labels, 1))
    return b.as_float(b.op("Less", b.op("Abs", gap), b.constant(0.5, np.float32)))


def _strict_triangle(b: GraphBuilder, count: int) -> str:
    """Return (1, P, P) float32, 1 where column < row, from P stored numbers instead of P * P."""
    rank = b.constant(np.arange(count)[None, :], np.float32)
    return b.as_float(b.op("Greater", b.unsqueeze(rank, 2), b.unsqueeze(rank, 1)))
