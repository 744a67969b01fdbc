"""Divides a graph into the network's body and the decode that follows it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["WEIGHTED", "decode_region", "is_weighted", "stored_tensors"]

WEIGHTED = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "ConvInteger", "QLinearConv"}
)


def decode_region(graph: onnx.GraphProto) -> set[int]:
    """Return the indices of the nodes that no weighted layer follows.

    What lies behind the last convolutions is decode: activations of scores, DFL, grids, TopK,
    NMS. Weighted means a convolution or matrix product with a stored weight; the DFL projection
    (a convolution with one output channel whose weights are the bin numbers 0, 1, 2, ...) is
    decode itself, and a product of two computed tensors belongs to whatever surrounds it.
    """
    stored = stored_tensors(graph)
    consumers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        for name in node.input:
            consumers.setdefault(name, []).append(index)
    region: set[int] = set()
    blocked: set[int] = set()  # nodes with a weighted layer at or after them
    for index in range(len(graph.node) - 1, -1, -1):
        node = graph.node[index]
        after = [c for name in node.output for c in consumers.get(name, ())]
        if is_weighted(node, stored) or any(c in blocked for c in after):
            blocked.add(index)
        else:
            region.add(index)
    return region


def stored_tensors(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return by name what a graph holds: initializers, constants, also cast or dequantised."""
    stored = {i.name: i for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    stored[node.output[0]] = attribute.t
        elif node.op_type in ("DequantizeLinear", "Cast") and node.input[0] in stored:
            stored[node.output[0]] = stored[node.input[0]]
    return stored


def is_weighted(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> bool:
    """Whether a node is a convolution or matrix product with a stored weight, DFL left out."""
    if node.op_type not in WEIGHTED:
        return False
    weights = [stored[name] for name in node.input[1:2] if name in stored]
    if node.op_type == "MatMul" and not weights:
        return any(name in stored for name in node.input)
    if node.op_type != "Conv" or not weights:
        return bool(weights)
    dims = list(weights[0].dims)
    if dims[:1] != [1] or int(np.prod(dims[2:])) != 1:
        return True
    values = numpy_helper.to_array(weights[0]).astype(np.float64).ravel()
    return not np.array_equal(values, np.arange(len(values)))
