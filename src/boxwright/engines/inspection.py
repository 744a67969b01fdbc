"""What a typed ONNX graph is, for a plan: its input, its precisions, and what no build can take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, numpy_helper, shape_inference

from boxwright.engine_record import Shape
from boxwright.errors import GraphError, RequestError
from boxwright.graph.io import model_from_file, read_stamp
from boxwright.graph.shapes import dimensions, real_inputs
from boxwright.nvidia import PlanRuntime
from boxwright.stamps import Stamp

__all__ = [
    "GraphFacts",
    "float32_node_names",
    "profile_for",
    "read_facts",
    "refuse_unbuildable",
]

_EFFICIENT_NMS = "EfficientNMS_TRT"


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What a build needs to know of a graph.

    Attributes:
        path: The ONNX file.
        inputs: Name and shape of each input that must be fed; free sizes are names.
        half: It carries float16 tensors.
        quantised: It carries QuantizeLinear or DequantizeLinear.
        symmetric: Every zero point of these is 0 and no bias is an integer, as TensorRT demands.
        operators: Types of its nodes.
        nodes: (name, operator) of each, in order, to word the parser's errors.
        metadata: Of the file.
        stamp: What the file says of itself, or None.
    """

    path: Path
    inputs: tuple[tuple[str, tuple[int | str, ...]], ...]
    half: bool
    quantised: bool
    symmetric: bool
    operators: frozenset[str]
    nodes: tuple[tuple[str, str], ...]
    metadata: Mapping[str, str]
    stamp: Stamp | None


def read_facts(path: Path) -> GraphFacts:
    """Read an ONNX file.

    Raises:
        SourceError: It is missing or damaged, or its stamp is.
    """
    model = model_from_file(path)
    graph = model.graph
    kinds = frozenset(n.op_type for n in graph.node)
    return GraphFacts(
        path=path,
        inputs=tuple((i.name, dimensions(i)) for i in real_inputs(graph)),
        half=TensorProto.FLOAT16 in set(_types(graph)),
        quantised=bool(kinds & {"QuantizeLinear", "DequantizeLinear"}),
        symmetric=_is_symmetric(graph),
        operators=kinds,
        nodes=tuple((n.name, n.op_type) for n in graph.node),
        metadata={p.key: p.value for p in model.metadata_props},
        stamp=read_stamp(model, str(path)),
    )


def float32_node_names(path: Path) -> frozenset[str]:
    """Return the names of the nodes that compute float32, by the graph's own types."""
    graph = shape_inference.infer_shapes(model_from_file(path)).graph
    types = {
        v.name: v.type.tensor_type.elem_type
        for v in (*graph.value_info, *graph.output, *graph.input)
    }
    return frozenset(
        n.name for n in graph.node if n.name and types.get(n.output[0]) == TensorProto.FLOAT
    )


def _types(graph: onnx.GraphProto) -> Iterator[int]:
    """Yield the element types that inputs, stored tensors and casts have."""
    for value in (*graph.input, *graph.output):
        yield value.type.tensor_type.elem_type
    for stored in graph.initializer:
        yield stored.data_type
    for node in graph.node:
        if node.op_type == "Cast":
            yield from (a.i for a in node.attribute if a.name == "to")


def _is_symmetric(graph: onnx.GraphProto) -> bool:
    stored = {i.name: i for i in graph.initializer}
    constants = {
        n.output[0]: a.t
        for n in graph.node
        if n.op_type == "Constant"
        for a in n.attribute
        if a.name == "value"
    }
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        value = stored.get(node.input[0])
        if value is not None and value.data_type == TensorProto.INT32:
            return False
        zero = node.input[2] if len(node.input) > 2 else ""
        tensor = stored.get(zero, constants.get(zero))
        if tensor is not None and numpy_helper.to_array(tensor).any():
            return False
    return True


def refuse_unbuildable(facts: GraphFacts, runtime: PlanRuntime) -> None:
    """Refuse a graph that parses but cannot become a right plan.

    Raises:
        RequestError: Its NMS or its INT8 form is not for this runtime.
        GraphError: A size other than the batch is free.
    """
    what = facts.path.name
    target = facts.stamp.target if facts.stamp else None
    if target and target.precision == "int8" and target.deployment != "tensorrt":
        raise RequestError(
            what,
            f"its INT8 is made for {target.deployment}, not for TensorRT",
            "export with --precision int8 --deploy tensorrt",
        )
    if not facts.symmetric:
        raise RequestError(
            what,
            "its quantisation has zero points other than 0, or integer biases: not for TensorRT",
            "export with --precision int8 --deploy tensorrt",
        )
    if runtime == "tensorrt-rtx" and _EFFICIENT_NMS in facts.operators:
        raise RequestError(
            what,
            f"TensorRT-RTX has no {_EFFICIENT_NMS} plugin",
            "export with --nms portable, or use --runtime tensorrt",
        )
    if runtime == "tensorrt-rtx" and "NonMaxSuppression" in facts.operators:
        raise RequestError(
            what,
            "TensorRT-RTX parses NonMaxSuppression but cannot build it",
            "export with --nms portable, or use --runtime tensorrt",
        )
    for name, shape in facts.inputs:
        if picture_sides(facts) is not None:
            continue
        free = [str(d) for d in shape[1:] if not isinstance(d, int)]
        if free:
            raise GraphError(
                what,
                f"sizes other than the batch are free (input {name}: {', '.join(free)})",
                "export with fixed picture sides",
            )


def picture_sides(facts: GraphFacts) -> tuple[int, int] | None:
    """Return the axes of height and width of a graph that takes pictures of any size, or None."""
    target = facts.stamp.target if facts.stamp else None
    if target is None or target.input != "image" or target.source_size is not None:
        return None
    return (1, 2) if target.image_layout == "nhwc" else (2, 3)


def profile_for(
    facts: GraphFacts,
    batch: tuple[int, int, int] | None,
    sizes: tuple[Shape, Shape, Shape] | None = None,
) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Return the smallest, best and largest shape of each input whose batch is free.

    Args:
        facts: Of the graph.
        batch: Pictures; None means 1, or whatever the graph is fixed to.
        sizes: Pictures' (height, width), of a graph that takes them in any size.

    Raises:
        RequestError: The graph is fixed to another batch, or its sizes are free and not given, or
            the other way round.
    """
    axes = picture_sides(facts)
    if axes is None and sizes is not None:
        raise RequestError("--image-sizes", f"{facts.path.name} takes one size only", "drop it")
    if axes is not None and sizes is None:
        raise RequestError(
            facts.path.name,
            "it takes pictures of any size, and a plan wants to know which",
            "give --image-sizes, e.g. 480x640,1080x1920,2160x3840",
        )
    profile: dict[str, tuple[Shape, Shape, Shape]] = {}
    for name, shape in facts.inputs:
        first = shape[0] if shape else 1
        if isinstance(first, int):
            if batch is not None and set(batch) != {first}:
                raise RequestError(
                    f"--batch {','.join(str(n) for n in batch)}",
                    f"{facts.path.name} takes {first} pictures only",
                    "drop it, or export with a dynamic batch",
                )
            if not axes:
                continue
        counts = (first,) * 3 if isinstance(first, int) else batch or (1, 1, 1)
        profile[name] = (
            _shape(shape, counts[0], axes, sizes[0] if sizes else ()),
            _shape(shape, counts[1], axes, sizes[1] if sizes else ()),
            _shape(shape, counts[2], axes, sizes[2] if sizes else ()),
        )
    return profile


def _shape(
    shape: tuple[int | str, ...], count: int, axes: tuple[int, int] | None, size: Shape
) -> Shape:
    """Return a shape with its batch and, where they are free, the picture's sides filled in."""
    sides = dict(zip(axes or (), size, strict=True))
    return (count, *(sides.get(i, d) for i, d in enumerate(shape) if i))  # type: ignore[arg-type]
