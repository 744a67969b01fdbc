"""The run directory: what was made, from what, and nothing half written.

A directory holds the published files, `manifest.json` and a hidden working folder. Every file is
written under a temporary name, flushed, announced in the manifest with its SHA-256 and only then
renamed, so that a crash at any moment leaves either no file or a whole one that the next run can
tell from a stranger's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from boxwright.errors import StoreError

__all__ = ["Entry", "Store", "sha256_of_bytes", "sha256_of_file", "write_atomic"]

MANIFEST = "manifest.json"
_WORK = ".work"  # intermediates and files that still await their verification
_LOCK = ".lock"
_SCHEMA = 1
_CHUNK_BYTES = 1 << 20


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, lower-case hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_bytes(data: bytes) -> str:
    """Return the SHA-256 of bytes, lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it appears whole or not at all.

    Raises:
        StoreError: The disk is full or the place is not writable.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise _store_error(path, error) from None


def _store_error(path: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(str(path), "the disk is full", "free some space; the run resumes")
    reason = error.strerror or type(error).__name__
    return StoreError(str(path), f"it cannot be written ({reason})", "choose another --out")


@dataclass(slots=True)
class Entry:
    """What the manifest knows of one file.

    Attributes:
        key: Hash of everything that the content depends on.
        sha256: Of the file.
        state: `built` awaits verification in the working folder; `published` is in place;
            `rejected` failed a check.
        parent: SHA-256 of what it was made from.
        settings: What it was made with, to tell a user what has changed.
        record: Description of the artefact, for readers of the manifest.
        parity: Result of its verification, or None.
        parity_key: Hash of everything that the verification depends on.
    """

    key: str
    sha256: str
    state: Literal["built", "published", "rejected"]
    parent: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] | None = None
    parity_key: str = ""


class Store:
    """An open, locked run directory; a context manager.

    Args:
        folder: The run directory; created on entering, removed again when nothing was put in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / _WORK
        self.entries: dict[str, Entry] = {}
        self.source: dict[str, Any] = {}
        self._lock: int | None = None
        self._created: list[Path] = []

    @classmethod
    def peek(cls, folder: Path) -> Store:
        """Return the store of a folder for reading: not locked, nothing created or swept."""
        store = cls(folder)
        store._read_manifest()
        return store

    def __enter__(self) -> Store:
        self._make_folder()
        self._acquire()
        try:
            self._read_manifest()
            self._sweep()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self.work.rmdir()  # only when it is empty
        if self._lock is not None:
            if not self.entries:
                with contextlib.suppress(OSError):
                    (self.folder / _LOCK).unlink()
            os.close(self._lock)
            self._lock = None
        for folder in self._created:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _make_folder(self) -> None:
        missing = []
        folder = self.folder
        while not folder.exists() and folder != folder.parent:
            missing.append(folder)
            folder = folder.parent
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._created = missing
            self.work.mkdir(exist_ok=True)
            probe = self.work / ".probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            for made in missing:
                with contextlib.suppress(OSError):
                    made.rmdir()
            raise _store_error(self.folder, error) from None

    def _acquire(self) -> None:
        try:
            self._lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            assert self._lock is not None
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
            os.close(self._lock)
            self._lock = None
            raise StoreError(
                str(self.folder),
                f"another run (process {holder or 'unknown'}) is working in it",
                "wait for it, or choose another --out",
            ) from None
        except OSError as error:
            raise _store_error(self.folder / _LOCK, error) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def _read_manifest(self) -> None:
        path = self.folder / MANIFEST
        if not path.exists():
            return
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema"] != _SCHEMA:
                raise ValueError(f"schema {data['schema']}, this version knows {_SCHEMA}")
            self.source = dict(data["source"])
            self.entries = {name: Entry(**value) for name, value in data["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise StoreError(
                str(path), f"it is not a manifest of ours ({error})", "choose another --out"
            ) from None

    def _sweep(self) -> None:
        """Remove what a crash left: temporary files, and working files that nobody knows."""
        for part in [*self.folder.glob(".*.part"), *self.work.glob(".*.part")]:
            part.unlink(missing_ok=True)
        for path in self.work.iterdir():
            if path.name not in self.entries:
                path.unlink(missing_ok=True)

    def save(self) -> None:
        """Write the manifest.

        Raises:
            StoreError: The disk is full or the place is not writable.
        """
        data = {
            "schema": _SCHEMA,
            "source": self.source,
            "files": {
                name: {slot: getattr(entry, slot) for slot in Entry.__slots__}
                for name, entry in sorted(self.entries.items())
            },
        }
        text = json.dumps(data, indent=2, sort_keys=True, default=str) + "\n"
        write_atomic(self.folder / MANIFEST, text.encode())

    def path(self, name: str) -> Path:
        """Return where a known file is now: published, rejected or in the working folder."""
        entry = self.entries[name]
        if entry.state == "published":
            return self.folder / name
        if entry.state == "rejected":
            return self.folder / f"{name}.rejected"
        return self.work / name

    def is_whole(self, name: str) -> bool:
        """Whether a known file is there with the content that the manifest records.

        A file that was announced but not yet moved when a crash came is moved now.
        """
        entry = self.entries.get(name)
        if entry is None:
            return False
        path = self.path(name)
        waiting = self.work / name
        if not path.exists() and entry.state == "published" and waiting.exists():
            if sha256_of_file(waiting) != entry.sha256:
                return False
            waiting.replace(path)
        return path.exists() and sha256_of_file(path) == entry.sha256

    def put(self, name: str, data: bytes, entry: Entry) -> Path:
        """Write a file into the working folder and announce it."""
        write_atomic(self.work / name, data)
        self.entries[name] = entry
        self.save()
        return self.work / name

    def publish(self, name: str, state: Literal["published", "rejected"]) -> Path:
        """Move a built file to its final (or `.rejected`) name."""
        waiting = self.work / name
        entry = self.entries[name]
        entry.state = state
        self.save()
        final = self.path(name)
        try:
            waiting.replace(final)
        except OSError as error:
            raise _store_error(final, error) from None
        if state == "published":
            (self.folder / f"{name}.rejected").unlink(missing_ok=True)
        return final

    def forget(self, name: str) -> None:
        """Remove a file and its entry."""
        for path in (self.folder / name, self.folder / f"{name}.rejected", self.work / name):
            path.unlink(missing_ok=True)
        if self.entries.pop(name, None) is not None:
            self.save()


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield `name: old -> new` for every setting that differs."""
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            yield f"{name}: {old.get(name)} -> {new.get(name)}"
