"""Where the accuracy budget of INT8 files for TensorRT is measured: in plans, if they can be built.

A budget that holds in ONNX Runtime need not hold in a plan: the same 8-bit grid rounds otherwise in
other kernels. So each candidate is built here and measured as the plan that it becomes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from boxwright import catalog
from boxwright.backends import Backend, BackendOptions
from boxwright.engine_record import record_bytes, sidecar_path
from boxwright.engines import BuildSettings, build_plan
from boxwright.engines.progress import Watcher
from boxwright.errors import BackendError
from boxwright.nvidia import find_gpu, load_tensorrt
from boxwright.recipe import BudgetOptions, Recipe

__all__ = ["FLOAT_STEP", "build_settings", "opened_as_plan", "runtime_of_budget"]

FLOAT_STEP = 4  # a build takes minutes: the number of float layers is looked for in fours

BudgetRuntime = Literal["onnxruntime", "tensorrt"]


def runtime_of_budget(recipe: Recipe) -> BudgetRuntime:
    """Return where the budget of an INT8 file for TensorRT is measured on this machine.

    `auto` is TensorRT where it and a GPU are there, and ONNX Runtime otherwise.

    Raises:
        BackendError: TensorRT is asked for, and it or the GPU is not there.
        RequestError: A setting of its plans is wrong.
    """
    build_settings(recipe.budget).check("tensorrt")
    if recipe.budget.runtime == "onnxruntime":
        return "onnxruntime"
    try:
        load_tensorrt("tensorrt")
        if find_gpu() is None:
            raise BackendError("--budget-runtime tensorrt", "there is no GPU here", "drop it")
    except BackendError:
        if recipe.budget.runtime == "tensorrt":
            raise
        return "onnxruntime"
    return "tensorrt"


def build_settings(options: BudgetOptions) -> BuildSettings:
    """Return what the plans are built with."""
    return BuildSettings(
        workspace_gib=options.workspace_gib,
        optimization_level=options.optimization_level,
        timing_cache=Path(options.timing_cache) if options.timing_cache else None,
        tactic_sources=tuple(s.upper() for s in options.tactic_sources) or None,
    )


@contextmanager
def opened_as_plan(data: bytes, options: BudgetOptions, watcher: Watcher) -> Iterator[Backend]:
    """Build a typed graph, yield the plan as a backend, and delete it.

    Args:
        data: ONNX file.
        options: What it is built with; the timing cache is used, and kept.
        watcher: Told what happens.

    Raises:
        BoxwrightError: TensorRT cannot build or run it.
    """
    settings = build_settings(options)
    with TemporaryDirectory(prefix="boxwright-") as folder:
        onnx, plan = Path(folder) / "candidate.onnx", Path(folder) / "candidate.plan"
        onnx.write_bytes(data)
        built = build_plan(onnx, settings, "tensorrt", watcher)
        sidecar_path(plan).write_bytes(record_bytes(built.record))
        plan.write_bytes(built.data)
        backend = catalog.backend("tensorrt").open(plan, BackendOptions())
        try:
            yield backend
        finally:
            backend.close()
