"""What we know of a served model, beside it, and how its folder changes without a half state.

A server may look at the folder at any moment. A version is put together under a name that is no
number, which Triton passes over, and renamed; a configuration is replaced in one step.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from boxwright.errors import RequestError, StoreError, nearest_name
from boxwright.store import sha256_of_bytes, sha256_of_file, write_atomic

__all__ = [
    "CONFIG",
    "CPU_CONFIG",
    "RECORD",
    "ModelRecord",
    "Version",
    "add_version_folder",
    "content_hashes",
    "damaged_files",
    "models_in",
    "put_model",
    "read_model_record",
    "record_of",
    "restore_version_folder",
    "stamp_now",
    "version_numbers_in",
    "write_file",
    "write_model_record",
]

CONFIG = "config.pbtxt"
CPU_CONFIG = "configs/cpu.pbtxt"
RECORD = ".boxwright.json"
KEEP = ".keep"  # copies of a repository may drop empty folders
_SCHEMA = 1
_PART = ".part-"


@dataclass(frozen=True, slots=True)
class Version:
    """A version that we put there.

    Attributes:
        files: SHA-256 by path in the folder.
        source: Where the file came from, or "".
        made: When, in ISO 8601, UTC.
    """

    files: Mapping[str, str]
    source: str
    made: str


@dataclass(slots=True)
class ModelRecord:
    """What we know of a served model.

    Attributes:
        kind: A format, or `preprocess`, `ensemble`, ….
        model: Name of the model.
        generated: The configurations as they were generated, by path.
        files: SHA-256 of the files that all versions share, by path.
        versions: By number.
        history: What was served, the latest last; each a list of versions, empty for "the latest".
    """

    kind: str
    model: str
    generated: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    versions: dict[int, Version] = field(default_factory=dict)
    history: list[list[int]] = field(default_factory=list)

    @property
    def served(self) -> list[int]:
        """The versions that the configuration names; empty for "the latest"."""
        return self.history[-1] if self.history else []


def stamp_now() -> str:
    """Return the time as part of a file name: `20261122T005303Z`."""
    return datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")


def read_model_record(folder: Path) -> ModelRecord | None:
    """Read the record of a model; None when there is none.

    Raises:
        StoreError: It is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != _SCHEMA:
            raise ValueError(f"schema {data['schema']}, this version knows {_SCHEMA}")
        return ModelRecord(
            kind=str(data["kind"]),
            model=str(data["model"]),
            generated={str(k): str(v) for k, v in data["generated"].items()},
            files={str(k): str(v) for k, v in data["files"].items()},
            versions={
                int(n): Version(dict(v["files"]), str(v["source"]), str(v["made"]))
                for n, v in data["versions"].items()
            },
            history=[[int(n) for n in served] for served in data["history"]],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"[:120]
        raise StoreError(
            str(path), f"it is not a record of ours ({reason})", "build into another --out"
        ) from None


def record_of(repository: Path, model: str) -> ModelRecord:
    """Return the record of a model that must be there.

    Raises:
        RequestError: There is no such model, or it is none of ours.
    """
    record = read_model_record(repository / model)
    if record is not None:
        return record
    known = models_in(repository)
    if model in known:
        raise RequestError(
            str(repository / model), "it was not built by boxwright", "change it by hand"
        )
    near = nearest_name(model, known)
    hint = f"did you mean {near}?" if near else f"known are {', '.join(known) or 'none'}"
    raise RequestError(f"model {model}", f"{repository} holds none of that name", hint)


def write_model_record(folder: Path, record: ModelRecord) -> None:
    """Write the record of a model.

    Raises:
        StoreError: The disk is full or the place is not writable.
    """
    write_atomic(folder / RECORD, _record_bytes(record))


def _record_bytes(record: ModelRecord) -> bytes:
    data = {
        "schema": _SCHEMA,
        "kind": record.kind,
        "model": record.model,
        "generated": record.generated,
        "files": record.files,
        "versions": {
            str(n): {"files": dict(v.files), "source": v.source, "made": v.made}
            for n, v in sorted(record.versions.items())
        },
        "history": record.history,
    }
    return (json.dumps(data, indent=2, sort_keys=True) + "\n").encode()


def models_in(repository: Path) -> list[str]:
    """Return the names of the models of a repository.

    Raises:
        RequestError: There is no such folder.
    """
    if not repository.is_dir():
        raise RequestError(str(repository), "there is no such folder", "name a model repository")
    return sorted(p.name for p in repository.iterdir() if p.is_dir() and p.name[0] != ".")


def version_numbers_in(folder: Path) -> list[int]:
    """Return the versions that a model's folder holds."""
    return sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdecimal())


def content_hashes(files: Mapping[str, bytes | Path]) -> dict[str, str]:
    """Return the SHA-256 of files by path."""
    return {
        name: sha256_of_bytes(v) if isinstance(v, bytes) else sha256_of_file(v)
        for name, v in sorted(files.items())
    }


def _fill(folder: Path, files: Mapping[str, bytes | Path]) -> None:
    """Write files below a folder that nobody looks into yet, and flush them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (files or {KEEP: b""}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            shutil.copyfile(content, path)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def add_version_folder(folder: Path, number: int, files: Mapping[str, bytes | Path]) -> None:
    """Put a version into a model's folder, whole or not at all.

    Raises:
        StoreError: There is one of that number, or it cannot be written.
    """
    final = folder / str(number)
    part = folder / f"{_PART}{number}"
    if final.exists():
        raise StoreError(str(final), "there is such a version", "name another number")
    try:
        shutil.rmtree(part, ignore_errors=True)
        _fill(part, files)
        part.rename(final)
    except OSError as error:
        raise _cannot_write(final, error) from None
    finally:  # an interruption, too, leaves nothing half written
        shutil.rmtree(part, ignore_errors=True)


def damaged_files(folder: Path, record: ModelRecord, number: int) -> list[str]:
    """Return the files of a version that are missing or changed since they were put there."""
    known = record.versions.get(number)
    if known is None:
        return []
    place = folder / str(number)
    return [
        name
        for name, sha256 in known.files.items()
        if not (place / name).is_file() or sha256_of_file(place / name) != sha256
    ]


def restore_version_folder(folder: Path, number: int, files: Mapping[str, bytes | Path]) -> None:
    """Put back the files that are missing from a version, each in one step.

    Raises:
        StoreError: It cannot be written.
    """
    place = folder / str(number)
    for name, content in files.items():
        if not (place / name).is_file():
            data = content if isinstance(content, bytes) else content.read_bytes()
            write_file(place, name, data)


def put_model(
    folder: Path,
    record: ModelRecord,
    configs: Mapping[str, str],
    shared: Mapping[str, bytes],
    number: int,
    version: Mapping[str, bytes | Path],
) -> None:
    """Put a new model into a repository, whole or not at all.

    It is put together beside the repository and renamed. Where that is another file system, the
    version comes last: a server then sees a model without versions, never half of one.

    Raises:
        StoreError: It cannot be written.
    """
    repository = folder.parent.absolute()
    part = repository.parent / f".{repository.name}{_PART}{folder.name}"
    files = {
        **{path: text.encode() for path, text in configs.items()},
        **shared,
        RECORD: _record_bytes(record),
    }
    try:
        repository.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        if part.stat().st_dev == repository.stat().st_dev:
            _fill(part, files)
            _fill(part / str(number), version)
            part.rename(folder)
        else:
            part.rmdir()
            _fill(folder, files)
            add_version_folder(folder, number, version)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    finally:  # an interruption, too, leaves nothing half written
        shutil.rmtree(part, ignore_errors=True)


def _cannot_write(path: Path, error: OSError) -> StoreError:
    reason = error.strerror or type(error).__name__
    return StoreError(str(path), f"it cannot be written ({reason})", "check the place")


def write_file(folder: Path, name: str, data: bytes) -> None:
    """Replace a file of a model's folder.

    Raises:
        StoreError: It cannot be written.
    """
    path = folder / name
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(parents=True)
    write_atomic(path, data)
