"""Sources: what a raw ONNX graph is made from. One file each, with a `SOURCE`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from boxwright.backends import Backend, BackendOptions
from boxwright.types import ModelSpec

if TYPE_CHECKING:
    import onnx

__all__ = ["Head", "RawModel", "Source", "SourceRequest"]

Head = Literal["auto", "one2many", "one2one"]


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """What to make a raw graph from, and how.

    Attributes:
        path: Local file; for a configuration of ultralytics its bare name (`yolo11n.yaml`).
        name: File-name stem of everything made from it.
        family: `--family`, or None to recognise it.
        image_size: Network input (height, width) in pixels; None takes the model's own.
        head: Which head of a model that has two (v10, 26); `auto` takes the NMS-free one.
        labels: Class names that replace the model's own.
        colors: Their colours, as `ModelSpec.class_colors`; empty keeps the model's own.
        opset: ONNX operator set; None is 17, or what a raw ONNX has if that is newer.
        batch: Fixed number of pictures, or None for a dynamic batch.
        simplify: Run onnxslim.
        trust_checkpoint: Unpickle with full rights; runs whatever code the file holds.
        seed: Of the random weights of a `.yaml`.
        config: Configuration of an OpenMMLab checkpoint that does not carry its own.
    """

    path: Path
    name: str
    family: str | None = None
    image_size: tuple[int, int] | None = None
    head: Head = "auto"
    labels: tuple[str, ...] | None = None
    opset: int | None = None
    batch: int | None = None
    simplify: bool = True
    trust_checkpoint: bool = False
    seed: int = 0
    config: Path | None = None
    colors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RawModel:
    """A raw graph and what it is."""

    model: onnx.ModelProto
    spec: ModelSpec


@dataclass(frozen=True, slots=True)
class Source:
    """One kind of source.

    Attributes:
        name: For people and the manifest.
        suffixes: Of its files.
        inputs: Every local file that the result depends on.
        versions: Library versions that the result depends on, without importing them.
        describe: Says what the model is, without exporting it.
        export: Makes the raw FP32 graph.
        reference: Opens the source itself as a backend, to compare with; its outputs have the
            names and shapes of the raw graph.
        check: Refuses a request that cannot succeed, before any work.
    """

    name: str
    suffixes: tuple[str, ...]
    inputs: Callable[[SourceRequest], tuple[Path, ...]]
    versions: Callable[[], dict[str, str]]
    describe: Callable[[SourceRequest], ModelSpec]
    export: Callable[[SourceRequest], RawModel]
    reference: Callable[[SourceRequest, BackendOptions], Backend]
    check: Callable[[SourceRequest], None]
