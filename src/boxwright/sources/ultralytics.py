"""Ultralytics checkpoints (.pt) and configurations (.yaml, random weights) as sources.

The only part of Boxwright that imports `ultralytics` (AGPL-3.0), together with `rebuild`, which
reads checkpoints without running code from them.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import yaml

from boxwright import catalog
from boxwright.backends import Backend, BackendOptions
from boxwright.errors import RequestError, SourceError
from boxwright.sources import RawModel, Source, SourceRequest
from boxwright.sources.sidecars import Sidecars, read_sidecars
from boxwright.sources.torch_export import (
    check_image_size,
    check_opset,
    check_packages,
    exporter_versions,
    onnx_from_module,
)
from boxwright.sources.ultralytics_heads import HEADS, layout_of, output_names, preprocess_of
from boxwright.types import ModelSpec

__all__ = ["SOURCE"]

# Activations a configuration may name; Ultralytics would eval() the text.
_ACTIVATION = re.compile(r"^(torch\.)?nn\.[A-Za-z0-9]+\(([a-z_]+=)?[A-Za-z0-9.]*\)$")
_MODULE = re.compile(r"^(nn\.)?[A-Za-z0-9_]+$")


def _inputs(request: SourceRequest) -> tuple[Path, ...]:
    if not request.path.is_file():
        return ()
    return (request.path, *read_sidecars(request.path).files)


def _versions() -> dict[str, str]:
    return exporter_versions("torch", "ultralytics")


def _check(request: SourceRequest) -> None:
    """Refuse what cannot succeed, before torch is imported."""
    check_packages(request, "torch", "ultralytics")
    check_opset(request)
    if request.family is not None:
        raise RequestError(
            f"--family {request.family}", "a checkpoint says its family itself", "drop the option"
        )
    if request.config is not None:
        raise RequestError(
            f"--config {request.config}", "it is for OpenMMLab checkpoints", "drop the option"
        )
    check_image_size(request)
    if request.path.is_file() and request.path.suffix in (".yaml", ".yml"):
        _read_config(request.path)


def _read_config(path: Path) -> dict[str, Any]:
    """Read a configuration file and refuse text that Ultralytics would evaluate as code.

    Raises:
        SourceError: It is no model configuration, or names more than layers and activations.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise SourceError(str(path), f"it is not YAML ({reason})", "give a model file") from None
    if not isinstance(config, dict) or not {"backbone", "head"} <= config.keys():
        raise SourceError(
            str(path),
            "it is not a model configuration (no backbone and head)",
            "give an Ultralytics model .yaml, or a Boxwright recipe with `source:`",
        )
    activation = config.get("activation")
    if activation is not None and not _ACTIVATION.match(str(activation)):
        raise SourceError(
            str(path), f"activation {str(activation)[:60]!r} is not a plain layer", "use nn.SiLU()"
        )
    for section in ("backbone", "head"):
        layers = config[section]
        if not isinstance(layers, list) or not all(
            isinstance(r, list) and len(r) == 4 for r in layers
        ):
            raise SourceError(str(path), f"{section} is not a list of [from, n, module, args]", "")
        for row in layers:
            if not _MODULE.match(str(row[2])):
                raise SourceError(str(path), f"module {str(row[2])[:60]!r} is not a layer", "")
    return config


@dataclasses.dataclass(frozen=True, slots=True)
class _Loaded:
    """A network and what its file says of it."""

    model: Any
    task: str
    class_names: tuple[str, ...]
    input_size: tuple[int, int]


def _load(request: SourceRequest) -> _Loaded:
    from boxwright.sources.rebuild import load_network, prepare_ultralytics

    prepare_ultralytics()
    if request.path.suffix in (".yaml", ".yml"):
        return _from_config(request)
    network = load_network(request.path, trust=request.trust_checkpoint)
    return _Loaded(network.model, network.task, network.class_names, network.input_size)


def _from_config(request: SourceRequest) -> _Loaded:
    """Build a network of random weights; the same seed gives the same weights."""
    import torch
    from ultralytics.nn import tasks
    from ultralytics.utils import LOGGER

    level = LOGGER.level
    LOGGER.setLevel(40)
    try:
        if request.path.is_file():
            config = _read_config(request.path)
            config.setdefault("scale", _scale_of(request.path.stem))
        else:
            config = tasks.yaml_model_load(request.path.name)
        kind = HEADS.get(str(config["head"][-1][2]).rpartition(".")[2])
        if kind is None:
            raise RequestError(
                request.path.name,
                f"its head {config['head'][-1][2]} is not supported",
                f"give a model with one of {', '.join(HEADS)}",
            )
        torch.manual_seed(request.seed)
        model = getattr(tasks, kind.model)(config, ch=3, verbose=False)
    except FileNotFoundError:
        raise SourceError(
            str(request.path),
            "there is no such file, and ultralytics ships no such configuration",
            "check the name",
        ) from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(
            str(request.path),
            f"ultralytics cannot build it ({type(error).__name__}: {str(error)[:120]})",
            "check the configuration",
        ) from None
    finally:
        LOGGER.setLevel(level)
    names = tuple(str(n) for n in model.names.values())
    side = 224 if kind.task == "classify" else 640
    return _Loaded(model.float().eval(), kind.task, names, (side, side))


def _scale_of(stem: str) -> str:
    match = re.search(r"yolov?\d+([nsmlx])", stem)
    return match.group(1) if match else ""


def _is_nms_free(model: Any, request: SourceRequest) -> bool:
    """Whether the head that was asked for is the NMS-free one.

    Raises:
        RequestError: The model has no such head.
    """
    head = model.model[-1]
    has_one2one = getattr(head, "one2one_cv2", None) is not None
    has_one2many = getattr(head, "cv2", None) is not None
    fused_one2one = bool(getattr(model, "end2end", False)) and not has_one2one
    if request.head == "one2one" and not (has_one2one or fused_one2one):
        raise RequestError(
            "--head one2one", f"{request.path.name} has no NMS-free head", "use --head auto"
        )
    if request.head == "one2many" and (not has_one2many or fused_one2one):
        raise RequestError(
            "--head one2many",
            f"{request.path.name} has lost its one-to-many head",
            "use --head auto",
        )
    return request.head != "one2many" and (has_one2one or fused_one2one)


def _spec(loaded: _Loaded, request: SourceRequest) -> ModelSpec:
    head = loaded.model.model[-1]
    nms_free = _is_nms_free(loaded.model, request)
    family = catalog.family("ultralytics-nms-free" if nms_free else "ultralytics")
    layout = layout_of(head, nms_free, request.path)
    task = HEADS[type(head).__name__].task
    sidecars = read_sidecars(request.path) if request.path.is_file() else Sidecars()
    names = request.labels or sidecars.labels or loaded.class_names
    count = int(head.linear.out_features if task == "classify" else head.nc)
    if len(names) != count:
        raise SourceError(
            str(request.path),
            f"its head has {count} classes, but {len(names)} names were given",
            "check --labels or labels.json",
        )
    size = request.image_size or loaded.input_size
    largest = max(layout.strides, default=32)
    if any(s % largest for s in size):
        raise RequestError(
            f"--image-size {size[0]},{size[1]}",
            f"sides must be multiples of this model's largest stride, {largest}",
            "use e.g. 640",
        )
    usual = (
        0.0 if task == "classify" else family.score_threshold
    )  # the best five, whatever they are
    return ModelSpec(
        name=request.name,
        family=family.name,
        task=task,
        class_names=names,
        input_size=size,
        preprocess=preprocess_of(task, family.preprocess),
        layout=layout,
        score_threshold=usual if sidecars.score_threshold is None else sidecars.score_threshold,
        iou_threshold=family.iou_threshold,
    )


def _describe(request: SourceRequest) -> ModelSpec:
    return _spec(_load(request), request)


def _set_head(model: Any, spec: ModelSpec) -> None:
    """Choose the branch and make the head return its predictions alone."""
    head = model.model[-1]
    if spec.task == "classify":
        head.export = True
        return
    nms_free = spec.layout.nms_free
    if getattr(head, "one2one_cv2", None) is not None:
        head.end2end = nms_free
    head.export = True
    head.format = "onnx"
    head.dynamic = False
    head.shape = None
    cells = sum((spec.input_size[0] // s) * (spec.input_size[1] // s) for s in spec.layout.strides)
    head.max_det = min(300, cells)


def _export(request: SourceRequest) -> RawModel:
    loaded = _load(request)
    spec = _spec(loaded, request)
    model = loaded.model
    _set_head(model, spec)
    model.fuse(verbose=False)
    return RawModel(
        onnx_from_module(model, spec.input_size, output_names(spec.task), request), spec
    )


def _reference(request: SourceRequest, options: BackendOptions) -> Backend:
    """Open the unfused network in PyTorch."""
    from boxwright.backends.pytorch import PyTorchBackend

    loaded = _load(request)
    spec = _spec(loaded, request)
    _set_head(loaded.model, spec)
    return PyTorchBackend(loaded.model, spec.input_size, output_names(spec.task), options)


SOURCE = Source(
    name="ultralytics",
    suffixes=(".pt", ".yaml", ".yml"),
    inputs=_inputs,
    versions=_versions,
    describe=_describe,
    export=_export,
    reference=_reference,
    check=_check,
)
