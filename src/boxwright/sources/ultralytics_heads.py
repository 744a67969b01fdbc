"""The heads of Ultralytics' networks as data: task, layout, outputs, preprocessing.

Source: Ultralytics 8.4.190, `nn/modules/head.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwright.errors import RequestError, SourceError
from boxwright.types import HeadLayout, Preprocess, TaskName

__all__ = ["HEADS", "Head", "layout_of", "output_names", "preprocess_of"]


@dataclass(frozen=True, slots=True)
class Head:
    """What the class of a head tells.

    Attributes:
        task: What it does.
        model: Name of the network class that Ultralytics builds around it.
    """

    task: TaskName
    model: str


HEADS = {
    "Detect": Head("detect", "DetectionModel"),
    "v10Detect": Head("detect", "DetectionModel"),
    "Segment": Head("segment", "SegmentationModel"),
    "Segment26": Head("segment", "SegmentationModel"),
    "Pose": Head("pose", "PoseModel"),
    "Pose26": Head("pose", "PoseModel"),
    "OBB": Head("obb", "OBBModel"),
    "OBB26": Head("obb", "OBBModel"),
    "Classify": Head("classify", "ClassificationModel"),
}


def layout_of(head: Any, nms_free: bool, path: Path) -> HeadLayout:
    """Return how the raw output of a head is read.

    Raises:
        SourceError: It is none that is known.
        RequestError: Its angles or keypoints have a shape that nothing reads.
    """
    kind = HEADS.get(type(head).__name__)
    if kind is None:
        raise SourceError(
            str(path),
            f"its head {type(head).__name__} is not one that is known",
            f"give a model with one of {', '.join(HEADS)}",
        )
    if kind.task == "classify":
        return HeadLayout(axes="nca", strides=())
    strides = tuple(int(s) for s in head.stride.tolist())
    if nms_free:
        layout = HeadLayout(axes="nac", box_format="xyxy", nms_free=True, strides=strides)
    else:
        layout = HeadLayout(axes="nca", strides=strides)
    if kind.task == "segment":
        return dataclasses.replace(layout, extras=int(head.nm))
    if kind.task == "pose":
        points, numbers = (int(n) for n in head.kpt_shape)
        if numbers not in (2, 3):
            raise RequestError(
                path.name, f"its keypoints have {numbers} numbers each", "2 or 3 can be read"
            )
        return dataclasses.replace(
            layout, extras=points * numbers, keypoint_shape=(points, numbers)
        )
    if kind.task == "obb":
        if int(head.ne) != 1:
            raise RequestError(path.name, f"it has {int(head.ne)} angles a box", "1 can be read")
        # Both heads emit centre x, centre y, width, height.
        return dataclasses.replace(layout, box_format="cxcywh", extras=1, rotated=True)
    return layout


def output_names(task: TaskName) -> tuple[str, ...]:
    """Return the names of the raw outputs, as Ultralytics' own exports have them."""
    return ("output0", "output1") if task == "segment" else ("output0",)


def preprocess_of(task: TaskName, usual: Preprocess) -> Preprocess:
    """Return how pictures are fed: the family's way, but a classifier's are cut out."""
    return dataclasses.replace(usual, resize="crop") if task == "classify" else usual
