"""What the checkpoints of YOLOv5, YOLOv6, YOLOv7, YOLOX, MMYOLO and MMDetection hold, as data.

None of those projects need be installed: pickles are read into inert records (`pickles`), and
`nets` has our own definitions of the networks. Nothing of a file ever runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from boxwright.errors import SourceError
from boxwright.nets import OpenmmlabConfig
from boxwright.sources.inert import Record, TensorRecord
from boxwright.sources.openmmlab_config import config_from_file, config_from_text, network_config
from boxwright.sources.pickles import DAMAGE, class_names_from, damaged, open_checkpoint
from boxwright.sources.project_records import recorded_from
from boxwright.sources.sidecars import COCO_NAMES, labels_from_json
from boxwright.sources.torch_zip import open_archive

__all__ = ["NativeFile", "is_project_pickle", "read_native"]

Project = Literal["openmmlab", "yolox", "yolov5", "yolov6", "yolov7"]
# A class's module behind the opcode that names it: GLOBAL, SHORT_BINUNICODE or BINUNICODE.
_PICKLED = re.compile(
    rb"(?:c|\x8c.|X.\x00\x00\x00)(?:models\.yolo|yolov6\.models\.yolo)(?![\w.])", re.DOTALL
)
_YOLOV7_LAYERS = frozenset({"IDetect", "IAuxDetect", "RepConv", "SPPCSPC", "MP", "SP", "ReOrg"})
# MMDetection numbers the steps of its necks, MMYOLO the places of all levels.
_MMDET_NAMES = (
    ("neck.reduce_layers.0.", "neck.reduce_layers.2."),
    ("neck.reduce_layers.1.", "neck.top_down_layers.0.1."),
    ("neck.top_down_blocks.0.", "neck.top_down_layers.0.0."),
    ("neck.top_down_blocks.1.", "neck.top_down_layers.1."),
    ("neck.downsamples.", "neck.downsample_layers."),
    ("neck.bottom_up_blocks.", "neck.bottom_up_layers."),
    ("neck.out_convs.", "neck.out_layers."),
    ("bbox_head.", "bbox_head.head_module."),
)


@dataclass(frozen=True, slots=True)
class NativeFile:
    """A checkpoint.

    Attributes:
        project: Whose network it is; YOLOv5 and YOLOv7 are told apart by their layers.
        tensors: The weights that the project itself would run, by the names that `nets` uses.
        class_count: Of the head.
        class_names: One per class id; from the file where it has as many.
        input_size: (height, width) in pixels, from the file or the project's default.
        strides: Of the levels.
        eps: Of the batch norms, where one value holds for all.
        spelled: The names of `tensors` as the file has them, where they were changed.
        facts: Of the layers, for pickled networks.
        config: Of an OpenMMLab network.
        settings: The whole OpenMMLab configuration.
        class_colors: As `ModelSpec` has them, from an OpenMMLab palette.
    """

    project: Project
    tensors: Mapping[str, npt.NDArray[Any]]
    class_count: int
    class_names: tuple[str, ...]
    input_size: tuple[int, int]
    strides: tuple[int, ...] = (8, 16, 32)
    eps: float = 1e-3
    spelled: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    config: OpenmmlabConfig | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    class_colors: tuple[str, ...] = ()


def is_project_pickle(path: Path) -> bool:
    """Whether a `.pt` file holds a network of the YOLOv5, YOLOv6 or YOLOv7 projects.

    Only the text of its pickle is looked at; a file that is no checkpoint gives False.
    """
    try:
        with open_archive(path) as archive:
            return _PICKLED.search(archive.pickle_bytes()) is not None
    except SourceError:
        return False


def read_native(path: Path, config: Path | None = None) -> NativeFile:
    """Read a checkpoint.

    Args:
        path: The .pt or .pth file.
        config: Configuration of an OpenMMLab checkpoint; None takes the one inside it.

    Raises:
        SourceError: It is damaged, of no known project, or lacks what is needed.
        UnsafeCheckpointError: It wants a class or function that is not admitted.
    """
    with open_checkpoint(path, projects=True) as root:
        try:
            fields = root if isinstance(root, dict) else {}
            network = _first(fields, "ema", "model") if fields else root
            if isinstance(network, Record):
                return _from_records(network, path)
            weights = _weights(fields, network)
            if any(n.startswith("bbox_head.") for n in weights):
                return _openmmlab(weights, fields, path, config)
            if any(n.startswith("backbone.backbone.") for n in weights):
                return _yolox(weights)
        except DAMAGE as error:
            raise damaged(path, error) from error
    raise SourceError(
        str(path),
        "it holds no network of YOLOv5, YOLOv6, YOLOv7, YOLOX, MMYOLO or MMDetection",
        "give the checkpoint that training wrote",
    )


def _first(fields: Mapping[Any, Any], *keys: str) -> Any:
    found = [fields.get(k) for k in keys]
    return next((f for f in found if f is not None and not isinstance(f, (int, float))), None)


def _weights(fields: Mapping[Any, Any], network: Any) -> dict[str, TensorRecord]:
    """Return the named weights of a checkpoint without a pickled network."""
    for place in (fields.get("state_dict"), network, fields):
        if isinstance(place, dict):
            found = {str(n): t for n, t in place.items() if isinstance(t, TensorRecord)}
            if found:
                return {n.removeprefix("module."): t for n, t in found.items()}
    return {}


def _default_names(count: int) -> tuple[str, ...]:
    return COCO_NAMES if count == len(COCO_NAMES) else tuple(f"class{i}" for i in range(count))


def _from_records(network: Record, path: Path) -> NativeFile:
    recorded = recorded_from(network)
    facts = recorded.facts
    epsilons = {f["eps"] for f in facts.values() if f["class"] == "BatchNorm2d" and "eps" in f}
    if len(epsilons) > 1 or any(type(e) is not float for e in epsilons):
        raise SourceError(str(path), "its batch norms have several eps", "export it to ONNX")
    strides = facts[""].get("strides") or (8, 16, 32)
    project: Project = "yolov6"
    head = facts.get("detect", {})
    if network.module.startswith("models."):
        kinds = {f["class"] for f in facts.values()}
        project = "yolov7" if kinds & _YOLOV7_LAYERS else "yolov5"
        layers = [int(n[6:]) for n in facts if n.startswith("model.") and n[6:].isdigit()]
        head = facts.get(f"model.{max(layers, default=0)}", {})
    count = head.get("nc", facts[""].get("nc"))
    if type(count) is not int or not 0 < count <= 100_000:
        raise ValueError("the network has no classes")
    names = network.get("names")
    found = class_names_from(names, count) if names else ()
    largest = max(strides)
    return NativeFile(
        project=project,
        tensors=recorded.tensors,
        class_count=count,
        class_names=found if len(found) == count else _default_names(count),
        input_size=(1280, 1280) if largest > 32 else (640, 640),
        strides=strides,
        eps=next(iter(epsilons), 1e-3),
        facts=facts,
    )


def _yolox(weights: Mapping[str, TensorRecord]) -> NativeFile:
    last = weights.get("head.cls_preds.0.weight")
    if last is None or not last.shape:
        raise ValueError("the head has no classes")
    stem = weights.get("backbone.backbone.stem.conv.conv.weight")
    small = stem is not None and stem.shape[0] < 32  # nano and tiny
    return NativeFile(
        project="yolox",
        tensors={n: t.array() for n, t in weights.items()},
        class_count=last.shape[0],
        class_names=_default_names(last.shape[0]),
        input_size=(416, 416) if small else (640, 640),
    )


def _openmmlab(
    weights: Mapping[str, TensorRecord], fields: Mapping[Any, Any], path: Path, given: Path | None
) -> NativeFile:
    meta = fields.get("meta")
    text = meta.get("cfg") if isinstance(meta, dict) else None
    if given is not None:
        settings = config_from_file(given)
    elif isinstance(text, str) and text:
        settings = config_from_text(text, str(path))
    else:
        lacking = "no meta" if not isinstance(meta, dict) else "no configuration (meta.cfg)"
        raise SourceError(
            str(path),
            f"it is an OpenMMLab checkpoint with {lacking}, which its weights cannot stand in for",
            "give the configuration that it was trained with: --config FILE.py",
        )
    config = network_config(settings, str(given or path))
    named = weights
    spelled: dict[str, str] = {}
    if config.project == "mmdet":
        spelled = {_renamed(n): n for n in weights}
        named = {new: weights[old] for new, old in spelled.items()}
    names = _class_names(meta, settings)
    return NativeFile(
        project="openmmlab",
        tensors={n: t.array() for n, t in named.items()},
        class_count=config.class_count,
        class_names=names
        if len(names) == config.class_count
        else _default_names(config.class_count),
        input_size=_input_size(settings),
        strides=config.strides,
        spelled=spelled,
        config=config,
        settings=settings,
        class_colors=_palette(meta, settings, config.class_count),
    )


def _renamed(name: str) -> str:
    for old, new in _MMDET_NAMES:
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def _class_names(meta: Any, settings: Mapping[str, Any]) -> tuple[str, ...]:
    facts = meta.get("dataset_meta") if isinstance(meta, dict) else None
    places = [facts, settings.get("metainfo"), meta]
    for place in places:
        for key in ("classes", "CLASSES"):
            found = place.get(key) if isinstance(place, dict) else None
            if isinstance(found, (list, tuple)) and all(isinstance(n, str) for n in found):
                return tuple(found)
    return ()


def _palette(meta: Any, settings: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Return the colours of the classes, or (): a palette may be the name of one, too."""
    facts = meta.get("dataset_meta") if isinstance(meta, dict) else None
    for place in (facts, settings.get("metainfo")):
        for key in ("palette", "PALETTE"):
            found = place.get(key) if isinstance(place, dict) else None
            if isinstance(found, (list, tuple)) and len(found) == count:
                try:
                    return labels_from_json(
                        {"classes": [""] * count, "palette": found}, "palette"
                    ).colors
                except SourceError:
                    continue
    return ()


def pipeline_of(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the steps of the test pipeline, outermost first; empty without one."""
    steps = settings.get("test_pipeline")
    found = [s for s in steps if isinstance(s, dict)] if isinstance(steps, (list, tuple)) else []
    inner = [t for s in found for t in s.get("transforms", ()) if isinstance(t, dict)]
    return [*found, *inner]


def _input_size(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Return (height, width): OpenMMLab writes (width, height)."""
    for step in pipeline_of(settings):
        for key in ("scale", "size"):
            found = step.get(key)
            if (
                isinstance(found, (list, tuple))
                and len(found) == 2
                and all(type(v) is int and 0 < v <= 1 << 16 for v in found)
            ):
                return (found[1], found[0])
        if type(step.get("width")) is int and type(step.get("height")) is int:
            return (step["height"], step["width"])
    return (640, 640)
