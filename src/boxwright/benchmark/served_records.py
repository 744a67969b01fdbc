"""What a load test of a served model found: records, and tables of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from boxwright.benchmark.perf_analyzer import PerfAnalyzer
from boxwright.measurement.tables import Table

__all__ = ["ModelWork", "ServedLoad", "ServedResult", "tables_of_served"]


@dataclass(frozen=True, slots=True)
class ModelWork:
    """What the server says that one model did meanwhile; an ensemble has several.

    Attributes:
        model, version: Which.
        requests: That it answered.
        failed: That it answered with an error.
        rows: Pictures.
        executions: Runs; several requests may share one.
        queue_ms, compute_input_ms, compute_infer_ms, compute_output_ms: Mean of a request.
    """

    model: str
    version: str
    requests: int
    failed: int
    rows: int
    executions: int
    queue_ms: float
    compute_input_ms: float
    compute_infer_ms: float
    compute_output_ms: float

    @property
    def average_batch(self) -> float | None:
        """Pictures of one run, on average; None where nothing ran."""
        return self.rows / self.executions if self.executions else None


@dataclass(frozen=True, slots=True)
class ServedLoad:
    """What one number of requests in flight came to.

    Attributes:
        concurrency: Requests in flight.
        processes: That the clients were spread over.
        requests: That were answered while all clients were busy.
        errors: Those that were refused or lost, by what was said.
        retries: Requests that clients sent again, as the address says.
        requests_per_s: Answered, while all clients were busy.
        samples_ms: Latency of each answered request, as the client saw it.
        models: What the server did.
        perf_analyzer: Its figures, where it is installed.
    """

    concurrency: int
    processes: int
    requests: int
    errors: Mapping[str, int]
    retries: int
    requests_per_s: float
    samples_ms: tuple[float, ...]
    models: tuple[ModelWork, ...]
    perf_analyzer: PerfAnalyzer | None = None

    @property
    def failed(self) -> int:
        """Requests without an answer."""
        return sum(self.errors.values())

    def percentile(self, q: float) -> float | None:
        """Return percentile `q` of the latency in ms; None where nothing was answered."""
        return float(np.percentile(self.samples_ms, q)) if self.samples_ms else None


@dataclass(frozen=True, slots=True)
class ServedResult:
    """A load test of one served model.

    Attributes:
        address: The model.
        description: Server's backend, version and protocol, in words.
        started_at: ISO 8601, UTC.
        environment: Of the machine of the clients.
        settings: As asked.
        pictures: What was sent, in words.
        loads: One for each number of requests in flight.
    """

    address: str
    description: str
    started_at: str
    environment: Mapping[str, str]
    settings: Mapping[str, Any]
    pictures: str
    loads: tuple[ServedLoad, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types; percentiles and averages are added for readers."""
        values = dataclasses.asdict(self)
        for entry, load_ in zip(values["loads"], self.loads, strict=True):
            entry["latency_ms"] = {f"p{q}": load_.percentile(q) for q in (50, 95, 99)}
            for model, work in zip(entry["models"], load_.models, strict=True):
                model["average_batch"] = work.average_batch
        return values


def _cell(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def tables_of_served(results: Sequence[ServedResult]) -> list[Table]:
    """Return what clients saw, and what the server did for them."""
    seen, done = [], []
    analysed = any(load_.perf_analyzer is not None for r in results for load_ in r.loads)
    for result in results:
        for one in result.loads:
            row = [result.address, str(one.concurrency), f"{one.requests_per_s:.1f}"]
            row += [_cell(one.percentile(q)) for q in (50, 95, 99)]
            row += [str(one.requests), str(one.failed), str(one.retries)]
            if analysed:
                told = one.perf_analyzer
                row += (
                    [f"{told.requests_per_s:.1f}", _cell(told.p50_ms), _cell(told.p99_ms)]
                    if told is not None and not told.problem
                    else ["-", "-", "-"]
                )
            seen.append(tuple(row))
            for work in one.models:
                done.append(
                    (
                        f"{work.model}:{work.version}",
                        str(one.concurrency),
                        str(work.requests),
                        str(work.executions),
                        _cell(work.average_batch),
                        _cell(work.queue_ms),
                        _cell(work.compute_input_ms),
                        _cell(work.compute_infer_ms),
                        _cell(work.compute_output_ms),
                        str(work.failed),
                    )
                )
    head = ["model", "in flight", "requests/s", "p50 ms", "p95 ms", "p99 ms"]
    head += ["requests", "failed", "retries"]
    if analysed:
        head += ["perf_analyzer req/s", "its p50", "its p99"]
    server = ["model", "in flight", "requests", "runs", "average batch", "queue ms"]
    server += ["input ms", "infer ms", "output ms", "failed"]
    return [
        Table("as clients see it", tuple(head), tuple(seen)),
        Table("as the server tells it, per request", tuple(server), tuple(done)),
    ]
