"""The records of a report: everything that a run was asked for, made and measured.

`report.json` is `Report.as_dict`, and the HTML page is made of that alone; docs/report.md lists the
keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from boxwright.measurement.records import BenchmarkResult
from boxwright.types import (
    Accuracy,
    Artifact,
    Change,
    ModelSpec,
    NmsSettings,
    Parity,
    Target,
    TensorInfo,
)

__all__ = ["SCHEMA", "SOURCE", "Choice", "Evaluated", "Made", "Report", "Shown"]

SCHEMA = 2
SOURCE = "source"  # in the place of a file's name: the checkpoint, or the raw ONNX


@dataclass(frozen=True, slots=True)
class Made:
    """A file of the run directory.

    Attributes:
        artifact: What it is and what it was made from; its path is the file's name alone.
        state: `published`, or `rejected` by a check.
        size_bytes: Of the file.
        nms: What is baked into an end-to-end file.
        budget: How an accuracy budget was kept: layers in float, sensitivities, accuracies tried.
    """

    artifact: Artifact
    state: Literal["published", "rejected"]
    size_bytes: int
    nms: NmsSettings | None = None
    budget: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        made = self.artifact
        return {
            "file": made.path.name,
            "state": self.state,
            "size_bytes": self.size_bytes,
            "sha256": made.sha256,
            "parent": made.parent,
            "spec": made.spec.as_dict(),
            "target": made.target.as_dict(),
            "nms": self.nms.as_dict() if self.nms else None,
            "inputs": [[i.name, i.dtype, list(i.shape)] for i in made.inputs],
            "outputs": [[o.name, o.dtype, list(o.shape)] for o in made.outputs],
            "made_with": dict(made.made_with),
            "budget": dict(self.budget) if self.budget else None,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Made:
        """Read what `as_dict` wrote."""
        artifact = Artifact(
            path=Path(data["file"]),
            sha256=data["sha256"],
            spec=ModelSpec.from_dict(data["spec"]),
            target=Target.from_dict(data["target"]),
            inputs=tuple(TensorInfo(n, d, tuple(s)) for n, d, s in data["inputs"]),
            outputs=tuple(TensorInfo(n, d, tuple(s)) for n, d, s in data["outputs"]),
            parent=data["parent"],
            made_with=data["made_with"],
        )
        nms = NmsSettings.from_dict(data["nms"]) if data["nms"] else None
        return cls(artifact, data["state"], int(data["size_bytes"]), nms, data["budget"])


@dataclass(frozen=True, slots=True)
class Evaluated:
    """How well one file detects in one runtime.

    Attributes:
        file: Its name, or `source`.
        runtime: Name of the runtime.
        key: Hash of everything that the figures depend on.
        accuracy: The figures.
        change: Against the source in mAP50-95; None for the source itself.
    """

    file: str
    runtime: str
    key: str
    accuracy: Accuracy
    change: Change | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "file": self.file,
            "runtime": self.runtime,
            "key": self.key,
            "change": dataclasses.asdict(self.change) if self.change else None,
            "accuracy": self.accuracy.as_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluated:
        """Read what `as_dict` wrote."""
        change = Change(**data["change"]) if data["change"] else None
        accuracy = Accuracy.from_dict(data["accuracy"])
        return cls(data["file"], data["runtime"], data["key"], accuracy, change)


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture with what the source and each file find in it, at their operating thresholds.

    Attributes:
        name: Of the picture's file.
        image_size: (height, width) of the source picture in pixels.
        jpeg: The picture, made smaller, as base64 of a JPEG.
        scale: Pixels of the JPEG over pixels of the picture; boxes are in those of the picture.
        truth: `{xyxy, class_name}` of each labelled object; None where the picture has no labels.
        found: By file name, `source` first: `Detections.as_dicts`.
    """

    name: str
    image_size: tuple[int, int]
    jpeg: str
    scale: float
    truth: tuple[Mapping[str, Any], ...] | None
    found: Mapping[str, tuple[Mapping[str, Any], ...]]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "name": self.name,
            "image_size": list(self.image_size),
            "jpeg": self.jpeg,
            "scale": self.scale,
            "truth": None if self.truth is None else [dict(t) for t in self.truth],
            "found": {name: [dict(d) for d in rows] for name, rows in self.found.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Shown:
        """Read what `as_dict` wrote."""
        height, width = data["image_size"]
        return cls(
            name=data["name"],
            image_size=(int(height), int(width)),
            jpeg=data["jpeg"],
            scale=float(data["scale"]),
            truth=None if data["truth"] is None else tuple(data["truth"]),
            found={name: tuple(rows) for name, rows in data["found"].items()},
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """Which file to ship, as far as this run can tell.

    Attributes:
        file, runtime: The file and what to run it with; "" when none can be recommended.
        reason: Why, in one sentence with figures.
        cautions: What the reader should know before relying on it.
    """

    file: str
    runtime: str
    reason: str
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a run was asked for, what it made and what was measured.

    Attributes:
        created_at: Wall clock, ISO 8601 with time zone.
        boxwright: Version.
        name: Of the model.
        command: Command line that asks for the same again.
        request: The recipe, in JSON types.
        source: What was asked for, its kind, SHA-256 and files.
        environment: Libraries and machine.
        artifacts: The files.
        parity: By file name.
        accuracy: Of each file in each runtime, the source first; empty without labelled pictures.
        benchmark: Latency of each file in each runtime, the source first; None when not measured.
        benchmark_key: Hash of everything that the latency depends on but the machine's mood.
        pictures: A few, with detections.
        choice: Which file to ship.
        notes: What was not measured and why, in words.
        commands: (what it does, command line) to repeat each part.
        pictures_key: Hash of everything that the pictures depend on.
    """

    created_at: str
    boxwright: str
    name: str
    command: str
    request: Mapping[str, Any]
    source: Mapping[str, Any]
    environment: Mapping[str, str]
    artifacts: tuple[Made, ...]
    parity: Mapping[str, Parity]
    accuracy: tuple[Evaluated, ...] = ()
    benchmark: BenchmarkResult | None = None
    benchmark_key: str = ""
    pictures: tuple[Shown, ...] = ()
    choice: Choice | None = None
    notes: tuple[str, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    schema: int = field(default=SCHEMA)
    pictures_key: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "schema": self.schema,
            "created_at": self.created_at,
            "boxwright": self.boxwright,
            "name": self.name,
            "command": self.command,
            "request": dict(self.request),
            "source": dict(self.source),
            "environment": dict(self.environment),
            "artifacts": [a.as_dict() for a in self.artifacts],
            "parity": {n: {**p.as_dict(), "passed": p.passed} for n, p in self.parity.items()},
            "accuracy": [e.as_dict() for e in self.accuracy],
            "benchmark": self.benchmark.as_dict() if self.benchmark else None,
            "benchmark_key": self.benchmark_key,
            "pictures": [p.as_dict() for p in self.pictures],
            "pictures_key": self.pictures_key,
            "choice": dataclasses.asdict(self.choice) if self.choice else None,
            "notes": list(self.notes),
            "commands": [list(c) for c in self.commands],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Read what `as_dict` wrote.

        Raises:
            ValueError: It is of another schema.
            KeyError, TypeError: It is no report.
        """
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']}, this version knows {SCHEMA}")
        choice, benchmark = data["choice"], data["benchmark"]
        parity = {
            name: Parity.from_dict({k: v for k, v in value.items() if k != "passed"})
            for name, value in data["parity"].items()
        }
        return cls(
            created_at=data["created_at"],
            boxwright=data["boxwright"],
            name=data["name"],
            command=data["command"],
            request=data["request"],
            source=data["source"],
            environment=data["environment"],
            artifacts=tuple(Made.from_dict(a) for a in data["artifacts"]),
            parity=parity,
            accuracy=tuple(Evaluated.from_dict(e) for e in data["accuracy"]),
            benchmark=BenchmarkResult.from_dict(benchmark) if benchmark else None,
            benchmark_key=data["benchmark_key"],
            pictures=tuple(Shown.from_dict(p) for p in data["pictures"]),
            choice=Choice(**{**choice, "cautions": tuple(choice["cautions"])}) if choice else None,
            notes=tuple(data["notes"]),
            commands=tuple((what, line) for what, line in data["commands"]),
            pictures_key=data["pictures_key"],
        )
