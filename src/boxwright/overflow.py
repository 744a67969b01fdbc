"""Which layers exceed float16's range: asked of the FP32 graph, because a CPU would not show it.

ONNX Runtime and OpenVINO compute float16 graphs on a CPU partly in float32, so that a value beyond
65504 passes through unharmed there and becomes infinite on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from boxwright import catalog
from boxwright.backends import BackendOptions
from boxwright.detector import Detector
from boxwright.graph.io import bytes_from_model
from boxwright.graph.precision import float_tensors, half_layers
from boxwright.preprocess import prepare
from boxwright.types import FloatArray, Image, ModelSpec

__all__ = ["ALLOWED", "layers_beyond_half", "with_extremes"]

ALLOWED = 32_752.0  # half of float16's largest number: other pictures reach further


def with_extremes(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy whose outputs are the largest magnitudes of some tensors, one number each."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.output[:]
    for index, name in enumerate(names):
        inside, outside = f"extreme{index}/abs", f"extreme{index}"
        result.graph.node.append(helper.make_node("Abs", [name], [inside], inside))
        result.graph.node.append(
            helper.make_node("ReduceMax", [inside], [outside], outside, keepdims=0)
        )
        result.graph.output.append(helper.make_tensor_value_info(outside, TensorProto.FLOAT, []))
    return result


def layers_beyond_half(
    model: onnx.ModelProto,
    spec: ModelSpec,
    pictures: Sequence[Path | Image],
    *,
    threads: int | None = None,
) -> dict[str, float]:
    """Return the layers that reach more than half of float16's range, with what they reach.

    Args:
        model: FP32 raw graph.
        spec: How pictures are fed.
        pictures: Paths or (H, W, 3) uint8 BGR; those with objects reach furthest.
        threads: CPU threads.

    Raises:
        ImageError: A picture cannot be read.
    """
    floats = float_tensors(model)
    layers = half_layers(model)
    made = {n.name: [o for o in n.output if o in floats] for n in model.graph.node}
    names = list(dict.fromkeys(t for nodes in layers.values() for n in nodes for t in made[n]))
    data = bytes_from_model(with_extremes(model, names), spec.name)
    backend = catalog.backend("onnxruntime").open_bytes(
        data, BackendOptions(threads, "cpu", spin=False)
    )
    tensor = backend.inputs[0]
    step = tensor.shape[0] if isinstance(tensor.shape[0], int) else 1
    feed: FloatArray = np.zeros((step, 3, *spec.input_size), np.float32)
    reached = dict.fromkeys(names, 0.0)
    for picture in pictures:
        prepare(Detector.read(picture), spec.input_size, spec.preprocess, feed[0])
        outputs = backend.infer({tensor.name: feed})
        for index, name in enumerate(names):
            reached[name] = max(reached[name], float(outputs[f"extreme{index}"]))
    backend.close()
    found = {
        layer: max((reached[t] for n in nodes for t in made[n]), default=0.0)
        for layer, nodes in layers.items()
    }
    return {layer: value for layer, value in found.items() if not value <= ALLOWED}
