"""TensorRT 8.6 has no strong typing: it may compute float32 parts of an FP16 graph in float16.

Decode in float16 costs half a pixel and more. So the switches that the graph needs are set, and the
layers of nodes that are float32 in the graph are held to float32.
"""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Any

__all__ = ["keep_types"]

# What decode and NMS are made of. Layers that only move data have no precision of their own.
_COMPUTING = (
    "ACTIVATION", "CONVOLUTION", "ELEMENTWISE", "MATRIX_MULTIPLY", "REDUCE", "SCALE", "SOFTMAX",
    "TOPK", "UNARY",
)  # fmt: skip
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
    kinds = {getattr(trt.LayerType, n) for n in _COMPUTING if hasattr(trt.LayerType, n)}
    held = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        name = str(layer.name)
        if layer.type in kinds and {name, _REPEATED.sub("", name)} & float32_nodes:
            layer.precision = trt.float32
            held += 1
    config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    notes.append(
        f"the builder's FP16 switch is on, since the graph carries float16; {held} layers that "
        "are float32 in the graph are held to it"
    )
    return notes
