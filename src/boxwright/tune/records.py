"""The records of a tuning: what was asked for, what was tried, and what came of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from boxwright.errors import RequestError
from boxwright.measurement.records import BenchmarkResult, Measured, SpeedUp
from boxwright.types import Accuracy, Change

__all__ = [
    "SCHEMA",
    "Budgets",
    "Candidate",
    "Combination",
    "Drop",
    "Objective",
    "Sweep",
    "TuneResult",
]

SCHEMA = 1
Objective: TypeAlias = Literal["latency", "throughput"]


@dataclass(frozen=True, slots=True)
class Budgets:
    """What a winner must keep; None is no limit.

    Attributes:
        max_drop: mAP50-95 (or the task's own figure) lost against FP32 in ONNX Runtime, 0..1.
        max_latency_ms: p95 of a whole call (under load: of its inference).
        max_memory_mb: Peak memory of a process that does nothing else, in MB (10^6 bytes).
    """

    max_drop: float | None = None
    max_latency_ms: float | None = None
    max_memory_mb: float | None = None

    def check(self) -> None:
        """Refuse limits that are out of range.

        Raises:
            RequestError: One is.
        """
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise RequestError(
                f"--max-drop {self.max_drop:g}", "it is not between 0 and 1", "use e.g. 0.005"
            )
        for option, value in (
            ("--max-latency-ms", self.max_latency_ms),
            ("--max-memory-mb", self.max_memory_mb),
        ):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise RequestError(f"{option} {value:g}", "it is not positive", "use e.g. 50")

    def words(self) -> str:
        """Return the options that say the same.

        >>> Budgets(max_drop=0.005, max_memory_mb=300.0).words()
        '--max-drop 0.005 --max-memory-mb 300'
        """
        values = dataclasses.asdict(self).items()
        return " ".join(f"--{k.replace('_', '-')} {v:g}" for k, v in values if v is not None)


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is tried with each file, and how it is measured.

    Attributes:
        runtimes: Names; empty: all that are installed.
        threads: CPU threads of one inference; empty: 1, 2, 4, ... and the usable cores.
        batch: Pictures in one call.
        objective: `latency` of one call at a time, or `throughput` with several in flight.
        concurrency: Calls in flight; None: as many as keep the usable cores busy.
        iterations: Samples of each candidate in the final round; None: 50, unless `seconds` says.
        seconds: Measure each at least so long in the final round instead.
        memory: Measure the peak memory of those that reach the final round.
        allow_unmeasured_int8: Let INT8 files take part although no data measures what they lose.
    """

    runtimes: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()
    batch: int = 1
    objective: Objective = "latency"
    concurrency: int | None = None
    iterations: int | None = None
    seconds: float | None = None
    memory: bool = True
    allow_unmeasured_int8: bool = False


@dataclass(frozen=True, slots=True)
class Combination:
    """A file with the way in which it is run.

    Attributes:
        file: Its name, or `source`.
        path: Where it is.
        precision, outputs, nms: What it is.
        runtime: Name of the runtime.
        threads: CPU threads of one inference; None is the runtime's default.
        batch: Pictures in one call.
        in_flight: Calls at once.
        deployment: Where an INT8 file is meant to run.
    """

    file: str
    path: Path
    precision: str
    outputs: str
    nms: str
    runtime: str
    threads: int | None
    batch: int = 1
    in_flight: int = 1
    deployment: str = "cpu"

    @property
    def body(self) -> str:
        """What files of the same accuracy share: precision, and an INT8 file's deployment."""
        own = self.precision == "int8" and self.deployment != "cpu"
        return f"int8.{self.deployment}" if own else self.precision

    @property
    def name(self) -> str:
        """What tells it from the others."""
        load = f", {self.in_flight} in flight" if self.in_flight > 1 else ""
        return f"{self.file} ({self.runtime}, threads {self.threads or 'default'}{load})"

    @property
    def simplicity(self) -> tuple[int, ...]:
        """What is preferred at equal speed; smaller is better.

        Fewer threads leave cores to others; then the safer precision, the runtime that is always
        installed, and the file with less in it.
        """
        precisions, runtimes = ("fp32", "fp16", "int8"), ("onnxruntime", "openvino")
        return (
            self.threads or 0,
            precisions.index(self.precision) if self.precision in precisions else len(precisions),
            runtimes.index(self.runtime) if self.runtime in runtimes else len(runtimes),
            0 if self.outputs == "raw" else 1,
            0 if self.nms == "onnx" else 1,
        )


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a candidate left.

    Attributes:
        stage: `files`, `accuracy`, `memory`, `round 1`, `round 2`, ... or `final`.
        reason: In words.
    """

    stage: str
    reason: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A combination and all that is known of it.

    Attributes:
        combination: What it is.
        sha256: Of the file; "" where it was not made.
        figure: Accuracy of its body in its runtime; None when it was not measured.
        drop: Accuracy lost against FP32 in ONNX Runtime; negative is a gain.
        measured: In the last round that it ran in.
        peak_memory_mb: Of a fresh process; None when it was not measured.
        speed_ups: Against each baseline of the final round.
        dropped: Why it left; None when it was in the final round.
        over: In words, which budgets it exceeds.
        on_front: Nothing in the final round dominates it.
        baseline: It is compared with, and cannot win.
        change: Of the figure against FP32 in ONNX Runtime, with its 95 % interval.
        measure: Name of the figure: `mAP50-95`, or the task's own.
    """

    combination: Combination
    sha256: str = ""
    figure: float | None = None
    drop: float | None = None
    measured: Measured | None = None
    peak_memory_mb: float | None = None
    speed_ups: tuple[SpeedUp, ...] = ()
    dropped: Drop | None = None
    over: tuple[str, ...] = ()
    on_front: bool = False
    baseline: bool = False
    change: Change | None = None
    measure: str = "mAP50-95"

    @property
    def name(self) -> str:
        """Of the combination."""
        return self.combination.name

    @property
    def eligible(self) -> bool:
        """Whether it may win: in the final round, within every budget, and no baseline."""
        return self.dropped is None and not self.over and not self.baseline

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types; the raw samples stand in the result's measurements."""
        which, measured = self.combination, self.measured
        figures: dict[str, Any] = {}
        if measured is not None:
            figures = {
                "p50_ms": round(measured.main.p50, 4),
                "p95_ms": round(measured.main.p95, 4),
                "samples": len(measured.main.samples_ms),
                "images_per_s": measured.images_per_s,
                "noise": dataclasses.asdict(measured.noise),
            }
        return {
            "name": self.name,
            **dataclasses.asdict(which),
            "path": str(which.path),
            "sha256": self.sha256,
            "measure": self.measure,
            "figure": self.figure,
            "map50_95": None if self.measure == "top-1" else self.figure,
            "drop": self.drop,
            "change": dataclasses.asdict(self.change) if self.change else None,
            **figures,
            "peak_memory_mb": self.peak_memory_mb,
            "speed_ups": [dataclasses.asdict(s) for s in self.speed_ups],
            "dropped": dataclasses.asdict(self.dropped) if self.dropped else None,
            "over": list(self.over),
            "on_front": self.on_front,
            "baseline": self.baseline,
        }


@dataclass(frozen=True, slots=True)
class TuneResult:
    """What a tuning tried and found.

    Attributes:
        created_at: Wall clock, ISO 8601 with time zone.
        boxwright: Version.
        folder: The run directory.
        request: The recipe, in JSON types.
        budgets, sweep: What was asked for.
        environment: Machine and libraries.
        data: Name, fingerprint, pictures and objects of the labelled pictures; empty without.
        pictures: What was looked at while timing, in words.
        candidates: All, those that left early too, and the baselines last.
        winner: None where nothing is within the budgets.
        why: How the winner was chosen, or why there is none, in one sentence.
        tied: Names of those as good as the fastest: within noise, and hardly slower.
        accuracy: Of each body in each runtime, as (file, runtime, figures).
        measurements: Every round with its raw samples, as (stage, benchmark); the last is final.
        notes: What was left out or should be known.
        commands: (what it does, command line) to make the winner again and to use it.
        unsure: Names of those that may be as fast, for all that the noise lets one tell.
    """

    created_at: str
    boxwright: str
    folder: Path
    request: Mapping[str, Any]
    budgets: Budgets
    sweep: Sweep
    environment: Mapping[str, str]
    data: Mapping[str, Any]
    pictures: str
    candidates: tuple[Candidate, ...]
    winner: Candidate | None
    why: str
    tied: tuple[str, ...]
    accuracy: tuple[tuple[str, str, Accuracy], ...]
    measurements: tuple[tuple[str, BenchmarkResult], ...]
    notes: tuple[str, ...]
    commands: tuple[tuple[str, str], ...]
    unsure: tuple[str, ...] = ()
    schema: int = field(default=SCHEMA)

    @property
    def front(self) -> tuple[Candidate, ...]:
        """The Pareto front, the fastest first."""
        return tuple(c for c in self.candidates if c.on_front)

    @property
    def final(self) -> BenchmarkResult | None:
        """The final round; None when nothing reached it."""
        found = [result for stage, result in self.measurements if stage == "final"]
        return found[-1] if found else None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types, with every raw sample."""
        return {
            "schema": self.schema,
            "created_at": self.created_at,
            "boxwright": self.boxwright,
            "folder": str(self.folder),
            "request": dict(self.request),
            "budgets": dataclasses.asdict(self.budgets),
            "sweep": dataclasses.asdict(self.sweep),
            "environment": dict(self.environment),
            "data": dict(self.data),
            "pictures": self.pictures,
            "winner": self._winner(),
            "why": self.why,
            "tied": list(self.tied),
            "unsure": list(self.unsure),
            "front": [c.name for c in self.front],
            "candidates": [c.as_dict() for c in self.candidates],
            "commands": [list(c) for c in self.commands],
            "notes": list(self.notes),
            "accuracy": [
                {
                    "file": file,
                    "runtime": runtime,
                    "accuracy": dataclasses.replace(figures, pr_curve={}).as_dict(),
                }
                for file, runtime, figures in self.accuracy
            ],
            "measurements": [
                {"stage": stage, **result.as_dict()} for stage, result in self.measurements
            ],
        }

    def _winner(self) -> dict[str, Any] | None:
        if self.winner is None:
            return None
        which = self.winner.combination
        return {
            "name": self.winner.name,
            "file": str(which.path),
            "sha256": self.winner.sha256,
            "runtime": which.runtime,
            "threads": which.threads,
            "batch": which.batch,
            "in_flight": which.in_flight,
        }
