"""FP32 to typed FP16: the network's body in half precision, decode and NMS in single.

The types are in the graph, so ONNX Runtime, OpenVINO and strongly typed TensorRT all run what the
file says. Inputs and outputs stay float32: every precision of a model takes the same feed.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from boxwright.errors import GraphError
from boxwright.graph.regions import decode_region, is_weighted, stored_tensors

__all__ = ["float_tensors", "fp16_from_fp32", "half_from_single", "half_layers"]

_FP32, _FP16 = TensorProto.FLOAT, TensorProto.FLOAT16
_LARGEST = float(np.finfo(np.float16).max)
# Inputs that ONNX defines as float32 whatever the data is: operator -> positions.
_PINNED = {"Resize": (1, 2), "Upsample": (1,)}
_NESTED = frozenset({"If", "Loop", "Scan"})


def fp16_from_fp32(model: onnx.ModelProto, keep_fp32: Collection[str] = ()) -> onnx.ModelProto:
    """Return a copy with a float16 body; sorted, typed and free of stale shape information.

    Args:
        model: FP32 graph.
        keep_fp32: Names of body nodes that stay in float32.

    Raises:
        GraphError: The graph has nested graphs, is half precision already, or a weight exceeds
            float16's range.
    """
    if any(node.op_type in _NESTED for node in model.graph.node):
        raise GraphError("fp16", "the graph has control flow", "export it without If or Loop")
    if any(i.data_type == _FP16 for i in model.graph.initializer):
        raise GraphError("fp16", "the graph already holds float16 weights", "start from FP32")
    return _Conversion(model, frozenset(keep_fp32)).run()


def float_tensors(model: onnx.ModelProto) -> set[str]:
    """Return the names of the float32 tensors of a graph, initializers included."""
    graph = shape_inference.infer_shapes(model).graph
    values = [*graph.input, *graph.output, *graph.value_info]
    names = {v.name for v in values if v.type.tensor_type.elem_type == _FP32}
    return names | {i.name for i in graph.initializer if i.data_type == _FP32}


def half_layers(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Return the layers of an FP32 graph that would become float16, in the graph's order.

    A layer is a convolution or matrix product and everything computed from its output until the
    next one: where the product exceeds float16's range, what reads it must stay in float32, too.

    Returns:
        By the name of the weighted node, the names of all nodes of the layer; a node that two
        layers feed is in both.
    """
    region, stored = decode_region(model.graph), stored_tensors(model.graph)
    layers: dict[str, list[str]] = {}
    feeding: dict[str, list[str]] = {}  # tensor -> weighted nodes whose output reaches it
    for index, node in enumerate(model.graph.node):
        if index in region:
            continue
        if is_weighted(node, stored):
            owners = [node.name]
        else:
            owners = list(dict.fromkeys(o for name in node.input for o in feeding.get(name, ())))
        for owner in owners:
            layers.setdefault(owner, []).append(node.name)
        for name in node.output:
            feeding[name] = owners
    return {name: tuple(nodes) for name, nodes in layers.items()}


class _Conversion:
    """One pass over the nodes; a tensor lives in the type of the node that makes it."""

    def __init__(self, model: onnx.ModelProto, keep_fp32: frozenset[str]) -> None:
        self.result = onnx.ModelProto()
        self.result.CopyFrom(model)
        self.source = model.graph
        self.graph = self.result.graph
        region = decode_region(model.graph)
        self.single = {
            i for i, n in enumerate(model.graph.node) if i in region or n.name in keep_fp32
        }
        self.floats = float_tensors(model)
        self.stored = {i.name: i for i in model.graph.initializer}
        self.type_of: dict[str, int] = {}  # of float tensors made so far
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.fresh: dict[str, onnx.TensorProto] = {}

    def run(self) -> onnx.ModelProto:
        for value in self.graph.input:
            if value.name in self.floats:
                self.type_of[value.name] = _FP32
        self._lift_constants()
        outputs = {o.name for o in self.graph.output}
        for index, node in enumerate(self.source.node):
            if node.op_type == "Constant" and node.output[0] in self.stored:
                continue
            self._convert(node, _FP32 if index in self.single else _FP16, outputs)
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        stored = [t for t in {**self.stored, **self.fresh}.values() if t.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(stored)
        inputs = [i for i in self.graph.input if i.name in used or i.name not in self.stored]
        del self.graph.input[:]
        self.graph.input.extend(inputs)
        return self.result

    def _lift_constants(self) -> None:
        """Treat float Constant nodes as initializers, so that each user gets its own type."""
        for node in self.source.node:
            if node.op_type == "Constant" and node.output[0] in self.floats:
                for attribute in node.attribute:
                    if attribute.name == "value":
                        tensor = TensorProto()
                        tensor.CopyFrom(attribute.t)
                        tensor.name = node.output[0]
                        self.stored[node.output[0]] = tensor

    def _convert(self, node: onnx.NodeProto, dtype: int, outputs: set[str]) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        pinned = _PINNED.get(node.op_type, ())
        for position, name in enumerate(node.input):
            if name in self.floats:
                copy.input[position] = self._as(name, _FP32 if position in pinned else dtype)
        if dtype == _FP16:
            self._retype_attributes(copy)
        self.nodes.append(copy)
        for position, name in enumerate(node.output):
            if name not in self.floats:
                continue
            if dtype == _FP16 and name in outputs:
                copy.output[position] = f"{name}/fp16"
                self.type_of[copy.output[position]] = _FP16
                self.nodes.append(
                    helper.make_node(
                        "Cast", [copy.output[position]], [name], f"{name}/cast", to=_FP32
                    )
                )
                self.type_of[name] = _FP32
            else:
                self.type_of[name] = dtype

    @staticmethod
    def _retype_attributes(node: onnx.NodeProto) -> None:
        """Make operators whose output type is an attribute produce float16."""
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _FP32:
                attribute.i = _FP16
            elif attribute.name == "value" and attribute.t.data_type == _FP32:
                half = numpy_helper.to_array(attribute.t).astype(np.float16)
                attribute.t.CopyFrom(numpy_helper.from_array(half, attribute.t.name))

    def _as(self, name: str, dtype: int) -> str:
        """Return the name under which a float tensor is available in a type."""
        if name in self.stored and name not in self.type_of:
            return name if dtype == _FP32 else self._half_weight(name)
        if self.type_of.get(name, dtype) == dtype:
            return name
        key = (name, dtype)
        if key not in self.casts:
            self.casts[key] = f"{name}/{'fp16' if dtype == _FP16 else 'fp32'}"
            self.nodes.append(
                helper.make_node("Cast", [name], [self.casts[key]], f"{name}/cast{dtype}", to=dtype)
            )
        return self.casts[key]

    def _half_weight(self, name: str) -> str:
        half_name = f"{name}/fp16"
        if half_name not in self.fresh:
            values = numpy_helper.to_array(self.stored[name])
            finite = np.abs(values[np.isfinite(values)])
            if finite.size and float(finite.max()) > _LARGEST:
                raise GraphError(
                    "fp16",
                    f"weight {name} reaches {float(finite.max()):.3g}, but float16 ends at "
                    f"{_LARGEST:.0f}",
                    "keep this model in FP32",
                )
            self.fresh[half_name] = numpy_helper.from_array(half_from_single(values), half_name)
        return half_name


def half_from_single(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Round weights to float16; within each spatial kernel the rounding errors cancel.

    Neighbouring pixels of a feature map are alike, so what matters of a kernel's rounding errors
    is mostly their sum. Each weight therefore takes over the error of the one before (error
    feedback, as in sigma-delta modulation and Floyd-Steinberg dithering); docs/decisions/0003
    has the measurements.

    Args:
        values: Weights; (out, in, kh, kw) for convolutions, anything else is rounded plainly.

    >>> half_from_single(np.full((1, 1, 1, 2), 1 + 2**-11 + 2**-13, np.float32)).tolist()
    [[[[1.0009765625, 1.0]]]]
    """
    if values.ndim != 4 or values.shape[2] * values.shape[3] == 1:
        return values.astype(np.float16)
    kernels = values.reshape(-1, values.shape[2] * values.shape[3]).astype(np.float64)
    rounded = np.empty(kernels.shape, np.float16)
    error = np.zeros(len(kernels))
    for position in range(kernels.shape[1]):
        wanted = kernels[:, position] + error
        rounded[:, position] = wanted.astype(np.float16)
        error = wanted - rounded[:, position]
    return rounded.reshape(values.shape)
