"""Opens a file as a Detector, with a runtime that is named, never guessed in silence."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from boxwright import catalog
from boxwright.backends import Advising, BackendOptions
from boxwright.detector import ENCODED_INPUT, Detector
from boxwright.devices import Device, device_from_text
from boxwright.errors import BoxwrightError, RequestError, SourceError
from boxwright.sources import Source, SourceRequest
from boxwright.stamps import stamp_from_metadata
from boxwright.triton_address import is_address
from boxwright.types import ModelSpec, NmsSettings, Target

if TYPE_CHECKING:
    from boxwright.sources.sidecars import Labels

__all__ = ["Device", "choose_runtime", "load"]

Runtime = Literal["auto", "onnxruntime", "openvino", "pytorch", "tensorrt", "triton"]


_FEW_PICTURES = 50  # OpenVINO's slower start (0.5 s) is not won back by fewer


def choose_runtime(suffix: str, device: Device = "auto", pictures: int | None = None) -> str:
    """Return the runtime that `auto` means on this machine.

    Checkpoints (`.pt`, `.safetensors`) run in PyTorch, plans (`.plan`, `.engine`) in TensorRT.
    `.onnx` runs in ONNX Runtime when that has CUDA or the device is a GPU; otherwise in OpenVINO,
    which is faster on x86 in FP32, when it is installed and more than 50 pictures are to come (or
    it is not said how many); otherwise in ONNX Runtime on the CPU, which starts faster.

    Raises:
        RequestError: No runtime reads such files.
    """
    if suffix in catalog.backend("pytorch").suffixes:
        return "pytorch"
    if suffix in catalog.backend("tensorrt").suffixes:
        return "tensorrt"
    if suffix != ".onnx":
        raise RequestError(
            f"model file of kind {suffix or '(no suffix)'}",
            "no runtime reads it",
            "give a .onnx file, a .plan (or a .pt or .safetensors checkpoint, as a reference)",
        )
    choice = device_from_text(device)
    if choice.insists_on_gpu:
        return "onnxruntime"
    if choice.kind == "auto" and _onnxruntime_has_cuda():
        return "onnxruntime"
    if pictures is not None and pictures <= _FEW_PICTURES:
        return "onnxruntime"
    return "openvino" if catalog.backend("openvino").missing() is None else "onnxruntime"


def _onnxruntime_has_cuda() -> bool:
    """Whether the installed ONNX Runtime is a CUDA build; told by its files, without loading it."""
    spec = importlib.util.find_spec("onnxruntime")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return any(any(Path(f, "capi").glob("*onnxruntime_providers_cuda*")) for f in folders)


def load(
    path: str | Path,
    runtime: Runtime = "auto",
    *,
    threads: int | None = None,
    device: Device = "auto",
    score_threshold: float | None = None,
    iou_threshold: float | None = None,
    family: str | None = None,
    labels: str | None = None,
    pictures: int | None = None,
    quiet: bool = False,
    cuda_graph: bool = True,
    provider_options: Mapping[str, str] | None = None,
    engine_cache: Path | None = None,
    profile_batch: tuple[int, int, int] | None = None,
) -> Detector:
    """Open a model file as a `Detector`.

    Args:
        path: A .onnx file that Boxwright made; a raw .onnx of a known family; a .plan with its
            description beside it; a .pt or .safetensors checkpoint (PyTorch, as a reference); or
            the address of a served model, `triton://host:port/model[:version]`.
        runtime: `auto` is explained at `choose_runtime`; what it chose is printed on stderr.
        threads: CPU threads of one inference; None leaves the runtime's default.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, or `tensorrt` (ONNX Runtime's TensorRT provider). A
            provider that fails to start is an error, never a silent fall back to the CPU.
        score_threshold, iou_threshold: Operating settings; None takes the file's own.
        family: Family of a raw file that does not say (`yolox`).
        labels: Class names for a file that has none: a JSON or text file, or `coco`.
        pictures: How many are to come, if that is known; it sways `auto`.
        quiet: Do not print the choice, nor what makes the file slow on its device.
        cuda_graph, provider_options, engine_cache, profile_batch: Of GPUs; see
            `boxwright.backends.BackendOptions`.

    Raises:
        RequestError: An option is wrong.
        SourceError: The file is missing, damaged, or of an unknown family.
        BackendError: The runtime refuses it.

    >>> load("missing.onnx")
    Traceback (most recent call last):
        ...
    boxwright.errors.SourceError: missing.onnx: there is no such file; check the path
    """
    if isinstance(path, str) and is_address(path):
        if runtime not in ("auto", "triton"):
            raise RequestError(
                f"--runtime {runtime}", f"{path} runs on its server", "drop the option"
            )
        told = (threads, family, labels, provider_options, engine_cache, profile_batch)
        _refuse_for_server(path, told)
        detector = _open_served(path, BackendOptions(threads, device))
        detector.nms = detector.settings(score_threshold, iou_threshold)
        return detector
    file = Path(path)
    if not file.is_file():
        found = "it is a folder" if file.is_dir() else "there is no such file"
        raise SourceError(str(path), found, "check the path")
    if threads is not None and threads < 1:
        raise RequestError(f"--threads {threads}", "it is not a positive number", "use e.g. 2")
    chosen = choose_runtime(file.suffix.lower(), device, pictures) if runtime == "auto" else runtime
    kind = catalog.backend(chosen)
    if file.suffix.lower() not in kind.suffixes:
        raise RequestError(
            f"--runtime {chosen}",
            f"it does not read {file.suffix or file.name}",
            f"it reads {', '.join(kind.suffixes)}",
        )
    if provider_options and chosen != "onnxruntime":
        key = next(iter(provider_options))
        raise RequestError(
            f"--provider-option {key}=...", f"it is for ONNX Runtime, this is {chosen}", "drop it"
        )
    if (engine_cache or profile_batch) and device_from_text(device).kind != "tensorrt":
        option = "--engine-cache" if engine_cache else "--profile-batch"
        raise RequestError(option, "it is for --device tensorrt", "drop it, or add that")
    options = BackendOptions(
        threads,
        device,
        cuda_graph=cuda_graph,
        provider_options=tuple((provider_options or {}).items()),
        engine_cache=engine_cache,
        profile_batch=profile_batch,
    )
    detector = _open(file, kind.name, options, family, labels)
    if runtime == "auto" and not quiet:
        print(f"boxwright: {file.name} runs on {detector.description}", file=sys.stderr)
    advice = "" if quiet else _advice(detector)
    if advice:
        print(f"boxwright: {file.name}: {advice}", file=sys.stderr)
    detector.nms = detector.settings(score_threshold, iou_threshold)
    return detector


def _advice(detector: Detector) -> str:
    """Return what speaks against an end-to-end file on the device that it was opened on, or ""."""
    runtime = detector.backend
    if detector.target.outputs != "end2end" or not isinstance(runtime, Advising):
        return ""
    classes = 1 if detector.nms.class_agnostic else len(detector.spec.class_names)
    return runtime.advice(classes)


def _refuse_for_server(path: str, told: tuple[Any, ...]) -> None:
    """Refuse options that only the server's side could honour.

    Raises:
        RequestError: One was given.
    """
    names = ("--threads", "--family", "--labels", "--provider-option", "--engine-cache",
             "--profile-batch")  # fmt: skip
    for name, value in zip(names, told, strict=True):
        if value:
            raise RequestError(name, f"it is of files, and {path} is served", "drop the option")


def _open_served(address: str, options: BackendOptions) -> Detector:
    """Open a model on a Triton server.

    Raises:
        SourceError: The server does not say what the model is.
    """
    opener = catalog.backend("triton").open_address
    assert opener is not None
    backend = opener(address, options)
    try:
        stamp = stamp_from_metadata(backend.metadata, address)
        if stamp is None:
            raise SourceError(
                address,
                "nothing says what model it is: its configuration has no parameter boxwright",
                "serve a repository that boxwright repo build made",
            )
        names = {o.name for o in backend.outputs}
        if backend.inputs[0].name == ENCODED_INPUT and "num_dets" not in names:
            raise SourceError(
                address,
                f"it is a part of an ensemble (outputs {', '.join(sorted(names))})",
                "name the ensemble",
            )
        target, nms = stamp.target or Target(), stamp.nms
        if backend.inputs[0].name == ENCODED_INPUT:
            target = dataclasses.replace(
                target, outputs="end2end", input="image", batch=None, source_size=None
            )
            nms = nms or NmsSettings(
                score_threshold=stamp.spec.score_threshold, iou_threshold=stamp.spec.iou_threshold
            )
        return Detector(backend, stamp.spec, target, nms)
    except BoxwrightError:
        backend.close()
        raise


def _open(
    file: Path, runtime: str, options: BackendOptions, family: str | None, labels: str | None
) -> Detector:
    if runtime == "pytorch":
        return _open_source(file, options, family, labels)
    kind = catalog.backend(runtime)
    backend = kind.open(file, options)
    stamp = stamp_from_metadata(backend.metadata, str(file))
    if stamp is None and file.suffix.lower() != ".onnx":
        backend.close()
        raise SourceError(
            str(file),
            f"nothing says what model it is: {file.name}.json is missing, or has no stamp",
            "keep that file beside the plan, or build it with: boxwright build",
        )
    if stamp is None:
        from boxwright.sources.onnx_file import joined_bytes  # onnx: only where it is needed

        spec = _describe(file, family, labels)
        data = joined_bytes(_request(file, family, labels))
        if data is not None:
            backend.close()
            backend = kind.open_bytes(data, options)
        return Detector(backend, spec)
    spec = stamp.spec
    if labels is not None:
        found = _labels(labels, len(spec.class_names))
        colors = found.colors or spec.class_colors
        spec = dataclasses.replace(spec, class_names=found.names, class_colors=colors)
    return Detector(backend, spec, stamp.target, stamp.nms)


def _labels(text: str, count: int) -> Labels:
    from boxwright.sources.sidecars import read_labels

    found = read_labels(text)
    if len(found.names) != count:
        raise RequestError(
            f"--labels {text}",
            f"it names {len(found.names)} classes, the file has {count}",
            "check it",
        )
    return found


def _request(file: Path, family: str | None, labels: str | None) -> SourceRequest:
    from boxwright.sources.sidecars import read_labels

    found = read_labels(labels) if labels else None
    names, colors = (found.names, found.colors) if found else (None, ())
    return SourceRequest(file, file.stem, family=family, labels=names, colors=colors)


def _describe(file: Path, family: str | None, labels: str | None) -> ModelSpec:
    """Recognise a file that does not explain itself."""
    return _described(catalog.source_of(file), _request(file, family, labels))


def _described(source: Source, request: SourceRequest) -> ModelSpec:
    spec = source.describe(request)
    return dataclasses.replace(spec, class_colors=request.colors or spec.class_colors)


def _open_source(
    file: Path, options: BackendOptions, family: str | None, labels: str | None
) -> Detector:
    """Open a checkpoint in its own framework."""
    request = _request(file, family, labels)
    source = catalog.source_of(file)
    source.check(request)
    spec = _described(source, request)
    return Detector(source.reference(request, options), spec)
