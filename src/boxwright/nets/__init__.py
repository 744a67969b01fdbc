"""Networks of our own: torch definitions, and what they are built from as plain records.

This file needs no torch, so that a checkpoint can be described without it. Every other module of
this folder imports torch at its top, because a layer is a class of torch's; they are the only
modules that do, and nothing imports them but functions.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "NETWORKS",
    "OpenmmlabConfig",
    "YoloxConfig",
    "build_network",
    "fused_network",
    "network_name",
]

Activation = Literal["silu", "relu", "lrelu"]

# A header may say anything; these bounds keep what is built from it within reason.
_MOST_CLASSES, _WIDEST, _DEEPEST, _MOST_CHANNELS = 100_000, 4.0, 8.0, 4096


@dataclass(frozen=True, slots=True)
class YoloxConfig:
    """What a YOLOX network is built from (Megvii YOLOX; arXiv:2107.08430).

    Attributes:
        class_count: Number of classes.
        depth: Factor on the blocks of a stage: nano, tiny and s 0.33, m 0.67, l 1, x 1.33.
        width: Factor on the channels: nano 0.25, tiny 0.375, s 0.5, m 0.75, l 1, x 1.25. The
            stem has 64 * width channels, which must be a whole number.
        depthwise: Depthwise separable 3x3 convolutions, as nano has them.
        activation: `silu`, `relu`, or `lrelu` with slope 0.1.
        widest: No level has more channels than this; None, as published: no limit.
        head_width: Channels of the head; None, as published: 256 * width.

    Raises:
        ValueError: A value is of the wrong type or out of range.
    """

    class_count: int
    depth: float = 0.33
    width: float = 0.5
    depthwise: bool = False
    activation: Activation = "silu"
    widest: int | None = None
    head_width: int | None = None

    def __post_init__(self) -> None:
        if type(self.class_count) is not int or not 1 <= self.class_count <= _MOST_CLASSES:
            raise ValueError(f"class_count {self.class_count!r} is not 1 to {_MOST_CLASSES}")
        for name, most in (("depth", _DEEPEST), ("width", _WIDEST)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value <= most:
                raise ValueError(f"{name} {value!r} is not a number above 0 and up to {most:g}")
        if 64 * self.width != int(64 * self.width):
            raise ValueError(f"width {self.width!r} gives no whole number of channels (64 * width)")
        if type(self.depthwise) is not bool:
            raise ValueError(f"depthwise {self.depthwise!r} is not true or false")
        if self.activation not in ("silu", "relu", "lrelu"):
            raise ValueError(f"activation {self.activation!r} is not silu, relu or lrelu")
        for name in ("widest", "head_width"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 8 <= value <= _MOST_CHANNELS):
                raise ValueError(f"{name} {value!r} is not null or 8 to {_MOST_CHANNELS}")
        if self.widest is not None and self.widest % 2:
            raise ValueError(f"widest {self.widest!r} is odd")

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types.

        >>> YoloxConfig.from_dict(YoloxConfig(3).as_dict()) == YoloxConfig(3)
        True
        """
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> YoloxConfig:
        """Read what `as_dict` wrote; unknown or missing keys raise `TypeError`."""
        unknown = [key for key in data if key not in {f.name for f in dataclasses.fields(cls)}]
        if unknown or "class_count" not in data:
            found = f"unknown key {unknown[0]!r}" if unknown else "class_count is missing"
            raise TypeError(found)
        return cls(**data)


OpenmmlabKind = Literal["yolov5", "yolov6", "yolov7", "yolov8", "yolox", "ppyoloe", "rtmdet"]


@dataclass(frozen=True, slots=True)
class OpenmmlabConfig:
    """What the weights of an MMYOLO or MMDetection checkpoint do not say themselves.

    Attributes:
        kind: Of the network.
        project: The two name weights alike but for RTMDet's distances (see `exp_on_reg`).
        class_count: Number of classes.
        strides: Of the levels, in pixels.
        eps: Of the batch norms in backbone, neck and head.
        acts: Activation and negative slope in backbone, neck and head.
        anchors: (levels, anchors, 2) width and height in pixels; empty without anchors.
        exp_on_reg: MMDetection's RTMDet takes distances through exp.
    """

    kind: OpenmmlabKind
    project: Literal["mmyolo", "mmdet"]
    class_count: int
    strides: tuple[int, ...]
    eps: tuple[float, float, float]
    acts: tuple[tuple[str, float], ...]
    anchors: tuple[tuple[tuple[float, float], ...], ...] = ()
    exp_on_reg: bool = False


# By the name that a checkpoint's header gives; `build_<name>` is in the module of that name.
NETWORKS: dict[str, type[YoloxConfig]] = {"yolox": YoloxConfig}


def network_name(config: YoloxConfig) -> str:
    """Return the name of the network that a configuration is of.

    >>> network_name(YoloxConfig(80))
    'yolox'
    """
    return next(name for name, kind in NETWORKS.items() if type(config) is kind)


def build_network(config: YoloxConfig) -> Any:
    """Build the torch module of a configuration, with fresh weights; imports torch."""
    name = network_name(config)
    return getattr(importlib.import_module(f"boxwright.nets.{name}"), f"build_{name}")(config)


def fused_network(model: Any) -> Any:
    """Return a copy of a module in evaluation mode, its batch norms folded into convolutions."""
    return importlib.import_module(type(model).__module__).fused(model)
