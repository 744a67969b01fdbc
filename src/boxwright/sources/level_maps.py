"""The bare network of an MMYOLO checkpoint as ONNX: a map per level, nothing decoded.

What MMYOLO's easydeploy writes with `--model-only`: simple operators for targets that decode by
themselves. The file is read back and decoded by its family before it is handed out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from boxwright import boxes, catalog
from boxwright.backends import BackendOptions
from boxwright.errors import GraphError, SourceError
from boxwright.graph.io import bytes_from_model, signature_of
from boxwright.graph.join import joined
from boxwright.sources import SourceRequest
from boxwright.sources.native import folded_network, kind_of, spec_of
from boxwright.sources.native_files import NativeFile, read_native
from boxwright.sources.torch_export import onnx_from_module
from boxwright.types import HeadJoin, ModelSpec

__all__ = ["export_level_maps"]

_BOX_PX, _SCORE = 0.05, 1e-4  # limits on what the maps decode to, as for every FP32 file


def export_level_maps(request: SourceRequest) -> onnx.ModelProto:
    """Return the graph; its outputs are map8, map16, ..., named by their strides.

    Args:
        request: A `.pth` checkpoint of MMYOLO.

    Raises:
        SourceError: It is none.
        GraphError: The maps do not decode to what the network says.
    """
    from boxwright.nets.level_maps import LevelMaps

    file = read_native(request.path, request.config)
    if file.config is None or file.config.project != "mmyolo":
        raise SourceError(
            f"--level-maps of {request.path}",
            "its project exports no such maps, MMYOLO's checkpoints alone have them",
            "drop the option: the raw head needs no NMS, either",
        )
    kind, spec = kind_of(file, request), spec_of(file, request)
    network = folded_network(file, spec, kind, str(request.path))
    anchors = len(file.config.anchors[0]) if file.config.anchors else 0
    module = LevelMaps(network, kind, anchors).eval()
    names = tuple(f"map{stride}" for stride in file.strides)
    model = onnx_from_module(module, spec.input_size, names, request)
    onnx.helper.set_model_props(model, {"names": repr(dict(enumerate(spec.class_names)))})
    _prove(model, file, spec, kind, network, request)
    return model


def _prove(
    model: onnx.ModelProto,
    file: NativeFile,
    spec: ModelSpec,
    kind: str,
    network: Any,
    request: SourceRequest,
) -> None:
    """Decode the maps by their family and compare with the network's own decode."""
    import torch

    what = f"level maps of {request.path.name}"
    _, match = catalog.recognise(signature_of(model), kind, what)
    assert match.join is not None and file.config is not None
    join = match.join
    if file.config.anchors:
        join = dataclasses.replace(join, anchors=file.config.anchors)
    single = joined(model, join, what)
    runtime = catalog.backend("onnxruntime").open_bytes(
        bytes_from_model(single, what), BackendOptions(device="cpu")
    )
    count = request.batch or 1
    picture = np.random.default_rng(0).random((count, 3, *spec.input_size), np.float32)
    picture = picture * 255 * np.float32(spec.preprocess.scale)
    mean, std = (
        np.array(v, np.float32).reshape(1, 3, 1, 1)
        for v in (spec.preprocess.mean, spec.preprocess.std)
    )
    picture = (picture - mean) / std
    found = next(iter(runtime.infer({"images": picture}).values()))
    with torch.inference_mode():
        wanted = network(torch.from_numpy(picture)).numpy()
    wanted = wanted[:, _anchors_first(join, spec)] if join.anchors else wanted
    ours = boxes.decode(found, match.layout, spec.input_size)
    theirs = boxes.decode(wanted, spec.layout, spec.input_size)
    for name, limit, a, b in zip(
        ("boxes, px", "scores"), (_BOX_PX, _SCORE), ours, theirs, strict=True
    ):
        worst = float(np.abs(a - b).max()) if a.shape == b.shape else np.inf
        # Boxes far outside of the picture are large numbers.
        scale = 1.0 if name == "scores" else max(1.0, float(np.abs(b).max()) / 1000)
        if not worst <= limit * scale:
            raise GraphError(what, f"they decode to other {name}: {worst:.3g} off", "report it")


def _anchors_first(join: HeadJoin, spec: ModelSpec) -> npt.NDArray[np.intp]:
    """Return where the network, anchors fastest, has the rows of maps, cells fastest."""
    order, start, count = [], 0, len(join.anchors[0])
    for stride in join.strides:
        cells = (spec.input_size[0] // stride) * (spec.input_size[1] // stride)
        order.append(start + np.arange(cells * count).reshape(cells, count).T.ravel())
        start += cells * count
    return np.concatenate(order)
