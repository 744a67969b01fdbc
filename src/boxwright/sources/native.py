"""Checkpoints of YOLOv5, YOLOv6, YOLOv7, YOLOX, MMYOLO and MMDetection as sources.

None of those projects is needed: `native_files` reads the file, `nets` builds the network.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from boxwright import catalog
from boxwright.backends import Backend, BackendOptions
from boxwright.errors import GraphError, RequestError, SourceError
from boxwright.nets import OpenmmlabConfig, OpenmmlabKind
from boxwright.sources import RawModel, Source, SourceRequest
from boxwright.sources.native_files import NativeFile, is_project_pickle, pipeline_of, read_native
from boxwright.sources.sidecars import read_sidecars
from boxwright.sources.torch_export import (
    check_image_size,
    check_opset,
    check_packages,
    exporter_versions,
    onnx_from_module,
)
from boxwright.types import HeadLayout, ModelSpec, Preprocess

__all__ = [
    "SOURCE",
    "claims",
    "folded_network",
    "kind_of",
    "native_network",
    "openmmlab_preprocess",
    "spec_of",
]

_OUTPUT = "output"
_KINDS = ("yolov5", "yolov6", "yolov7", "yolov8", "yolox", "ppyoloe", "rtmdet")
# Folding rounds each weight once; more than this is a mistake, not rounding.
_FOLD_LIMIT = 5e-3

# The catalog's family by kind of network.
_FAMILIES = {"yolov8": "ultralytics"}


def claims(path: Path) -> bool:
    """Whether this source reads a file, of those whose suffix others read too."""
    return path.suffix.lower() == ".pt" and path.is_file() and is_project_pickle(path)


def _inputs(request: SourceRequest) -> tuple[Path, ...]:
    config = (request.config,) if request.config is not None else ()
    return (request.path, *config, *read_sidecars(request.path).files)


def _versions() -> dict[str, str]:
    return exporter_versions("torch")


def _check(request: SourceRequest) -> None:
    """Refuse what cannot succeed, before torch is imported."""
    check_packages(request, "torch")
    check_opset(request)
    check_image_size(request)
    if request.head != "auto":
        raise RequestError(
            f"--head {request.head}", f"{request.path.name} has a single head", "use --head auto"
        )
    if request.trust_checkpoint:
        raise RequestError(
            "--trust-checkpoint",
            "this kind of checkpoint is read without running anything of it",
            "drop the option",
        )
    if request.config is not None and not request.config.is_file():
        raise SourceError(str(request.config), "there is no such file", "check --config")


def kind_of(file: NativeFile, request: SourceRequest) -> str:
    """Return the kind of network: what the file says, or what was asked for."""
    if request.family is not None:
        asked = request.family.lower()
        kind = asked if asked in _KINDS else catalog.family(asked).name
        if kind not in _KINDS:
            raise RequestError(
                f"--family {request.family}",
                f"{request.path.name} is a checkpoint, and those are {', '.join(_KINDS)}",
                "drop the option: the checkpoint says its family itself",
            )
        return kind
    return file.config.kind if file.config is not None else file.project


def _layout(kind: str, strides: tuple[int, ...]) -> HeadLayout:
    if kind in ("yolov5", "yolov7"):
        return HeadLayout(axes="nac", objectness=True, strides=strides)
    if kind == "yolox":
        return HeadLayout(axes="nac", box_encoding="grid_exp", objectness=True, strides=strides)
    return HeadLayout(axes="nac", box_format="xyxy", strides=strides)


def _triple(value: Any) -> tuple[float, float, float] | None:
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        return None
    if not all(type(v) in (int, float) for v in value):
        return None
    return (float(value[0]), float(value[1]), float(value[2]))


def openmmlab_preprocess(
    settings: Mapping[str, Any], config: OpenmmlabConfig, input_size: tuple[int, int]
) -> Preprocess:
    """Return how the test pipeline of a configuration feeds an input of (height, width)."""
    model = settings.get("model")
    data = model.get("data_preprocessor") if isinstance(model, dict) else None
    data = data if isinstance(data, dict) else {}
    plain = not data and config.kind != "yolox"
    mean = _triple(data.get("mean")) or (0.0, 0.0, 0.0)
    std = _triple(data.get("std")) or ((255.0,) * 3 if plain else (1.0, 1.0, 1.0))
    color = "rgb" if data.get("bgr_to_rgb", plain) else "bgr"
    rules = Preprocess(color=cast("Any", color), scale=1.0, mean=mean, std=cast("Any", std))
    names = {str(s.get("type")).rsplit(".", 1)[-1]: s for s in pipeline_of(settings)}
    stretch = names.get("FixShapeResize") or names.get("Resize", {})
    if "LetterResize" in names or not names:
        # YOLOv5KeepRatioResize floors the sides, and shrinks by area. LetterResize, which comes
        # next, finds nothing to do where the input is a square.
        rules = dataclasses.replace(rules, rounding="floor", interpolation="area")
        square = input_size[0] == input_size[1]
        return rules if square else dataclasses.replace(rules, resize="letterbox_twice")
    cubic = stretch.get("interpolation") == "bicubic"
    rules = dataclasses.replace(rules, interpolation="cubic" if cubic else "linear")
    if not stretch.get("keep_ratio", "FixShapeResize" not in names):
        return dataclasses.replace(rules, resize="stretch")
    return dataclasses.replace(rules, resize="letterbox_top_left")


def spec_of(file: NativeFile, request: SourceRequest) -> ModelSpec:
    """Return what the network of a checkpoint is.

    Raises:
        SourceError: The names are not those of its classes.
        RequestError: The picture size does not fit its strides.
    """
    kind = kind_of(file, request)
    family = catalog.family(_FAMILIES.get(kind, kind))
    sidecars = read_sidecars(request.path)
    names = request.labels or sidecars.labels or file.class_names
    if len(names) != file.class_count:
        raise SourceError(
            str(request.path),
            f"its head has {file.class_count} classes, but {len(names)} names were given",
            "check --labels or labels.json",
        )
    size, largest = request.image_size or file.input_size, max(file.strides)
    if any(s % largest for s in size):
        raise RequestError(
            f"--image-size {size[0]},{size[1]}",
            f"sides must be multiples of this model's largest stride, {largest}",
            f"use e.g. {10 * largest}",
        )
    rules = family.preprocess
    if file.config is not None:
        rules = openmmlab_preprocess(file.settings, file.config, size)
    return ModelSpec(
        name=request.name,
        family=family.name,
        task="detect",
        class_names=names,
        input_size=size,
        preprocess=rules,
        layout=_layout(kind, file.strides),
        score_threshold=(
            family.score_threshold if sidecars.score_threshold is None else sidecars.score_threshold
        ),
        iou_threshold=family.iou_threshold,
        class_colors=() if request.labels or sidecars.labels else file.class_colors,
    )


def native_network(file: NativeFile, kind: str, what: str, *, fused: bool) -> Any:
    """Build the torch network of a checkpoint around its weights.

    Args:
        file: The checkpoint.
        kind: Of the network.
        what: The file, for errors.
        fused: Fold batch norms, branches and implicit layers.

    Returns:
        The module, in evaluation mode, with `maps` for its raw outputs.

    Raises:
        SourceError: The weights are not those of the network; the first that differ are named.
    """
    import torch

    from boxwright.nets.weights import Weights, WeightsDifferError

    weights = Weights(
        {n: torch.from_numpy(t) for n, t in file.tensors.items()},
        eps=file.eps,
        fused=fused,
        spelled=file.spelled,
        facts=file.facts,
    )
    try:
        if file.config is not None:
            config = dataclasses.replace(file.config, kind=cast("OpenmmlabKind", kind))
            module = importlib.import_module("boxwright.nets.openmmlab").build(config, weights)
        elif kind in ("yolov5", "yolov7"):
            module = importlib.import_module("boxwright.nets.layered").build(
                weights, file.class_count, single_by_objectness=kind == "yolov7"
            )
        elif kind == "yolov6":
            module = importlib.import_module("boxwright.nets.yolov6").build(
                weights, file.class_count
            )
        elif kind == "yolox":
            module = importlib.import_module("boxwright.nets.megvii_yolox").build(
                weights, file.class_count
            )
        else:
            raise WeightsDifferError("no such network is known without a configuration")
    except WeightsDifferError as error:
        raise SourceError(
            what,
            f"its weights are not those of {kind}: {error}",
            "check the file, --config and --family",
        ) from None
    return module.eval()


def folded_network(file: NativeFile, spec: ModelSpec, kind: str, what: str) -> Any:
    """Return the folded network after comparing it with the plain one on random numbers.

    Raises:
        GraphError: The two differ by more than rounding.
    """
    import torch

    folded = native_network(file, kind, what, fused=True)
    plain = native_network(file, kind, what, fused=False)
    side = 2 * max(spec.layout.strides)
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    rules = spec.preprocess
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (rules.mean, rules.std))
    picture = (pixels * 255 * rules.scale - mean) / std
    with torch.inference_mode():
        first, second = plain.maps(picture), folded.maps(picture)
    worst = max(
        float(((a - b).abs() / (1 + a.abs())).max())
        for name, levels in first.items()
        for a, b in zip(levels, second[name], strict=True)
    )
    if not worst <= _FOLD_LIMIT:
        raise GraphError(
            f"export of {what}",
            f"the folded network differs from the plain one by {worst:.2g}",
            "report it: the folding is wrong, or the weights are not finite",
        )
    return folded


def _describe(request: SourceRequest) -> ModelSpec:
    return spec_of(read_native(request.path, request.config), request)


def _export(request: SourceRequest) -> RawModel:
    file = read_native(request.path, request.config)
    spec = spec_of(file, request)
    module = folded_network(file, spec, kind_of(file, request), str(request.path))
    return RawModel(onnx_from_module(module, spec.input_size, _OUTPUT, request), spec)


def _reference(request: SourceRequest, options: BackendOptions) -> Backend:
    """Open the plain network, its branches and norms unfolded, in PyTorch."""
    from boxwright.backends.pytorch import PyTorchBackend

    file = read_native(request.path, request.config)
    spec = spec_of(file, request)
    module = native_network(file, kind_of(file, request), str(request.path), fused=False)
    return PyTorchBackend(module, spec.input_size, _OUTPUT, options)


SOURCE = Source(
    name="native",
    suffixes=(".pth",),
    inputs=_inputs,
    versions=_versions,
    describe=_describe,
    export=_export,
    reference=_reference,
    check=_check,
)
