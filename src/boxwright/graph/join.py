"""Joins the outputs of a project's own export to the one raw tensor of a `HeadLayout`.

What the graph then says is what the project's post-processing says before NMS, so that every
later step (end-to-end, FP16, INT8, the host decode) sees a single head.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from boxwright.boxes import grid_cells
from boxwright.errors import GraphError
from boxwright.graph.builder import GraphBuilder
from boxwright.graph.shapes import dimensions, real_inputs, static_dimension
from boxwright.types import HeadJoin

__all__ = ["JOINED", "joined"]

JOINED = "output"


def joined(model: onnx.ModelProto, join: HeadJoin, what: str) -> onnx.ModelProto:
    """Return a copy with the output `output` (B, A, channels) alone, and the pictures alone fed.

    Args:
        model: The project's export, of fixed picture size.
        join: What its outputs are.
        what: The file, for errors.

    Raises:
        GraphError: An output has no fixed sizes where they are needed.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    b = GraphBuilder(result, "joined")
    pictures = next(i for i in real_inputs(result.graph) if len(dimensions(i)) == 4)
    _freeze_inputs(b, join, pictures.name)
    kinds = {o.name: o for o in result.graph.output}
    values = [kinds[name] for name in join.outputs]
    size = (static_dimension(pictures, 2) or 0, static_dimension(pictures, 3) or 0)
    head, rows, width = _head(b, join, values, size, what)
    name = JOINED if JOINED not in _tensor_names(result.graph) else f"joined/{JOINED}"
    b.name_output(head, name)
    batch = dimensions(pictures)[0]
    del result.graph.output[:]
    result.graph.output.append(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, rows, width])
    )
    _sort_nodes(result.graph)
    return result


def _tensor_names(graph: onnx.GraphProto) -> set[str]:
    names = {name for node in graph.node for name in node.output}
    return names | {v.name for v in graph.input}


def _freeze_inputs(b: GraphBuilder, join: HeadJoin, pictures: str) -> None:
    """Replace inputs besides the pictures by constants, one equal row per picture."""
    for name, values in join.fixed_inputs:
        given = next(i for i in b.graph.input if i.name == name)
        dtype = helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
        row = b.constant([list(values)], dtype)
        shape = b.op("Shape", pictures)
        count = b.op("Concat", b.slice(shape, 0, 0, 1), b.ints(len(values)), axis=0)
        b.node("Expand", [row, count], [name])
        b.graph.input.remove(given)


def _sort_nodes(graph: onnx.GraphProto) -> None:
    """Put the nodes in an order in which every input is known: constants go before their users."""
    known = {i.name for i in graph.input} | {i.name for i in graph.initializer} | {""}
    made = {name for node in graph.node for name in node.output}
    waiting, order = list(graph.node), []
    while waiting:
        later = []
        for node in waiting:
            outer = [n for g in _subgraphs(node) for m in g.node for n in m.input if n in made]
            if all(i in known for i in (*node.input, *outer)):
                order.append(node)
                known.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise GraphError("joined graph", "its nodes have no order", "check the file")
        waiting = later
    copies = [onnx.NodeProto() for _ in order]
    for copy, node in zip(copies, order, strict=True):
        copy.CopyFrom(node)
    del graph.node[:]
    graph.node.extend(copies)


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]


def _sizes(value: onnx.ValueInfoProto, what: str) -> list[int]:
    """Return all sizes but the first; raises `GraphError` when one is free."""
    found = [static_dimension(value, axis) for axis in range(1, len(dimensions(value)))]
    if any(s is None for s in found):
        raise GraphError(
            what, f"output {value.name} has the shape {list(dimensions(value))}", "fix its sizes"
        )
    return [int(s or 0) for s in found]


def _head(
    b: GraphBuilder,
    join: HeadJoin,
    values: list[onnx.ValueInfoProto],
    size: tuple[int, int],
    what: str,
) -> tuple[str, int | str, int]:
    """Return the joined tensor, its number of rows and their width."""
    if join.kind == "point_levels":
        return _point_levels(b, join, values, size, what)
    if join.kind == "anchor_levels":
        return _anchor_levels(b, join, values, what)
    first = values[0]
    if join.kind == "boxes_scores":
        scores = b.op("Transpose", values[1].name, perm=[0, 2, 1])
        count = static_dimension(first, 1) or static_dimension(values[1], 2) or "anchors"
        return b.op("Concat", first.name, scores, axis=2), count, 4 + join.class_count
    if join.kind == "detections":
        labels = b.unsqueeze(b.as_float(values[1].name), 2)
        return b.op("Concat", first.name, labels, axis=2), static_dimension(first, 1) or "dets", 6
    if join.kind == "labels_boxes_scores":
        labels = b.unsqueeze(b.as_float(first.name), 2)
        scores = b.unsqueeze(values[2].name, 2)
        rows: int | str = static_dimension(values[1], 1) or "queries"
        return b.op("Concat", values[1].name, scores, labels, axis=2), rows, 6
    return _queries(b, join, values, what)


def _queries(
    b: GraphBuilder, join: HeadJoin, values: list[onnx.ValueInfoProto], what: str
) -> tuple[str, int, int]:
    """Choose the best queries; ties take the lower place."""
    count, classes = _sizes(values[0], what)[0], join.class_count
    if join.kind == "query_rows":
        boxes = b.slice(values[0].name, 2, 0, 4)
        scores = b.slice(values[0].name, 2, 4, 4 + classes)
        best, chosen = b.topk(b.reduce("ReduceMax", scores, 2), count, axis=1)
        labels = b.op("ArgMax", b.gather_rows(scores, chosen, classes), axis=2, keepdims=0)
    else:
        boxes = values[0].name
        scores = b.op("Sigmoid", b.slice(values[1].name, 2, 0, classes))
        best, position = b.topk(b.op("Reshape", scores, b.ints(0, -1)), count, axis=1)
        width = b.ints(classes)
        chosen = b.op("Div", position, width)
        labels = b.op("Sub", position, b.op("Mul", chosen, width))
    columns = [b.gather_rows(boxes, chosen, 4), b.unsqueeze(best, 2)]
    return b.op("Concat", *columns, b.unsqueeze(b.as_float(labels), 2), axis=2), count, 6


def _point_levels(
    b: GraphBuilder,
    join: HeadJoin,
    values: list[onnx.ValueInfoProto],
    size: tuple[int, int],
    what: str,
) -> tuple[str, int, int]:
    """Decode distances from points: x1 = (cell + offset - distance) * stride, and so on."""
    distances, scores, count, classes = [], [], 0, 0
    for value in values:
        channels, height, width = _sizes(value, what)
        classes, cells = channels - 4 * join.bins, height * width
        flat = b.op("Reshape", value.name, b.ints(0, channels, cells))
        scores.append(b.part(flat, 1, 0, classes, channels))
        reach = b.part(flat, 1, classes, channels, channels)
        if join.bins > 1:
            spread = b.op("Reshape", reach, b.ints(0, 4, join.bins, cells))
            steps = b.constant(np.arange(join.bins).reshape(1, 1, -1, 1), np.float32)
            # Softmax means another thing over inner axes before opset 13.
            last = b.op("Transpose", spread, perm=[0, 1, 3, 2])
            weights = b.op("Softmax", last, axis=3)
            back = b.op("Transpose", weights, perm=[0, 1, 3, 2])
            reach = b.reduce("ReduceSum", b.op("Mul", back, steps), 2)
        distances.append(reach)
        count += cells
    cells_xy, steps_px = grid_cells(size, join.strides)
    if len(cells_xy) != count:
        raise GraphError(what, "its maps are not those of its strides", "check --family")
    reach = b.op("Transpose", b.op("Concat", *distances, axis=2), perm=[0, 2, 1])
    reach = b.op("Mul", reach, b.constant(steps_px, np.float32))
    points = b.constant((cells_xy + np.float32(join.offset)) * steps_px, np.float32)
    low = b.op("Sub", points, b.part(reach, 2, 0, 2, 4))
    high = b.op("Add", points, b.part(reach, 2, 2, 4, 4))
    score = b.op("Sigmoid", b.op("Transpose", b.op("Concat", *scores, axis=2), perm=[0, 2, 1]))
    return b.op("Concat", low, high, score, axis=2), count, 4 + classes


def _anchor_levels(
    b: GraphBuilder, join: HeadJoin, values: list[onnx.ValueInfoProto], what: str
) -> tuple[str, int, int]:
    """Decode anchors: centre = (2 s - 0.5 + cell) * stride, size = (2 s)^2 * anchor."""
    levels, total, width = [], 0, 5 + join.class_count
    for value, stride, sizes in zip(values, join.strides, join.anchors, strict=True):
        shape, count = _sizes(value, what), len(sizes)
        height, breadth = shape[-3:-1] if len(shape) == 4 else shape[-2:]
        rows = count * height * breadth
        raw = value.name
        if len(shape) == 3:
            raw = b.op("Reshape", raw, b.ints(0, count, width, height * breadth))
            raw = b.op("Transpose", raw, perm=[0, 1, 3, 2])
        score = b.op("Sigmoid", b.op("Reshape", raw, b.ints(0, rows, width)))
        cells, _ = grid_cells((height, breadth), (1,))
        grid = b.constant(np.tile(cells, (count, 1)) - np.float32(0.5), np.float32)
        anchors = np.repeat(np.array(sizes, np.float32), height * breadth, axis=0)
        two, step = b.constant(2, np.float32), b.constant(stride, np.float32)
        middle = b.op("Mul", b.part(score, 2, 0, 2, width), two)
        centre = b.op("Mul", b.op("Add", middle, grid), step)
        double = b.op("Mul", b.part(score, 2, 2, 4, width), two)
        extent = b.op("Mul", b.op("Mul", double, double), b.constant(anchors, np.float32))
        levels.append(b.op("Concat", centre, extent, b.part(score, 2, 4, width, width), axis=2))
        total += rows
    return b.op("Concat", *levels, axis=1), total, width
