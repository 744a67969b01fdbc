"""The sidecar of a plan: `NAME.plan.json`, since the plan itself has no room for what it is.

A plan carries no header of ours, so that trtexec, Triton and DeepStream read it. What must be known
before it is loaded (TensorRT version, GPU architecture) and what it computes (the stamp of the ONNX
file) stands beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boxwright.errors import BackendError, SourceError
from boxwright.nvidia import TITLES, Gpu, runs_rtx_plans, version_numbers

__all__ = [
    "EngineRecord",
    "check_fits",
    "read_plan",
    "read_record",
    "record_bytes",
    "sidecar_path",
]

_SCHEMA = 1
_STAMP = "boxwright."
_JSON_ENTRIES = ("spec", "target", "nms")  # of the stamp; they stand in the sidecar as objects
_CROSSINGS = ((8, 10), (10, 11))  # majors that a version-compatible plan may cross

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """What a plan is, what it was built from and what it runs on.

    Attributes:
        runtime: `tensorrt` or `tensorrt-rtx`.
        version: Of it.
        gpu, compute_capability, driver, cuda: What it was built on; empty where there was no GPU.
        source, source_sha256: Name and hash of the ONNX file.
        plan_sha256, size_bytes: Of the plan.
        profile: By input, the smallest, best and largest shape.
        settings: What it was built with.
        metadata: The metadata of the ONNX file, its stamp included.
        build_seconds: Time of the build alone.
        command, trtexec: Lines that build it again.
        notes: What a reader needs to know besides.
        made_with: Versions.
    """

    runtime: str
    version: str
    gpu: str
    compute_capability: str
    driver: str
    cuda: str
    source: str
    source_sha256: str
    plan_sha256: str
    size_bytes: int
    profile: Mapping[str, tuple[Shape, Shape, Shape]]
    settings: Mapping[str, Any]
    metadata: Mapping[str, str]
    build_seconds: float
    command: str
    trtexec: str
    notes: tuple[str, ...] = ()
    made_with: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types; the stamp's parts are objects of their own."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        metadata = dict(self.metadata)
        stamp: dict[str, Any] = {}
        for name in _JSON_ENTRIES:
            if _STAMP + name in metadata:
                stamp[name] = json.loads(metadata.pop(_STAMP + name))
        return {
            "schema": _SCHEMA,
            **values,
            "profile": {k: [list(s) for s in shapes] for k, shapes in self.profile.items()},
            "settings": dict(self.settings),
            "metadata": metadata,
            "notes": list(self.notes),
            "made_with": dict(self.made_with),
            "stamp": stamp,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EngineRecord:
        """Read what `as_dict` wrote.

        Raises:
            ValueError, KeyError, TypeError: It is something else.
        """
        values = dict(data)
        if values.pop("schema") != _SCHEMA:
            raise ValueError(f"schema {data['schema']}, this version knows {_SCHEMA}")
        stamp = values.pop("stamp")
        entries = {_STAMP + k: json.dumps(stamp[k], sort_keys=True) for k in stamp}
        values["metadata"] = {**values["metadata"], **entries}
        values["profile"] = {
            name: tuple(tuple(int(n) for n in shape) for shape in shapes)
            for name, shapes in values["profile"].items()
        }
        values["notes"] = tuple(values["notes"])
        return cls(**values)


def sidecar_path(plan: Path) -> Path:
    """Return where the sidecar of a plan lies.

    >>> sidecar_path(Path("yolo11n.fp16.trt8.6.0-sm90.plan")).name
    'yolo11n.fp16.trt8.6.0-sm90.plan.json'
    """
    return plan.with_name(f"{plan.name}.json")


def record_bytes(record: EngineRecord) -> bytes:
    """Return the sidecar's bytes."""
    return (json.dumps(record.as_dict(), indent=2, sort_keys=True) + "\n").encode()


def read_record(plan: Path) -> EngineRecord | None:
    """Read the sidecar of a plan; None when there is none.

    Raises:
        SourceError: It is damaged.
    """
    path = sidecar_path(plan)
    if not path.is_file():
        return None
    try:
        return EngineRecord.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"[:120]
        raise SourceError(
            str(path), f"it is not a plan's description of ours ({reason})", "build the plan again"
        ) from None


def read_plan(path: Path, record: EngineRecord | None) -> bytes:
    """Return the plan, after checking that its description is its own.

    Raises:
        SourceError: It cannot be read, or the description is of another plan.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(str(path), f"it cannot be read ({error.strerror})", "check it") from None
    if record is not None and hashlib.sha256(data).hexdigest() != record.plan_sha256:
        raise SourceError(
            str(path),
            f"{sidecar_path(path).name} describes another plan",
            f"rebuild with: {record.command} --force",
        )
    return data


def check_fits(record: EngineRecord, plan: str, version: str, gpu: Gpu) -> None:
    """Refuse a plan that this TensorRT or GPU cannot run, before it is deserialised.

    Args:
        record: Its sidecar.
        plan: Its name, for the error.
        version: Of the TensorRT that is here.
        gpu: The GPU that is here.

    Raises:
        BackendError: It was built for another.
    """
    title = TITLES.get(record.runtime, record.runtime)
    again = f"rebuild with: {record.command}"
    if not _version_fits(record, version):
        raise BackendError(
            plan, f"it was built for {title} {record.version}, this is {title} {version}", again
        )
    if record.runtime == "tensorrt-rtx" and not runs_rtx_plans(gpu.compute_capability):
        raise BackendError(
            plan,
            f"TensorRT-RTX does not run on compute capability {gpu.compute_capability} "
            f"({gpu.name}), only on 8.0, 8.6, 8.9 and 12.x",
            "build a plan for TensorRT on this machine",
        )
    if not _gpu_fits(record, gpu):
        raise BackendError(
            plan,
            f"it was built for compute capability {record.compute_capability} ({record.gpu}), this "
            f"is {gpu.compute_capability} ({gpu.name})",
            again,
        )


def _version_fits(record: EngineRecord, version: str) -> bool:
    if record.version == version:
        return True
    if not record.settings.get("version_compatible"):
        return False
    built, here = version_numbers(record.version), version_numbers(version)
    return built[:1] == here[:1] or (built[:1] + here[:1]) in _CROSSINGS


def _gpu_fits(record: EngineRecord, gpu: Gpu) -> bool:
    if not record.compute_capability or record.runtime == "tensorrt-rtx":
        return True  # TensorRT-RTX compiles its kernels where it runs
    if record.settings.get("hardware_compatibility") == "ampere_plus":
        return version_numbers(gpu.compute_capability) >= (8, 0)
    return record.compute_capability == gpu.compute_capability
