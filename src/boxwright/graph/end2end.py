"""From a raw head to detections inside the graph: decode, NMS, and the four named outputs."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from boxwright.errors import GraphError, RequestError
from boxwright.graph.builder import GraphBuilder
from boxwright.graph.decode import Candidates, add_candidates
from boxwright.graph.nms import (
    add_efficient_nms,
    add_onnx_nms,
    add_portable_nms,
    add_rotated_nms,
    keep_above_threshold,
)
from boxwright.graph.shapes import dimensions, static_dimension
from boxwright.graph.task_outputs import (
    RawHead,
    add_extras,
    add_task_output,
    add_top_classes,
    declare_task_output,
)
from boxwright.stamps import stamp_from_metadata
from boxwright.types import ModelSpec, NmsSettings, Target, TaskName

__all__ = [
    "CONVERGED",
    "OUTPUT_NAMES",
    "add_end2end",
    "check_nms_request",
    "check_picture_outputs",
    "runnable_anywhere",
    "with_score_threshold",
]

OUTPUT_NAMES = ("num_dets", "det_boxes", "det_scores", "det_classes")
CONVERGED = "nms_converged"  # extra output of the portable form, (N, 1) int32
_SCORE, _IOU = "score_threshold", "iou_threshold"


def check_nms_request(
    spec_nms_free: bool, target: Target, settings: NmsSettings, task: TaskName = "detect"
) -> None:
    """Refuse combinations that no graph can serve, before any work is paid for.

    Raises:
        RequestError: The options contradict each other.
    """
    if task in ("segment", "pose", "obb") and not spec_nms_free and target.nms == "efficient_nms":
        raise RequestError(
            f"--nms efficient_nms of a model of task {task}",
            "the plugin does not say which candidates it kept, so that nothing can be gathered "
            "by them"
            if task != "obb"
            else "the plugin knows no rotated boxes",
            "use --nms portable, which builds with TensorRT, too",
        )
    if target.dynamic_thresholds and target.nms == "efficient_nms" and not spec_nms_free:
        raise RequestError(
            "--dynamic-thresholds --nms efficient_nms",
            "the plugin takes its thresholds as attributes, not as inputs",
            "use --nms onnx or portable, or drop --dynamic-thresholds",
        )
    if target.nms == "portable" and (target.nms_iterations < 2 or target.nms_iterations % 2):
        raise RequestError(
            f"--nms-iterations {target.nms_iterations}",
            "an odd number of steps could lose boxes when NMS has not settled",
            "use an even number, 16 for most detectors",
        )
    for name, value in ((_SCORE, settings.score_threshold), (_IOU, settings.iou_threshold)):
        if not 0.0 <= value <= 1.0:
            raise RequestError(
                f"--{name.replace('_', '-')} {value}", "it is not between 0 and 1", "use e.g. 0.5"
            )
    for name, count in (("pre-topk", settings.pre_topk), ("keep-topk", settings.keep_topk)):
        if count < 1:
            raise RequestError(f"--{name} {count}", "it is not a positive number", "use e.g. 300")


def check_picture_outputs(task: TaskName, target: Target) -> None:
    """Refuse an image-input file whose end-to-end outputs are more than boxes.

    Raises:
        RequestError: It is one.
    """
    if task != "detect" and target.input == "image" and target.outputs == "end2end":
        raise RequestError(
            f"--input image --outputs end2end of a model of task {task}",
            "such a graph maps boxes to the picture, and nothing else",
            "use --input tensor, or --outputs raw",
        )


def add_end2end(
    raw: onnx.ModelProto, spec: ModelSpec, settings: NmsSettings, target: Target
) -> onnx.ModelProto:
    """Return a copy of a raw model whose outputs are detections.

    Outputs: num_dets (B, 1) int32; det_boxes (B, K, 4) float32 xyxy in input pixels, not clipped;
    det_scores (B, K) float32, best first; det_classes (B, K) int32. Rows from num_dets on hold
    zeros, and -1 as class (EfficientNMS fills them as it likes). K = min(keep_topk, candidates).
    The portable form adds nms_converged (B, 1) int32. By task: det_masks (B, K, h, w) float32,
    logits at the prototypes' size, not cropped, an object where over 0; det_keypoints (B, K,
    points, 2 or 3) float32 in input pixels; det_angles (B, K) float32 in radians, by which the box
    is turned about its centre. A classifier has num_dets, det_scores and det_classes (B, 5) alone.

    Args:
        raw: Graph whose output is the raw head; of the task `segment` the prototypes, too.
        spec: The model; `spec.layout` says how the head is read.
        settings: Baked in; with `target.dynamic_thresholds` the two thresholds are only the
            defaults of the optional inputs score_threshold and iou_threshold, float32 (1,).
        target: Form of the NMS.

    Raises:
        GraphError: The head's shape does not fit its layout.
        RequestError: The options contradict each other.
    """
    check_nms_request(spec.layout.nms_free, target, settings, spec.task)
    model = onnx.ModelProto()
    model.CopyFrom(raw)
    if spec.task == "classify":
        add_top_classes(model, spec, settings, target.dynamic_thresholds)
        return model
    head, anchor_count = _raw_head(model, spec)
    prototypes = model.graph.output[1].name if spec.task == "segment" else ""
    b = GraphBuilder(model, "boxwright")
    class_count = len(spec.class_names)
    candidates = add_candidates(
        b, head.name, spec.layout, spec.input_size, class_count, anchor_count, settings
    )
    batch = head.type.tensor_type.shape.dim[0]
    planes = dimensions(model.graph.output[1])[2:] if prototypes else ()
    raw_head = RawHead(head.name, anchor_count, prototypes, planes)
    del model.graph.output[:]
    if target.nms == "efficient_nms" and not spec.layout.nms_free:
        for name, tensor in zip(
            OUTPUT_NAMES, add_efficient_nms(b, candidates, settings), strict=True
        ):
            b.name_output(tensor, name)
        if all(o.domain != "TRT" for o in model.opset_import):
            model.opset_import.append(helper.make_opsetid("TRT", 1))
    else:
        thresholds = _add_thresholds(b, settings, target.dynamic_thresholds, spec.layout.nms_free)
        if spec.layout.nms_free:
            keep = keep_above_threshold(b, candidates, thresholds)
        elif spec.layout.rotated:
            angles = add_extras(b, raw_head, spec, candidates.anchors)
            keep = add_rotated_nms(b, candidates, angles, settings, thresholds)
        elif target.nms == "onnx":
            keep = add_onnx_nms(b, candidates, settings, thresholds)
        else:
            keep, settled = add_portable_nms(
                b, candidates, settings, thresholds, target.nms_iterations
            )
            b.name_output(settled, CONVERGED)
        order, filled = _add_results(b, candidates, keep, min(settings.keep_topk, candidates.count))
        if spec.layout.extras:
            anchors = b.op("GatherElements", candidates.anchors, order, axis=1)
            add_task_output(b, raw_head, spec, anchors, filled)
    limit = min(settings.keep_topk, candidates.count)
    _declare_outputs(model, batch, limit)
    declare_task_output(model, raw_head, spec, limit)
    return model


def _raw_head(model: onnx.ModelProto, spec: ModelSpec) -> tuple[onnx.ValueInfoProto, int]:
    """Return the head's output and its number of anchors (or final rows)."""
    if len(model.graph.output) != (2 if spec.task == "segment" else 1):
        names = ", ".join(o.name for o in model.graph.output)
        raise GraphError(
            f"end-to-end graph of {spec.name}",
            f"the raw graph has {len(model.graph.output)} outputs ({names}) and not one head",
            "export the raw graph of a detection head",
        )
    head = model.graph.output[0]
    axes = (1, 2) if spec.layout.axes == "nca" else (2, 1)
    channels = static_dimension(head, axes[0])
    anchors = static_dimension(head, axes[1])
    expected = spec.layout.channel_count(len(spec.class_names))
    if len(dimensions(head)) != 3 or anchors is None or channels not in (None, expected):
        raise GraphError(
            f"end-to-end graph of {spec.name}",
            f"output {head.name} has shape {dimensions(head)}, but a {spec.family} head of "
            f"{len(spec.class_names)} classes has {expected} channels and a fixed anchor count",
            "check --family and the class names (--labels)",
        )
    return head, anchors


def _add_thresholds(
    b: GraphBuilder, settings: NmsSettings, dynamic: bool, nms_free: bool
) -> tuple[str, str]:
    """Store the two thresholds under their names; `dynamic` makes them inputs with defaults."""
    values = {_SCORE: settings.score_threshold, _IOU: settings.iou_threshold}
    for name in (_SCORE,) if nms_free else (_SCORE, _IOU):
        b.graph.initializer.append(
            numpy_helper.from_array(np.array([values[name]], np.float32), name)
        )
        if dynamic:
            b.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]))
    return _SCORE, _IOU


def _add_results(
    b: GraphBuilder,
    c: Candidates,
    keep: str,
    count: int,
    names: tuple[str, ...] = OUTPUT_NAMES,
) -> tuple[str, str]:
    """Append step 4 of `NmsSettings` and the four outputs.

    Returns:
        (B, K) int64, which candidate each row is; and (B, K) float32, 1 where it is a detection.
    """
    # A kept candidate scores above a threshold of at least 0, so zero marks the others.
    kept_scores = b.op("Mul", c.scores, keep)
    scores, order = b.topk(kept_scores, count, axis=1)
    filled = b.as_float(b.op("Greater", scores, b.constant(0.0, np.float32)))
    boxes = b.op("Mul", b.gather_rows(c.boxes, order, 4), b.unsqueeze(filled, 2))
    labels = b.op("GatherElements", c.labels, order, axis=1)
    present = b.op("Greater", filled, b.constant(0.5, np.float32))
    classes = b.op("Where", present, labels, b.constant(-1, np.int64))
    b.name_output(b.as_int32(b.reduce("ReduceSum", filled, 1, keepdims=True)), names[0])
    b.name_output(boxes, names[1])
    b.name_output(b.op("Mul", scores, filled), names[2])
    b.name_output(b.as_int32(classes), names[3])
    return order, filled


def _declare_outputs(
    model: onnx.ModelProto, batch: onnx.TensorShapeProto.Dimension, k: int
) -> None:
    first = batch.dim_param or batch.dim_value or "batch"
    shapes: list[tuple[str, int, list[int | str]]] = [
        ("num_dets", TensorProto.INT32, [first, 1]),
        ("det_boxes", TensorProto.FLOAT, [first, k, 4]),
        ("det_scores", TensorProto.FLOAT, [first, k]),
        ("det_classes", TensorProto.INT32, [first, k]),
    ]
    if any(CONVERGED in n.output for n in model.graph.node):
        shapes.append((CONVERGED, TensorProto.INT32, [first, 1]))
    for name, dtype, shape in shapes:
        model.graph.output.append(helper.make_tensor_value_info(name, dtype, shape))


def with_score_threshold(model: onnx.ModelProto, score_threshold: float) -> onnx.ModelProto:
    """Return a copy of an end-to-end graph whose baked score threshold is another one.

    For verification on pictures where nothing scores above the operating threshold.

    Raises:
        GraphError: The graph stores no threshold.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for stored in copy.graph.initializer:
        if stored.name == _SCORE:
            stored.CopyFrom(
                numpy_helper.from_array(np.array([score_threshold], np.float32), _SCORE)
            )
            return copy
    for node in copy.graph.node:
        for attribute in node.attribute:
            if node.op_type == "EfficientNMS_TRT" and attribute.name == _SCORE:
                attribute.f = score_threshold
                return copy
    raise GraphError("score threshold", "the graph stores none", "export it again")


def runnable_anywhere(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose EfficientNMS_TRT node is replaced by NonMaxSuppression.

    What the plugin is fed can then be checked without TensorRT; the plugin itself is not.
    A graph without that node is returned as it is.
    """
    plugin = next((n for n in model.graph.node if n.op_type == "EfficientNMS_TRT"), None)
    if plugin is None:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [n for n in copy.graph.node if n.op_type != "EfficientNMS_TRT"]
    named = [n for n in kept if set(n.input) & set(plugin.output)]
    names = tuple(n.output[0] for o in plugin.output for n in named if o in n.input)
    behind = [n for n in kept if set(n.input) & set(names)]  # image-input graphs map the boxes
    for node in kept:
        if any(set(node.input) & set(n.output) for n in behind):
            behind.append(node)
    kept = [n for n in kept if n not in named and n not in behind]
    values = {a.name: helper.get_attribute_value(a) for a in plugin.attribute}
    limit = int(values["max_output_boxes"])
    settings = NmsSettings(
        score_threshold=values["score_threshold"],
        iou_threshold=values["iou_threshold"],
        keep_topk=limit,
        class_agnostic=bool(values["class_agnostic"]),
    )
    boxes, scores = plugin.input
    class_count = _class_count(copy)
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    b = GraphBuilder(copy, "runnable")
    candidates = Candidates(
        boxes=boxes,
        scores=b.reduce("ReduceMax", scores, 2),
        labels=b.op("ArgMax", scores, axis=2, keepdims=0),
        anchors="",
        count=limit,
        class_count=class_count,
    )
    thresholds = _add_thresholds(b, settings, dynamic=False, nms_free=False)
    keep = add_onnx_nms(b, candidates, settings, thresholds)
    _add_results(b, candidates, keep, limit, names)
    copy.graph.node.extend(behind)
    return copy


def _class_count(model: onnx.ModelProto) -> int:
    stamp = stamp_from_metadata({p.key: p.value for p in model.metadata_props}, "end-to-end graph")
    if stamp is None:
        raise GraphError("end-to-end graph", "it carries no Boxwright metadata", "export it again")
    return len(stamp.spec.class_names)
