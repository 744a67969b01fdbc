"""Removes what was built from a repository: configurations are backed up, folders stay."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from boxwright.errors import RequestError, StoreError
from boxwright.serve.repository_record import (
    CONFIG,
    models_in,
    read_model_record,
    stamp_now,
    version_numbers_in,
)
from boxwright.serve.tracks import FORMATS
from boxwright.store import locked, sha256_of_file

__all__ = ["Cleaned", "clean_repository"]

_CACHES = ("*.engine", "*.profile", "*.timing", "*.cache")  # of ONNX Runtime's TensorRT provider


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What was done.

    Attributes:
        removed: Files.
        kept: Files of ours that were changed.
        backup: Folder of the configurations; None when there were none.
    """

    removed: tuple[Path, ...]
    kept: tuple[Path, ...]
    backup: Path | None


def clean_repository(
    repository: Path, engine_cache: Path | None = None, *, dry_run: bool = False
) -> Cleaned:
    """Remove the ONNX files and plans that we put there, and engine caches.

    Configurations are copied to `REPOSITORY.configs-TIME/`, beside the repository: in it, a server
    would take the copies for models.

    Args:
        repository: The repository.
        engine_cache: Folder in which ONNX Runtime's TensorRT provider keeps engines.
        dry_run: Remove nothing.

    Raises:
        RequestError: There is no such folder, or nothing in it is ours.
        StoreError: It cannot be written.
    """
    names = models_in(repository)
    ours = {n: r for n in names if (r := read_model_record(repository / n)) is not None}
    if not ours:
        raise RequestError(str(repository), "it holds no model of ours", "name a repository")
    removed: list[Path] = []
    kept: list[Path] = []
    for name, record in ours.items():
        if record.kind not in FORMATS or record.kind == "dali":
            continue  # text of ours that costs nothing, and that an ensemble needs
        folder = repository / name
        for number in version_numbers_in(folder):
            known = record.versions.get(number)
            for file, sha256 in known.files.items() if known else ():
                path = folder / str(number) / file
                if path.is_file():
                    (removed if sha256_of_file(path) == sha256 else kept).append(path)
    if engine_cache is not None:
        removed += _caches(engine_cache)
    removed += [p for name in ours for p in _caches(repository / name)]
    backup = repository.absolute().parent / f"{repository.name}.configs-{stamp_now()}"
    if dry_run:
        return Cleaned(tuple(removed), tuple(kept), backup)
    try:
        with locked(repository.absolute(), "wait for it"):
            for name in names:
                _back_up(repository / name, backup / name)
            for path in removed:
                path.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StoreError(
            str(error.filename or repository), f"it cannot be changed ({reason})", "check it"
        ) from None
    return Cleaned(tuple(removed), tuple(kept), backup if backup.is_dir() else None)


def _caches(folder: Path) -> Iterator[Path]:
    """Yield the engines and timings that ONNX Runtime leaves: names that begin with its own."""
    for pattern in _CACHES:
        yield from (
            p for p in sorted(folder.rglob(pattern)) if p.name.startswith("TensorrtExecution")
        )


def _back_up(folder: Path, backup: Path) -> None:
    for path in sorted(folder.rglob("*.pbtxt")):
        target = backup / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    if (folder / CONFIG).is_file() and (folder / "labels.txt").is_file():
        shutil.copyfile(folder / "labels.txt", backup / "labels.txt")
