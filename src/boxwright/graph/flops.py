"""Counts parameters and floating-point operations of a graph. Pure.

An operation is a multiplication or an addition: a multiply-add counts two, as the tables of model
guides do. Counted are Conv, ConvTranspose, Gemm and MatMul; biases, activations, normalisation,
decode and NMS are left out, together a few per cent of a detector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import onnx
from onnx import helper, shape_inference

from boxwright.graph.shapes import dimensions, real_inputs, set_batch, static_dimension

__all__ = ["count_flops", "count_parameters"]

Shapes = Mapping[str, tuple[int | str, ...]]

# Weights of a layer pass through these on their way, in FP16 and INT8 files.
_CARRIERS = frozenset(
    {"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Transpose"}
)
# Operator -> positions of its weights and biases. The weights of layers come first.
_LAYERS = {"Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (1, 0)}
_NORMS = {
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "PRelu": (1,),
}


def count_parameters(model: onnx.ModelProto) -> int:
    """Return how many weights and biases the layers of a graph have.

    Layers that share their weights count once. Equal biases of different layers, which simplifiers
    merge, count for each. Constants of decode and NMS (grids, strides) are no parameters.
    """
    sizes = {i.name: prod(i.dims) for i in model.graph.initializer}
    makers: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            sizes[node.output[0]] = prod(value.dims)
        elif node.op_type in _CARRIERS:
            makers[node.output[0]] = node
    layers: dict[str, int] = {}
    for node in model.graph.node:
        positions = _LAYERS.get(node.op_type) or _NORMS.get(node.op_type, ())
        names = [_stored(node.input[p], makers) for p in positions if p < len(node.input)]
        found = [n for n in names if n in sizes]
        if found:
            key = found[0] if node.op_type in _LAYERS else node.output[0]
            layers[key] = sum(sizes[n] for n in found)
    return sum(layers.values())


def _stored(name: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """Return the tensor that a weight was before casts, de-quantisation and transposition."""
    while name in makers:
        name = makers[name].input[0]
    return name


def count_flops(model: onnx.ModelProto) -> int | None:
    """Return the operations for one picture; those of a graph of fixed batch are shared out.

    Returns:
        Their number; None when a layer's shape cannot be inferred.
    """
    alone, batch = _inferred(model)
    shapes: dict[str, tuple[int | str, ...]] = {
        value.name: dimensions(value)
        for values in (alone.graph.value_info, alone.graph.input, alone.graph.output)
        for value in values
    }
    shapes |= {i.name: tuple(i.dims) for i in alone.graph.initializer}
    total = 0
    for node in alone.graph.node:
        rule = _RULES.get(node.op_type)
        if rule is None:
            continue
        count = rule(node, shapes)
        if count is None:
            return None
        total += 2 * count
    return total // batch


def _inferred(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Return a copy with all shapes that inference finds, and its batch: its own, otherwise 1."""
    inputs = real_inputs(model.graph)
    batch = (static_dimension(inputs[0], 0) if inputs else None) or 1
    return shape_inference.infer_shapes(set_batch(model, batch), data_prop=True), batch


def _known(shapes: Shapes, name: str) -> tuple[int, ...] | None:
    """Return a shape whose every dimension is a number."""
    shape = shapes.get(name)
    if shape is None:
        return None
    sizes = tuple(d for d in shape if isinstance(d, int))
    return sizes if len(sizes) == len(shape) else None


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _conv(node: onnx.NodeProto, shapes: Shapes) -> int | None:
    """Multiply-adds: every output value takes (inputs / groups) x kernel; weights (O, I/g, ...)."""
    weight, output = _known(shapes, node.input[1]), _known(shapes, node.output[0])
    return None if weight is None or output is None else prod(output) * prod(weight[1:])


def _conv_transpose(node: onnx.NodeProto, shapes: Shapes) -> int | None:
    """Multiply-adds: every input value takes (outputs / groups) x kernel; weights (I, O/g, ...)."""
    weight, values = _known(shapes, node.input[1]), _known(shapes, node.input[0])
    return None if weight is None or values is None else prod(values) * prod(weight[1:])


def _matmul(node: onnx.NodeProto, shapes: Shapes) -> int | None:
    """Multiply-adds: every output value takes one for each column of the left side."""
    left, output = _known(shapes, node.input[0]), _known(shapes, node.output[0])
    return None if left is None or output is None else prod(output) * left[-1]


def _gemm(node: onnx.NodeProto, shapes: Shapes) -> int | None:
    """Multiply-adds of A' B': the inner side is A's second, or its first when transposed."""
    left, output = _known(shapes, node.input[0]), _known(shapes, node.output[0])
    if left is None or output is None:
        return None
    return prod(output) * left[0 if _attributes(node).get("transA", 0) else 1]


_RULES: Mapping[str, Callable[[onnx.NodeProto, Shapes], int | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
