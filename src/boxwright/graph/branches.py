"""Which layers of a head make nothing but the columns that a task adds to boxes and scores."""

from __future__ import annotations

import onnx

from boxwright.graph.regions import is_weighted, stored_tensors

__all__ = ["layers_of_extras"]

# Of these only the first input holds values; the others say where they come from or go to.
_PICKS = frozenset({"Gather", "GatherElements", "GatherND", "Reshape", "Slice", "Expand", "Tile"})


def layers_of_extras(model: onnx.ModelProto) -> list[str]:
    """Return the names of the layers that feed the last part of the raw output alone.

    A raw head ends in a Concat of boxes, scores and, last, what the task adds (keypoints, mask
    coefficients, angle). The branch of the last part are the convolutions from which no other way
    leads to an output. Empty where the graph ends otherwise.
    """
    graph = model.graph
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output}
    end = makers.get(graph.output[0].name)
    while end is not None and graph.node[end].op_type in ("Transpose", "Reshape", "Cast"):
        end = makers.get(graph.node[end].input[0])
    if end is None or graph.node[end].op_type != "Concat" or len(graph.node[end].input) < 2:
        return []
    stored = stored_tensors(graph)
    own = _last_layers(graph, graph.node[end].input[-1], makers, stored)
    for name in graph.node[end].input[:-1]:
        own -= _last_layers(graph, name, makers, stored)
    alone: set[int] = set(own)
    consumers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        for name in node.input:
            consumers.setdefault(name, []).append(index)
    outputs = {o.name for o in graph.output}
    for index in range(len(graph.node) - 1, -1, -1):
        if index in alone:
            continue
        node = graph.node[index]
        uses = [c for name in node.output for c in consumers.get(name, ())]
        if uses and all(c in alone for c in uses) and not outputs & set(node.output):
            alone.add(index)
    return [graph.node[i].name for i in sorted(alone) if is_weighted(graph.node[i], stored)]


def _last_layers(
    graph: onnx.GraphProto,
    tensor: str,
    makers: dict[str, int],
    stored: dict[str, onnx.TensorProto],
) -> set[int]:
    """Return the layers that a tensor's values come from, the last ones on each way."""
    found: set[int] = set()
    seen: set[str] = set()
    waiting = [tensor]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in makers:
            continue
        seen.add(name)
        index = makers[name]
        node = graph.node[index]
        if is_weighted(node, stored):
            found.add(index)
        else:
            waiting += node.input[:1] if node.op_type in _PICKS else node.input
    return found
