"""Checkpoints of our own networks (.safetensors): weights, and in the header what they are of.

A safetensors file holds tensors and text, never code, so there is nothing in it to trust. The
header says which network to build (`boxwright.network`) and what the model is (`boxwright.spec`,
as in the ONNX files), so that the file explains itself without torch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from boxwright import catalog
from boxwright.backends import Backend, BackendOptions
from boxwright.errors import MissingExtraError, RequestError, SourceError, nearest_name
from boxwright.nets import NETWORKS, YoloxConfig, build_network, fused_network, network_name
from boxwright.sources import RawModel, Source, SourceRequest
from boxwright.sources.local_files import storing, sync_folder
from boxwright.sources.torch_export import (
    check_image_size,
    check_opset,
    check_packages,
    exporter_versions,
    onnx_from_module,
)
from boxwright.stamps import Stamp, metadata_from_stamp, stamp_from_metadata
from boxwright.types import HeadLayout, ModelSpec

__all__ = ["SOURCE", "Header", "new_spec", "read_header", "save_checkpoint"]

_NETWORK_KEY = "boxwright.network"
_OUTPUT = "output"  # as the official YOLOX export names it
_FLOATS = ("F32", "F16", "BF16", "F64")
_NAMED = 4  # differing weights that an error lists
_LAYOUTS = {
    "yolox": HeadLayout(axes="nac", box_encoding="grid_exp", objectness=True, strides=(8, 16, 32))
}


@dataclass(frozen=True, slots=True)
class Header:
    """What a checkpoint of ours says of itself.

    Attributes:
        config: What its network is built from.
        spec: What the model is.
        tensors: Stored type (`F32`) and shape of each weight, by name.
    """

    config: YoloxConfig
    spec: ModelSpec
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]


# Reading


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    """Open a safetensors file.

    Raises:
        MissingExtraError: safetensors is not installed.
        SourceError: The file is missing, unreadable or damaged.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise MissingExtraError(f"safetensors, for {path.name}", "export") from None
    try:
        with safe_open(str(path), framework=framework) as stored:
            yield stored
    except FileNotFoundError:
        raise SourceError(str(path), "there is no such file", "check the path") from None
    except OSError as error:
        raise SourceError(
            str(path), f"it cannot be read ({error.strerror or error})", "check it"
        ) from None
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")[:120]
        raise SourceError(
            str(path), f"it is not a whole safetensors file ({reason})", _advice(path)
        ) from None


def _advice(path: Path) -> str:
    with path.open("rb") as stream:
        if stream.read(23) == b"version https://git-lfs":
            return "it is a git-lfs pointer: run git lfs pull"
    return "copy or write it again"


def read_header(path: Path) -> Header:
    """Read what a checkpoint says of itself, without torch.

    Raises:
        MissingExtraError: safetensors is not installed.
        SourceError: The file is missing, damaged, or no checkpoint of ours.
    """
    what = str(path)
    with _opened(path, "numpy") as stored:
        metadata = stored.metadata() or {}
        parts = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118
        tensors = {n: (str(s.get_dtype()), tuple(s.get_shape())) for n, s in parts.items()}
    try:
        stamp = stamp_from_metadata(metadata, what)
        if stamp is None or _NETWORK_KEY not in metadata:
            raise SourceError(
                what,
                f"its header does not say what network it is of (no {_NETWORK_KEY})",
                "give a .safetensors that Boxwright wrote, or the .pt or .onnx of the model",
            )
        config = _config(json.loads(metadata[_NETWORK_KEY]), what)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise SourceError(
            what, f"its header is no JSON of ours ({reason})", "write the checkpoint again"
        ) from None
    return Header(config, _checked(stamp.spec, config, what), tensors)


def _config(network: Any, what: str) -> YoloxConfig:
    """Read the header's network.

    Raises:
        SourceError: It is none that can be built.
    """

    def refuse(found: str) -> NoReturn:
        raise SourceError(what, found, "update Boxwright, or write the checkpoint again")

    if not isinstance(network, dict) or network.keys() != {"name", "config"}:
        refuse(f"{_NETWORK_KEY} in its header is not an object of name and config")
    name, config = network["name"], network["config"]
    if not isinstance(name, str) or name not in NETWORKS:
        near = nearest_name(str(name), NETWORKS)
        hint = f", perhaps {near} is meant" if near else ""
        refuse(f"there is no network {str(name)[:60]!r}{hint} (known: {', '.join(NETWORKS)})")
    if not isinstance(config, dict):
        refuse(f"the config of {name} in its header is not an object")
    try:
        return NETWORKS[name].from_dict(config)
    except (TypeError, ValueError) as error:
        refuse(f"its header holds no valid config of {name} ({str(error)[:120]})")


def _checked(spec: ModelSpec, config: YoloxConfig, what: str) -> ModelSpec:
    """Return the header's spec when it is sound and of this network.

    Raises:
        SourceError: It is not.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        spec = TypeAdapter(ModelSpec).validate_python(spec.as_dict())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        found = f"its header holds no valid spec ({place}: {first['msg']})"
        raise SourceError(what, found, "write the checkpoint again") from None
    name = network_name(config)
    height, width = spec.input_size
    numbers = (spec.preprocess.scale, *spec.preprocess.mean, *spec.preprocess.std)
    faults = {
        f"its spec is of family {spec.family}, its network is {name}": spec.family != name,
        f"its spec's layout is not that of {name}": spec.layout != _LAYOUTS[name],
        f"its spec names {len(spec.class_names)} classes, its network has {config.class_count}": (
            len(spec.class_names) != config.class_count
        ),
        f"its input size {height},{width} is not made of multiples of 32": (
            height % 32 != 0 or width % 32 != 0 or min(height, width) < 32
        ),
        "its thresholds are not between 0 and 1": not (
            0 <= spec.score_threshold <= 1 and 0 <= spec.iou_threshold <= 1
        ),
        "its preprocessing is not made of usable numbers": (
            not all(math.isfinite(v) for v in numbers)
            or 0 in spec.preprocess.std
            or not 0 <= spec.preprocess.pad_value <= 255
        ),
    }
    for found, wrong in faults.items():
        if wrong:
            raise SourceError(what, found, "write the checkpoint again")
    return spec


def _load(path: Path, header: Header) -> Any:
    """Build the network and load the weights, every one of them.

    Raises:
        SourceError: The weights are not those of the network, or not finite.
    """
    import torch

    module = _compared(path, header)
    wanted = module.state_dict()
    with _opened(path, "pt") as stored:
        # A copy, since a file that changes under a memory map ends the process.
        weights = {n: stored.get_tensor(n).to(t.dtype, copy=True) for n, t in wanted.items()}
    broken = [n for n, t in weights.items() if not bool(torch.isfinite(t).all())]
    if broken:
        raise SourceError(
            str(path),
            f"{len(broken)} of its weights hold NaN or infinity ({broken[0]} is the first)",
            "give a checkpoint from before training diverged",
        )
    module.load_state_dict(weights, strict=True, assign=True)
    return module.eval()


def _compared(path: Path, header: Header) -> Any:
    """Return the network without weights, if those of the header have its names and shapes.

    Raises:
        SourceError: They do not.
    """
    import torch

    with torch.device("meta"):  # shapes without memory: a wrong file costs nothing
        module = build_network(header.config)
    wanted = {n: (t.is_floating_point(), tuple(t.shape)) for n, t in module.state_dict().items()}
    differ = [f"{name} is missing" for name in wanted if name not in header.tensors]
    for name, (dtype, shape) in header.tensors.items():
        if name not in wanted:
            differ.append(f"{name} is not of the network")
            continue
        floating, wanted_shape = wanted[name]
        if shape != wanted_shape:
            differ.append(f"{name} is {list(shape)}, not {list(wanted_shape)}")
        elif dtype not in (_FLOATS if floating else ("I64",)):
            differ.append(f"{name} is of type {dtype}, not {'F32' if floating else 'I64'}")
    if differ:
        listed = ", ".join(differ[:_NAMED]) + (", ..." if len(differ) > _NAMED else "")
        raise SourceError(
            str(path),
            f"{len(differ)} weights do not fit the {network_name(header.config)} network of its "
            f"header: {listed}",
            "write the checkpoint again with the right config",
        )
    return module


# Writing


def new_spec(
    config: YoloxConfig, name: str, class_names: Sequence[str], input_size: tuple[int, int]
) -> ModelSpec:
    """Return the spec of a network that is fed and read as its family does it.

    Args:
        config: What the network is built from.
        name: Of the model.
        class_names: One per class.
        input_size: Network input (height, width) in pixels, multiples of 32.
    """
    family = catalog.family(network_name(config))
    return ModelSpec(
        name=name,
        family=family.name,
        task="detect",
        class_names=tuple(class_names),
        input_size=input_size,
        preprocess=family.preprocess,
        layout=_LAYOUTS[family.name],
        score_threshold=family.score_threshold,
        iou_threshold=family.iou_threshold,
    )


def save_checkpoint(
    path: Path, model_state: Mapping[str, Any], config: YoloxConfig, spec: ModelSpec
) -> None:
    """Write a checkpoint; it appears whole or not at all, the same bytes for the same weights.

    Args:
        path: Of the `.safetensors` file; one that is there is replaced.
        model_state: The network's `state_dict()`, unfused.
        config: What the network is built from.
        spec: What the model is.

    Raises:
        MissingExtraError: safetensors is not installed.
        SourceError: The spec is not of this network, or the weights do not fit it.
        StoreError: The disk is full or the place is not writable.
    """
    import torch

    try:
        from safetensors.torch import save
    except ImportError:
        raise MissingExtraError(f"safetensors, for {path.name}", "export") from None
    spec = _checked(spec, config, str(path))
    tensors = {n: t.detach().cpu().contiguous().clone() for n, t in model_state.items()}
    types = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
    stored = {n: (types.get(t.dtype, str(t.dtype)), tuple(t.shape)) for n, t in tensors.items()}
    _compared(path, Header(config, spec, stored))
    network = {"name": network_name(config), "config": config.as_dict()}
    metadata = {**metadata_from_stamp(Stamp(spec)), _NETWORK_KEY: json.dumps(network)}
    data = _with_sorted_header(save(tensors, metadata=metadata))
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with storing(path):
        try:
            with part.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
            sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


def _with_sorted_header(data: bytes) -> bytes:
    """Return the same file with sorted header keys: the library writes them in random order."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors behind it stay aligned
    return len(header).to_bytes(8, "little") + header + data[start:]


# The source


def _inputs(request: SourceRequest) -> tuple[Path, ...]:
    return (request.path,)


def _versions() -> dict[str, str]:
    return exporter_versions("torch", "safetensors")


def _check(request: SourceRequest) -> None:
    """Refuse what cannot succeed, before torch is imported."""
    check_packages(request, "torch", "safetensors")
    check_opset(request)
    if request.family is not None:
        raise RequestError(
            f"--family {request.family}", "a checkpoint says its family itself", "drop the option"
        )
    if request.head != "auto":
        raise RequestError(
            f"--head {request.head}", f"{request.path.name} has a single head", "use --head auto"
        )
    if request.trust_checkpoint:
        raise RequestError(
            "--trust-checkpoint", "a safetensors file holds no code to trust", "drop the option"
        )
    check_image_size(request)


def _spec(header: Header, request: SourceRequest) -> ModelSpec:
    """Apply the request's overrides to the spec of the file."""
    spec = header.spec
    names = request.labels or spec.class_names
    if len(names) != len(spec.class_names):
        raise SourceError(
            str(request.path),
            f"it has {len(spec.class_names)} classes, but {len(names)} names were given",
            "check --labels",
        )
    size = request.image_size or spec.input_size
    return dataclasses.replace(spec, name=request.name, class_names=names, input_size=size)


def _describe(request: SourceRequest) -> ModelSpec:
    return _spec(read_header(request.path), request)


def _export(request: SourceRequest) -> RawModel:
    header = read_header(request.path)
    spec = _spec(header, request)
    module = fused_network(_load(request.path, header))
    return RawModel(onnx_from_module(module, spec.input_size, _OUTPUT, request), spec)


def _reference(request: SourceRequest, options: BackendOptions) -> Backend:
    """Open the unfused network in PyTorch."""
    from boxwright.backends.pytorch import PyTorchBackend

    header = read_header(request.path)
    spec = _spec(header, request)
    return PyTorchBackend(_load(request.path, header), spec.input_size, _OUTPUT, options)


SOURCE = Source(
    name="boxwright",
    suffixes=(".safetensors",),
    inputs=_inputs,
    versions=_versions,
    describe=_describe,
    export=_export,
    reference=_reference,
    check=_check,
)
