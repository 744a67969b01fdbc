"""INT8 files: calibrate, or read the calibration's cache, then quantise within the budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from boxwright.budget import Sensitivity, measure_sensitivities, search_budget
from boxwright.calibrate import Calibration, calibrate
from boxwright.errors import CheckFailedError, RequestError, SourceError
from boxwright.graph.io import bytes_from_model
from boxwright.graph.quantize import int8_from_fp32, quantisable_layers
from boxwright.outcome import Listener
from boxwright.recipe import Recipe
from boxwright.store import sha256_of_bytes, sha256_of_file, write_atomic
from boxwright.types import Deployment, Image, ModelSpec

if TYPE_CHECKING:
    from boxwright.datasets import Dataset

__all__ = ["quantised"]

_SCHEMA = 1
_FEW = 4  # pictures that the layers' sensitivity is measured on


def quantised(
    model: onnx.ModelProto,
    spec: ModelSpec,
    files: Sequence[Path],
    recipe: Recipe,
    deployment: Deployment,
    listener: Listener,
) -> tuple[onnx.ModelProto, dict[str, Any] | None]:
    """Return the INT8 graph of an FP32 graph and, where there is a budget, how it was kept.

    Args:
        model: FP32 raw graph.
        spec: The model.
        files: Pictures to calibrate on, or the one cache file.
        recipe: How to calibrate.
        deployment: Where the file shall run.
        listener: Told what happens.

    Raises:
        SourceError: The cache is of another model, or damaged.
        ImageError: A picture cannot be read.
        GraphError: The graph cannot be quantised.
        CheckFailedError: No number of float layers keeps the accuracy budget.
    """
    options = recipe.calibration
    graph = sha256_of_bytes(bytes_from_model(model, spec.name))
    cache = Path(options.cache) if options.cache else None
    if cache is not None and list(files) == [cache]:
        calibration = _read(cache, graph, deployment)
        listener.note(f"calibration of {calibration.pictures} pictures from {cache}")
    else:
        listener.note(f"calibrate for {deployment} on {len(files)} pictures ({options.method})")
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            listener.count(f"calibrate {deployment}", done, len(files))

        calibration = calibrate(
            model,
            spec,
            list(files),
            deployment,
            method=options.method,
            batch=options.batch,
            threads=recipe.threads,
            advance=advance,
        )
        if cache is not None:
            write_atomic(cache, _bytes(calibration, graph, deployment))
    if recipe.max_drop is None:
        return int8_from_fp32(model, calibration.ranges, deployment), None
    return _within_budget(model, spec, calibration, files, recipe, deployment, listener)


def _within_budget(
    model: onnx.ModelProto,
    spec: ModelSpec,
    calibration: Calibration,
    files: Sequence[Path],
    recipe: Recipe,
    deployment: Deployment,
    listener: Listener,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return the INT8 graph with the fewest float layers that keeps the budget."""
    from boxwright.datasets import open_dataset

    assert recipe.data is not None and recipe.max_drop is not None, "checked before"
    dataset = open_dataset(recipe.data, class_names=spec.class_names)
    if not recipe.calibration.allow_overlap:
        _refuse_overlap(files, dataset)
    ranked: list[Sensitivity] = []

    def measure(graph: onnx.ModelProto) -> float:
        accuracy = _accuracy(graph, spec, dataset, recipe.threads)
        listener.note(f"mAP50-95 {accuracy:.4f} on {len(dataset.items)} pictures")
        return accuracy

    def order() -> Sequence[Sensitivity]:
        pictures = [p for p in files if p.suffix != ".json"][:_FEW]
        seen: list[Path | Image] = list(
            pictures or [i.path for i in dataset.items[:_FEW] if i.path]
        )
        count = len(quantisable_layers(model))
        listener.note(f"the budget does not hold: measure the {count} layers one by one")
        done = 0

        def advance(step: int) -> None:
            nonlocal done
            done += step
            listener.count("layers", done, count)

        ranked.extend(
            measure_sensitivities(
                model,
                spec,
                calibration.ranges,
                deployment,
                seen,
                threads=recipe.threads,
                advance=advance,
            )
        )
        return ranked

    listener.note("accuracy of FP32")
    reference = measure(model)
    result = search_budget(
        model, calibration.ranges, deployment, order, measure, reference, recipe.max_drop
    )
    if not result.within:
        raise CheckFailedError(
            f"{spec.name} in INT8 for {deployment}",
            f"mAP50-95 drops by {result.drop:.4f} even with {len(result.kept)} of {result.layers} "
            f"layers in float, and at most {recipe.max_drop:g} is allowed",
            "use FP16, or calibrate on more pictures",
        )
    listener.note(
        f"INT8 loses {result.drop:.4f} mAP50-95 with {len(result.kept)} of {result.layers} layers "
        "in float"
    )
    told = result.as_dict() | {"sensitivities": [[s.layer, s.error] for s in ranked]}
    return result.model, told | {"data": dataset.name, "fingerprint": dataset.fingerprint}


def _accuracy(
    graph: onnx.ModelProto, spec: ModelSpec, dataset: Dataset, threads: int | None
) -> float:
    from boxwright import catalog
    from boxwright.backends import BackendOptions
    from boxwright.detector import Detector
    from boxwright.evaluate import evaluate

    data = bytes_from_model(graph, spec.name)
    options = BackendOptions(threads, "cpu", spin=False)
    with Detector(catalog.backend("onnxruntime").open_bytes(data, options), spec) as detector:
        return evaluate({spec.name: detector}, dataset)[spec.name].map50_95 or 0.0


def _refuse_overlap(files: Sequence[Path], dataset: Dataset) -> None:
    """Refuse pictures that are both calibrated on and measured on.

    Raises:
        RequestError: There are some.
    """
    measured = {sha256_of_file(i.path) for i in dataset.items if i.path and i.path.is_file()}
    both = [p for p in files if sha256_of_file(p) in measured]
    if both:
        raise RequestError(
            "--calib-images",
            f"{len(both)} of {len(files)} pictures are in --data too ({both[0].name}), so that the "
            "accuracy would flatter",
            "calibrate on others, or say --allow-calibration-overlap",
        )


def _bytes(calibration: Calibration, graph: str, deployment: Deployment) -> bytes:
    data = {"schema": _SCHEMA, "graph": graph, "deployment": deployment, **calibration.as_dict()}
    return (json.dumps(data, indent=1) + "\n").encode()


def _read(path: Path, graph: str, deployment: Deployment) -> Calibration:
    """Read a cache that was made of this very graph.

    Raises:
        SourceError: It was not, or it cannot be read.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wrong = (
            "it is of another model, or of another export of it"
            if data["graph"] != graph
            else f"it is for {data['deployment']}, not for {deployment}"
            if data["deployment"] != deployment
            else ""
        )
        calibration = Calibration.from_dict(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise SourceError(
            str(path), "it is no calibration cache of ours", "remove it, or name another file"
        ) from None
    if wrong:
        raise SourceError(str(path), wrong, "remove it, or name another file")
    return calibration
