"""INT8 and FP16 files: calibrate, convert, and keep the accuracy budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from boxwright import catalog
from boxwright.backends import BackendOptions
from boxwright.budget import BudgetResult, Lossy, Sensitivity, measure_sensitivities, search_budget
from boxwright.calibrate import METHODS, Calibration, calibrate
from boxwright.calibration_cache import add_to_cache, read_cache
from boxwright.datasets import Dataset
from boxwright.detector import Detector
from boxwright.errors import CheckFailedError, RequestError
from boxwright.evaluate import evaluate
from boxwright.graph.branches import layers_of_extras
from boxwright.graph.io import bytes_from_model
from boxwright.graph.precision import fp16_from_fp32, half_layers
from boxwright.graph.quantize import int8_from_fp32, quantisable_layers
from boxwright.measures import measure_for
from boxwright.outcome import Listener
from boxwright.overflow import layers_beyond_half
from boxwright.plan_budget import FLOAT_STEP, opened_as_plan, runtime_of_budget
from boxwright.recipe import Recipe
from boxwright.store import sha256_of_bytes, sha256_of_file
from boxwright.types import Deployment, Image, ModelSpec

__all__ = ["Converter", "runtime_of"]

_LOOKED_AT = 16  # pictures that FP16's range is checked on
_FEW_KEPT = 0.1  # share of the layers in FP32 that is not worth trying another calibration
_FEW = 4  # pictures that the layers' sensitivity is measured on


def runtime_of(deployment: Deployment) -> str:
    """Return the runtime that a file is proven and measured in.

    ONNX Runtime computes files for TensorRT correctly, if slowly.
    """
    return "openvino" if deployment == "openvino" else "onnxruntime"


@dataclass(slots=True)
class Converter:
    """Makes the lossy files of one run; an accuracy is measured once for each graph.

    Attributes:
        spec: The model.
        recipe: How to calibrate, and the budget.
        files: Pictures to calibrate on, or the one cache file.
        dataset: Labelled pictures; None where there is neither a budget nor a choice to make.
        listener: Told what happens.
    """

    spec: ModelSpec
    recipe: Recipe
    files: Sequence[Path]
    dataset: Dataset | None
    listener: Listener
    measured: dict[str, float] = field(default_factory=dict)

    def half(
        self, model: onnx.ModelProto, pictures: Sequence[Path | Image]
    ) -> tuple[onnx.ModelProto, dict[str, Any] | None]:
        """Return the FP16 graph of an FP32 one, and which layers had to stay in FP32.

        Layers whose values come near the end of float16's range stay in any case; where there is a
        budget, so do those that keep it.

        Args:
            model: FP32 raw graph.
            pictures: To see how large the values become; a few are taken.

        Raises:
            GraphError: The graph cannot be converted.
            RequestError: The data shows nothing to measure on.
            CheckFailedError: No number of FP32 layers keeps the budget.
        """
        layers = half_layers(model)
        few = pictures[:: max(1, len(pictures) // _LOOKED_AT)][:_LOOKED_AT]
        beyond = layers_beyond_half(model, self.spec, few, threads=self.recipe.threads)
        if beyond:
            top = max(beyond.values())
            self.listener.note(
                f"{len(beyond)} of {len(layers)} layers stay in FP32: their values reach "
                f"{top:.3g}, and float16 ends at 65504"
            )

        def build(kept: Sequence[str]) -> onnx.ModelProto:
            names = {name for layer in (*beyond, *kept) for name in layers[layer]}
            return fp16_from_fp32(model, names)

        record: dict[str, Any] = {"overflow": beyond} if beyond else {}
        if self.recipe.max_drop is None:
            return build(()), record or None
        free = tuple(layer for layer in layers if layer not in beyond)
        made, kept = self._within_budget(model, Lossy("FP16", free, build))
        return made, {**kept, **record}

    def integer(
        self, model: onnx.ModelProto, deployment: Deployment
    ) -> tuple[onnx.ModelProto, dict[str, Any] | None]:
        """Return the INT8 graph of an FP32 one and, where there is a budget, how it was kept.

        Raises:
            SourceError: The cache is of another model, or damaged.
            RequestError: Pictures are both calibrated on and measured on, or show nothing.
            ImageError: A picture cannot be read.
            GraphError: The graph cannot be quantised.
            CheckFailedError: No number of FP32 layers keeps the budget.
        """
        calibrations, pictures, fresh = self._calibrations(model, deployment)
        if self.dataset is not None and not self.recipe.calibration.allow_overlap:
            _refuse_overlap(pictures, self.dataset)
        always = self._always_float(model, deployment)
        layers = tuple(name for name in quantisable_layers(model) if name not in always)

        def lossy(calibration: Calibration) -> Lossy:
            def build(kept: Sequence[str]) -> onnx.ModelProto:
                stay = (*always, *kept)
                return int8_from_fp32(model, calibration.ranges, deployment, keep_float=stay)

            return Lossy(f"INT8 for {deployment}", layers, build)

        runtime = self._measured_in(deployment)
        ordered, tried = self._most_accurate_first(calibrations, lossy, runtime)
        if self.recipe.max_drop is None:
            chosen, made, kept = ordered[0], lossy(ordered[0]).build(()), None
        else:
            chosen, made, kept = self._first_within_budget(model, ordered, lossy, runtime)
        cache = self.recipe.calibration.cache
        if cache and fresh:
            graph = sha256_of_bytes(bytes_from_model(model, self.spec.name))
            add_to_cache(Path(cache), graph, deployment, chosen, pictures)
        record: dict[str, Any] = {"method": chosen.method}
        if always:
            record["task_float"] = list(always)
        if tried:
            record["methods"] = tried
        if kept is None:
            return made, record if tried else None
        return made, {**kept, **record}

    def _measured_in(self, deployment: Deployment) -> str:
        """Return the runtime that accuracy is measured in, and say what is not the file's own."""
        if deployment != "tensorrt" or self.dataset is None:
            return runtime_of(deployment)
        runtime = runtime_of_budget(self.recipe)
        if runtime == "tensorrt":
            self.listener.note("accuracy of INT8 for TensorRT is measured in plans, built here")
        else:
            self.listener.note(
                "accuracy of INT8 for TensorRT is measured in ONNX Runtime; its plan may lose "
                "more: evaluate the plan, or run this where TensorRT and a GPU are"
            )
        return runtime

    def _always_float(self, model: onnx.ModelProto, deployment: Deployment) -> tuple[str, ...]:
        """Return the layers that no INT8 file has as integers: those of keypoints alone.

        A keypoint is off by pixels where a box is not: measured in docs/int8.md.
        """
        if self.spec.task != "pose" or deployment == "tensorrt":
            return ()
        extras = set(layers_of_extras(model))
        names = tuple(n for n in quantisable_layers(model) if n in extras)
        if names:
            self.listener.note(f"{len(names)} layers of the keypoints stay in float")
        return names

    def _calibrations(
        self, model: onnx.ModelProto, deployment: Deployment
    ) -> tuple[list[Calibration], tuple[str, ...], bool]:
        """Calibrate by each method that is asked for, or read the cache.

        Also returns the SHA-256 of each picture's file, and whether the calibration is fresh.
        """
        options = self.recipe.calibration
        cache = Path(options.cache) if options.cache else None
        if cache is not None and list(self.files) == [cache]:
            graph = sha256_of_bytes(bytes_from_model(model, self.spec.name))
            found = read_cache(cache, graph, deployment)
            count = found.calibration.pictures
            self.listener.note(f"calibration of {count} pictures from {cache}")
            return [found.calibration], found.pictures, False
        methods = METHODS if options.method == "auto" else (options.method,)
        found_by_method = []
        for method in methods:
            self.listener.note(
                f"calibrate for {deployment} on {len(self.files)} pictures ({method})"
            )
            found_by_method.append(
                calibrate(
                    model,
                    self.spec,
                    list(self.files),
                    deployment,
                    method=method,
                    batch=options.batch,
                    threads=self.recipe.threads,
                    advance=_counter(
                        self.listener, f"calibrate {deployment} {method}", len(self.files)
                    ),
                )
            )
        return found_by_method, tuple(sha256_of_file(p) for p in self.files), True

    def _most_accurate_first(
        self,
        calibrations: Sequence[Calibration],
        lossy: Callable[[Calibration], Lossy],
        runtime: str,
    ) -> tuple[list[Calibration], dict[str, float]]:
        """Return the calibration that costs least first, and the accuracy by method where any."""
        if len(calibrations) == 1:
            return list(calibrations), {}
        tried: dict[str, float] = {}
        for calibration in calibrations:
            self.listener.note(f"accuracy of {calibration.method}")
            tried[calibration.method] = self.measure(lossy(calibration).build(()), runtime)
        return sorted(calibrations, key=lambda c: -tried[c.method]), tried

    def _first_within_budget(
        self,
        model: onnx.ModelProto,
        calibrations: Sequence[Calibration],
        lossy: Callable[[Calibration], Lossy],
        runtime: str,
    ) -> tuple[Calibration, onnx.ModelProto, dict[str, Any]]:
        """Return the first calibration that keeps the budget with few layers in FP32.

        The most accurate one with all layers integer need not be it: where a range clips, no layer
        in FP32 brings back what was cut off before it.
        """
        found: list[tuple[Calibration, onnx.ModelProto, dict[str, Any]]] = []
        failure: CheckFailedError | None = None
        for calibration in calibrations:
            if len(calibrations) > 1:
                self.listener.note(f"keep the budget with {calibration.method}")
            try:
                made, kept = self._within_budget(model, lossy(calibration), runtime)
            except CheckFailedError as error:
                failure = failure or error
                continue
            found.append((calibration, made, kept))
            if len(kept["kept_float"]) <= _FEW_KEPT * kept["layers"]:
                break
        if failure is not None and not found:
            raise failure
        return min(found, key=lambda f: len(f[2]["kept_float"]))

    def _within_budget(
        self, model: onnx.ModelProto, lossy: Lossy, runtime: str = "onnxruntime"
    ) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """Return the graph with the fewest FP32 layers that keeps the budget, and how it was found.

        Raises:
            RequestError: The data shows nothing to measure on.
            CheckFailedError: The budget cannot be kept.
        """
        limit = self.recipe.max_drop
        assert limit is not None and self.dataset is not None, "checked with the request"
        ranked: list[Sensitivity] = []

        def order() -> Sequence[Sensitivity]:
            ranked.extend(self._sensitivities(model, lossy))
            return ranked

        self.listener.note("accuracy of FP32")
        reference = self.measure(model)
        self.listener.note(f"accuracy of {lossy.name}")

        def measure(graph: onnx.ModelProto) -> float:
            return self.measure(graph, runtime)

        step = FLOAT_STEP if runtime == "tensorrt" else 1
        result = search_budget(lossy, order, measure, reference, limit, step)
        share = f"{len(result.kept)} of {result.layers} layers in FP32"
        if not result.within:
            raise CheckFailedError(
                f"{self.spec.name} in {lossy.name}",
                f"{self.measure_name} drops by {result.drop:.4f} even with {share}, and at most "
                f"{limit:g} is allowed",
                _advice(lossy, result),
            )
        self.listener.note(f"{lossy.name} loses {result.drop:.4f} {self.measure_name} with {share}")
        return result.model, {
            **result.as_dict(),
            "max_drop": limit,
            "measured_in": runtime,
            "measure": self.measure_name,
            "sensitivities": [[s.layer, s.error] for s in ranked],
            "data": self.dataset.name,
            "fingerprint": self.dataset.fingerprint,
        }

    def _sensitivities(self, model: onnx.ModelProto, lossy: Lossy) -> list[Sensitivity]:
        """Measure the layers one by one."""
        assert self.dataset is not None, "a budget has data"
        count = len(lossy.layers)
        self.listener.note(f"the budget does not hold: measure the {count} layers one by one")
        return measure_sensitivities(
            model,
            self.spec,
            lossy,
            [item.read() for item in self.dataset.items[:_FEW]],
            threads=self.recipe.threads,
            advance=_counter(self.listener, f"layers of {lossy.name}", count),
        )

    @property
    def measure_name(self) -> str:
        """Name of the figure that is measured."""
        assert self.dataset is not None, "a budget has data"
        return measure_for(self.spec, self.dataset).name

    def measure(self, graph: onnx.ModelProto, runtime: str = "onnxruntime") -> float:
        """Return mAP50-95 of a graph in a runtime, or the task's own figure.

        Raises:
            RequestError: The data shows no object of the model's classes.
        """
        assert self.dataset is not None, "a budget has data"
        data = bytes_from_model(graph, self.spec.name)
        key = f"{runtime} {sha256_of_bytes(data)}"
        if key not in self.measured:
            if runtime == "tensorrt":
                with opened_as_plan(data, self.recipe.budget, self.listener) as plan:
                    detector = Detector(plan, self.spec)
                    found = evaluate({self.spec.name: detector}, self.dataset)
                accuracy = found[self.spec.name].figure
            else:
                threads = self.recipe.threads
                accuracy = _accuracy(data, self.spec, self.dataset, threads, runtime)
            if accuracy is None:
                raise RequestError(
                    f"--data {self.recipe.data}",
                    "it shows no object of the model's classes, so that no accuracy can be lost",
                    "give labelled pictures with objects",
                )
            self.measured[key] = accuracy
            count = len(self.dataset.items)
            self.listener.note(f"{self.measure_name} {accuracy:.4f} on {count} pictures")
        return self.measured[key]


def _advice(lossy: Lossy, result: BudgetResult) -> str:
    if lossy.name == "FP16":
        return "ship FP32, or allow a larger drop"
    if result.measured < result.reference / 2:
        return "calibrate on pictures like those that are measured, or use --calib-method auto"
    return "use FP16, --calib-method auto, or calibrate on more pictures"


def _counter(listener: Listener, label: str, total: int) -> Callable[[int], None]:
    """Return a function that adds to what a listener shows as done."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        listener.count(label, done, total)

    return advance


def _accuracy(
    data: bytes, spec: ModelSpec, dataset: Dataset, threads: int | None, runtime: str
) -> float | None:
    options = BackendOptions(threads, "cpu", spin=False)
    with Detector(catalog.backend(runtime).open_bytes(data, options), spec) as detector:
        return evaluate({spec.name: detector}, dataset)[spec.name].figure


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
