"""The records that flow through Boxwright: standard library and NumPy only.

Every record is frozen. Those that travel inside files (`ModelSpec` and its parts, `Target`)
turn into plain dictionaries with `as_dict` and back with `from_dict`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import supervision
    from _typeshed import DataclassInstance

__all__ = [
    "SPANS",
    "Accuracy",
    "Artifact",
    "Change",
    "Check",
    "ClassAccuracy",
    "Detections",
    "FloatArray",
    "GraphSignature",
    "HeadJoin",
    "HeadLayout",
    "Image",
    "IntArray",
    "Latency",
    "MaskCrop",
    "ModelSpec",
    "NmsSettings",
    "Parity",
    "Preprocess",
    "Span",
    "Target",
    "TensorInfo",
]

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]
Image: TypeAlias = npt.NDArray[np.uint8]  # (H, W, 3), BGR unless said otherwise

LONGEST_SIDE_PX = 32_768  # of a picture that a graph preprocesses
DEFAULT_OPSET = 17  # every supported TensorRT and OpenVINO reads it

Resize: TypeAlias = Literal[
    "letterbox", "letterbox_twice", "letterbox_top_left", "stretch", "crop"
]  # fmt: skip
Color: TypeAlias = Literal["rgb", "bgr"]
Precision: TypeAlias = Literal["fp32", "fp16", "int8"]
Deployment: TypeAlias = Literal["cpu", "openvino", "tensorrt"]
OutputKind: TypeAlias = Literal["raw", "end2end"]
InputKind: TypeAlias = Literal["tensor", "image"]
ImageLayout: TypeAlias = Literal["nhwc", "nchw"]
NmsForm: TypeAlias = Literal["onnx", "efficient_nms", "portable"]
TaskName: TypeAlias = Literal["detect", "segment", "pose", "obb", "classify"]
Span: TypeAlias = Literal[
    "read", "preprocess", "copy_in", "infer", "copy_out", "postprocess", "total"
]
SPANS: tuple[Span, ...] = (
    "read", "preprocess", "copy_in", "infer", "copy_out", "postprocess", "total",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How a picture becomes the network's input tensor.

    The tensor is `(pixel * scale - mean) / std` per channel, in `color` order, channels first.

    Attributes:
        resize: `letterbox` keeps the aspect ratio and centres the picture, `letterbox_top_left`
            keeps it and pads right and bottom, `letterbox_twice` resizes to the input's longer and
            shorter side first, whichever way it lies, and then into it (MMYOLO), `stretch`
            ignores it, `crop` scales the shorter side with antialiasing (Pillow's bilinear filter)
            and cuts the centre out.
        rounding: How the resized side is made whole: `round` (Ultralytics) or `floor` (YOLOX).
        color: Channel order of the tensor.
        scale: Factor on the 0..255 pixel values, before mean and std.
        mean, std: Per channel, in tensor order, in units of the scaled pixel.
        pad_value: Grey level (0..255) of the padding, before scaling.
        interpolation: OpenCV's name of the filter; `area` holds for shrinking, growing is linear.
    """

    resize: Resize = "letterbox"
    rounding: Literal["round", "floor"] = "round"
    color: Color = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    pad_value: int = 114
    interpolation: Literal["linear", "cubic", "area"] = "linear"

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return _fields(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocess:
        """Read what `as_dict` wrote; unknown keys raise `TypeError`."""
        values = dict(data)
        for key in ("mean", "std"):
            if key in values:
                values[key] = tuple(values[key])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """A detection head as data: how to read boxes and scores out of one raw tensor.

    Two interpreters read it: `boxwright.boxes.decode` on the host and
    `boxwright.graph.decode.add_decode` as ONNX nodes. The channels of one anchor are, in order,
    4 box values, 1 objectness (if any), the class scores, `extras` further columns; or, for
    `nms_free`, x1, y1, x2, y2, score, class, then the extras.

    Attributes:
        axes: `nca` for (batch, channels, anchors), `nac` for (batch, anchors, channels).
        box_format: What the four decoded values are.
        box_encoding: `pixels` when they are final; `grid_exp` for YOLOX's undecoded head,
            centre = (t + cell) * stride and size = exp(t) * stride.
        objectness: A column of its own multiplies every class score.
        scores_activated: The sigmoid was applied by the network already.
        strides: Of the levels, in the order in which they are concatenated.
        extras: Columns after the classes (mask coefficients, keypoints, angle).
        keypoint_shape: Of those columns, (keypoints, 2 or 3 numbers each); (0, 0) for none.
        rotated: The last column is an angle in radians, by which the box is turned about its
            centre, clockwise in the picture; NMS is Ultralytics' fast one by probabilistic IoU.
        normalised: Coordinates are fractions of the input size.
        nms_free: The head emits final detections, best first, that need no NMS.
    """

    axes: Literal["nca", "nac"] = "nca"
    box_format: Literal["cxcywh", "xyxy"] = "cxcywh"
    box_encoding: Literal["pixels", "grid_exp"] = "pixels"
    objectness: bool = False
    scores_activated: bool = True
    strides: tuple[int, ...] = (8, 16, 32)
    extras: int = 0
    keypoint_shape: tuple[int, int] = (0, 0)
    rotated: bool = False
    normalised: bool = False
    nms_free: bool = False

    def channel_count(self, class_count: int) -> int:
        """Return how many channels one anchor has.

        >>> HeadLayout().channel_count(80), HeadLayout(objectness=True).channel_count(80)
        (84, 85)
        """
        if self.nms_free:
            return 6 + self.extras
        return 4 + int(self.objectness) + class_count + self.extras

    def class_count(self, channel_count: int) -> int:
        """Return how many classes a head of `channel_count` channels has (not for `nms_free`)."""
        return channel_count - 4 - int(self.objectness) - self.extras

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return _fields(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HeadLayout:
        """Read what `as_dict` wrote; unknown keys raise `TypeError`."""
        values = dict(data)
        for key in ("strides", "keypoint_shape"):
            if key in values:
                values[key] = tuple(values[key])
        return cls(**values)


JoinKind: TypeAlias = Literal[
    "point_levels", "pixel_levels", "exp_levels", "anchor_levels", "boxes_scores", "detections",
    "labels_boxes_scores", "counted", "stacked", "indexed", "queries",
    "query_rows",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class HeadJoin:
    """How the outputs of a project's own export become the one raw tensor of a `HeadLayout`.

    `boxwright.graph.join` adds the nodes. Kinds, with the outputs that they take:

    - `point_levels`: a map (B, classes + distances, h, w) per level, class logits first; four
      distances in strides, or `bins` logits for each. Becomes (B, A, 4 + classes), xyxy.
    - `pixel_levels`: for each level a map of class logits (B, classes, h, w), then for each level
      one of distances in pixels (B, 4, h, w). Becomes the same.
    - `exp_levels`: a map (B, classes + 5, h, w) per level: class logits, undecoded boxes,
      objectness logits. Becomes (B, A, 5 + classes), boxes still undecoded (`grid_exp`).
    - `anchor_levels`: a map per level, before the sigmoid, (B, anchors, h, w, 5 + classes) or
      (B, anchors * (5 + classes), h, w). Becomes (B, A, 5 + classes), cxcywh.
    - `boxes_scores`: boxes (B, A, 4), scores (B, classes, A). Becomes (B, A, 4 + classes).
    - `detections`: boxes and scores (B, K, 5), labels (B, K). Becomes (B, K, 6), as the next ones.
    - `labels_boxes_scores`: labels (B, K), boxes (B, K, 4), scores (B, K).
    - `counted`: number of detections (B, 1), boxes (B, K, 4), scores (B, K), labels (B, K).
    - `stacked`: rows of all pictures, one after the other, (M, 6) of class, score, xyxy; and the
      number of each picture's, (B,).
    - `indexed`: rows of all pictures, (M, 7) of picture, xyxy, class, score.
    - `queries`: boxes (B, Q, 4), class logits (B, Q, classes and maybe a background): the best Q
      of all queries and classes.
    - `query_rows`: one (B, Q, 4 + classes), scores after the sigmoid: the best class of each query.

    Attributes:
        kind: Of the above.
        outputs: Names, in that order; of levels, fine to coarse.
        strides: Of the levels.
        offset: Where in its cell the point of `point_levels` is.
        bins: Of each distance; 1 for a plain one.
        anchors: (levels, anchors, 2) width and height in pixels.
        class_count: Of the classes that count.
        fixed_inputs: Inputs besides the pictures: name and the values of one picture's row.
    """

    kind: JoinKind
    outputs: tuple[str, ...]
    strides: tuple[int, ...] = ()
    offset: float = 0.5
    bins: int = 1
    anchors: tuple[tuple[tuple[float, float], ...], ...] = ()
    class_count: int = 0
    fixed_inputs: tuple[tuple[str, tuple[float, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a model is; it travels inside the ONNX metadata, so that a file explains itself.

    Attributes:
        name: File-name stem of everything made from the model.
        family: Name of its catalog entry.
        task: `detect`, `segment`, `pose`, `obb` or `classify`.
        class_names: One name per class id.
        input_size: Network input (height, width) in pixels.
        preprocess: How a picture becomes the input tensor.
        layout: How the raw output is read.
        score_threshold: Default operating score threshold, 0..1.
        iou_threshold: Default NMS IoU threshold, 0..1.
        class_colors: `#rrggbb` by class id, or an empty text where a class has none; drawings use
            them. Empty when no class has one.
    """

    name: str
    family: str
    task: TaskName
    class_names: tuple[str, ...]
    input_size: tuple[int, int]
    preprocess: Preprocess
    layout: HeadLayout
    score_threshold: float = 0.25
    iou_threshold: float = 0.7
    class_colors: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types; colours only where there are some."""
        fields = _fields(self)
        if not self.class_colors:
            del fields["class_colors"]
        return fields

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Read what `as_dict` wrote; unknown or missing keys raise `TypeError`."""
        values = dict(data)
        values["class_names"] = tuple(str(n) for n in values["class_names"])
        height, width = values["input_size"]
        values["input_size"] = (int(height), int(width))
        values["preprocess"] = Preprocess.from_dict(values["preprocess"])
        values["layout"] = HeadLayout.from_dict(values["layout"])
        values["class_colors"] = tuple(str(c) for c in values.get("class_colors", ()))
        return cls(**values)


@dataclass(frozen=True, slots=True)
class NmsSettings:
    """Which candidates become detections; the same meaning on the host and inside graphs.

    1. A candidate is an anchor with its best class (`multi_label`: every anchor and class) whose
       score is greater than `score_threshold`.
    2. The `pre_topk` best candidates of a picture stay; equal scores: the lower index wins.
    3. Greedy NMS in score order: a box goes when its IoU with a kept, better box of the same
       class (`class_agnostic`: of any class) is greater than `iou_threshold`.
    4. The `keep_topk` best stay, best first.

    A head that is `nms_free` skips steps 2 and 3.
    """

    score_threshold: float = 0.25
    iou_threshold: float = 0.7
    pre_topk: int = 1000
    keep_topk: int = 300
    class_agnostic: bool = False
    multi_label: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return _fields(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NmsSettings:
        """Read what `as_dict` wrote; unknown keys raise `TypeError`."""
        return cls(**data)


@dataclass(frozen=True, slots=True)
class Target:
    """One file that was asked for.

    Attributes:
        precision: Of the network's body; decode and NMS are always FP32.
        outputs: `raw` head or `end2end` detections.
        nms: Form of the NMS inside an end-to-end graph.
        batch: `None` for a dynamic batch, otherwise the fixed number of pictures.
        opset: ONNX operator set.
        dynamic_thresholds: The two thresholds are optional inputs of the graph.
        nms_iterations: Unrolled steps of the portable NMS.
        deployment: Where an INT8 file shall run; other precisions run anywhere.
        input: `tensor` for what `Preprocess` makes on the host, `image` for uint8 pictures, which
            the graph preprocesses; its end-to-end boxes are in source pixels.
        source_size: Picture (height, width) that an image-input graph is made for; None for any.
        image_layout: Axes of the pictures: (N, H, W, 3) or (N, 3, H, W).
        image_color: Channel order of the pictures.
    """

    precision: Precision = "fp32"
    outputs: OutputKind = "raw"
    nms: NmsForm = "onnx"
    batch: int | None = None
    opset: int = DEFAULT_OPSET
    dynamic_thresholds: bool = False
    nms_iterations: int = 16
    deployment: Deployment = "cpu"
    input: InputKind = "tensor"
    source_size: tuple[int, int] | None = None
    image_layout: ImageLayout = "nhwc"
    image_color: Color = "bgr"

    @property
    def suffix(self) -> str:
        """The part of the file name that tells targets of one model apart.

        >>> Target().suffix, Target("fp16", "end2end", "portable", batch=8).suffix
        ('fp32', 'fp16.end2end.portable.b8')
        >>> Target("int8").suffix, Target("int8", deployment="tensorrt").suffix
        ('int8', 'int8.tensorrt')
        >>> Target(outputs="end2end", input="image", source_size=(1080, 1920)).suffix
        'fp32.end2end.image1080x1920'
        """
        parts: list[str] = [self.precision]
        if self.precision == "int8" and self.deployment != "cpu":
            parts.append(self.deployment)
        if self.outputs == "end2end":
            parts.append("end2end")
            if self.nms != "onnx":
                parts.append(self.nms)
        if self.batch is not None:
            parts.append(f"b{self.batch}")
        if self.input == "image":
            size = self.source_size
            parts.append(f"image{size[0]}x{size[1]}" if size else "image")
            parts += [self.image_layout] if self.image_layout != "nhwc" else []
            parts += [self.image_color] if self.image_color != "bgr" else []
        return ".".join(parts)

    @property
    def of_tensor(self) -> Target:
        """The file that an image-input one is made from: the same, but for its input."""
        return dataclasses.replace(
            self, input="tensor", source_size=None, image_layout="nhwc", image_color="bgr"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return _fields(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Target:
        """Read what `as_dict` wrote; unknown keys raise `TypeError`."""
        values = dict(data)
        if values.get("source_size") is not None:
            height, width = values["source_size"]
            values["source_size"] = (int(height), int(width))
        return cls(**values)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A graph input or output: name, NumPy dtype, shape with names for dynamic sizes."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class GraphSignature:
    """What families look at to recognise a graph.

    Attributes:
        inputs, outputs: Names, dtypes and shapes.
        metadata: The file's own key-value metadata.
        producer: Name of the exporter.
        tail_ops: Operator types between the last weighted layers and the outputs.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]
    producer: str
    tail_ops: frozenset[str]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that was made, what it is and what it was made from.

    Attributes:
        path: Where it is.
        sha256: Of its bytes, lower-case hexadecimal.
        spec: The model in it.
        target: What was asked for.
        inputs, outputs: Of its graph.
        parent: SHA-256 of the file that it was made from.
        made_with: Versions of what made it.
    """

    path: Path
    sha256: str
    spec: ModelSpec
    target: Target
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    parent: str
    made_with: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Check:
    """One measured fact and its limit.

    Attributes:
        name: What was measured, with its unit.
        measured: The value; for a count of mismatches, that count.
        limit: The largest value that passes.
        passed: Whether it passed. `None`: nothing could be measured, see `note`.
        note: What a reader needs to know besides.
    """

    name: str
    measured: float
    limit: float
    passed: bool | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Parity:
    """What a file computes, compared with what its source computes.

    Attributes:
        reference, candidate: Names of what was compared.
        checks: The measured facts.
        pictures: How many pictures the detections were matched on.
        detections: How many reference detections those pictures hold.
        environment: Libraries and machine that the comparison ran on.
    """

    reference: str
    candidate: str
    checks: tuple[Check, ...]
    pictures: int
    detections: int
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether no check failed and at least one was measured."""
        return any(c.passed for c in self.checks) and all(
            c.passed is not False for c in self.checks
        )

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(c for c in self.checks if c.passed is False)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return _fields(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Parity:
        """Read what `as_dict` wrote."""
        values = dict(data)
        values["checks"] = tuple(Check(**c) for c in values["checks"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one span of a call took, every time; percentiles are derived from the samples.

    A percentile lies between two samples by linear interpolation: of n sorted samples, percentile
    q is at position (n - 1) * q / 100, counted from 0.

    Attributes:
        span: What was timed.
        batch: Pictures in one call.
        samples_ms: Of each call, in the order in which they ran; never empty.

    >>> timed = Latency("total", 1, (4.0, 1.0, 2.0, 3.0))
    >>> timed.p50, timed.percentile(100), timed.mean
    (2.5, 4.0, 2.5)
    """

    span: Span
    batch: int
    samples_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples_ms:
            raise ValueError(f"latency of {self.span}: there are no samples")

    def percentile(self, q: float) -> float:
        """Return percentile `q` (0..100) in ms, by linear interpolation."""
        return float(np.percentile(self.samples_ms, q))

    @property
    def p50(self) -> float:
        """The median, in ms."""
        return self.percentile(50)

    @property
    def p95(self) -> float:
        """95 % of the calls took no longer, in ms."""
        return self.percentile(95)

    @property
    def p99(self) -> float:
        """99 % of the calls took no longer, in ms; of under 100 samples nearly the maximum."""
        return self.percentile(99)

    @property
    def mean(self) -> float:
        """The arithmetic mean, in ms."""
        return float(np.mean(self.samples_ms))

    @property
    def std(self) -> float:
        """The sample standard deviation (n - 1), in ms; 0 for a single sample."""
        return float(np.std(self.samples_ms, ddof=1)) if len(self.samples_ms) > 1 else 0.0

    @property
    def min(self) -> float:
        """The shortest call, in ms."""
        return float(np.min(self.samples_ms))

    @property
    def max(self) -> float:
        """The longest call, in ms."""
        return float(np.max(self.samples_ms))

    @property
    def cv_percent(self) -> float:
        """The coefficient of variation: standard deviation as a percentage of the mean."""
        mean = self.mean
        return 100.0 * self.std / mean if mean > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types: the samples, and beside them what is derived from them."""
        derived = ("p50", "p95", "p99", "mean", "std", "min", "max")
        return {
            **_fields(self),
            **{f"{name}_ms": round(getattr(self, name), 4) for name in derived},
            "cv_percent": round(self.cv_percent, 3),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Latency:
        """Read what `as_dict` wrote; the derived numbers are derived again."""
        return cls(data["span"], int(data["batch"]), tuple(float(v) for v in data["samples_ms"]))


class ClassAccuracy(NamedTuple):
    """How well objects of one class are found; a class without objects has none."""

    ap50_95: float
    ap50: float
    objects: int


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How well a file detects on a data set.

    Average precisions (AP) are COCO's: 101 recall points, IoU 0.5 to 0.95 in steps of 0.05, and the
    mean over the classes that the data set shows. They are measured at the `evaluation` settings;
    precision, recall and F1 at the `operating` ones, at IoU 0.5 of boxes or rotated boxes, over all
    classes together. All lie in 0..1; None where there is nothing to divide by.

    Attributes:
        candidate: Name of the file.
        runs_on: Runtime, device and threads, in words.
        dataset, fingerprint: Name of the data set, and SHA-256 of its names and labels.
        pictures, objects: What was measured on; objects without the crowd regions.
        map50_95, map50, map75: Mean AP.
        map_small, map_medium, map_large: Mean AP of objects under 32 x 32, under 96 x 96, and of
            larger ones, in pixels of the picture.
        per_class: By class name.
        precision, recall, f1: At the operating settings.
        operating: The file's own thresholds.
        evaluation: What the curve was measured with; `keep_topk` is the most detections of a
            picture, and of a class in it, that count.
        pr_curve: Precision at recall 0, 0.01, ... 1 and IoU 0.5, by class name, and of `all`.
        warnings: What makes the figures lower or less comparable than they look.
        problems: How often something was wrong with the data, by what.
        environment: Libraries and machine.
        interval: 95 % interval of the `figure`, by bootstrap over the pictures; None when it was
            not computed.
        measure: What the mean AP compare, and so their name: `mAP50-95` of boxes (`box mAP50-95`
            for a task that is more), `mask mAP50-95`, `OKS mAP50-95` of keypoints, `rotated
            mAP50-95`; or `top-1`, where there is no AP.
        top1: Of a classifier: the share of pictures whose best class is right.
        beside: Further figures by name, e.g. `box mAP50-95`, `exact rotated mAP50-95`, `top-5`.
    """

    candidate: str
    runs_on: str
    dataset: str
    fingerprint: str
    pictures: int
    objects: int
    map50_95: float | None
    map50: float | None
    map75: float | None
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    per_class: Mapping[str, ClassAccuracy]
    precision: float | None
    recall: float | None
    f1: float | None
    operating: NmsSettings
    evaluation: NmsSettings
    pr_curve: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    problems: Mapping[str, int] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    measure: str = "mAP50-95"
    top1: float | None = None
    beside: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def figure(self) -> float | None:
        """The one figure that stands for all, named by `measure`."""
        return self.top1 if self.measure == "top-1" else self.map50_95

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        per_class = {name: value._asdict() for name, value in self.per_class.items()}
        return {**_fields(self), "per_class": per_class}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Accuracy:
        """Read what `as_dict` wrote; unknown keys raise `TypeError`."""
        values = dict(data)
        for key in ("operating", "evaluation"):
            values[key] = NmsSettings.from_dict(values[key])
        values["per_class"] = {n: ClassAccuracy(**v) for n, v in values["per_class"].items()}
        values["pr_curve"] = {n: tuple(v) for n, v in values["pr_curve"].items()}
        values["warnings"] = tuple(values["warnings"])
        if values.get("interval"):
            values["interval"] = tuple(values["interval"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Change:
    """By how much one accuracy differs from another on the same pictures.

    Attributes:
        baseline: Name of what was compared with.
        difference: The figure (mAP50-95, or the task's own) minus the baseline's: negative is
            worse.
        low, high: 95 % interval of it, by bootstrap over the pictures, paired; None when it was not
            computed.
    """

    baseline: str
    difference: float
    low: float | None = None
    high: float | None = None

    @property
    def within_noise(self) -> bool:
        """Whether the interval holds 0, or there is none."""
        if self.low is None or self.high is None:
            return True
        return self.low <= 0.0 <= self.high


@dataclass(frozen=True, slots=True)
class MaskCrop:
    """The part of one object's mask that can hold anything: the pixels of its box.

    Attributes:
        left, top: Position of the first pixel in the picture.
        pixels: (h, w) bool.
    """

    left: int
    top: int
    pixels: npt.NDArray[np.bool_]

    def within(self, image_size: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Return the whole mask, (H, W) bool."""
        mask = np.zeros(image_size, bool)
        height, width = self.pixels.shape
        mask[self.top : self.top + height, self.left : self.left + width] = self.pixels
        return mask


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in one picture, best score first.

    Of a classifier the best classes, each with the whole picture as its box.

    Attributes:
        xyxy: (N, 4) float32: x1, y1, x2, y2 in pixels of the source picture, clipped to it. Of
            rotated boxes the upright ones around them.
        scores: (N,) float32, 0..1.
        class_ids: (N,) int64.
        class_names: Names by class id; empty when unknown.
        image_size: (height, width) of the source picture in pixels.
        task: What the model does.
        mask_crops: Of the task `segment`, one for each detection; `masks` has them whole.
        keypoints: Of the task `pose`, (N, K, 2) or (N, K, 3) float32: x, y in pixels of the
            source picture, clipped to it, and the visibility 0..1.
        rotated: Of the task `obb`, (N, 5) float32: centre x, centre y, width, height in pixels of
            the source picture, not clipped, and the angle in radians, clockwise.
        class_colors: `#rrggbb` by class id, as `ModelSpec` has them.
    """

    xyxy: FloatArray
    scores: FloatArray
    class_ids: IntArray
    class_names: tuple[str, ...] = ()
    image_size: tuple[int, int] = (0, 0)
    task: TaskName = "detect"
    mask_crops: tuple[MaskCrop, ...] | None = None
    keypoints: FloatArray | None = None
    rotated: FloatArray | None = None
    class_colors: tuple[str, ...] = ()

    @property
    def masks(self) -> npt.NDArray[np.bool_] | None:
        """The masks in the size of the picture, (N, H, W) bool; made anew at each call."""
        if self.mask_crops is None:
            return None
        whole = np.zeros((len(self), *self.image_size), bool)
        for row, crop in zip(whole, self.mask_crops, strict=True):
            row[...] = crop.within(self.image_size)
        return whole

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[tuple[FloatArray, float, int]]:
        """Yield (xyxy, score, class id) of each detection."""
        for box, score, class_id in zip(self.xyxy, self.scores, self.class_ids, strict=True):
            yield box, float(score), int(class_id)

    def select(self, index: npt.NDArray[Any]) -> Detections:
        """Return the detections at `index`: a boolean mask (N,) or integer positions."""
        crops = self.mask_crops
        if crops is not None:
            crops = tuple(crops[i] for i in np.arange(len(crops))[index])
        return dataclasses.replace(
            self,
            xyxy=self.xyxy[index],
            scores=self.scores[index],
            class_ids=self.class_ids[index],
            mask_crops=crops,
            keypoints=None if self.keypoints is None else self.keypoints[index],
            rotated=None if self.rotated is None else self.rotated[index],
        )

    def class_name(self, class_id: int) -> str:
        """Return the name of a class, or its number as text when it has none."""
        if 0 <= class_id < len(self.class_names):
            return self.class_names[class_id]
        return str(class_id)

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return `{xyxy, score, class_id, class_name}` for each detection, in plain types.

        Besides, by task: `mask` (COCO's compressed RLE), `keypoints` (rows of numbers) or `rotated`
        (centre x, centre y, width, height, angle) with its four `corners`.

        >>> d = Detections(np.array([[1, 2, 3, 4]], np.float32), np.array([0.5], np.float32),
        ...                np.array([0]), ("person",), (10, 10))
        >>> d.as_dicts()
        [{'xyxy': [1.0, 2.0, 3.0, 4.0], 'score': 0.5, 'class_id': 0, 'class_name': 'person'}]
        """
        from boxwright.records import dicts_from_detections

        return dicts_from_detections(self)

    def as_coco(
        self, image_id: int | str, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """Return COCO result dictionaries; `bbox` is x, y, width, height in pixels.

        Masks are `segmentation` (compressed RLE), keypoints `keypoints` (x, y, visibility of each),
        rotated boxes `rbox` (centre x, centre y, width, height, angle) and `poly` (corners).

        Args:
            image_id: The picture's id in the annotation file.
            category_ids: COCO category id by class id; without it the class id itself is used.
        """
        from boxwright.records import coco_from_detections

        return coco_from_detections(self, image_id, category_ids)

    def as_yolo_lines(self, with_score: bool = False) -> list[str]:
        """Return YOLO text lines: class, then centre x, centre y, width, height as fractions.

        Of masks the outline's points stand in the place of the box, of rotated boxes the corners;
        keypoints follow the box. A classifier's lines are score and class name.

        >>> d = Detections(np.array([[0, 0, 5, 10]], np.float32), np.array([0.5], np.float32),
        ...                np.array([2]), (), (10, 10))
        >>> d.as_yolo_lines()
        ['2 0.250000 0.500000 0.500000 1.000000']
        """
        from boxwright.records import yolo_lines_from_detections

        return yolo_lines_from_detections(self, with_score)

    def as_supervision(self) -> supervision.Detections:
        """Return supervision's record of the same boxes.

        Raises:
            ImportError: supervision is not installed.
        """
        import supervision as sv

        names = np.array([self.class_name(int(c)) for c in self.class_ids], dtype=str)
        return sv.Detections(
            xyxy=self.xyxy.copy(),
            confidence=self.scores.copy(),
            class_id=self.class_ids.copy(),
            mask=self.masks,
            data={"class_name": names},
        )


def _fields(record: DataclassInstance) -> dict[str, Any]:
    return {f.name: _plain(getattr(record, f.name)) for f in dataclasses.fields(record)}


def _plain(value: Any) -> Any:
    """Turn records, mappings and tuples into JSON types, recursively."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value
