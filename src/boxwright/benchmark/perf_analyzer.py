"""NVIDIA's perf_analyzer beside our own load test, where it is installed."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from boxwright.triton_address import TritonAddress

__all__ = ["PerfAnalyzer", "figures_from_csv", "find_perf_analyzer", "run_perf_analyzer"]

_MOST_FEEDS = 8


@dataclass(frozen=True, slots=True)
class PerfAnalyzer:
    """What perf_analyzer measured at one concurrency.

    Attributes:
        requests_per_s: Completed requests.
        p50_ms, p95_ms, p99_ms: Latency of a request.
        problem: Why there are no figures, or "".
    """

    requests_per_s: float = 0.0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0
    problem: str = ""


def find_perf_analyzer() -> str | None:
    """Return where perf_analyzer is, or None."""
    return shutil.which("perf_analyzer")


def input_data(feeds: Sequence[Mapping[str, npt.NDArray[Any]]], batch_in_front: bool) -> str:
    """Return requests as perf_analyzer reads them.

    Args:
        feeds: Of each request, its inputs.
        batch_in_front: Whether the arrays begin with the batch, which its file leaves out.
    """
    data = []
    for feed in feeds[:_MOST_FEEDS]:
        entry = {}
        for name, value in feed.items():
            row = value[0] if batch_in_front else value
            entry[name] = {
                "b64": base64.b64encode(row.tobytes()).decode(),
                "shape": list(row.shape),
            }
        data.append(entry)
    return json.dumps({"data": data})


def figures_from_csv(text: str) -> PerfAnalyzer:
    """Read the table that perf_analyzer writes; its times are microseconds.

    >>> head = "Concurrency,Inferences/Second,p50 latency,p90 latency,p95 latency,p99 latency"
    >>> figures_from_csv(head + "\\n4,100.5,2000,2100,2200,2500\\n").p99_ms
    2.5
    """
    rows = list(csv.DictReader(io.StringIO(text)))
    try:
        row = rows[-1]
        p50, p95, p99 = (float(row[f"p{q} latency"]) / 1e3 for q in (50, 95, 99))
        return PerfAnalyzer(float(row["Inferences/Second"]), p50, p95, p99)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        return PerfAnalyzer(problem=f"its table cannot be read ({type(error).__name__}: {error})")


def run_perf_analyzer(
    program: str,
    address: TritonAddress,
    feeds: Sequence[Mapping[str, npt.NDArray[Any]]],
    *,
    batch: int,
    batches: bool,
    concurrency: int,
    seconds: float,
    folder: Path,
) -> PerfAnalyzer:
    """Measure one concurrency; what goes wrong is told, and no error.

    Args:
        program: Where it is.
        address: The model.
        feeds: Requests.
        batch: Rows of one request.
        batches: Whether the model batches.
        concurrency: Requests in flight.
        seconds: Its measurement window.
        folder: For its files.
    """
    data, table = folder / "perf_analyzer.json", folder / f"perf_analyzer_{concurrency}.csv"
    data.write_text(input_data(feeds, batches), encoding="utf-8")
    words = [program, "-m", address.model, "-u", address.server, "-i", address.protocol]
    words += ["--concurrency-range", f"{concurrency}:{concurrency}", "-f", str(table)]
    words += ["--measurement-interval", str(int(seconds * 1000)), "--input-data", str(data)]
    words += ["-x", address.version] if address.version else []
    words += ["-b", str(batch)] if batches else []
    words += ["--shared-memory", "system"] if address.shared_memory else []
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=60 + 15 * seconds, check=False
        )
        if done.returncode or not table.is_file():
            lines = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
            return PerfAnalyzer(problem=lines[-1][:200])
        found = figures_from_csv(table.read_text(encoding="utf-8"))
    except (OSError, subprocess.SubprocessError) as error:
        return PerfAnalyzer(problem=str(error)[:200])
    if batch > 1 and not found.problem:  # it counts rows
        return PerfAnalyzer(found.requests_per_s / batch, found.p50_ms, found.p95_ms, found.p99_ms)
    return found
