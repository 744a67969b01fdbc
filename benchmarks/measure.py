"""What the benchmarks share: the environment, medians, result files and Markdown tables."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from boxwright.environment import describe_environment
from boxwright.images import expand_paths

__all__ = [
    "HERE",
    "environment",
    "export_ours",
    "export_ultralytics",
    "markdown_table",
    "median",
    "our_variables",
    "pictures_of",
    "quartiles",
    "ultralytics_variables",
    "verdict",
    "write_results",
]

HERE = Path(__file__).resolve().parent
_SOURCE = HERE.parent / "src"


def environment() -> dict[str, Any]:
    """Return what the measurement ran on: processor, cores, versions, and the load before it."""
    load = [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else []
    return {**describe_environment(), "load_average_before": load}


def our_variables(threads: int | None = None) -> dict[str, str]:
    """Return the environment of a process that runs the Boxwright of this source tree.

    Args:
        threads: Cap of OpenMP's threads; None leaves the default.
    """
    variables = dict(os.environ)
    paths = [str(_SOURCE), *filter(None, [variables.get("PYTHONPATH")])]
    variables["PYTHONPATH"] = os.pathsep.join(paths)
    if threads is not None:
        variables["OMP_NUM_THREADS"] = str(threads)
    return variables


def ultralytics_variables(settings: Path, threads: int | None = None) -> dict[str, str]:
    """Return the environment of a process that runs Ultralytics: offline, installing nothing.

    Args:
        settings: Folder for its settings file, so that the home folder stays untouched.
        threads: Cap of OpenMP's threads; None leaves what Ultralytics sets by itself.
    """
    return our_variables(threads) | {
        "YOLO_AUTOINSTALL": "false",
        "YOLO_OFFLINE": "true",
        "YOLO_CONFIG_DIR": str(settings),
    }


def export_ours(checkpoint: Path, folder: Path) -> Path:
    """Return the FP32 ONNX file, batch 1, that Boxwright makes of a checkpoint.

    Raises:
        subprocess.CalledProcessError: The export fails.
    """
    command = [sys.executable, "-m", "boxwright", "export", str(checkpoint), "--batch", "1"]
    command += ["--name", "ours", "--out", str(folder)]
    subprocess.run(command, env=our_variables(), check=True, stdout=subprocess.DEVNULL)
    return next((folder / "ours").glob("*.onnx"))


def export_ultralytics(checkpoint: Path, folder: Path) -> tuple[Path, Path]:
    """Return a copy of a checkpoint and the FP32 ONNX file that Ultralytics makes of it.

    Raises:
        subprocess.CalledProcessError: The export fails.
    """
    copy = folder / "theirs.pt"
    copy.write_bytes(checkpoint.read_bytes())
    code = "import sys; from ultralytics import YOLO; YOLO(sys.argv[1]).export(format='onnx')"
    subprocess.run(
        [sys.executable, "-c", code, str(copy)],
        env=ultralytics_variables(folder),
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return copy, folder / "theirs.onnx"


def pictures_of(texts: Sequence[str], limit: int) -> list[Path]:
    """Return the first pictures that paths, folders and globs name."""
    return expand_paths(texts)[:limit]


def median(samples: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(samples)


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile.

    >>> quartiles([1, 2, 3, 4, 5])
    (2.0, 3.0, 4.0)
    """
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, middle, high


def verdict(measured: float, limit: float) -> str:
    """Say whether a measured value is within its target.

    >>> verdict(0.4, 0.5), verdict(0.6, 0.5)
    ('met', 'missed')
    """
    return "met" if measured <= limit else "missed"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first align right.

    >>> print(markdown_table(["a", "b"], [["x", "1"]]))
    | a | b |
    |---|--:|
    | x | 1 |
    """
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def write_results(script: str, facts: Mapping[str, Any], file: Path | None) -> Path:
    """Write settings, environment and raw samples as JSON.

    Args:
        script: Name of the benchmark.
        facts: What to write; samples stay raw, so that every figure can be derived again.
        file: Where; None means `results/<script>-<today>.json` beside the benchmarks.

    Returns:
        The file.
    """
    path = file or HERE / "results" / f"{script}-{date.today().isoformat()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"benchmark": script, **facts}, indent=None, separators=(",", ":"))
    # A line per top-level key keeps differences readable without a line per sample.
    path.write_text(text.replace('],"', '],\n"').replace('},"', '},\n"') + "\n", encoding="utf-8")
    return path
