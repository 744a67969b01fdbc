"""Checks a repository: what its files say, whether they are whole, and what the server says."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwright.engine_record import check_fits, read_record
from boxwright.errors import BackendError, BoxwrightError, MissingExtraError, SourceError
from boxwright.onnx_fields import read_graph
from boxwright.ort_providers import note_on_nms
from boxwright.serve.model_config import config_from_text
from boxwright.serve.repository_record import (
    CONFIG,
    ModelRecord,
    damaged_files,
    models_in,
    read_model_record,
    version_numbers_in,
)
from boxwright.types import TensorInfo

__all__ = ["Finding", "check_repository", "load_on_server"]

_FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan", "python": "model.py"}
_LOAD_SECONDS = 600
_DALI = ("dali.py", "model.dali")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about one model.

    Attributes:
        model: Name of the model.
        level: `error`, or `note` for what may be meant so.
        text: What was found.
    """

    model: str
    level: str
    text: str


def check_repository(repository: Path) -> list[Finding]:
    """Check every model without a server; no finding of level `error` means that all is well.

    Raises:
        RequestError: There is no such folder.
        MissingExtraError: tritonclient is not installed.
    """
    names = models_in(repository)
    found: list[Finding] = []
    configs: dict[str, dict[str, Any]] = {}
    for name in names:
        folder = repository / name
        try:
            record = read_model_record(folder)
            configs[name] = _configs(folder)
        except MissingExtraError:
            raise
        except BoxwrightError as error:
            found.append(Finding(name, "error", str(error)))
            continue
        found += [Finding(name, "error", t) for t in _of_model(folder, record, configs[name])]
        found += [Finding(name, "note", text) for text in _edits(folder, record)]
        found += [Finding(name, "note", text) for text in _slow_nms(folder, configs[name][CONFIG])]
    for name in configs:
        for path, config in configs[name].items():
            texts = _of_ensemble(config, path, configs)
            found += [Finding(name, "error", text) for text in texts]
    return found


def _configs(folder: Path) -> dict[str, Any]:
    """Return the parsed configurations of a model, by path.

    Raises:
        SourceError: One is missing or damaged.
    """
    paths = [folder / CONFIG, *sorted((folder / "configs").glob("*.pbtxt"))]
    if not paths[0].is_file():
        raise SourceError(str(paths[0]), "there is no such file", "build the repository again")
    return {
        str(p.relative_to(folder)): config_from_text(p.read_text(encoding="utf-8"), str(p))
        for p in paths
    }


def _of_model(folder: Path, record: ModelRecord | None, configs: dict[str, Any]) -> Iterator[str]:
    numbers = version_numbers_in(folder)
    if not numbers:
        yield "it has no version"
    for path, config in configs.items():
        if config.name not in ("", folder.name):
            yield f"{path}: its name is {config.name}, its folder's {folder.name}"
        asked = list(config.version_policy.specific.versions)
        for number in [n for n in asked if n not in numbers]:
            yield f"{path}: version {number} is served, and not there"
        yield from _labels(folder, path, config)
        for sample in config.model_warmup:
            for name, value in sample.inputs.items():
                file = value.input_data_file
                if file and not (folder / "warmup" / file).is_file():
                    yield f"{path}: warm-up of {name} reads warmup/{file}, which is not there"
    config = configs[CONFIG]
    served = list(config.version_policy.specific.versions) or numbers[-1:]
    for number in numbers:
        missing = _missing_file(folder / str(number), config)
        if missing:
            yield f"version {number}: {missing} is not there"
        elif number in served:
            yield from _of_file(folder / str(number), config)
        if record is not None:
            for name in damaged_files(folder, record, number):
                if name != missing:
                    yield f"version {number}: {name} is not as it was put there"


def _missing_file(folder: Path, config: Any) -> str:
    if config.backend == "dali":
        return "" if any((folder / n).is_file() for n in _DALI) else _DALI[0]
    name = config.default_model_filename or _FILES.get(config.backend, "")
    return "" if not name or (folder / name).is_file() else name


def _labels(folder: Path, path: str, config: Any) -> Iterator[str]:
    text = config.parameters["class_names"].string_value if config.parameters else ""
    names = json.loads(text) if text else None
    for output in config.output:
        if output.label_filename:
            file = folder / output.label_filename
            if not file.is_file():
                yield f"{path}: {output.label_filename} is not there"
            elif names is not None and file.read_text(encoding="utf-8").splitlines() != names:
                yield f"{output.label_filename} has other names than the parameter class_names"


def _of_file(folder: Path, config: Any) -> Iterator[str]:
    """Compare a served file with its configuration."""
    if config.backend == "tensorrt" or (folder / "model.plan").is_file():
        yield from _of_plan(folder / "model.plan", config)
    if config.backend != "onnxruntime":
        return
    from boxwright.graph.io import model_from_file, tensor_infos
    from boxwright.graph.shapes import real_inputs

    path = folder / (config.default_model_filename or "model.onnx")
    try:
        model = model_from_file(path)
    except SourceError as error:
        yield str(error)
        return
    inputs = tensor_infos(real_inputs(model.graph))
    yield from _tensors("input", config.input, inputs, config.max_batch_size)
    outputs = tensor_infos(list(model.graph.output))
    yield from _tensors("output", config.output, outputs, config.max_batch_size)


def _tensors(
    kind: str, configured: Any, infos: tuple[TensorInfo, ...], max_batch: int
) -> Iterator[str]:
    from boxwright.serve.model_config import triton_dtype

    known = {i.name: i for i in infos}
    names = [t.name for t in configured]
    for name in [n for n in known if n not in names and kind == "input"]:
        yield f"the file has the {kind} {name}, the configuration has not"
    for tensor in configured:
        info = known.get(tensor.name)
        if info is None:
            yield f"the configuration has the {kind} {tensor.name}, the file has {', '.join(known)}"
            continue
        if triton_dtype(info, kind) != _dtype_name(tensor):
            yield f"{kind} {tensor.name} is {_dtype_name(tensor)}, in the file {info.dtype}"
        shape = info.shape[1:] if max_batch else info.shape
        if not _fits(tuple(tensor.dims), shape):
            yield f"{kind} {tensor.name} has dims {list(tensor.dims)}, in the file {list(shape)}"
        if max_batch and isinstance(info.shape[0], int):
            yield f"{kind} {tensor.name}: the file's batch is fixed to {info.shape[0]}"


def _dtype_name(tensor: Any) -> str:
    descriptor = tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type
    return str(descriptor.values_by_number[tensor.data_type].name)


def _fits(asked: tuple[int, ...], there: tuple[int | str, ...]) -> bool:
    pairs = zip(asked, there, strict=False)
    return len(asked) == len(there) and all(
        a == b or a == -1 or not isinstance(b, int) for a, b in pairs
    )


def _of_plan(path: Path, config: Any) -> Iterator[str]:
    """Compare a plan with its configuration, and with the GPU and TensorRT that are here."""
    from boxwright.nvidia import find_gpu, load_tensorrt, module_name

    record = read_record(path)
    if record is None:
        yield f"{path.name}.json, its description, is not there"
        return
    for name, shapes in record.profile.items():
        if shapes[2][0] < config.max_batch_size:
            yield f"max_batch_size is {config.max_batch_size}, {name} takes up to {shapes[2][0]}"
    gpu = find_gpu()
    if gpu is None or module_name("tensorrt") is None:
        return
    try:
        check_fits(record, path.name, str(load_tensorrt("tensorrt").__version__), gpu)
    except BackendError as error:
        yield str(error)


def _of_ensemble(config: Any, path: str, all_configs: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Follow the tensors of an ensemble through its steps."""
    if not config.ensemble_scheduling.step:
        return
    tensors = {i.name: (_dtype_name(i), tuple(i.dims)) for i in config.input}
    for step in config.ensemble_scheduling.step:
        member = all_configs.get(step.model_name, {})
        inner = member.get(path) or member.get(CONFIG)
        if inner is None:
            yield f"{path}: its step {step.model_name} is not there"
            return
        if inner.max_batch_size < config.max_batch_size:
            yield (
                f"{path}: max_batch_size is {config.max_batch_size}, that of its step "
                f"{step.model_name} {inner.max_batch_size}"
            )
        wanted = {i.name: (_dtype_name(i), tuple(i.dims)) for i in inner.input}
        for name in [n for n in wanted if n not in step.input_map]:
            yield f"{path}: input {name} of {step.model_name} gets nothing"
        for name, tensor in step.input_map.items():
            if name not in wanted:
                yield f"{path}: {step.model_name} has no input {name}"
            elif tensor not in tensors:
                yield f"{path}: {tensor} is made by no step before {step.model_name}"
            elif not _same(wanted[name], tensors[tensor]):
                yield (
                    f"{path}: {step.model_name} takes {name} as {wanted[name]}, and gets {tensor} "
                    f"as {tensors[tensor]}"
                )
        made = {o.name: (_dtype_name(o), tuple(o.dims)) for o in inner.output}
        for name, tensor in step.output_map.items():
            if name not in made:
                yield f"{path}: {step.model_name} has no output {name}"
            else:
                tensors[tensor] = made[name]
    for output in config.output:
        mine = (_dtype_name(output), tuple(output.dims))
        if output.name not in tensors:
            yield f"{path}: output {output.name} is made by no step"
        elif not _same(mine, tensors[output.name]):
            yield f"{path}: output {output.name} is {mine}, its step makes {tensors[output.name]}"


def _same(first: tuple[str, tuple[int, ...]], second: tuple[str, tuple[int, ...]]) -> bool:
    return (
        first[0] == second[0]
        and len(first[1]) == len(second[1])
        and all(a == b or -1 in (a, b) for a, b in zip(first[1], second[1], strict=True))
    )


def _slow_nms(folder: Path, config: Any) -> Iterator[str]:
    """Yield what speaks against the served ONNX files on a GPU."""
    kinds = {group.KIND_CPU for group in config.instance_group}
    if all(group.kind in kinds for group in config.instance_group):
        return
    if config.optimization.execution_accelerators.gpu_execution_accelerator:
        return  # TensorRT takes the NMS
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    agnostic = parameters.get("class_agnostic") == "true"
    classes = 1 if agnostic else len(json.loads(parameters.get("class_names") or "[]"))
    numbers = version_numbers_in(folder)
    for number in list(config.version_policy.specific.versions) or numbers[-1:]:
        path = folder / str(number) / (config.default_model_filename or "model.onnx")
        if path.suffix != ".onnx" or not path.is_file():
            continue
        try:
            note = note_on_nms(read_graph(path)[0], classes)
        except (OSError, ValueError):  # an error of its own tells it
            continue
        if note:
            yield f"version {number}: {note}"


def _edits(folder: Path, record: ModelRecord | None) -> Iterator[str]:
    if record is None:
        yield "it was not built by boxwright"
        return
    for name, text in record.generated.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} was removed"
        elif path.read_text(encoding="utf-8") != text:
            yield f"{name} was edited by hand"


def load_on_server(names: Sequence[str], url: str) -> list[Finding]:
    """Load models on a live server, one after the other; return the server's own errors.

    Args:
        names: Of the models; those that others refer to are loaded with them.
        url: `http://host:port` of a server with explicit model control.

    Raises:
        BackendError: The server does not answer.
    """
    found: list[Finding] = []
    for name in names:
        said = _load(f"{url.rstrip('/')}/v2/repository/models/{name}/load", url)
        if said:
            found.append(Finding(name, "error", f"the server says: {said}"))
    return found


def _load(address: str, url: str) -> str:
    """Ask a server to load a model; return its error, or "".

    Raises:
        BackendError: It does not answer.
    """
    request = urllib.request.Request(address, data=b"{}", method="POST")
    try:
        with urllib.request.urlopen(request, timeout=_LOAD_SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        try:
            return str(json.loads(text)["error"])
        except (ValueError, KeyError, TypeError):
            return f"{error.code} {text[:200]}".strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise BackendError(
            url, f"no server answers ({reason})", "start it: boxwright serve, or check the address"
        ) from None
