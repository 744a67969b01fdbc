"""Makes stored tensors smaller without changing what a graph computes, or by no more than asked."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from boxwright.graph.regions import WEIGHTED

__all__ = ["with_half_weights", "with_small_constants"]

_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div"})
_LEAST = 256  # elements; less is not worth a node


def with_small_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without the repetition in stored tensors that broadcasting makes by itself.

    Exporters of YOLOv5 store a grid of (1, 3, H, W, 2) for each level, which is the same for all
    anchors, and anchor sizes that are the same for all cells. An axis is cut to 1 where all values
    along it are equal and every reader adds or multiplies a tensor of that full size, so that the
    results stay the same bit by bit.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    shapes = _shapes(model)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {o.name for o in graph.output} | {i.name for i in graph.input}
    for tensor in graph.initializer:
        if tensor.name in outputs or int(np.prod(tensor.dims)) < _LEAST:
            continue
        values = numpy_helper.to_array(tensor)
        axes = (
            [
                axis
                for axis in range(values.ndim)
                if values.shape[axis] > 1
                and all(
                    _fills(node, tensor.name, axis, values.shape, shapes)
                    for node in readers[tensor.name]
                )
                and bool((values == np.take(values, [0], axis)).all())
            ]
            if tensor.name in readers
            else []
        )
        for axis in axes:
            values = np.take(values, [0], axis)
        if axes:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    return result


def _shapes(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    graph = shape_inference.infer_shapes(model).graph
    return {
        v.name: [
            d.dim_value if d.HasField("dim_value") else None for d in v.type.tensor_type.shape.dim
        ]
        for v in (*graph.input, *graph.output, *graph.value_info)
        if v.type.tensor_type.HasField("shape")
    }


def _fills(
    node: onnx.NodeProto,
    name: str,
    axis: int,
    shape: tuple[int, ...],
    shapes: dict[str, list[int | None]],
) -> bool:
    """Whether a reader's other operand has the full size along an axis by itself."""
    others = [n for n in node.input if n != name]
    if node.op_type not in _ELEMENTWISE or len(others) != 1:
        return False
    other = shapes.get(others[0])
    if other is None or len(other) < len(shape):
        return False
    return other[len(other) - len(shape) + axis] == shape[axis]


def with_half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose float32 weights of layers are stored as float16 and cast back.

    What stays in float of an INT8 file, the head's last layers above all, would weigh four times as
    much as the rest. Runtimes cast once, when they load it; a weight moves by 2^-11 of itself.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {n.input[1] for n in graph.node if n.op_type in WEIGHTED and len(n.input) > 1}
    casts = []
    for tensor in graph.initializer:
        if tensor.name not in weights or tensor.data_type != TensorProto.FLOAT:
            continue
        values: npt.NDArray[np.float32] = numpy_helper.to_array(tensor)
        if values.size < _LEAST or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name, half = tensor.name, f"{tensor.name}/half"
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), half))
        casts.append(helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return result
