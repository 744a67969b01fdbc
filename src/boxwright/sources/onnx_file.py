"""A raw ONNX file of a known family as a source."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from onnx import version_converter

from boxwright import catalog
from boxwright.backends import Backend, BackendOptions
from boxwright.errors import BackendError, GraphError, RequestError, SourceError
from boxwright.families import Family, Match, class_names_from_metadata
from boxwright.graph.builder import default_opset
from boxwright.graph.io import bytes_from_model, model_from_file, read_stamp, signature_of
from boxwright.graph.join import joined
from boxwright.graph.shapes import dimensions, free_batch, real_inputs, set_batch, static_dimension
from boxwright.graph.simplify import simplified
from boxwright.sources import RawModel, Source, SourceRequest
from boxwright.sources.native import openmmlab_preprocess
from boxwright.sources.openmmlab_config import config_from_file, network_config
from boxwright.sources.sidecars import read_sidecars
from boxwright.types import DEFAULT_OPSET, GraphSignature, ModelSpec, Preprocess

__all__ = ["SOURCE", "joined_bytes"]

_END2END = {"num_dets", "det_boxes", "num_detections"}
_DATA_DEPENDENT = frozenset({"NonMaxSuppression", "NonZero", "Compress", "Unique"})
_PLUGINS = frozenset(
    {"EfficientNMS_TRT", "BatchedNMS_TRT", "BatchedNMSDynamic_TRT", "TRTBatchedNMS"}
)


def _inputs(request: SourceRequest) -> tuple[Path, ...]:
    config = (request.config,) if request.config is not None else ()
    return (request.path, *config, *read_sidecars(request.path).files)


def _versions() -> dict[str, str]:
    own = {n: version(n) for n in ("onnx", "onnxruntime", "onnxslim")}
    return {**own, **catalog.family_packages()}


def _check(request: SourceRequest) -> None:
    if request.trust_checkpoint:
        raise RequestError(
            "--trust-checkpoint", "an ONNX file holds no code to trust", "drop the option"
        )
    if request.config is not None and not request.config.is_file():
        raise SourceError(str(request.config), "there is no such file", "check --config")


def _spec(model: onnx.ModelProto, request: SourceRequest) -> ModelSpec:
    """Recognise the graph and name its classes."""
    stamp = read_stamp(model, str(request.path))
    outputs = {o.name for o in model.graph.output}
    ours = bool(stamp and stamp.target and stamp.target.outputs == "end2end")
    if ours or (outputs & _END2END and request.family is None):
        raise SourceError(
            str(request.path),
            f"it holds NMS already (outputs {', '.join(sorted(outputs))})",
            "give the raw export"
            + ("" if ours else ", or say with --family whose detections they are"),
        )
    plugins = sorted(_PLUGINS & {n.op_type for n in model.graph.node})
    if plugins:
        raise SourceError(
            str(request.path),
            f"it holds the plugin {plugins[0]}, which TensorRT alone runs and nothing proves",
            "give the raw export; --outputs end2end --nms efficient_nms adds the plugin again",
        )
    if stamp and stamp.target and stamp.target.input == "image":
        raise SourceError(
            str(request.path), "it takes pictures, not the network's tensor", "give the raw export"
        )
    signature = signature_of(model)
    inputs = real_inputs(model.graph)
    picture = _picture_input(model)
    height, width = (static_dimension(picture, 2), static_dimension(picture, 3))
    if len(dimensions(picture)) != 4 or height is None or width is None:
        shapes = ", ".join(f"{i.name} {list(dimensions(i))}" for i in inputs)
        raise SourceError(
            str(request.path),
            f"its inputs are {shapes}, not one picture tensor (N, 3, H, W) of fixed size",
            "give --image-size, or export it with a fixed one",
        )
    if request.image_size is not None and request.image_size != (height, width):
        raise RequestError(
            f"--image-size {request.image_size[0]},{request.image_size[1]}",
            f"{request.path} is fixed to {height},{width}",
            "drop the option, or export the checkpoint itself",
        )
    if stamp is not None and request.family is None:
        if request.config is not None:
            raise RequestError(
                f"--config {request.config}", f"{request.path} says itself what it is", "drop it"
            )
        return _renamed(stamp.spec, request)
    family, match = _recognised(signature, request)
    fixed = {name for name, _ in match.join.fixed_inputs} if match.join else set()
    if {i.name for i in inputs} - fixed != {picture.name}:
        shapes = ", ".join(f"{i.name} {list(dimensions(i))}" for i in inputs)
        raise SourceError(str(request.path), f"its inputs are {shapes}", "export it with one")
    sidecars = read_sidecars(request.path)
    names = request.labels or sidecars.labels or class_names_from_metadata(signature)
    names = names or tuple(f"class{i}" for i in range(match.class_count))
    if match.class_count and len(names) != match.class_count:
        raise SourceError(
            str(request.path),
            f"its head has {match.class_count} classes, but {len(names)} names were given",
            "check --labels or labels.json",
        )
    if not names:
        raise SourceError(
            str(request.path), "the file does not name its classes", "give them with --labels"
        )
    score = 0.0 if match.task == "classify" else family.score_threshold
    return ModelSpec(
        name=request.name,
        family=family.name,
        task=match.task,
        class_names=names,
        input_size=(height, width),
        preprocess=_preprocess(request, match.preprocess or family.preprocess, (height, width)),
        layout=match.layout,
        score_threshold=(score if sidecars.score_threshold is None else sidecars.score_threshold),
        iou_threshold=family.iou_threshold,
    )


def _recognised(signature: GraphSignature, request: SourceRequest) -> tuple[Family, Match]:
    """Recognise a graph; anchors are those of the OpenMMLab configuration that was given."""
    family, match = catalog.recognise(signature, request.family, str(request.path))
    join = match.join
    if request.config is None or join is None or join.kind != "anchor_levels":
        return family, match
    config = network_config(config_from_file(request.config), str(request.config))
    if [len(level) for level in config.anchors] != [len(level) for level in join.anchors]:
        raise RequestError(
            f"--config {request.config}",
            f"its anchors are not those of {request.path}, which has {len(join.anchors)} levels "
            f"of {len(join.anchors[0])}",
            "give the configuration that the file was exported with",
        )
    return family, dataclasses.replace(
        match, join=dataclasses.replace(join, anchors=config.anchors)
    )


def _preprocess(
    request: SourceRequest, usual: Preprocess, input_size: tuple[int, int]
) -> Preprocess:
    """Return how pictures are fed: by the OpenMMLab configuration that was given, or as usual."""
    if request.config is None:
        return usual
    settings = config_from_file(request.config)
    config = network_config(settings, str(request.config))
    return openmmlab_preprocess(settings, config, input_size)


def _picture_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """Return the input of pictures: the one with four axes, or the first where none has."""
    inputs = real_inputs(model.graph)
    return next((i for i in inputs if len(dimensions(i)) == 4), inputs[0])


def _single_head(model: onnx.ModelProto, request: SourceRequest) -> onnx.ModelProto:
    """Return the graph with its project's outputs joined to one; most have one already."""
    if read_stamp(model, str(request.path)) is not None and request.family is None:
        return model
    _, match = _recognised(signature_of(model), request)
    return model if match.join is None else joined(model, match.join, str(request.path))


def _renamed(spec: ModelSpec, request: SourceRequest) -> ModelSpec:
    """Apply the request's overrides to the spec that the file itself carries."""
    names = request.labels or spec.class_names
    if len(names) != len(spec.class_names):
        raise SourceError(
            str(request.path),
            f"it has {len(spec.class_names)} classes, but {len(names)} names were given",
            "check --labels",
        )
    return dataclasses.replace(spec, name=request.name, class_names=names)


def _reason(error: Exception) -> str:
    """Return what a converter's assertion says, without the place in its source."""
    return " ".join(str(error).split()).rsplit("failed: ", 1)[-1][:120]


def _loaded(request: SourceRequest) -> onnx.ModelProto:
    """Read the file, refuse what is no FP32 graph, and settle a dynamic picture size.

    Raises:
        SourceError: The weights are float16 or quantised, or the size stays open.
    """
    model = model_from_file(request.path)
    _check_single(model, request)
    return _settled(model, request)


def _check_single(model: onnx.ModelProto, request: SourceRequest) -> None:
    kinds = {n.op_type for n in model.graph.node}
    if kinds & {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger"}:
        raise SourceError(
            str(request.path), "it is quantised already", "give the FP32 export of the model"
        )
    if any(i.data_type == onnx.TensorProto.FLOAT16 for i in model.graph.initializer):
        raise SourceError(
            str(request.path), "its weights are float16", "give the FP32 export of the model"
        )


def _settled(model: onnx.ModelProto, request: SourceRequest) -> onnx.ModelProto:
    """Settle a dynamic picture size.

    Raises:
        SourceError: It stays open.
    """
    inputs = real_inputs(model.graph)
    size = request.image_size
    if size is None or len(inputs) != 1 or len(dimensions(inputs[0])) != 4:
        return model  # a second input's values are not known here
    if None not in (static_dimension(inputs[0], 2), static_dimension(inputs[0], 3)):
        return model
    return _with_size(model, size, str(request.path))


def _with_size(model: onnx.ModelProto, size: tuple[int, int], what: str) -> onnx.ModelProto:
    """Fix a dynamic picture size; the outputs' sizes are those of a run."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    tensor = real_inputs(fixed.graph)[0]
    for axis, side in zip((2, 3), size, strict=True):
        tensor.type.tensor_type.shape.dim[axis].dim_value = side
    del fixed.graph.value_info[:]
    count = static_dimension(tensor, 0) or 1
    runtime = catalog.backend("onnxruntime").open_bytes(
        bytes_from_model(fixed, what), BackendOptions(device="cpu")
    )
    outputs = runtime.infer({tensor.name: np.zeros((count, 3, *size), np.float32)})
    counts_what_it_sees = any(n.op_type in _DATA_DEPENDENT for n in _all_nodes(fixed.graph))
    for value in fixed.graph.output:
        shape = outputs[value.name].shape
        for axis, side in enumerate(shape):
            # How many detections there are is not told by one run; how many columns they have is.
            columns = len(shape) == 3 and axis == 2
            if axis and (columns or not counts_what_it_sees):
                value.type.tensor_type.shape.dim[axis].dim_value = side
    return fixed


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _all_nodes(attribute.g)


def _export(request: SourceRequest) -> RawModel:
    model = _loaded(request)
    spec = _spec(model, request)
    model = _single_head(model, request)
    original = default_opset(model)
    wanted = request.opset or max(original, DEFAULT_OPSET)
    if original != wanted:
        try:
            model = version_converter.convert_version(model, wanted)
        except (RuntimeError, onnx.checker.ValidationError) as error:
            raise GraphError(
                f"--opset {wanted}",
                f"{request.path} has opset {original}, which onnx cannot convert to {wanted} "
                f"({_reason(error)})",
                f"use --opset {original}",
            ) from None
    if request.simplify:
        model = simplified(model, str(request.path))
    return RawModel(_with_names(_with_batch(model, request)), spec)


def _with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which every node has a name of its own: FP16 and INT8 tell layers by it."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    taken = {n.name for n in result.graph.node}
    seen = {""}
    for index, node in enumerate(result.graph.node):
        name, number = node.name or f"{node.op_type}_{index}", 0
        while name in seen or (name != node.name and name in taken):
            number += 1
            name = f"{node.name or node.op_type}_{index}_{number}"
        node.name = name
        seen.add(name)
    return result


def _with_batch(model: onnx.ModelProto, request: SourceRequest) -> onnx.ModelProto:
    """Give the graph the batch that was asked for, and prove it by running."""
    stored = static_dimension(real_inputs(model.graph)[0], 0)
    if request.batch is None:
        if stored is None:
            return model
        freed = free_batch(model)
        _prove_batch(model, freed, str(request.path))
        return freed
    if stored is None:
        return set_batch(model, request.batch)
    if stored == request.batch:
        return model
    freed = free_batch(model)
    _prove_batch(model, freed, str(request.path))
    return set_batch(freed, request.batch)


def _prove_batch(fixed: onnx.ModelProto, freed: onnx.ModelProto, what: str) -> None:
    """Run two pictures together and apart; the results must be the same.

    Raises:
        GraphError: They are not, or the freed graph does not run.
    """
    onnxruntime = catalog.backend("onnxruntime")
    one = real_inputs(fixed.graph)[0]
    shape = [int(d) for d in dimensions(one)]
    pictures = np.random.default_rng(0).random((2, *shape[1:]), np.float32)
    options = BackendOptions(device="cpu")
    try:
        alone = onnxruntime.open_bytes(bytes_from_model(fixed, what), options)
        together = onnxruntime.open_bytes(bytes_from_model(freed, what), options)
        expected = [alone.infer({one.name: pictures[i : i + 1]}) for i in range(2)]
        found = together.infer({one.name: pictures})
    except BackendError as error:
        raise GraphError(
            f"dynamic batch of {what}",
            f"the graph is bound to batch 1 ({error.found})",
            "use --batch 1",
        ) from None
    for name, values in found.items():
        apart = np.concatenate([e[name] for e in expected])
        if values.shape != apart.shape or not np.allclose(values, apart, rtol=1e-4, atol=1e-4):
            raise GraphError(
                f"dynamic batch of {what}",
                f"output {name} of two pictures together differs from each alone",
                "use --batch 1",
            )


def _describe(request: SourceRequest) -> ModelSpec:
    """Say what a file is; one that another exporter made FP16 or INT8 can be run, too."""
    return _spec(_settled(model_from_file(request.path), request), request)


def joined_bytes(request: SourceRequest) -> bytes | None:
    """Return the file with its outputs joined to one, or None where it has one already."""
    model = _settled(model_from_file(request.path), request)
    single = _single_head(model, request)
    return None if single is model else bytes_from_model(single, str(request.path))


def _reference(request: SourceRequest, options: BackendOptions) -> Backend:
    data = joined_bytes(request)
    if data is not None:
        return catalog.backend("onnxruntime").open_bytes(data, options)
    return catalog.backend("onnxruntime").open(request.path, options)


SOURCE = Source(
    name="onnx",
    suffixes=(".onnx",),
    inputs=_inputs,
    versions=_versions,
    describe=_describe,
    export=_export,
    reference=_reference,
    check=_check,
)
