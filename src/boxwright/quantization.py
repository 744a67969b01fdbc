"""INT8 files: calibrate, or read the calibration's cache, then quantise within the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from boxwright.budget import Sensitivity, measure_sensitivities, search_budget
from boxwright.calibrate import Calibration, calibrate
from boxwright.calibration_cache import add_to_cache, read_cache
from boxwright.datasets import Dataset, open_dataset
from boxwright.errors import CheckFailedError, RequestError
from boxwright.graph.io import bytes_from_model
from boxwright.graph.quantize import int8_from_fp32, quantisable_layers
from boxwright.outcome import Listener
from boxwright.recipe import Recipe
from boxwright.store import sha256_of_bytes, sha256_of_file
from boxwright.types import Deployment, ModelSpec

__all__ = ["quantised"]

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
        SourceError: The cache is of another model, or damaged; or the data set cannot be read.
        RequestError: Pictures are both calibrated on and measured on, or show nothing.
        ImageError: A picture cannot be read.
        GraphError: The graph cannot be quantised.
        CheckFailedError: No number of float layers keeps the accuracy budget.
    """
    calibration, pictures = _calibration(model, spec, files, recipe, deployment, listener)
    if recipe.max_drop is None:
        return int8_from_fp32(model, calibration.ranges, deployment), None
    assert recipe.data is not None, "checked with the request"
    dataset = open_dataset(recipe.data, class_names=spec.class_names)
    if not recipe.calibration.allow_overlap:
        _refuse_overlap(pictures, dataset)
    search = _Search(model, spec, calibration, dataset, recipe, deployment, listener)
    return search.run()


def _calibration(
    model: onnx.ModelProto,
    spec: ModelSpec,
    files: Sequence[Path],
    recipe: Recipe,
    deployment: Deployment,
    listener: Listener,
) -> tuple[Calibration, tuple[str, ...]]:
    """Calibrate, or read the cache; also return the SHA-256 of each picture's file."""
    options = recipe.calibration
    graph = sha256_of_bytes(bytes_from_model(model, spec.name))
    cache = Path(options.cache) if options.cache else None
    if cache is not None and list(files) == [cache]:
        found = read_cache(cache, graph, deployment)
        listener.note(f"calibration of {found.calibration.pictures} pictures from {cache}")
        return found.calibration, found.pictures
    listener.note(f"calibrate for {deployment} on {len(files)} pictures ({options.method})")
    calibration = calibrate(
        model,
        spec,
        list(files),
        deployment,
        method=options.method,
        batch=options.batch,
        threads=recipe.threads,
        advance=_counter(listener, f"calibrate {deployment}", len(files)),
    )
    pictures = tuple(sha256_of_file(p) for p in files)
    if cache is not None:
        add_to_cache(cache, graph, deployment, calibration, pictures)
    return calibration, pictures


def _counter(listener: Listener, label: str, total: int) -> Callable[[int], None]:
    """Return a function that adds to what a listener shows as done."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        listener.count(label, done, total)

    return advance


@dataclass(slots=True)
class _Search:
    """One search for the INT8 graph with the fewest float layers that keeps the budget."""

    model: onnx.ModelProto
    spec: ModelSpec
    calibration: Calibration
    dataset: Dataset
    recipe: Recipe
    deployment: Deployment
    listener: Listener
    ranked: list[Sensitivity] = field(default_factory=list)

    def run(self) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """Return the graph and how it was found.

        Raises:
            RequestError: The data shows nothing to measure on.
            CheckFailedError: The budget cannot be kept.
        """
        limit = self.recipe.max_drop
        assert limit is not None, "checked with the request"
        self.listener.note("accuracy of FP32")
        reference = self.measure(self.model)
        ranges = self.calibration.ranges
        result = search_budget(
            self.model, ranges, self.deployment, self.order, self.measure, reference, limit
        )
        share = f"{len(result.kept)} of {result.layers} layers in float"
        if not result.within:
            raise CheckFailedError(
                f"{self.spec.name} in INT8 for {self.deployment}",
                f"mAP50-95 drops by {result.drop:.4f} even with {share}, and at most {limit:g} is "
                "allowed",
                "use FP16, or calibrate on more pictures",
            )
        self.listener.note(f"INT8 loses {result.drop:.4f} mAP50-95 with {share}")
        return result.model, {
            **result.as_dict(),
            "sensitivities": [[s.layer, s.error] for s in self.ranked],
            "data": self.dataset.name,
            "fingerprint": self.dataset.fingerprint,
        }

    def measure(self, graph: onnx.ModelProto) -> float:
        """Return mAP50-95 of a graph.

        Raises:
            RequestError: The data shows no object of the model's classes.
        """
        accuracy = _accuracy(graph, self.spec, self.dataset, self.recipe.threads)
        if accuracy is None:
            raise RequestError(
                f"--data {self.recipe.data}",
                "it shows no object of the model's classes, so that no accuracy can be lost",
                "give labelled pictures with objects",
            )
        self.listener.note(f"mAP50-95 {accuracy:.4f} on {len(self.dataset.items)} pictures")
        return accuracy

    def order(self) -> Sequence[Sensitivity]:
        """Measure the layers one by one."""
        count = len(quantisable_layers(self.model))
        self.listener.note(f"the budget does not hold: measure the {count} layers one by one")
        self.ranked = measure_sensitivities(
            self.model,
            self.spec,
            self.calibration.ranges,
            self.deployment,
            [item.read() for item in self.dataset.items[:_FEW]],
            threads=self.recipe.threads,
            advance=_counter(self.listener, "layers", count),
        )
        return self.ranked


def _accuracy(
    graph: onnx.ModelProto, spec: ModelSpec, dataset: Dataset, threads: int | None
) -> float | None:
    from boxwright import catalog
    from boxwright.backends import BackendOptions
    from boxwright.detector import Detector
    from boxwright.evaluate import evaluate

    data = bytes_from_model(graph, spec.name)
    options = BackendOptions(threads, "cpu", spin=False)
    with Detector(catalog.backend("onnxruntime").open_bytes(data, options), spec) as detector:
        return evaluate({spec.name: detector}, dataset)[spec.name].map50_95


def _refuse_overlap(pictures: Sequence[str], dataset: Dataset) -> None:
    """Refuse pictures, given by the SHA-256 of their files, that are also measured on.

    Raises:
        RequestError: There are some.
    """
    measured = {sha256_of_file(i.path): i for i in dataset.items if i.path and i.path.is_file()}
    both = [measured[p].name for p in pictures if p in measured]
    if both:
        raise RequestError(
            "--calib-images",
            f"{len(both)} of {len(pictures)} pictures are in --data too ({both[0]}), so that the "
            "accuracy would flatter",
            "calibrate on others, or say --allow-calibration-overlap",
        )
