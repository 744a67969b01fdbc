"""The calibration's cache: what was seen, of which graph, on which pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwright.calibrate import Calibration
from boxwright.errors import SourceError
from boxwright.store import write_atomic
from boxwright.types import Deployment

__all__ = ["Cached", "add_to_cache", "cached_pictures", "read_cache"]

_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Cached:
    """A calibration that was read.

    Attributes:
        calibration: The ranges and how they came about.
        pictures: SHA-256 of each picture's file.
    """

    calibration: Calibration
    pictures: tuple[str, ...]


def add_to_cache(
    path: Path,
    graph: str,
    deployment: Deployment,
    calibration: Calibration,
    pictures: Sequence[str],
) -> None:
    """Write a calibration; those of the same graph for other deployments stay.

    Args:
        path: The cache file; one of another graph is replaced.
        graph: SHA-256 of the FP32 graph.
        deployment: What it was calibrated for.
        calibration: The result.
        pictures: SHA-256 of each picture's file.

    Raises:
        StoreError: It cannot be written.
    """
    known: dict[str, Any] = {}
    if path.is_file():
        data = _loaded(path)
        known = data["deployments"] if data["graph"] == graph else {}
    known[deployment] = {**calibration.as_dict(), "files": list(pictures)}
    content = {"schema": _SCHEMA, "graph": graph, "deployments": known}
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())


def cached_pictures(path: Path) -> list[str]:
    """Return the SHA-256 of each picture that a cache was made of.

    Raises:
        SourceError: It is damaged.
    """
    known = _loaded(path)["deployments"]
    try:
        return [str(f) for one in list(known.values())[:1] for f in one["files"]]
    except (KeyError, TypeError):
        raise _damaged(path) from None


def read_cache(path: Path, graph: str, deployment: Deployment) -> Cached:
    """Read the calibration of this very graph for a deployment.

    Raises:
        SourceError: There is none, or the file cannot be read.
    """
    data = _loaded(path)
    known = data["deployments"]
    wrong = ""
    if data["graph"] != graph:
        wrong = "it is of another model, or of another export of it"
    elif deployment not in known:
        wrong = f"it is for {', '.join(known)}, not for {deployment}"
    if wrong:
        raise SourceError(str(path), wrong, "remove it, or name another file")
    try:
        entry = dict(known[deployment])
        files = tuple(str(f) for f in entry.pop("files"))
        return Cached(Calibration.from_dict(entry), files)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _damaged(path) from None


def _loaded(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != _SCHEMA or not isinstance(data["deployments"], dict):
            raise ValueError("another schema")
        return dict(data)
    except (OSError, ValueError, KeyError, TypeError):
        raise _damaged(path) from None


def _damaged(path: Path) -> SourceError:
    return SourceError(
        str(path), "it is no calibration cache of ours", "remove it, or name another file"
    )
