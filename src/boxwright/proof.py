"""Opens two files and compares them: what `boxwright verify` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from boxwright import catalog
from boxwright.backends import BackendOptions
from boxwright.detector import Detector
from boxwright.environment import describe_environment
from boxwright.errors import RequestError
from boxwright.images import expand_paths
from boxwright.loading import load
from boxwright.pictures import generated_pictures
from boxwright.triton_address import artifact_name
from boxwright.types import Image, Parity
from boxwright.verify import Candidate, choose_threshold, verify

_NETWORK_INPUT = "network_input"  # as `boxwright.graph.image_input` names it

__all__ = ["open_for_proof", "prove_file"]


def open_for_proof(path: Path, threshold: float, threads: int | None) -> Detector:
    """Open an end-to-end file in ONNX Runtime on the CPU at another baked score threshold.

    A plugin node is replaced by its equivalent, so that what it is fed can be checked.

    Raises:
        SourceError: The file cannot be read or carries no metadata of ours.
    """
    from boxwright.graph.end2end import runnable_anywhere, with_score_threshold
    from boxwright.graph.io import bytes_from_model, model_from_file, read_stamp

    model = model_from_file(path)
    stamp = read_stamp(model, str(path))
    if stamp is None or stamp.nms is None:
        raise RequestError(str(path), "it is not an end-to-end file of ours", "give one")
    if threshold < stamp.nms.score_threshold:
        model = with_score_threshold(model, threshold)
    model = runnable_anywhere(model)
    if stamp.target is not None and stamp.target.input == "image":
        from boxwright.graph.image_input import with_network_input

        model = with_network_input(model)
    data = bytes_from_model(model, str(path))
    backend = catalog.backend("onnxruntime").open_bytes(
        data, BackendOptions(threads, "cpu", spin=False)
    )
    nms = dataclasses.replace(stamp.nms, score_threshold=threshold)
    return Detector(backend, stamp.spec, stamp.target, nms)


def _open(
    path: Path | str, threads: int | None, family: str | None, labels: str | None
) -> Detector:
    if isinstance(path, str):
        return load(path, threads=threads, family=family, labels=labels, quiet=True)
    for name in ("pytorch", "tensorrt"):
        if path.suffix in catalog.backend(name).suffixes:
            runtime: Any = name
            break
    else:
        runtime = "onnxruntime"
    device: Any = "auto" if runtime == "tensorrt" else "cpu"
    return load(
        path, runtime, threads=threads, device=device, family=family, labels=labels, quiet=True
    )


def prove_file(
    reference_path: Path | str,
    candidate_path: Path | str,
    *,
    images: Sequence[str] = (),
    max_images: int = 200,
    precision: Any = None,
    threads: int | None = None,
    family: str | None = None,
    labels: str | None = None,
    count: Callable[[int, int], None] = lambda done, total: None,
) -> Parity:
    """Compare a file, or the address of a served model, with another of the same model.

    Raises:
        RequestError: The two are not of one model, or the reference is end-to-end.
        BoxwrightError: A file or a picture cannot be read.
    """
    reference = _open(reference_path, threads, family, labels)
    if reference.end2end:
        raise RequestError(
            str(reference_path),
            "the reference is an end-to-end file",
            "give the source or raw file",
        )
    if reference.target.input == "image":
        raise RequestError(
            str(reference_path), "the reference takes pictures", "give one that takes a tensor"
        )
    pictures: list[Path | Image] = list(expand_paths(images)) if images else []
    if not pictures:
        pictures = [*generated_pictures(reference.spec.input_size)]
    if len(pictures) > max_images:
        step = len(pictures) / max_images
        pictures = [pictures[int(i * step)] for i in range(max_images)]
    candidate = _open_candidate(candidate_path, reference, pictures, threads, family, labels)
    a, b = reference.spec, candidate.spec
    if (a.input_size, len(a.class_names)) != (b.input_size, len(b.class_names)):
        raise RequestError(
            f"verify {reference_path} {candidate_path}",
            f"they are not of one model: {a.input_size} with {len(a.class_names)} classes against "
            f"{b.input_size} with {len(b.class_names)}",
            "give two files of the same model",
        )
    done = 0

    def advance(step: int) -> None:
        nonlocal done
        done += step
        count(done, len(pictures))

    limits = precision or candidate.target.precision
    outputs = {o.name for o in candidate.backend.outputs}
    extra = _NETWORK_INPUT if _NETWORK_INPUT in outputs else ""
    name = artifact_name(candidate_path)
    candidates = {name: Candidate(candidate, limits, extra)}
    with reference, candidate:
        results = verify(
            reference, candidates, pictures, environment=describe_environment(), advance=advance
        )
    return results[name]


def _open_candidate(
    path: Path | str,
    reference: Detector,
    pictures: Sequence[Path | Image],
    threads: int | None,
    family: str | None,
    labels: str | None,
) -> Detector:
    """Open the candidate at a threshold where the pictures yield something to compare."""
    if isinstance(path, Path) and path.suffix == ".onnx":
        from boxwright.graph.io import model_from_file, read_stamp

        stamp = read_stamp(model_from_file(path), str(path))
        if stamp is not None and stamp.nms is not None:
            threshold = choose_threshold(reference, pictures, stamp.nms)
            return open_for_proof(path, threshold, threads)
    candidate = _open(path, threads, family, labels)
    if candidate.end2end:
        return candidate
    threshold = choose_threshold(reference, pictures, candidate.nms)
    candidate.nms = dataclasses.replace(candidate.nms, score_threshold=threshold)
    return candidate
