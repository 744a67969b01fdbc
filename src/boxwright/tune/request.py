"""Checks a whole request before any work: files, data, options, runtimes; lays out the sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from boxwright import catalog
from boxwright.benchmark import BenchmarkSettings
from boxwright.datasets import Dataset
from boxwright.errors import MissingExtraError, RequestError
from boxwright.images import expand_paths
from boxwright.machine import usable_cores
from boxwright.measures import check_budget_measure
from boxwright.outcome import Listener
from boxwright.recipe import CalibrationOptions, MeasureOptions, Recipe, TargetOptions
from boxwright.resolve import Resolved, labelled_data, resolve
from boxwright.store import sha256_of_file
from boxwright.tune.records import Budgets, Combination, Sweep
from boxwright.types import ModelSpec

__all__ = ["BASELINE", "Request", "check_request", "default_threads", "in_flight", "with_targets"]

BASELINE = TargetOptions(precision="fp32", outputs="raw")
_BASELINE_RUNTIME = "pytorch"  # runs the source itself
_SOURCES = (".pt", ".safetensors", ".yaml", ".yml")  # what PyTorch runs


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was checked.

    Attributes:
        recipe: With the raw file of every body among its targets, and the budget's limit in it.
        asked: The targets that may win.
        out, models: Folders.
        force: Make files anew.
        budgets, sweep: With every default filled in.
        resolved: The source.
        spec: What it is.
        dataset: Labelled pictures, or None.
        pictures: What is looked at while timing; empty: generated ones.
        has_torch: The source runs in PyTorch as a baseline.
        notes: What was decided for the user.
    """

    recipe: Recipe
    asked: tuple[TargetOptions, ...]
    out: Path
    models: Path
    force: bool
    budgets: Budgets
    sweep: Sweep
    resolved: Resolved
    spec: ModelSpec
    dataset: Dataset | None
    pictures: tuple[Path, ...]
    has_torch: bool
    notes: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.out / self.resolved.request.name

    def file_of(self, target: TargetOptions) -> str:
        """Return the name of a target's file."""
        records = self.recipe.model_copy(update={"targets": (target,)}).target_records()
        return f"{self.resolved.request.name}.{records[0].suffix}.onnx"

    def combinations(self) -> tuple[Combination, ...]:
        """Return every way to run every file that may win."""
        sweep = self.sweep
        return tuple(
            Combination(
                deployment=target.deployment if target.precision == "int8" else "cpu",
                file=self.file_of(target),
                path=self.folder / self.file_of(target),
                precision=target.precision,
                outputs=target.outputs,
                nms=target.nms if target.outputs == "end2end" else "onnx",
                runtime=runtime,
                threads=threads,
                batch=sweep.batch,
                in_flight=in_flight(sweep, threads),
            )
            for threads in sweep.threads
            for target in self.asked
            for runtime in runtimes_of(body_of(target), sweep.runtimes)
        )


def body_of(target: TargetOptions) -> str:
    """Return what tells bodies apart, which files of the same accuracy share.

    >>> body_of(TargetOptions(precision="fp16", outputs="end2end"))
    'fp16'
    >>> body_of(TargetOptions(precision="int8", deployment="openvino"))
    'int8.openvino'
    """
    if target.precision == "int8" and target.deployment != "cpu":
        return f"int8.{target.deployment}"
    return target.precision


def raw_target(body: str) -> TargetOptions:
    """Return the raw file of a body.

    >>> raw_target("int8.openvino").deployment
    'openvino'
    """
    precision, _, deployment = body.partition(".")
    return TargetOptions.model_validate({"precision": precision, "deployment": deployment or "cpu"})


def runtimes_of(body: str, runtimes: Sequence[str]) -> tuple[str, ...]:
    """Return the runtimes that a body is made for.

    >>> runtimes_of("int8.openvino", ["onnxruntime", "openvino"])
    ('openvino',)
    """
    own = body.partition(".")[2]
    return tuple(r for r in runtimes if own in ("", r))


def default_threads(cores: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... and the number of cores.

    >>> default_threads(1), default_threads(4), default_threads(6)
    ((1,), (1, 2, 4), (1, 2, 4, 6))
    """
    powers = [1 << i for i in range(cores.bit_length()) if 1 << i <= cores]
    return tuple(dict.fromkeys([*powers, cores]))


def in_flight(sweep: Sweep, threads: int | None) -> int:
    """Return how many calls are in flight: as many as keep the cores busy, or as asked for."""
    if sweep.objective == "latency":
        return 1
    return sweep.concurrency or max(1, usable_cores() // (threads or usable_cores()))


def _evenly(paths: Sequence[Path], count: int) -> list[Path]:
    """Return at most so many of some paths, evenly spaced."""
    if len(paths) <= count:
        return list(paths)
    step = len(paths) / count
    return [paths[int(i * step)] for i in range(count)]


def check_request(
    recipe: Recipe,
    out: Path,
    budgets: Budgets,
    sweep: Sweep,
    *,
    models: Path,
    force_download: bool,
    force_convert: bool,
    listener: Listener,
) -> Request:
    """Check everything that can be checked without making or measuring anything.

    Raises:
        BoxwrightError: The request or an input is wrong.
    """
    budgets = _budgets(recipe, budgets)
    budgets.check()
    _check_targets(recipe)
    _check_accuracy(recipe, budgets, sweep)
    _check_sweep(recipe, budgets, sweep)
    notes: list[str] = []
    runtimes, has_torch = _runtimes(recipe, sweep)
    for target in recipe.targets:
        if not runtimes_of(body_of(target), runtimes):
            raise RequestError(
                f"--deploy {target.deployment}",
                f"that runtime is not among those to tune ({', '.join(runtimes)})",
                "add it to --runtimes, or tune the cpu files",
            )
    resolved = resolve(recipe, models, _fetcher(force_download, listener))
    has_torch = has_torch and resolved.request.path.suffix.lower() in _SOURCES
    if _BASELINE_RUNTIME in sweep.runtimes and not has_torch:
        raise RequestError(
            f"--runtimes {_BASELINE_RUNTIME}",
            f"it is the baseline of a checkpoint, and {recipe.source} is none",
            "drop it",
        )
    spec = resolved.source.describe(resolved.request)
    dataset = _dataset(recipe, resolved, listener)
    if dataset is not None and budgets.max_drop is not None:
        check_budget_measure(spec, dataset, "--max-drop")
    pictures = _pictures(recipe, dataset)
    if dataset is None:
        notes.append(
            "accuracy was not measured: without --data the fastest wins, whatever it finds"
        )
    elif budgets.max_drop is None:
        notes.append("no --max-drop: a winner may lose any accuracy; see its drop")
    if not any(t.precision == "int8" for t in recipe.targets):
        notes.append("no INT8 file took part")
    filled = Sweep(
        runtimes=runtimes,
        threads=sweep.threads or default_threads(usable_cores()),
        batch=sweep.batch,
        objective=sweep.objective,
        concurrency=sweep.concurrency,
        iterations=sweep.iterations,
        seconds=sweep.seconds,
        memory=sweep.memory and sweep.objective == "latency",
        allow_unmeasured_int8=sweep.allow_unmeasured_int8,
    )
    return Request(
        recipe=_with_bodies(recipe, budgets),
        asked=tuple(dict.fromkeys(recipe.targets)),
        out=out,
        models=models,
        force=force_convert,
        budgets=budgets,
        sweep=filled,
        resolved=resolved,
        spec=spec,
        dataset=dataset,
        pictures=tuple(pictures),
        has_torch=has_torch,
        notes=tuple(notes),
    )


def _fetcher(force: bool, listener: Listener) -> Callable[[str, Path], list[Path]]:
    def fetch(name: str, folder: Path) -> list[Path]:
        from boxwright.sources.hub import fetch as download

        return download(name, folder, force=force, progress=listener.bytes)

    return fetch


def _budgets(recipe: Recipe, budgets: Budgets) -> Budgets:
    """Return the budgets with the recipe's limit of accuracy."""
    if recipe.max_drop is None or budgets.max_drop == recipe.max_drop:
        return budgets
    if budgets.max_drop is not None:
        raise RequestError(
            f"--max-drop {budgets.max_drop:g}",
            f"the recipe says {recipe.max_drop:g}",
            "say it in one place",
        )
    return Budgets(recipe.max_drop, budgets.max_latency_ms, budgets.max_memory_mb)


def _check_targets(recipe: Recipe) -> None:
    """Refuse what no runtime of this machine's processor runs as it should."""
    for target in recipe.targets:
        if target.outputs == "end2end" and target.nms == "efficient_nms":
            raise RequestError(
                "--nms efficient_nms",
                "it is TensorRT's operator, and no runtime that is tuned here has it",
                "use onnx or portable",
            )
        if target.precision == "int8" and target.deployment == "tensorrt":
            raise RequestError(
                "INT8 for tensorrt",
                "OpenVINO computes such files wrongly on processors without VNNI, and ONNX "
                "Runtime slowly",
                "tune the cpu and openvino files",
            )
    if not recipe.verify:
        raise RequestError("verify: false", "only proven files are tuned", "drop it")


def _check_accuracy(recipe: Recipe, budgets: Budgets, sweep: Sweep) -> None:
    """Refuse a limit that nothing measures, and INT8 whose loss nobody would see."""
    if budgets.max_drop is not None and recipe.data is None:
        raise RequestError("--max-drop", "it needs --data", "give --data, or drop it")
    if not any(t.precision == "int8" for t in recipe.targets):
        return
    if recipe.data is None and not sweep.allow_unmeasured_int8:
        raise RequestError(
            "--precision int8",
            "without --data nothing would measure what it loses",
            "give --data, or say --allow-unmeasured-int8",
        )


def _check_sweep(recipe: Recipe, budgets: Budgets, sweep: Sweep) -> None:
    settings = BenchmarkSettings(
        batches=(sweep.batch,),
        threads=sweep.threads or (None,),
        iterations=sweep.iterations,
        seconds=sweep.seconds,
        concurrency=sweep.concurrency,
    )
    settings.check()
    if sweep.concurrency is not None and sweep.objective == "latency":
        raise RequestError(
            f"--concurrency {sweep.concurrency}",
            "latency is measured with one call at a time",
            "add --objective throughput",
        )
    if budgets.max_memory_mb is not None and sweep.objective == "throughput":
        raise RequestError(
            "--max-memory-mb",
            "memory is measured with one call at a time, not under load",
            "drop it, or --objective throughput",
        )
    if recipe.batch not in (None, sweep.batch):
        raise RequestError(
            f"--batch {sweep.batch}", f"the files take {recipe.batch} pictures only", "say the same"
        )


def _runtimes(recipe: Recipe, sweep: Sweep) -> tuple[tuple[str, ...], bool]:
    """Return the runtimes that run ONNX files, and whether PyTorch is there for a baseline.

    Raises:
        RequestError: One is unknown, or none of them runs ONNX files.
        MissingExtraError: One was named and is not installed.
    """
    for name in sweep.runtimes:
        extra = catalog.backend(name).missing()
        if extra is not None:
            raise MissingExtraError(f"--runtimes {name}", extra)
    names = sweep.runtimes or tuple(
        sorted(
            (n for n in catalog.backend_names() if catalog.backend(n).missing() is None),
            key=lambda n: (n != "onnxruntime", n),
        )
    )
    able = tuple(dict.fromkeys(n for n in names if ".onnx" in catalog.backend(n).suffixes))
    if not able:
        raise RequestError(
            f"--runtimes {','.join(names)}",
            "none of them runs ONNX files",
            "add onnxruntime or openvino",
        )
    return able, _BASELINE_RUNTIME in names and sweep.objective == "latency"


def _dataset(recipe: Recipe, resolved: Resolved, listener: Listener) -> Dataset | None:
    """Open the labelled pictures; refuse those that show nothing or were calibrated on.

    Raises:
        RequestError: They do or were.
        SourceError: They cannot be read.
    """
    dataset = labelled_data(
        recipe, resolved, lambda done, total: listener.count("pages", done, total)
    )
    if dataset is None:
        return None
    if not any((~item.crowd).any() for item in dataset.items):
        raise RequestError(
            f"--data {recipe.data}",
            "it shows no object of the model's classes, so that no accuracy can be lost",
            "give labelled pictures with objects",
        )
    options = recipe.calibration
    cached = options.cache is not None and Path(options.cache).is_file()
    if options.images and not cached and not options.allow_overlap:
        measured = {sha256_of_file(i.path): i for i in dataset.items if i.path and i.path.is_file()}
        files = _evenly(expand_paths(options.images), options.count)
        both = [measured[h].name for h in map(sha256_of_file, files) if h in measured]
        if both:
            raise RequestError(
                "--calib-images",
                f"{len(both)} of {len(files)} pictures are in --data too ({both[0]}), so that the "
                "accuracy would flatter",
                "calibrate on others, or say --allow-calibration-overlap",
            )
    return dataset


def _pictures(recipe: Recipe, dataset: Dataset | None) -> list[Path]:
    """Return what is verified and timed on: `images`, or the data's own pictures."""
    if recipe.images:
        return _evenly(expand_paths(recipe.images), recipe.max_images)
    if dataset is None:
        return []
    return _evenly([i.path for i in dataset.items if i.path is not None], recipe.max_images)


def _with_bodies(recipe: Recipe, budgets: Budgets) -> Recipe:
    """Return the recipe with the raw file of each body; the pipeline measures only parity.

    FP32 raw is the baseline of speed and accuracy; the other raw files are what accuracy is
    measured on.
    """
    bodies = [BASELINE, *(raw_target(body_of(t)) for t in recipe.targets)]
    targets = tuple(dict.fromkeys([*bodies, *recipe.targets]))
    silent = MeasureOptions(latency=False, accuracy=False)
    return with_targets(
        recipe.model_copy(update={"max_drop": budgets.max_drop, "measure": silent}), targets
    )


def with_targets(recipe: Recipe, targets: tuple[TargetOptions, ...]) -> Recipe:
    """Return the recipe for some targets, without what the pipeline refuses beside them."""
    changes: dict[str, object] = {"targets": targets}
    if all(t.precision == "fp32" for t in targets):
        changes["max_drop"] = None
    if all(t.precision != "int8" for t in targets):
        changes["calibration"] = CalibrationOptions()
    return recipe.model_copy(update=changes)
