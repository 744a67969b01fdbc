"""Decode as ONNX nodes: the graph interpreter of `HeadLayout`.

`boxwright.boxes.decode` holds the same rules in NumPy; tests compare the two on random tensors
for every layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from boxwright.boxes import grid_cells
from boxwright.graph.builder import GraphBuilder
from boxwright.types import HeadLayout, NmsSettings

__all__ = ["Candidates", "add_candidates", "add_decode"]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Names of the tensors that NMS works on, best first within each picture.

    Attributes:
        boxes: (B, P, 4) float32 xyxy in input pixels.
        scores: (B, P) float32, best first; also those below the threshold.
        labels: (B, P) int64 class ids.
        anchors: (B, P) int64: where in the raw head each candidate stands.
        count: P.
        class_count: Number of classes, or 1 when it is unknown and not needed (NMS-free heads).
    """

    boxes: str
    scores: str
    labels: str
    anchors: str
    count: int
    class_count: int


def _decode_box_rows(
    b: GraphBuilder,
    rows: str,
    layout: HeadLayout,
    input_size: tuple[int, int],
    anchors: str | None,
) -> str:
    """Decode (B, K, 4) raw box values to xyxy pixels; `anchors` (B, K) where they were picked."""
    first, second = b.slice(rows, 2, 0, 2), b.slice(rows, 2, 2, 4)
    if layout.box_encoding == "grid_exp":
        cells, steps = grid_cells(input_size, layout.strides)
        grid, step = b.constant(cells, np.float32), b.constant(steps, np.float32)
        if anchors is not None:
            grid = b.op("Gather", grid, anchors, axis=0)
            step = b.op("Gather", step, anchors, axis=0)
        first = b.op("Mul", b.op("Add", first, grid), step)
        second = b.op("Mul", b.op("Exp", second), step)
    if layout.normalised:
        size = b.constant([input_size[1], input_size[0]], np.float32)
        first, second = b.op("Mul", first, size), b.op("Mul", second, size)
    if layout.box_format == "cxcywh":
        half = b.op("Mul", second, b.constant(0.5, np.float32))
        first, second = b.op("Sub", first, half), b.op("Add", first, half)
    return b.op("Concat", first, second, axis=2)


def _activated(b: GraphBuilder, tensor: str, layout: HeadLayout) -> str:
    return tensor if layout.scores_activated else b.op("Sigmoid", tensor)


def add_decode(
    b: GraphBuilder, raw: str, layout: HeadLayout, input_size: tuple[int, int], class_count: int
) -> tuple[str, str]:
    """Append the full decode of a raw head.

    Args:
        b: Builder of the graph.
        raw: Name of the (B, C, A) or (B, A, C) float32 tensor.
        layout: How to read it.
        input_size: Network input (height, width) in pixels.
        class_count: Number of classes.

    Returns:
        Names of boxes (B, A, 4) xyxy in input pixels and scores (B, A, classes); for `nms_free`
        heads scores is (B, A, 2): score and class id.
    """
    rows = b.op("Transpose", raw, perm=[0, 2, 1]) if layout.axes == "nca" else raw
    total = layout.channel_count(class_count)
    boxes = _decode_box_rows(b, b.part(rows, 2, 0, 4, total), layout, input_size, None)
    if layout.nms_free:
        score = _activated(b, b.slice(rows, 2, 4, 5), layout)
        return boxes, b.op("Concat", score, b.slice(rows, 2, 5, 6), axis=2)
    first = 5 if layout.objectness else 4
    scores = _activated(b, b.slice(rows, 2, first, first + class_count), layout)
    if layout.objectness:
        scores = b.op("Mul", scores, _activated(b, b.slice(rows, 2, 4, 5), layout))
    return boxes, scores


def add_candidates(
    b: GraphBuilder,
    raw: str,
    layout: HeadLayout,
    input_size: tuple[int, int],
    class_count: int,
    anchor_count: int,
    settings: NmsSettings,
) -> Candidates:
    """Append steps 1 and 2 of `NmsSettings`: the best `pre_topk` candidates of each picture.

    Boxes are decoded after the choice, so that the cost follows `pre_topk`, not the head's size.
    """
    if layout.nms_free:
        return _final_rows(b, raw, layout, input_size, anchor_count)
    channels = 1 if layout.axes == "nca" else 2
    first = 5 if layout.objectness else 4
    total = layout.channel_count(class_count)
    scores = _activated(b, b.part(raw, channels, first, first + class_count, total), layout)
    if layout.objectness:
        scores = b.op("Mul", scores, _activated(b, b.slice(raw, channels, 4, 5), layout))
    if settings.multi_label:
        count = min(settings.pre_topk, anchor_count * class_count)
        by_anchor = b.op("Transpose", scores, perm=[0, 2, 1]) if channels == 1 else scores
        flat = b.op("Reshape", by_anchor, b.ints(0, -1))
        best, position = b.topk(flat, count, axis=1)
        classes = b.ints(class_count)
        chosen = b.op("Div", position, classes)
        labels = b.op("Sub", position, b.op("Mul", chosen, classes))
    else:
        count = min(settings.pre_topk, anchor_count)
        best, chosen = b.topk(b.reduce("ReduceMax", scores, channels), count, axis=1)
        gather = b.gather_columns if channels == 1 else b.gather_rows
        labels = b.op("ArgMax", gather(scores, chosen, class_count), axis=channels, keepdims=0)
    values = b.part(raw, channels, 0, 4, total)
    if channels == 1:
        values = b.op("Transpose", values, perm=[0, 2, 1])
    rows = b.gather_rows(values, chosen, 4)
    boxes = _decode_box_rows(b, rows, layout, input_size, chosen)
    return Candidates(boxes, best, labels, chosen, count, class_count)


def _final_rows(
    b: GraphBuilder, raw: str, layout: HeadLayout, input_size: tuple[int, int], count: int
) -> Candidates:
    boxes, rest = add_decode(b, raw, layout, input_size, 0)
    scores = b.op("Reshape", b.slice(rest, 2, 0, 1), b.ints(0, -1))
    label = b.op("Reshape", b.slice(rest, 2, 1, 2), b.ints(0, -1))
    labels = b.as_int64(b.op("Round", label))
    best, order = b.topk(scores, count, axis=1)
    return Candidates(
        boxes=b.gather_rows(boxes, order, 4),
        scores=best,
        labels=b.op("GatherElements", labels, order, axis=1),
        anchors=order,
        count=count,
        class_count=1,
    )
