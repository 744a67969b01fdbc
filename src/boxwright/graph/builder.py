"""Appends nodes to an ONNX graph with fresh names and the operator forms of its opset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["GraphBuilder", "default_opset"]

_INT64_MAX = np.iinfo(np.int64).max


def default_opset(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set of a model."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


class GraphBuilder:
    """Appends nodes to the graph of a model, in place.

    Methods take and return tensor names. Those that ONNX changed between opset 11 and 21 emit the
    form of the model's own opset.
    """

    def __init__(self, model: onnx.ModelProto, prefix: str) -> None:
        self.model = model
        self.graph = model.graph
        self.opset = default_opset(model)
        self._prefix = prefix
        self._counter = 0
        self._constants: dict[tuple[Any, ...], str] = {}

    def node(
        self,
        op_type: str,
        inputs: Sequence[str],
        outputs: int | Sequence[str] = 1,
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Append a node; `outputs` is a count of fresh names or the names themselves."""
        self._counter += 1
        name = f"{self._prefix}/{op_type}_{self._counter}"
        if isinstance(outputs, int):
            outputs = [f"{name}_out{i}" for i in range(outputs)]
        self.graph.node.append(
            helper.make_node(
                op_type, list(inputs), list(outputs), name, domain=domain, **attributes
            )
        )
        return list(outputs)

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output and return its name."""
        return self.node(op_type, inputs, 1, **attributes)[0]

    def name_output(self, tensor: str, name: str) -> None:
        """Give a tensor its public name."""
        self.node("Identity", [tensor], [name])

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """Return an initializer with this value; equal ones are shared."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{self._prefix}/const_{len(self._constants)}"
            self.graph.initializer.append(numpy_helper.from_array(array, name))
            self._constants[key] = name
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """Return an int64 vector initializer."""
        return self.constant(list(values), np.int64)

    def slice(self, tensor: str, axis: int, start: int, end: int | None = None) -> str:
        """Return tensor[start:end] along one axis.

        Not to be gathered from: OpenVINO drops a Slice before GatherElements; `part` is for that.
        """
        stop = _INT64_MAX if end is None else end
        return self.op("Slice", tensor, self.ints(start), self.ints(stop), self.ints(axis))

    def part(self, tensor: str, axis: int, start: int, end: int, size: int) -> str:
        """Return tensor[start:end] along one axis of `size`, as a Split makes it."""
        sizes = [n for n in (start, end - start, size - end) if n]
        if len(sizes) == 1:
            return tensor
        if self.opset >= 13:
            parts = self.node("Split", [tensor, self.ints(*sizes)], len(sizes), axis=axis)
        else:
            parts = self.node("Split", [tensor], len(sizes), axis=axis, split=sizes)
        return parts[1 if start else 0]

    def cast(self, tensor: str, to: int) -> str:
        """Cast to an ONNX element type."""
        return self.op("Cast", tensor, to=to)

    def unsqueeze(self, tensor: str, axis: int) -> str:
        """Insert an axis of size 1."""
        if self.opset >= 13:
            return self.op("Unsqueeze", tensor, self.ints(axis))
        return self.op("Unsqueeze", tensor, axes=[axis])

    def reduce(self, kind: str, tensor: str, axis: int, keepdims: bool = False) -> str:
        """ReduceMax, ReduceMin or ReduceSum over one axis."""
        if self.opset >= (13 if kind == "ReduceSum" else 18):
            return self.op(kind, tensor, self.ints(axis), keepdims=int(keepdims))
        return self.op(kind, tensor, axes=[axis], keepdims=int(keepdims))

    def topk(self, tensor: str, count: int, axis: int) -> tuple[str, str]:
        """Return the `count` largest values, sorted, and their int64 indices."""
        values, index = self.node(
            "TopK", [tensor, self.ints(count)], 2, axis=axis, largest=1, sorted=1
        )
        return values, index

    def gather_rows(self, tensor: str, index: str, width: int) -> str:
        """Pick rows per picture: (B, A, width) at (B, K) gives (B, K, width)."""
        wide = self.op("Expand", self.unsqueeze(index, 2), self.ints(1, 1, width))
        return self.op("GatherElements", tensor, wide, axis=1)

    def gather_columns(self, tensor: str, index: str, height: int) -> str:
        """Pick columns per picture: (B, height, A) at (B, K) gives (B, height, K)."""
        tall = self.op("Expand", self.unsqueeze(index, 1), self.ints(1, height, 1))
        return self.op("GatherElements", tensor, tall, axis=2)

    def as_float(self, tensor: str) -> str:
        """Cast to float32."""
        return self.cast(tensor, TensorProto.FLOAT)

    def as_int32(self, tensor: str) -> str:
        """Cast to int32."""
        return self.cast(tensor, TensorProto.INT32)

    def as_int64(self, tensor: str) -> str:
        """Cast to int64."""
        return self.cast(tensor, TensorProto.INT64)
