"""TensorRT 8.6 has no strong typing: it may compute float32 parts of an FP16 graph in float16.

Decode in float16 costs half a pixel and more, and the area of a large box overflows. So the
switches that the graph needs are set, and the layers of nodes that are float32 in the graph are
held to float32: what they compute in, and what they write, for the one does not imply the other.
"""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Any

__all__ = ["keep_types"]

# What decode and NMS are made of.
_COMPUTING = (
    "ACTIVATION", "CONVOLUTION", "ELEMENTWISE", "MATRIX_MULTIPLY", "REDUCE", "SCALE", "SOFTMAX",
    "TOPK", "UNARY",
)  # fmt: skip
_MOVING = ("CONCATENATION", "GATHER", "SELECT", "SHUFFLE", "SLICE")
_REPEATED = re.compile(r"_\d+$")  # the parser numbers the layers that one node becomes


def keep_types(
    trt: Any, network: Any, config: Any, *, half: bool, quantised: bool, float32_nodes: Set[str]
) -> list[str]:
    """Make a weakly typed build keep to the types of its graph, as far as it can.

    Args:
        trt: TensorRT's module.
        network: The parsed network.
        config: Of the builder.
        half, quantised: What the graph carries.
        float32_nodes: Names of the nodes whose floating outputs are float32.

    Returns:
        Notes for the record.
    """
    notes: list[str] = []
    if quantised:
        config.set_flag(trt.BuilderFlag.INT8)
        notes.append("the builder's INT8 switch is on, since the graph carries Q/DQ pairs")
    if not half:
        return notes
    config.set_flag(trt.BuilderFlag.FP16)
    held = _hold(trt, network, float32_nodes)
    config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    notes.append(
        f"the builder's FP16 switch is on, since the graph carries float16; {held} layers that "
        "are float32 in the graph are held to it"
    )
    return notes


def _hold(trt: Any, network: Any, float32_nodes: Set[str]) -> int:
    """Hold layers to float32; return how many.

    Layers that move what held ones wrote are held, too, with or without a name: those that the
    parser adds to fit shapes have none.
    """
    computing, moving = (
        {getattr(trt.LayerType, n) for n in names if hasattr(trt.LayerType, n)}
        for names in (_COMPUTING, _MOVING)
    )
    written: set[str] = set()
    held = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        name = str(layer.name)
        ours = bool({name, _REPEATED.sub("", name)} & float32_nodes)
        inputs = (layer.get_input(i) for i in range(layer.num_inputs))
        follows = any(tensor is not None and str(tensor.name) in written for tensor in inputs)
        if not ((layer.type in computing and ours) or (layer.type in moving and (ours or follows))):
            continue
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        floating = [i for i, tensor in enumerate(outputs) if tensor.dtype == trt.float32]
        if not floating:
            continue
        layer.precision = trt.float32
        for i in floating:
            layer.set_output_type(i, trt.float32)
            written.add(str(outputs[i].name))
        held += 1
    return held
