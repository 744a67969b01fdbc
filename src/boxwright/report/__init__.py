"""The report of a run as plain data."""

from __future__ import annotations

from typing import Any

from boxwright.types import Artifact, Report

__all__ = ["report_as_dict"]

SCHEMA = 1


def report_as_dict(report: Report) -> dict[str, Any]:
    """Return a report in JSON types: environment, artifacts with lineage, parity by file."""
    return {
        "schema": SCHEMA,
        "environment": dict(report.environment),
        "artifacts": [_artifact(a) for a in report.artifacts],
        "parity": {name: {**p.as_dict(), "passed": p.passed} for name, p in report.parity.items()},
    }


def _artifact(artifact: Artifact) -> dict[str, Any]:
    return {
        "file": artifact.path.name,
        "sha256": artifact.sha256,
        "parent": artifact.parent,
        "spec": artifact.spec.as_dict(),
        "target": artifact.target.as_dict(),
        "inputs": [[i.name, i.dtype, list(i.shape)] for i in artifact.inputs],
        "outputs": [[o.name, o.dtype, list(o.shape)] for o in artifact.outputs],
        "made_with": dict(artifact.made_with),
    }
