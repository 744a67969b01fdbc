"""Reads and sets graph shapes; turns a fixed batch into a dynamic one and back."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import numpy_helper

from boxwright.errors import GraphError

__all__ = ["dimensions", "free_batch", "real_inputs", "set_batch", "static_dimension"]


def dimensions(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """Return a tensor's shape; dynamic dimensions appear by name ("?" where unnamed)."""
    shape = value.type.tensor_type.shape
    return tuple(
        d.dim_value if d.HasField("dim_value") else (d.dim_param or "?") for d in shape.dim
    )


def static_dimension(value: onnx.ValueInfoProto, axis: int) -> int | None:
    """Return one dimension, or None when it is dynamic or missing."""
    shape = dimensions(value)
    size = shape[axis] if axis < len(shape) else None
    return size if isinstance(size, int) and size > 0 else None


def real_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that must be fed: those without an initializer as default."""
    stored = {i.name for i in graph.initializer}
    return [i for i in graph.input if i.name not in stored]


def _set_first(values: Iterable[onnx.ValueInfoProto], size: int | str) -> None:
    for value in values:
        shape = value.type.tensor_type.shape
        if not shape.dim:
            continue
        if isinstance(size, int):
            shape.dim[0].dim_value = size
        else:
            shape.dim[0].dim_param = size


def set_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """Return a copy whose inputs and outputs have a fixed batch; inner shapes are dropped."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _set_first(real_inputs(result.graph), batch)
    _set_first(result.graph.output, batch)
    del result.graph.value_info[:]
    return result


def free_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model of fixed batch 1 whose batch is the dynamic dimension `batch`.

    Reshape targets whose first entry is 1 become "copy the input's first dimension". Whether the
    result still computes the same is for the caller to prove by running it at batch 2.

    Raises:
        GraphError: Batch is not 1, or a Reshape target is not a constant.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    inputs = real_inputs(result.graph)
    if [static_dimension(i, 0) for i in inputs] != [1]:
        raise GraphError(
            "dynamic batch",
            f"the graph's inputs have shapes {[dimensions(i) for i in inputs]}",
            "give --batch with the batch size that the file has",
        )
    constants = {i.name: i for i in result.graph.initializer}
    holders = {n.output[0]: n for n in result.graph.node if n.op_type == "Constant"}
    for node in result.graph.node:
        if node.op_type != "Reshape":
            continue
        stored = constants.get(node.input[1])
        if stored is None and node.input[1] in holders:
            stored = next(
                (a.t for a in holders[node.input[1]].attribute if a.name == "value"), None
            )
        if stored is None:
            raise GraphError(
                "dynamic batch", f"Reshape {node.name} computes its shape", "give --batch 1"
            )
        shape = numpy_helper.to_array(stored).copy()
        if len(shape) and shape[0] == 1:
            shape[0] = 0  # copies the dimension of the input
            fresh = numpy_helper.from_array(shape.astype(np.int64), f"{node.input[1]}/any_batch")
            if fresh.name not in constants:
                result.graph.initializer.append(fresh)
                constants[fresh.name] = result.graph.initializer[-1]
            node.input[1] = fresh.name
    _set_first(inputs, "batch")
    _set_first(result.graph.output, "batch")
    del result.graph.value_info[:]
    return result
