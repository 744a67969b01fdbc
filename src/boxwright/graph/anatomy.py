"""What of a graph becomes integer, and which tensors stand between integer and float."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import TensorProto, shape_inference

from boxwright.graph.regions import decode_region, is_weighted, stored_tensors
from boxwright.types import Deployment

__all__ = ["MOVES", "Anatomy"]

# Operators that ONNX Runtime and OpenVINO run on integers, besides convolutions.
_INTEGER_OPS = frozenset({"Add", "Mul", "Sigmoid", "LeakyRelu", "Concat", "AveragePool"})
# They move numbers and do not change them: input and output share scale and zero point.
MOVES = frozenset(
    {
        "MaxPool",
        "Resize",
        "Upsample",
        "Split",
        "Slice",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
    }
)
_CLIPS = frozenset({"Relu", "Clip"})  # folded into the range of what they make


class Anatomy:
    """What of a graph becomes integer."""

    def __init__(
        self, model: onnx.ModelProto, deployment: Deployment, keep_float: Collection[str]
    ) -> None:
        graph = model.graph
        self.graph = graph
        self.deployment = deployment
        # TensorRT and OpenVINO fuse what stands between layers with them, in float; ONNX Runtime
        # wants every step integer.
        self.at_layers = deployment in ("tensorrt", "openvino")
        self.stored = stored_tensors(graph)
        self.floats = _float_tensors(model)
        region = decode_region(graph)
        weighted = {i for i, n in enumerate(graph.node) if is_weighted(n, self.stored)}
        self.consumers: dict[str, list[int]] = {}
        for index, node in enumerate(graph.node):
            for name in node.input:
                self.consumers.setdefault(name, []).append(index)
        last = self._last(weighted)
        self.body = [
            i
            for i, n in enumerate(graph.node)
            if i not in region and i not in last and n.name not in keep_float
        ]
        self.layers = [i for i in self.body if i in weighted and self._has_plain_weight(i)]
        self.kept = [i for i in sorted(weighted - last) if graph.node[i].name in keep_float]
        from_kept = {c for i in self.kept for o in graph.node[i].output for c in self._uses(o)}
        below = self._below_layers()
        between = {i for i in below if i not in from_kept and self._is_integer(i)}
        self.integer = set(self.layers) | between
        self.marked = self._marked()

    def _below_layers(self) -> list[int]:
        """Nodes of the body that a layer feeds; what prepares the input is faster in float.

        ONNX Runtime fuses the slices of a space-to-depth stem in float alone.
        """
        made: set[str] = set()
        found, layers = [], set(self.layers)
        for index in self.body:
            node = self.graph.node[index]
            if index in layers or any(n in made for n in node.input):
                made.update(node.output)
                found.append(index)
        return found

    def _uses(self, name: str) -> list[int]:
        return self.consumers.get(name, [])

    def needs_a_branch(self, index: int) -> bool:
        """Whether ONNX Runtime would quantise a layer that was kept in float.

        Its optimiser (WeightBiasQuantization, since 1.21) rounds the weights of a convolution that
        stands between DequantizeLinear and QuantizeLinear, with one scale for all channels, unless
        the way to the latter branches.
        """
        node = self.graph.node[index]
        if self.deployment == "openvino":
            return False
        return index in self.kept and len(self._uses(node.output[0])) == 1

    def _last(self, weighted: set[int]) -> set[int]:
        """The layers that no other layer follows: the head's outputs."""
        graph, blocked, last = self.graph, set(), set()
        for index in range(len(graph.node) - 1, -1, -1):
            after = [c for name in graph.node[index].output for c in self.consumers.get(name, ())]
            if any(c in blocked for c in after):
                blocked.add(index)
            elif index in weighted:
                blocked.add(index)
                last.add(index)
        return last

    def _has_plain_weight(self, index: int) -> bool:
        node = self.graph.node[index]
        if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.input) < 2:
            return False
        return node.input[1] in self.stored and node.input[0] not in self.stored

    def activations(self, node: onnx.NodeProto) -> list[str]:
        """Float inputs that are computed."""
        return [n for n in node.input if n in self.floats and n not in self.stored]

    def _is_integer(self, index: int) -> bool:
        """Whether a node between layers runs on integers."""
        if self.at_layers:
            return False
        node = self.graph.node[index]
        if node.op_type in MOVES or node.op_type in _CLIPS:
            return len(self.activations(node)) == 1
        if node.op_type not in _INTEGER_OPS:
            return False
        computed = self.activations(node)
        wanted = {"Add": 2, "Mul": 2, "Concat": len(node.input)}.get(node.op_type, 1)
        return len(computed) == wanted and len(node.input) >= wanted

    def _marked(self) -> list[str]:
        """The tensors that get a pair, in the order of the graph."""
        marked: dict[str, None] = {}
        for index, node in enumerate(self.graph.node):
            if self.at_layers:
                if index in self.integer:
                    marked[node.input[0]] = None
                elif self._is_residual(index):
                    marked.update(dict.fromkeys(node.input))
                continue
            if index not in self.integer:
                continue
            marked.update(dict.fromkeys(self.activations(node)))
            marked.update({o: None for o in node.output if o in self.floats})
        hidden = {
            node.input[0]
            for index, node in enumerate(self.graph.node)
            if index in self.integer and node.op_type in _CLIPS and self._is_only_use(node.input[0])
        }
        return [name for name in marked if name not in hidden]

    def _is_only_use(self, name: str) -> bool:
        outputs = {o.name for o in self.graph.output}
        return len(self.consumers.get(name, ())) == 1 and name not in outputs

    def _is_residual(self, index: int) -> bool:
        node = self.graph.node[index]
        return index in self.body and node.op_type == "Add" and len(self.activations(node)) == 2


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    graph = shape_inference.infer_shapes(model).graph
    values = [*graph.input, *graph.output, *graph.value_info]
    names = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return names | {i.name for i in graph.initializer if i.data_type == TensorProto.FLOAT}
