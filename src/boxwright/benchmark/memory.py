"""Peak memory of one file: a fresh process opens it, detects a few times, and tells its peak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import boxwright
from boxwright.benchmark.settings import Entry
from boxwright.loading import Device

__all__ = ["measure_peak_memory"]

_PATIENCE_S = 600
# The process imports what detecting needs and nothing of the benchmark, which would be counted.
_CHILD = """
import json, sys
from boxwright.loading import load
from boxwright.machine import peak_rss_bytes
request = json.loads(sys.argv[1])
pictures = request.pop("pictures")
with load(**request, quiet=True) as detector:
    for _ in range(3):
        detector(pictures)
    print(json.dumps(peak_rss_bytes()))
"""


def measure_peak_memory(
    entry: Entry,
    pictures: Sequence[Path],
    *,
    threads: int | None,
    batch: int,
    device: Device,
    gpu: Mapping[str, Any] | None = None,
) -> float | None:
    """Return the peak resident memory in MB (10^6 bytes) of a process that detects with a file.

    Counted is everything: the interpreter, libraries, the model, pictures and results. None where
    the system does not tell, or the process fails. `gpu` is what `load` is told
    of a GPU besides, in JSON types.
    """
    request = {
        "path": entry.path if isinstance(entry.path, str) else str(entry.path.absolute()),
        "runtime": entry.runtime,
        "family": entry.family,
        "labels": entry.labels,
        "threads": threads,
        **(gpu or {}),
        "device": device,
        "pictures": [str(pictures[i % len(pictures)].absolute()) for i in range(batch)],
    }
    home = str(Path(boxwright.__file__).parents[1])
    places = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, json.dumps(request)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=True,
        )
        peak = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return None if peak is None else round(peak / 1e6, 2)
