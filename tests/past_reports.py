"""Reports of runs that never were, made of the public records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boxwright.measurement.records import BenchmarkResult, Measured, Noise, Round
from boxwright.report import Evaluated, Made, Report
from boxwright.scoring import average_precision
from boxwright.significance import Matches
from boxwright.types import (
    Accuracy,
    Artifact,
    Check,
    ClassAccuracy,
    HeadLayout,
    Latency,
    ModelSpec,
    NmsSettings,
    Parity,
    Preprocess,
    Target,
)

FILE = "m.fp32.onnx"
MACHINE = {"processor": "A processor", "cores": "4", "python": "3.11"}
SPEC = ModelSpec("m", "yolox", "detect", ("ant",), (64, 64), Preprocess(), HeadLayout())


def made(name: str = FILE, sha256: str = "a" * 64, size_bytes: int = 1000, **rest: Any) -> Made:
    artifact = Artifact(Path(name), sha256, SPEC, Target(), (), (), "p" * 64, {})
    return Made(artifact, rest.get("state", "published"), size_bytes)


def parity(measured: float = 0.01, limit: float = 0.05, detections: int = 40) -> Parity:
    checks = (
        Check("raw boxes, px", measured, limit, measured <= limit),
        Check("detections missing", 0, 0, True),
        Check("not measured", 0.0, 1.0, None),
    )
    return Parity("source", "file", checks, 8, detections)


def accuracy(pictures: Sequence[Any], matches: Matches, **changed: Any) -> Accuracy:
    """The accuracy that these pictures have, of one class."""
    table = average_precision(pictures, 1, 300)
    objects = int(matches.object_count.sum())
    settings = NmsSettings(score_threshold=0.001)
    values: dict[str, Any] = {
        "candidate": FILE, "runs_on": "fake", "dataset": "some data",
        "fingerprint": matches.fingerprint, "pictures": matches.pictures, "objects": objects,
        "map50_95": table.mean, "map50": table.mean_50, "map75": table.mean_75,
        "map_small": None, "map_medium": None, "map_large": None,
        "per_class": {"ant": ClassAccuracy(table.mean, table.mean_50, objects)},
        "precision": 0.9, "recall": 0.8, "f1": 0.85,
        "operating": NmsSettings(), "evaluation": settings,
    }  # fmt: skip
    return Accuracy(**{**values, **changed})


def evaluated(found: Accuracy, file: str = FILE, runtime: str = "onnxruntime") -> Evaluated:
    return Evaluated(file, runtime, "", found)


def timed(level_ms: float = 10.0, seed: int = 0, rounds: int = 10, **changed: Any) -> Measured:
    """A file whose calls take `level_ms`, give or take two percent."""
    rng = np.random.default_rng(seed)
    samples = level_ms * (1 + 0.02 * rng.standard_normal(5 * rounds))
    numbers = tuple(i // 5 for i in range(5 * rounds))
    values: dict[str, Any] = {
        "name": FILE, "file": f"runs/x/{FILE}", "size_bytes": 1000, "runtime": "onnxruntime",
        "description": "onnxruntime 1.0 (CPU, 2 threads)", "precision": "fp32", "outputs": "raw",
        "threads": 2, "batch": 1, "mode": "latency", "concurrency": 1, "warmup": 5,
        "latencies": {"total": Latency("total", 1, tuple(samples.tolist()))},
        "sample_rounds": numbers, "rounds": tuple(Round(i, float(i)) for i in range(rounds)),
        "images_per_s": 1e3 / level_ms, "noise": Noise("quiet"),
    }  # fmt: skip
    return Measured(**{**values, **changed})


def timings(*rows: Measured, **changed: Any) -> BenchmarkResult:
    values: dict[str, Any] = {
        "started_at": "2026-01-01T00:00:00+00:00", "environment": MACHINE, "settings": {},
        "pictures": "8 of --images",
    }  # fmt: skip
    return BenchmarkResult(**{**values, **changed}, measured=rows)


def report(**changed: Any) -> Report:
    values: dict[str, Any] = {
        "created_at": "2026-01-01T00:00:00+00:00", "boxwright": "0.1.0", "name": "m",
        "command": "boxwright run m.onnx", "request": {"source": "m.onnx", "nms": {"iou": 0.7}},
        "source": {"asked": "m.onnx", "sha256": "s" * 64}, "environment": MACHINE,
        "artifacts": (made(),), "parity": {FILE: parity()},
    }  # fmt: skip
    return Report(**{**values, **changed})


def by_file(matches: Matches) -> Mapping[tuple[str, str], Matches]:
    return {(FILE, "onnxruntime"): matches}
