"""Families: how a kind of detector is recognised, fed and read.

A file in this folder with a `FAMILY` is an entry of the catalog; adding a family is adding a file.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

from boxwright.types import GraphSignature, HeadJoin, HeadLayout, Preprocess, TaskName

__all__ = [
    "Family",
    "LevelMaps",
    "Match",
    "UltralyticsHead",
    "anchor_match",
    "class_names_from_metadata",
    "finished_match",
    "grid_anchor_count",
    "head_shape",
    "level_maps",
    "strides_that_fit",
    "ultralytics_head",
]


@dataclass(frozen=True, slots=True)
class Match:
    """A family's reading of a graph.

    Attributes:
        layout: How the head is read.
        class_count: Number of classes; 0 when the graph does not tell.
        join: How several outputs become the one that `layout` reads; None for one output.
        certain: The file says so itself, by metadata or by its operators; otherwise only its
            shapes fit, and another family of equal shapes makes it ambiguous.
        task: What the head does.
        preprocess: How pictures are fed, where it is not the family's usual way.
    """

    layout: HeadLayout
    class_count: int
    certain: bool
    join: HeadJoin | None = None
    task: TaskName = "detect"
    preprocess: Preprocess | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of detector.

    Attributes:
        name: As `--family` takes it.
        title: For people.
        preprocess: How pictures are fed.
        recognise: Reads a graph; None when it cannot be of this family. The second argument is
            True when the user named the family, so that doubts are the user's to answer for.
        iou_threshold: The project's NMS default, 0..1.
        score_threshold: The default operating score threshold, 0..1.
        evaluation_iou: The NMS IoU at which the project itself measures mAP, 0..1.
        aliases: Other spellings that `--family` takes.
    """

    name: str
    title: str
    preprocess: Preprocess
    recognise: Callable[[GraphSignature, bool], Match | None]
    iou_threshold: float = 0.7
    score_threshold: float = 0.25
    evaluation_iou: float = 0.7  # Ultralytics 8.4.190, `cfg/default.yaml`: iou
    aliases: tuple[str, ...] = field(default=())


def head_shape(signature: GraphSignature) -> tuple[int, int] | None:
    """Return (second, third) size of the only output when it has three axes and both are fixed."""
    if len(signature.outputs) != 1 or len(signature.outputs[0].shape) != 3:
        return None
    second, third = signature.outputs[0].shape[1:]
    if isinstance(second, int) and isinstance(third, int):
        return second, third
    return None


def grid_anchor_count(
    signature: GraphSignature, strides: tuple[int, ...], per_cell: int = 1
) -> int | None:
    """Return how many anchors a head over these strides has for the graph's input size."""
    shape = signature.inputs[0].shape if signature.inputs else ()
    if len(shape) != 4 or not isinstance(shape[2], int) or not isinstance(shape[3], int):
        return None
    height, width = shape[2], shape[3]
    return per_cell * sum((-(-height // s)) * (-(-width // s)) for s in strides)


@dataclass(frozen=True, slots=True)
class LevelMaps:
    """Outputs that are one map (B, channels, h, w) per level, or (B, anchors, h, w, channels).

    Attributes:
        names: Of the outputs, fine to coarse.
        strides: Of the levels.
        channels: Of a map.
        anchors: Of a five-dimensional map; 0 for others.
    """

    names: tuple[str, ...]
    strides: tuple[int, ...]
    channels: int
    anchors: int


def level_maps(signature: GraphSignature, anchored: bool = False) -> LevelMaps | None:
    """Return the outputs as one map per level, or None when they are something else."""
    rank = 5 if anchored else 4
    shape = signature.inputs[0].shape if len(signature.inputs) == 1 else ()
    outputs = [o for o in signature.outputs if len(o.shape) == rank]
    if len(shape) != 4 or len(outputs) not in (3, 4) or len(outputs) != len(signature.outputs):
        return None
    found = []
    for output in outputs:
        sides = output.shape[-3:-1] if anchored else output.shape[-2:]
        if not isinstance(shape[2], int) or not isinstance(sides[0], int) or not sides[0]:
            return None
        stride = shape[2] // sides[0]
        if not isinstance(shape[3], int) or sides != (shape[2] // stride, shape[3] // stride):
            return None
        found.append((stride, output))
    found.sort(key=lambda pair: pair[0])
    channels = {o.shape[-1 if anchored else 1] for _, o in found}
    anchors = {o.shape[1] for _, o in found} if anchored else {0}
    if len({s for s, _ in found}) != len(found) or len(channels) != 1 or len(anchors) != 1:
        return None
    width, count = channels.pop(), anchors.pop()
    if not isinstance(width, int) or not isinstance(count, int):
        return None
    return LevelMaps(tuple(o.name for _, o in found), tuple(s for s, _ in found), width, count)


def anchor_match(
    signature: GraphSignature, anchors: Mapping[int, tuple[tuple[tuple[float, float], ...], ...]]
) -> Match | None:
    """Return the reading of raw maps with anchors, or None when the outputs are others.

    Args:
        signature: Of the graph.
        anchors: In pixels, by the number of levels.
    """
    maps = level_maps(signature, anchored=True) or level_maps(signature)
    if maps is None or len(maps.names) not in anchors:
        return None
    chosen = anchors[len(maps.names)]
    count = len(chosen[0])
    channels = maps.channels if maps.anchors else maps.channels // count
    whole = maps.anchors == count if maps.anchors else maps.channels % count == 0
    if not whole or channels < 6:
        return None
    join = HeadJoin(
        "anchor_levels", maps.names, maps.strides, anchors=chosen, class_count=channels - 5
    )
    layout = HeadLayout(axes="nac", objectness=True, strides=maps.strides)
    return Match(layout, channels - 5, certain=False, join=join)


def finished_match(signature: GraphSignature) -> Match | None:
    """Return the reading of an export that holds NMS and counts its detections, or None.

    MMYOLO's easydeploy (num_dets, boxes, scores, labels) and YOLOv6's end-to-end export (num_dets,
    det_boxes, det_scores, det_classes): boxes are xyxy in input pixels, best first.
    """
    outputs = {o.name: o.shape for o in signature.outputs}
    for names in (
        ("num_dets", "boxes", "scores", "labels"),
        ("num_dets", "det_boxes", "det_scores", "det_classes"),
    ):
        if set(names) == set(outputs) and len(outputs[names[1]]) == 3:
            layout = HeadLayout(axes="nac", box_format="xyxy", nms_free=True)
            return Match(layout, 0, certain=False, join=HeadJoin("counted", names))
    return None


def strides_that_fit(signature: GraphSignature, anchors: int, per_cell: int = 1) -> tuple[int, ...]:
    """Return the usual stride set whose grid has this many anchors, or ()."""
    for strides in ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32)):
        if grid_anchor_count(signature, strides, per_cell) == anchors:
            return strides
    return ()


def class_names_from_metadata(signature: GraphSignature) -> tuple[str, ...]:
    """Return the class names that Ultralytics writes as a dictionary's text, or ()."""
    text = signature.metadata.get("names", "")
    try:
        names = ast.literal_eval(text) if text else {}
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()
    if isinstance(names, list):
        return tuple(str(n) for n in names)
    if isinstance(names, dict) and all(isinstance(k, int) for k in names):
        return tuple(str(names[k]) for k in sorted(names))
    return ()


_TASKS = ("detect", "segment", "pose", "obb", "classify")
# The classes of heads, which newer exports name; a release's number follows (`Segment26`).
_HEADS = {"Detect": "detect", "Segment": "segment", "Pose": "pose", "OBB": "obb"}
_HEADS |= {"Classify": "classify", "v10Detect": "detect"}


@dataclass(frozen=True, slots=True)
class UltralyticsHead:
    """What the outputs and the metadata of an Ultralytics export tell of its head.

    Attributes:
        task: What it does.
        channels, anchors: Sizes of the second and third axis, as they are; of a classifier the
            classes and 0.
        extras, keypoint_shape: As in `HeadLayout`.
    """

    task: TaskName
    channels: int
    anchors: int
    extras: int = 0
    keypoint_shape: tuple[int, int] = (0, 0)

    def layout(self, layout: HeadLayout) -> HeadLayout:
        """Return the layout of boxes with what the task adds."""
        changed = dataclasses.replace(
            layout, extras=self.extras, keypoint_shape=self.keypoint_shape
        )
        if self.task == "obb":
            return dataclasses.replace(changed, box_format="cxcywh", rotated=True)
        return changed


def ultralytics_head(signature: GraphSignature) -> UltralyticsHead | None:
    """Return the head of an export of Ultralytics, or None when it is no known one.

    A file without metadata is a detector. Source: Ultralytics 8.4.190, `engine/exporter.py`.
    """
    metadata = signature.metadata
    named = metadata.get("head", "")
    task = _HEADS.get(named.rstrip("0123456789"), metadata.get("task", "detect"))
    if task not in _TASKS or (named and named.rstrip("0123456789") not in _HEADS):
        return None
    rows = signature.outputs[0].shape if signature.outputs else ()
    if not all(isinstance(side, int) for side in rows[1:]):
        return None
    sides = [int(side) for side in rows[1:]]
    if task == "classify":
        one = len(signature.outputs) == 1 and len(sides) == 1
        return UltralyticsHead("classify", sides[0], 0) if one else None
    if len(sides) != 2 or len(signature.outputs) != (2 if task == "segment" else 1):
        return None
    extras, points = 1 if task == "obb" else 0, (0, 0)
    if task == "segment":
        prototypes = signature.outputs[1].shape
        if len(prototypes) != 4 or not isinstance(prototypes[1], int):
            return None
        extras = prototypes[1]
    elif task == "pose":
        found = _numbers(metadata.get("kpt_shape", ""))
        if len(found) != 2 or found[0] < 1 or found[1] not in (2, 3):
            return None
        points, extras = (found[0], found[1]), found[0] * found[1]
    return UltralyticsHead(cast("TaskName", task), sides[0], sides[1], extras, points)


def _numbers(text: str) -> tuple[int, ...]:
    """Read a list of whole numbers out of metadata, or ()."""
    try:
        found = ast.literal_eval(text) if text else ()
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()
    return (
        tuple(found)
        if isinstance(found, (list, tuple)) and all(type(v) is int for v in found)
        else ()
    )
