"""FP32 to INT8 by explicit quantisation: QuantizeLinear and DequantizeLinear say what is integer.

What runs fast differs between runtimes, so a quantised graph has a deployment target:

- `cpu` (ONNX Runtime, OpenVINO on x86): unsigned activations with a zero point, signed weights per
  channel, integer operators from convolution to convolution, so that nothing returns to float on
  the way; biases are 32-bit integers.
- `tensorrt`: signed and symmetric throughout (zero points are 0), weights per channel, pairs in
  front of convolutions and on both inputs of a residual addition; TensorRT fuses the rest.

Head outputs, DFL and decode stay in float everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from boxwright.errors import GraphError
from boxwright.graph.anatomy import MOVES, Anatomy
from boxwright.graph.builder import default_opset
from boxwright.graph.compact import with_half_weights
from boxwright.types import Deployment

__all__ = [
    "Range",
    "int8_from_fp32",
    "quantisable_layers",
    "tensors_to_observe",
    "with_outputs",
]

_MOST_IN_A_PAIR = 127.0  # rounding may add half a step to each of the two: 128 at most
_LEAST_OPSET = 13  # scales per channel


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a tensor takes, as far as calibration saw or keeps them."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class _Scale:
    """How a real number becomes an integer: round(x / scale) + zero_point."""

    scale: float
    zero_point: int
    signed: bool


def quantisable_layers(model: onnx.ModelProto) -> list[str]:
    """Return the names of the layers that would be quantised, in the graph's order."""
    anatomy = Anatomy(model, "tensorrt", ())
    return [model.graph.node[i].name for i in anatomy.layers]


def tensors_to_observe(model: onnx.ModelProto, deployment: Deployment) -> list[str]:
    """Return the names of the tensors whose ranges `int8_from_fp32` needs."""
    return Anatomy(model, deployment, ()).marked


def with_outputs(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Return a copy whose only outputs are these float tensors, for calibration."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.output[:]
    for name in names:
        result.graph.output.append(helper.make_empty_tensor_value_info(name))
        result.graph.output[-1].type.tensor_type.elem_type = TensorProto.FLOAT
    return result


def int8_from_fp32(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    deployment: Deployment,
    *,
    keep_float: Collection[str] = (),
    any_processor: bool = True,
) -> onnx.ModelProto:
    """Return a copy with integer layers.

    Args:
        model: FP32 graph of opset 13 or newer.
        ranges: By name, of every tensor that `tensors_to_observe` names.
        deployment: Where it shall run.
        keep_float: Names of nodes that stay in float.
        any_processor: For `cpu`: choose weights that no processor can overflow on. x86 without
            VNNI adds two products of an unsigned activation and a signed weight in 16 bits, which
            holds while two neighbouring weights are at most 128 together. Without it the weights
            use all 8 bits; results are then wrong on processors without VNNI.

    Raises:
        GraphError: The opset is too old, nothing can be quantised, or a range is missing.
    """
    if default_opset(model) < _LEAST_OPSET:
        raise GraphError(
            "int8",
            f"opset {default_opset(model)} has no scales per channel",
            f"use --opset {_LEAST_OPSET} or newer",
        )
    anatomy = Anatomy(model, deployment, frozenset(keep_float))
    if not anatomy.layers:
        raise GraphError("int8", "no layer of the graph can be quantised", "keep it in float")
    missing = [n for n in anatomy.marked if n not in ranges]
    if missing:
        raise GraphError("int8", f"tensor {missing[0]} was not calibrated", "calibrate again")
    paired = any_processor and deployment != "tensorrt"
    result = _Quantisation(model, anatomy, ranges, paired).run()
    # TensorRT wants the weights of a convolution as they are
    return result if deployment == "tensorrt" else with_half_weights(result)


class _Quantisation:
    """Writes the pairs into a copy of a graph."""

    def __init__(
        self,
        model: onnx.ModelProto,
        anatomy: Anatomy,
        ranges: Mapping[str, Range],
        paired: bool,
    ) -> None:
        self.result = onnx.ModelProto()
        self.result.CopyFrom(model)
        self.source = model.graph
        self.graph = self.result.graph
        self.anatomy = anatomy
        self.paired = paired
        self.short: dict[str, str] = {}  # our names: long ones would weigh as much as the weights
        self.symmetric = anatomy.deployment == "tensorrt"
        self.scales = self._scales(ranges)
        self.nodes: list[onnx.NodeProto] = []
        self.fresh: dict[str, onnx.TensorProto] = {}
        self.restored: dict[str, str] = {}  # tensor -> what comes back out of its pair
        self.layers = frozenset(anatomy.layers)
        self.shared: dict[tuple[str, Any], str] = {}

    def _scales(self, ranges: Mapping[str, Range]) -> dict[str, _Scale]:
        found = {name: self._scale(ranges[name]) for name in self.anatomy.marked}
        for index, node in enumerate(self.source.node):
            if index not in self.anatomy.integer:
                continue
            if node.op_type == "Sigmoid" and node.output[0] in found:
                found[node.output[0]] = self._scale(Range(0.0, 1.0))
            if node.op_type in MOVES and node.input[0] in found:
                for output in node.output:
                    if output in found:
                        found[output] = found[node.input[0]]
        return found

    def _scale(self, seen: Range) -> _Scale:
        low, high = min(seen.low, 0.0), max(seen.high, 0.0)
        if self.symmetric:
            return _Scale(max(-low, high, 1e-8) / 127, 0, True)
        scale = max(high - low, 1e-8) / 255
        return _Scale(scale, int(np.clip(round(-low / scale), 0, 255)), False)

    def run(self) -> onnx.ModelProto:
        made = {i.name for i in self.source.input}
        for name in self.anatomy.marked:
            if name in made:
                self._add_pair(name)
        for index, node in enumerate(self.source.node):
            copy = _without_defaults(node)
            for position, name in enumerate(node.input):
                if name in self.restored:
                    copy.input[position] = self.restored[name]
            if index in self.layers:
                self._quantise_weights(node, copy)
            self.nodes.append(copy)
            if self.anatomy.needs_a_branch(index):
                self._add_branch(node.output[0], copy)
            for name in node.output:
                if name in self.scales:
                    self._add_pair(name)
        self._shorten_tensors()
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        kept = [t for t in self.graph.initializer if t.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend([*kept, *self.fresh.values()])
        return self.result

    def _add_branch(self, name: str, copy: onnx.NodeProto) -> None:
        """Let a tensor go two ways and meet again: x = x / 4 + 3 x / 4."""
        key = self._shortened(f"{name}/branch")
        copy.output[0] = f"{key}x"
        halves = []
        for part, share in (("a", 0.25), ("b", 0.75)):
            factor = self._store(f"{key}{part}s", np.array(share, np.float32))
            halves.append(f"{key}{part}")
            self.nodes.append(helper.make_node("Mul", [copy.output[0], factor], [halves[-1]]))
        self.nodes.append(helper.make_node("Add", halves, [name]))

    def _shorten_tensors(self) -> None:
        """Give computed tensors short names: exporters' names weigh more than many a layer."""
        kept = {o.name for o in self.graph.output}
        made = [n for node in self.nodes for n in node.output if n and n not in kept]
        names = {old: f"t{i}" for i, old in enumerate(made)}
        taken = kept | {i.name for i in self.graph.initializer} | {i.name for i in self.graph.input}
        if taken & set(names.values()):
            return
        for node in self.nodes:
            for tensors in (node.input, node.output):
                for position, name in enumerate(tensors):
                    tensors[position] = names.get(name, name)

    def _add_pair(self, name: str) -> None:
        scale = self.scales[name]
        dtype = np.int8 if scale.signed else np.uint8
        key = self._shortened(name)
        step = self._share(f"{key}s", np.array(scale.scale, np.float32))
        zero = self._share(f"{key}z", np.array(scale.zero_point, dtype))
        quantised, back = f"{key}q", f"{key}f"
        self._node("QuantizeLinear", [name, step, zero], quantised)
        self._node("DequantizeLinear", [quantised, step, zero], back)
        self.restored[name] = back

    def _shortened(self, name: str) -> str:
        return self.short.setdefault(name, f"int8/{len(self.short)}")

    def _share(self, name: str, value: npt.NDArray[np.generic]) -> str:
        """Store a number; equal ones are stored once."""
        return self._store(self.shared.setdefault((value.dtype.str, value.item()), name), value)

    def _store(self, name: str, values: npt.NDArray[np.generic]) -> str:
        if name not in self.fresh:
            self.fresh[name] = numpy_helper.from_array(values, name)
        return name

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))

    def _quantise_weights(self, node: onnx.NodeProto, copy: onnx.NodeProto) -> None:
        """Replace a layer's weight, and on a CPU its bias, by integers and a DequantizeLinear."""
        name = node.input[1]
        values = numpy_helper.to_array(self.anatomy.stored[name]).astype(np.float32)
        axis = _channel_axis(node, values)
        others = tuple(a for a in range(values.ndim) if a != axis)
        peak = np.abs(values).max(axis=others) / 127
        if self.paired:
            peak = np.maximum(peak, _largest_pair(values, axis) / _MOST_IN_A_PAIR)
        scale = np.where(peak > 0, peak, 1.0).astype(np.float32)
        shape = [-1 if a == axis else 1 for a in range(values.ndim)]
        whole = np.rint(values / scale.reshape(shape)).astype(np.int8)
        key = self._shortened(name)
        back = f"{key}f"
        if f"{key}q" not in self.fresh:
            parts = [
                self._store(f"{key}q", whole),
                self._store(f"{key}s", scale),
            ]
            if self.symmetric:  # TensorRT 8.6 does not parse the pair without its zero points
                parts.append(self._store(f"int8/zeros{len(scale)}", np.zeros(len(scale), np.int8)))
            self._node("DequantizeLinear", parts, back, axis=axis)
        copy.input[1] = back
        if (
            self.anatomy.at_layers
            or len(node.input) < 3
            or node.input[2] not in self.anatomy.stored
        ):
            return
        self._quantise_bias(node, copy, scale)

    def _quantise_bias(
        self, node: onnx.NodeProto, copy: onnx.NodeProto, weight_scale: npt.NDArray[np.float32]
    ) -> None:
        """Store a bias in units of one product; the runtime adds it to the 32-bit sums."""
        key = self._shortened(f"{node.input[2]}/{node.name}")
        bias = numpy_helper.to_array(self.anatomy.stored[node.input[2]]).astype(np.float64)
        scale = (np.float64(self.scales[node.input[0]].scale) * weight_scale).astype(np.float32)
        whole = np.clip(np.rint(bias / scale), -(2**31), 2**31 - 1).astype(np.int32)
        parts = [
            self._store(f"{key}q", whole),
            self._store(f"{key}s", scale),
        ]
        self._node("DequantizeLinear", parts, f"{key}f", axis=0)
        copy.input[2] = f"{key}f"


def _without_defaults(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a copy of a node without attributes that say what ONNX's defaults say."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    if node.op_type == "Conv":
        del copy.attribute[:]
        copy.attribute.extend(a for a in node.attribute if not _is_default(a))
    return copy


def _is_default(attribute: onnx.AttributeProto) -> bool:
    if attribute.name == "dilations":
        return set(attribute.ints) == {1}
    return bool(attribute.name == "group" and attribute.i == 1)


def _largest_pair(values: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    """Return for each output the largest |a| + |b| of two weights that are multiplied together.

    Integer kernels go through the inputs of a kernel position, then to the next position; which
    neighbours meet depends on where the kernel begins, so that all count.
    """
    if values.ndim == 4:
        flat = np.moveaxis(values, 1, -1).reshape(len(values), -1)
    else:
        flat = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    size = np.abs(flat)
    if size.shape[1] == 1:
        return np.zeros(len(size), np.float32)
    return np.asarray((size[:, :-1] + size[:, 1:]).max(axis=1))


def _channel_axis(node: onnx.NodeProto, values: npt.NDArray[np.float32]) -> int:
    """Return the axis of a weight that counts its outputs."""
    if node.op_type == "Conv":
        return 0
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Gemm" and transposed else values.ndim - 1
