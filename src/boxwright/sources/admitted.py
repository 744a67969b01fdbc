"""What a checkpoint's pickle may name: one explicit table, so that a reader can audit it.

A pickle builds its objects by naming classes and functions. Boxwright never looks such a name up;
it only asks this table what an inert stand-in for it would be. What the table lacks is refused.
The classes are those that Ultralytics networks from YOLOv3u to YOLO26 (detection, segmentation,
pose, oriented boxes, classification) are made of, and the bookkeeping that training leaves behind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = [
    "ADMITTED",
    "DTYPES",
    "FUNCTIONS",
    "NETWORK_MODELS",
    "RENAMED",
    "GlobalRef",
    "foreign_project",
    "global_from_name",
    "project_class",
    "storage_dtype",
]

GlobalKind: TypeAlias = Literal["network", "bookkeeping", "function", "storage", "dtype"]


@dataclass(frozen=True, slots=True)
class GlobalRef:
    """The inert stand-in of a class, function or constant that a pickle named.

    Attributes:
        module, name: As the pickle spelt them.
        kind: `network` classes are rebuilt as real layers, `bookkeeping` stays inert data,
            `function` has an inert builder, `storage` and `dtype` describe tensors.
        package: `torch` or `ultralytics` for a `network` class, otherwise empty.
    """

    module: str
    name: str
    kind: GlobalKind
    package: str = ""

    @property
    def path(self) -> str:
        """The dotted name."""
        return f"{self.module}.{self.name}"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The whole networks, module ultralytics.nn.tasks.
NETWORK_MODELS = _names(
    "DetectionModel SegmentationModel PoseModel OBBModel ClassificationModel YOLOv10DetectionModel"
)

# Classes that become real layers, by simple name within their package.
ADMITTED: dict[str, frozenset[str]] = {
    "torch": _names(
        """
        Conv1d Conv2d ConvTranspose2d Linear NonDynamicallyQuantizableLinear Identity
        BatchNorm1d BatchNorm2d SyncBatchNorm GroupNorm InstanceNorm2d LayerNorm
        SiLU ReLU ReLU6 LeakyReLU PReLU ELU CELU SELU GELU Mish Hardswish Hardsigmoid Hardtanh
        Sigmoid LogSigmoid Softplus Softsign Softmax Tanh Threshold
        Sequential ModuleList ModuleDict ParameterList ParameterDict
        MaxPool2d AvgPool2d AdaptiveAvgPool2d AdaptiveMaxPool2d
        Upsample UpsamplingNearest2d UpsamplingBilinear2d PixelShuffle PixelUnshuffle
        Dropout Dropout2d Flatten Unflatten ZeroPad2d ConstantPad2d ReflectionPad2d ReplicationPad2d
        MultiheadAttention
        """
    ),
    "ultralytics": _names(
        """
        Conv Conv2 LightConv DWConv DWConvTranspose2d ConvTranspose Focus GhostConv RepConv
        ChannelAttention SpatialAttention CBAM Concat Index
        DFL Proto Proto26 HGStem HGBlock SPP SPPF SPPELAN C1 C2 C2f C3 C3x C3f C3k C3k2 RepC3 C3TR
        C3Ghost GhostBottleneck Bottleneck BottleneckCSP ResNetBlock ResNetLayer RepBottleneck
        RepCSP RepNCSPELAN4 ELAN1 AConv ADown CBLinear CBFuse RepVGGDW CIB C2fCIB Attention
        PSABlock PSA C2PSA C2fPSA SCDown AAttn ABlock A2C2f SwiGLUFFN Residual RealNVP Silence AGLU
        TransformerEncoderLayer TransformerLayer TransformerBlock MLPBlock MLP LayerNorm2d AIFI
        Detect Segment Segment26 Pose Pose26 OBB OBB26 Classify v10Detect
        """
    )
    | NETWORK_MODELS,
}

# Classes that a later release renamed: (package, simple name) today, by simple name then.
RENAMED: dict[str, tuple[str, str]] = {
    "Silence": ("torch", "Identity"),
    "YOLOv10DetectionModel": ("ultralytics", "DetectionModel"),
}

_LOSS_NAMES = _names(
    """
    VarifocalLoss FocalLoss DFLoss BboxLoss RLELoss RotatedBboxLoss MultiChannelDiceLoss BCEDiceLoss
    KeypointLoss v8DetectionLoss v8SegmentationLoss SegmentLoss26 v8PoseLoss PoseLoss26
    v8ClassificationLoss v8OBBLoss E2EDetectLoss E2ELoss v10DetectLoss SegmentationLoss
    """
)
_ASSIGNER_NAMES = _names(
    """
    TaskAlignedAssigner PoseTaskAlignedAssigner SegTaskAlignedAssigner RotatedTaskAlignedAssigner
    """
)
_TRANSFORM_NAMES = _names("Compose Normalize Resize CenterCrop ToTensor")

# Classes that stay inert and are dropped from the network, by the module that they may come from.
_BOOKKEEPING: dict[str, frozenset[str]] = {
    "ultralytics.utils": _names("IterableSimpleNamespace"),
    "ultralytics.utils.loss": _LOSS_NAMES,
    "ultralytics.utils.tal": _ASSIGNER_NAMES,
    "ultralytics.yolo.utils": _names("IterableSimpleNamespace"),
    "ultralytics.yolo.utils.loss": _LOSS_NAMES,
    "ultralytics.yolo.utils.tal": _ASSIGNER_NAMES,
    "ultralytics.yolo.v8.detect.train": _names("Loss"),
    "ultralytics.yolo.v8.segment.train": _names("SegLoss"),
    "ultralytics.yolo.v8.pose.train": _names("PoseLoss"),
    "ultralytics.yolo.v8.classify.train": _names("ClassificationLoss"),
    "ultralytics.data.augment": _names("ClassifyLetterBox LetterBox CenterCrop ToTensor"),
    "torch.nn.modules.loss": _names(
        "BCEWithLogitsLoss BCELoss CrossEntropyLoss MSELoss L1Loss SmoothL1Loss NLLLoss HuberLoss"
    ),
    "torchvision.transforms.transforms": _TRANSFORM_NAMES,
    "torchvision.transforms.functional": _names("InterpolationMode"),
    "numpy": _names("dtype ndarray"),
    "types": _names("SimpleNamespace"),
    "argparse": _names("Namespace"),
}

_BUILTINS = _names("set frozenset dict list tuple slice complex bytearray getattr object")
_PATHS = _names("Path PurePath PosixPath PurePosixPath WindowsPath PureWindowsPath")
_ARRAYS = _names("scalar _reconstruct")

# Functions (and value types) that have an inert builder in `pickle_builders`.
FUNCTIONS: dict[str, frozenset[str]] = {
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,
    "collections": _names("OrderedDict defaultdict"),
    "copyreg": _names("_reconstructor"),
    "copy_reg": _names("_reconstructor"),
    "_codecs": _names("encode"),
    "dill._dill": _names("_load_type"),  # some Ultralytics releases saved with dill
    "datetime": _names("datetime date time timedelta timezone"),
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "numpy.core.multiarray": _ARRAYS,
    "numpy._core.multiarray": _ARRAYS,
    "torch": _names("Size device"),
    "torch._utils": _names(
        "_rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter _rebuild_parameter_with_state"
    ),
}

# Element types: NumPy's spelling of the stored little-endian bytes. bfloat16 has none of its own.
DTYPES: dict[str, str] = {
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<u2",
    "float64": "<f8",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "|i1",
    "uint8": "|u1",
    "bool": "|b1",
}

_STORAGE_DTYPES: dict[str, str] = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}

# Modules of projects whose checkpoints look alike but that the current Ultralytics cannot run.
_FOREIGN: tuple[tuple[str, str], ...] = (
    ("models.", "the original YOLOv5 or YOLOv7 project"),
    ("yolov6.", "the YOLOv6 project"),
    ("yolox.", "the YOLOX project"),
    ("mmengine.", "an OpenMMLab project"),
    ("mmdet.", "an OpenMMLab project"),
    ("super_gradients.", "the SuperGradients project"),
    ("rfdetr.", "the RF-DETR project"),
)


# Modules of the projects whose checkpoints `native` rebuilds; their classes only become records.
_PROJECTS = ("models.", "utils.", "yolov6.", "mmengine.", "mmdet.", "mmyolo.", "mmcv.")
_DOTTED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


def project_class(module: str, name: str) -> GlobalRef | None:
    """Return the inert stand-in of a class of YOLOv5, YOLOv6, YOLOv7 or OpenMMLab, or None.

    >>> project_class("models.common", "Conv").kind
    'bookkeeping'
    >>> project_class("os", "system") is None
    True
    """
    whole = _DOTTED.fullmatch(module) and _DOTTED.fullmatch(name)
    if whole and module.startswith(_PROJECTS):
        return GlobalRef(module, name, "bookkeeping")
    return None


def storage_dtype(ref: GlobalRef) -> str:
    """Return the element type of a storage class; `uint8` for an untyped one.

    >>> storage_dtype(GlobalRef("torch", "HalfStorage", "storage"))
    'float16'
    """
    return _STORAGE_DTYPES[ref.name]


def foreign_project(module: str) -> str:
    """Return the project that a module of an unknown class belongs to, or "".

    >>> foreign_project("models.yolo"), foreign_project("posix")
    ('the original YOLOv5 or YOLOv7 project', '')
    """
    return next((project for prefix, project in _FOREIGN if module.startswith(prefix)), "")


def global_from_name(module: str, name: str) -> GlobalRef | None:
    """Return the stand-in of what a pickle named, or None when it is not admitted.

    >>> global_from_name("torch.nn.modules.conv", "Conv2d").kind
    'network'
    >>> global_from_name("posix", "system") is None
    True
    """
    if name in FUNCTIONS.get(module, ()):
        return GlobalRef(module, name, "function")
    if name in _BOOKKEEPING.get(module, ()):
        return GlobalRef(module, name, "bookkeeping")
    if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
        return GlobalRef(module, name, "storage")
    if module == "torch" and name in DTYPES:
        return GlobalRef(module, name, "dtype")
    package = _network_package(module, name)
    if package:
        return GlobalRef(module, name, "network", package)
    return None


def _network_package(module: str, name: str) -> str:
    """Return the package of a network class, or "" when module and name do not go together."""
    if module == "ultralytics.nn.tasks":
        return "ultralytics" if name in NETWORK_MODELS else ""
    parts = module.split(".")
    if parts[:3] == ["torch", "nn", "modules"] and len(parts) == 4:
        return "torch" if name in ADMITTED["torch"] else ""
    # Ultralytics 8.0 kept every layer in one flat module, later releases in a package.
    if parts[:3] == ["ultralytics", "nn", "modules"] and len(parts) in (3, 4):
        layers = ADMITTED["ultralytics"] - NETWORK_MODELS
        return "ultralytics" if name in layers else ""
    return ""
