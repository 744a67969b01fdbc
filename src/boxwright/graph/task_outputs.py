"""What the tasks add to an end-to-end graph: masks, keypoints, angles, the best classes.

NMS says by index which anchors it kept; coefficients, keypoints and angles are gathered by that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from boxwright.errors import GraphError
from boxwright.graph.builder import GraphBuilder
from boxwright.graph.shapes import dimensions, static_dimension
from boxwright.heads import TOP_CLASSES
from boxwright.types import ModelSpec, NmsSettings

__all__ = [
    "RawHead",
    "add_extras",
    "add_task_output",
    "add_top_classes",
    "declare_task_output",
]

_NAMES = {"segment": "det_masks", "pose": "det_keypoints", "obb": "det_angles"}


@dataclass(frozen=True, slots=True)
class RawHead:
    """The raw outputs of a network.

    Attributes:
        name: Of the head.
        anchors: How many it has.
        prototypes: Name of the prototypes (B, M, h, w), or "".
        planes: Their (h, w).
    """

    name: str
    anchors: int
    prototypes: str = ""
    planes: tuple[int | str, ...] = ()


def add_extras(b: GraphBuilder, head: RawHead, spec: ModelSpec, anchors: str) -> str:
    """Gather the head's extra columns at anchors (B, K): (B, K, extras)."""
    layout = spec.layout
    total = layout.channel_count(len(spec.class_names))
    axis = 1 if layout.axes == "nca" else 2
    columns = b.part(head.name, axis, total - layout.extras, total, total)
    if axis == 1:
        columns = b.op("Transpose", columns, perm=[0, 2, 1])
    return b.gather_rows(columns, anchors, layout.extras)


def add_task_output(
    b: GraphBuilder, head: RawHead, spec: ModelSpec, anchors: str, filled: str
) -> None:
    """Append the output of the task; rows that are no detections hold zeros.

    Args:
        b: Builder of the graph.
        head: The raw outputs.
        spec: The model.
        anchors: (B, K) int64: where in the head each row stands.
        filled: (B, K) float32, 1 where a row is a detection.
    """
    values = b.op("Mul", add_extras(b, head, spec, anchors), b.unsqueeze(filled, 2))
    if spec.task == "pose":
        values = b.op("Reshape", values, b.ints(0, -1, *spec.layout.keypoint_shape))
    elif spec.task == "obb":
        values = b.op("Reshape", values, b.ints(0, -1))
    else:
        height, width = _planes(head, spec)
        flat = b.op("Reshape", head.prototypes, b.ints(0, 0, height * width))
        values = b.op("Reshape", b.op("MatMul", values, flat), b.ints(0, -1, height, width))
    b.name_output(values, _NAMES[spec.task])


def _planes(head: RawHead, spec: ModelSpec) -> tuple[int, int]:
    if len(head.planes) != 2 or not all(isinstance(n, int) for n in head.planes):
        raise GraphError(
            f"end-to-end graph of {spec.name}",
            f"its prototypes have the shape {head.planes}, and it must be fixed",
            "export it with a fixed picture size",
        )
    return int(head.planes[0]), int(head.planes[1])


def declare_task_output(model: onnx.ModelProto, head: RawHead, spec: ModelSpec, k: int) -> None:
    """Declare the output of the task, behind those of every end-to-end graph."""
    if not spec.layout.extras:
        return
    batch = model.graph.output[0].type.tensor_type.shape.dim[0]
    shape: list[int | str] = [batch.dim_param or batch.dim_value or "batch", k]
    if spec.task == "pose":
        shape += list(spec.layout.keypoint_shape)
    elif spec.task == "segment":
        shape += list(_planes(head, spec))
    model.graph.output.append(
        helper.make_tensor_value_info(_NAMES[spec.task], TensorProto.FLOAT, shape)
    )


def add_top_classes(
    model: onnx.ModelProto, spec: ModelSpec, settings: NmsSettings, dynamic: bool
) -> None:
    """Replace a classifier's output by its best classes, in place.

    num_dets (B, 1) int32, det_scores (B, K) float32, det_classes (B, K) int32, best first; K is 5,
    or the number of classes. Rows from num_dets on, which do not exceed the threshold, hold zeros
    and -1.

    Raises:
        GraphError: The output has another number of classes.
    """
    head = model.graph.output[0]
    classes = len(spec.class_names)
    if len(dimensions(head)) != 2 or static_dimension(head, 1) not in (None, classes):
        raise GraphError(
            f"end-to-end graph of {spec.name}",
            f"output {head.name} has shape {dimensions(head)}, not one score for each of "
            f"{classes} classes",
            "check the class names (--labels)",
        )
    batch = head.type.tensor_type.shape.dim[0]
    first: int | str = batch.dim_param or batch.dim_value or "batch"
    del model.graph.output[:]
    b = GraphBuilder(model, "boxwright")
    count = min(TOP_CLASSES, classes)
    name = "score_threshold"
    b.graph.initializer.append(
        numpy_helper.from_array(np.array([settings.score_threshold], np.float32), name)
    )
    if dynamic:
        b.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]))
    scores, labels = b.topk(head.name, count, axis=1)
    present = b.op("Greater", scores, name)
    filled = b.as_float(present)
    b.name_output(b.as_int32(b.reduce("ReduceSum", filled, 1, keepdims=True)), "num_dets")
    b.name_output(b.op("Mul", scores, filled), "det_scores")
    b.name_output(
        b.as_int32(b.op("Where", present, labels, b.constant(-1, np.int64))), "det_classes"
    )
    for output, dtype, size in (
        ("num_dets", TensorProto.INT32, 1),
        ("det_scores", TensorProto.FLOAT, count),
        ("det_classes", TensorProto.INT32, count),
    ):
        model.graph.output.append(helper.make_tensor_value_info(output, dtype, [first, size]))
