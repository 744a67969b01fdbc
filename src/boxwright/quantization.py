"""INT8 files: calibrate, or read the calibration's cache, then quantise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from boxwright.calibrate import Calibration, calibrate
from boxwright.errors import SourceError
from boxwright.graph.io import bytes_from_model
from boxwright.graph.quantize import int8_from_fp32
from boxwright.outcome import Listener
from boxwright.recipe import Recipe
from boxwright.store import sha256_of_bytes, write_atomic
from boxwright.types import Deployment, ModelSpec

__all__ = ["quantised"]

_SCHEMA = 1


def quantised(
    model: onnx.ModelProto,
    spec: ModelSpec,
    files: Sequence[Path],
    recipe: Recipe,
    deployment: Deployment,
    listener: Listener,
) -> onnx.ModelProto:
    """Return the INT8 graph of an FP32 graph.

    Args:
        model: FP32 raw graph.
        spec: The model.
        files: Pictures to calibrate on, or the one cache file.
        recipe: How to calibrate.
        deployment: Where the file shall run.
        listener: Told what happens.

    Raises:
        SourceError: The cache is of another model, or damaged.
        ImageError: A picture cannot be read.
        GraphError: The graph cannot be quantised.
    """
    options = recipe.calibration
    graph = sha256_of_bytes(bytes_from_model(model, spec.name))
    cache = Path(options.cache) if options.cache else None
    if cache is not None and list(files) == [cache]:
        calibration = _read(cache, graph, deployment)
        listener.note(f"calibration of {calibration.pictures} pictures from {cache}")
    else:
        listener.note(f"calibrate for {deployment} on {len(files)} pictures ({options.method})")
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            listener.count(f"calibrate {deployment}", done, len(files))

        calibration = calibrate(
            model,
            spec,
            list(files),
            deployment,
            method=options.method,
            batch=options.batch,
            threads=recipe.threads,
            advance=advance,
        )
        if cache is not None:
            write_atomic(cache, _bytes(calibration, graph, deployment))
    return int8_from_fp32(model, calibration.ranges, deployment)


def _bytes(calibration: Calibration, graph: str, deployment: Deployment) -> bytes:
    data = {"schema": _SCHEMA, "graph": graph, "deployment": deployment, **calibration.as_dict()}
    return (json.dumps(data, indent=1) + "\n").encode()


def _read(path: Path, graph: str, deployment: Deployment) -> Calibration:
    """Read a cache that was made of this very graph.

    Raises:
        SourceError: It was not, or it cannot be read.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wrong = (
            "it is of another model, or of another export of it"
            if data["graph"] != graph
            else f"it is for {data['deployment']}, not for {deployment}"
            if data["deployment"] != deployment
            else ""
        )
        calibration = Calibration.from_dict(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise SourceError(
            str(path), "it is no calibration cache of ours", "remove it, or name another file"
        ) from None
    if wrong:
        raise SourceError(str(path), wrong, "remove it, or name another file")
    return calibration
