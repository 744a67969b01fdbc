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
FINISHED_ROWS = 1000  # of an export with NMS inside whose number of detections is free


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
    # Later steps name their outputs like some exports do.
    for old in {JOINED, *join.outputs}:
        _rename(result.graph, old, f"joined/{old}")
    size = (static_dimension(pictures, 2) or 0, static_dimension(pictures, 3) or 0)
    head, rows, width = _head(b, join, values, size, what, pictures.name)
    if isinstance(rows, str):
        head, rows = _fixed_rows(b, head), FINISHED_ROWS
    b.name_output(head, JOINED)
    batch = dimensions(pictures)[0]
    del result.graph.output[:]
    result.graph.output.append(
        helper.make_tensor_value_info(JOINED, TensorProto.FLOAT, [batch, rows, width])
    )
    _sort_nodes(result.graph)
    return result


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename a tensor wherever it is made or read."""
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
        for inner in _subgraphs(node):
            _rename(inner, old, new)
    for value in (*graph.initializer, *graph.value_info, *graph.output):
        if value.name == old:
            value.name = new


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
    pictures: str,
) -> tuple[str, int | str, int]:
    """Return the joined tensor, its number of rows and their width."""
    if join.kind in ("point_levels", "pixel_levels"):
        return _point_levels(b, join, values, size, what)
    if join.kind == "exp_levels":
        return _exp_levels(b, values, what)
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
    if join.kind == "counted":
        return _counted(b, values), static_dimension(values[1], 1) or "dets", 6
    if join.kind == "stacked":
        return _stacked(b, values), "dets", 6
    if join.kind == "indexed":
        return _indexed(b, values[0].name, pictures), "dets", 6
    return _queries(b, join, values, what)


def _fixed_rows(b: GraphBuilder, rows: str) -> str:
    """Return the best of rows (B, any number, 6), filled up with zeros to one shape."""
    count = b.op("Gather", b.op("Shape", rows), b.constant(0, np.int64), axis=0)
    shape = b.op("Concat", b.unsqueeze(count, 0), b.ints(FINISHED_ROWS, 6), axis=0)
    nothing = b.op("Expand", b.constant(0, np.float32), shape)
    filled = b.op("Concat", rows, nothing, axis=1)
    scores = b.op("Reshape", b.slice(filled, 2, 4, 5), b.ints(0, -1))
    return b.gather_rows(filled, b.topk(scores, FINISHED_ROWS, axis=1)[1], 6)


def _counted(b: GraphBuilder, values: list[onnx.ValueInfoProto]) -> str:
    """Join counted detections; rows from the count on score zero, which no threshold admits."""
    count, boxes, scores, labels = (v.name for v in values)
    width = b.op("Gather", b.op("Shape", scores), b.constant(1, np.int64), axis=0)
    places = b.op("Range", b.constant(0, np.int64), width, b.constant(1, np.int64))
    real = b.op("Less", places, b.as_int64(b.op("Reshape", count, b.ints(-1, 1))))
    scores = b.op("Where", real, scores, b.constant(0, np.float32))
    # Some exporters number what is no detection -1.
    labels = b.op("Max", b.as_float(labels), b.constant(0, np.float32))
    return b.op("Concat", boxes, b.unsqueeze(scores, 2), b.unsqueeze(labels, 2), axis=2)


def _stacked(b: GraphBuilder, values: list[onnx.ValueInfoProto]) -> str:
    """Deal stacked rows out to their pictures, as many places each as the fullest needs."""
    count = b.op("Reshape", b.as_int64(values[1].name), b.ints(-1))
    # A row of zeros behind the last stands in for what a picture has too few of.
    given = b.op("Reshape", values[0].name, b.ints(-1, 6))
    rows = b.op("Concat", given, b.constant(np.zeros((1, 6)), np.float32), axis=0)
    last = b.op("Sub", b.op("Shape", rows), b.ints(1, 6))
    last = b.slice(last, 0, 0, 1)
    ends = b.op("CumSum", count, b.constant(0, np.int64))
    starts = b.unsqueeze(b.op("Sub", ends, count), 1)
    # Max itself knows no int64 before opset 12.
    most = b.reduce("ReduceMax", b.op("Concat", count, b.ints(1), axis=0), 0)
    places = b.op("Range", b.constant(0, np.int64), most, b.constant(1, np.int64))
    real = b.op("Less", places, b.unsqueeze(count, 1))
    index = b.op("Where", real, b.op("Add", starts, places), last)
    dealt = b.op("Gather", rows, index, axis=0)
    label, score = b.slice(dealt, 2, 0, 1), b.slice(dealt, 2, 1, 2)
    return b.op("Concat", b.slice(dealt, 2, 2, 6), score, label, axis=2)


def _indexed(b: GraphBuilder, rows: str, pictures: str) -> str:
    """Give every picture all rows; those of other pictures score zero there."""
    # A row of zeros behind the last: no graph likes an axis without places.
    rows = b.op("Concat", rows, b.constant(np.zeros((1, 7)), np.float32), axis=0)
    first = b.constant(0, np.int64)
    count = b.op("Gather", b.op("Shape", pictures), first, axis=0)
    turn = b.unsqueeze(b.op("Range", first, count, b.constant(1, np.int64)), 1)
    index, box, label, score = (
        b.unsqueeze(b.slice(rows, 1, start, end), 0)
        for start, end in ((0, 1), (1, 5), (5, 6), (6, 7))
    )
    own = b.as_float(b.op("Equal", b.as_int64(index), b.unsqueeze(turn, 2)))
    score = b.op("Mul", own, score)
    spread = b.op("Mul", own, b.constant(0, np.float32))
    columns = [b.op("Add", spread, box), score, b.op("Add", spread, label)]
    return b.op("Concat", *columns, axis=2)


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
    apart = join.kind == "pixel_levels"
    for index, value in enumerate(values[: len(join.strides)]):
        channels, height, width = _sizes(value, what)
        classes, cells = channels if apart else channels - 4 * join.bins, height * width
        flat = b.op("Reshape", value.name, b.ints(0, channels, cells))
        scores.append(b.part(flat, 1, 0, classes, channels))
        if apart:
            far = values[len(join.strides) + index].name
            reach = b.op("Reshape", far, b.ints(0, 4, cells))
        else:
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
    if not apart:
        reach = b.op("Mul", reach, b.constant(steps_px, np.float32))
    points = b.constant((cells_xy + np.float32(join.offset)) * steps_px, np.float32)
    low = b.op("Sub", points, b.part(reach, 2, 0, 2, 4))
    high = b.op("Add", points, b.part(reach, 2, 2, 4, 4))
    score = b.op("Sigmoid", b.op("Transpose", b.op("Concat", *scores, axis=2), perm=[0, 2, 1]))
    return b.op("Concat", low, high, score, axis=2), count, 4 + classes


def _exp_levels(
    b: GraphBuilder, values: list[onnx.ValueInfoProto], what: str
) -> tuple[str, int, int]:
    """Put the columns in the order of YOLOX's own export: box, objectness, classes."""
    levels, count, channels = [], 0, 0
    for value in values:
        channels, height, width = _sizes(value, what)
        levels.append(b.op("Reshape", value.name, b.ints(0, channels, height * width)))
        count += height * width
    rows = b.op("Transpose", b.op("Concat", *levels, axis=2), perm=[0, 2, 1])
    classes = channels - 5
    label = b.part(rows, 2, 0, classes, channels)
    rest = b.part(rows, 2, classes, channels, channels)
    box, objectness = b.part(rest, 2, 0, 4, 5), b.part(rest, 2, 4, 5, 5)
    columns = [box, b.op("Sigmoid", objectness), b.op("Sigmoid", label)]
    return b.op("Concat", *columns, axis=2), count, channels


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
