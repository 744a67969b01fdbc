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
from typing import Any, Literal, get_args

from boxwright.errors import StoreError
from boxwright.types import ModelSpec, Parity, Target

__all__ = [
    "Entry",
    "Store",
    "locked",
    "sha256_of_bytes",
    "sha256_of_file",
    "store_error",
    "write_atomic",
]

MANIFEST = "manifest.json"
REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
RECIPE_FILE = "recipe.yaml"
MATCHES_FILE = "matches.npz"
_WORK = ".work"  # intermediates and files that still await their verification
_LOCK = ".lock"
_PROBE = ".probe"
_SCHEMA = 1
_CHUNK_BYTES = 1 << 20

State = Literal["built", "published", "rejected"]


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
    except BaseException as error:  # an interruption, too, leaves nothing half written
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise store_error(path, error) from None
        raise


def store_error(path: Path, error: OSError) -> StoreError:
    """Word why a place cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(str(path), "the disk is full", "free some space; the run resumes")
    reason = error.strerror or type(error).__name__
    return StoreError(str(path), f"it cannot be written ({reason})", "choose another --out")


class _HeldError(Exception):
    """Another process has the lock."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder or "unknown"


def _take_lock(path: Path) -> int:
    """Return the open descriptor of a lock file that this process holds until it is closed.

    Raises:
        _HeldError: Another process holds it.
        StoreError: The place is not writable.
    """
    lock = -1
    try:
        while True:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), path.stat()):
                    break
            os.close(lock)  # its last holder removed the file meanwhile
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise _HeldError(holder) from None
    except OSError as error:
        if lock >= 0:
            os.close(lock)
        raise store_error(path, error) from None
    return lock


@contextlib.contextmanager
def locked(path: Path, do: str) -> Iterator[None]:
    """Keep other processes from making a file; its folder is made, and goes if it stays empty.

    Args:
        path: The file; the lock is `.NAME.lock` beside it and ends with the process.
        do: What to advise who finds it locked.

    Raises:
        StoreError: Another process is making it, or the place is not writable.
    """
    made = [p for p in (path.parent, *path.parent.parents) if not p.exists()]
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise store_error(path.parent, error) from None
    try:
        held = _take_lock(lock)
    except _HeldError as error:
        raise StoreError(
            str(path), f"another process ({error.holder}) is working on it", do
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(held)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


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
    state: State
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
        self._only_read = False
        self._created: list[Path] = []

    @classmethod
    def peek(cls, folder: Path) -> Store:
        """Return the store of a folder for reading: not locked, nothing created or swept."""
        store = cls(folder)
        store._only_read = True
        store._read_manifest()
        return store

    def __enter__(self) -> Store:
        try:
            self._make_folder()
            self._acquire()
            self._read_manifest()
            self._make_work()
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
        if self._lock is not None:
            if not self.entries:
                with contextlib.suppress(OSError):
                    self._sweep()  # what an interruption left before it was announced
                with contextlib.suppress(OSError):
                    (self.folder / _LOCK).unlink()
            with contextlib.suppress(OSError):
                self.work.rmdir()  # only when it is empty
            os.close(self._lock)
            self._lock = None
        for folder in self._created:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _make_folder(self) -> None:
        folder = self.folder
        try:
            while not folder.exists() and folder != folder.parent:
                self._created.append(folder)
                folder = folder.parent
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise store_error(self.folder, error) from None

    def _make_work(self) -> None:
        try:
            self.work.mkdir(exist_ok=True)
            probe = self.work / _PROBE
            probe.write_bytes(b"")
            probe.unlink()
            self._sweep()
        except OSError as error:
            raise store_error(self.folder, error) from None

    def _acquire(self) -> None:
        """Take the lock, which ends with the process, however that ends."""
        try:
            self._lock = _take_lock(self.folder / _LOCK)
        except _HeldError as held:
            self._created = []  # not ours to remove
            raise StoreError(
                str(self.folder),
                f"another run (process {held.holder}) is working in it",
                "wait for it, or choose another --out",
            ) from None

    def _read_manifest(self) -> None:
        path = self.folder / MANIFEST
        if not path.exists():
            return
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema"] != _SCHEMA:
                raise ValueError(f"schema {data['schema']}, this version knows {_SCHEMA}")
            self.source = dict(data["source"])
            self.entries = {n: _entry_from_dict(n, value) for n, value in data["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"[:160]
            raise StoreError(
                str(path), f"it is not a manifest of ours ({reason})", "choose another --out"
            ) from None

    def _sweep(self) -> None:
        """Remove what a crash left: temporary files, and working files that nobody awaits."""
        ours = (*self.entries, MANIFEST, REPORT_FILE, PAGE_FILE, RECIPE_FILE, MATCHES_FILE)
        for part in (self.folder / f".{name}.part" for name in ours):
            part.unlink(missing_ok=True)
        for path in self.work.iterdir():
            if path.suffix not in (".onnx", ".part") and path.name != _PROBE:
                continue  # not of our making
            entry = self.entries.get(path.name)
            if entry is None or (entry.state != "built" and self.path(path.name).exists()):
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

        A file that was announced but not yet moved when a crash came is moved now, unless this
        store is only for reading.
        """
        entry = self.entries.get(name)
        if entry is None:
            return False
        path = self.path(name)
        waiting = self.work / name
        if not path.exists() and entry.state == "published" and waiting.exists():
            if sha256_of_file(waiting) != entry.sha256:
                return False
            if self._only_read:
                return True
            self._move(waiting, path)
        return path.exists() and sha256_of_file(path) == entry.sha256

    def put(self, name: str, data: bytes, entry: Entry) -> Path:
        """Write a file into the working folder and announce it.

        What was published under the name goes, so that a file under a final name is always the
        one that the manifest tells of.

        Raises:
            StoreError: The disk is full or the place is not writable.
        """
        write_atomic(self.work / name, data)
        self._remove(self.folder / name)
        self.entries[name] = entry
        self.save()
        return self.work / name

    def publish(self, name: str, state: Literal["published", "rejected"]) -> Path:
        """Move a built file to its final (or `.rejected`) name.

        Raises:
            StoreError: It cannot be moved.
        """
        waiting = self.work / name
        self.entries[name].state = state
        self.save()
        final = self.path(name)
        self._move(waiting, final)
        if state == "published":
            self._remove(self.folder / f"{name}.rejected")
        return final

    def withdraw(self, name: str) -> None:
        """Take a published file back into the working folder.

        Raises:
            StoreError: It cannot be moved.
        """
        self._move(self.folder / name, self.work / name)

    def forget(self, name: str) -> None:
        """Remove a file and its entry.

        Raises:
            StoreError: It cannot be removed.
        """
        for path in {self.path(name), self.work / name}:
            self._remove(path)
        if self.entries.pop(name, None) is not None:
            self.save()

    @staticmethod
    def _move(source: Path, target: Path) -> None:
        try:
            source.replace(target)
        except OSError as error:
            raise store_error(target, error) from None

    @staticmethod
    def _remove(path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise store_error(path, error) from None


def _entry_from_dict(name: str, value: dict[str, Any]) -> Entry:
    """Read an entry, and refuse what a later step would stumble over.

    A name must stay inside of the run directory: `clean` removes what a manifest lists.
    """
    entry = Entry(**value)
    own = (_WORK, _LOCK, MANIFEST, REPORT_FILE, PAGE_FILE, RECIPE_FILE, MATCHES_FILE)
    if name != Path(name).name or name in ("", ".", "..", *own):
        raise ValueError(f"{name!r} is not a file name")
    if entry.state not in get_args(State):
        raise ValueError(f"{name} has the state {entry.state!r}")
    texts = (entry.key, entry.sha256, entry.parent, entry.parity_key)
    if not all(isinstance(t, str) for t in texts) or not isinstance(entry.settings, dict):
        raise TypeError(f"{name} is described by values of other types")
    ModelSpec.from_dict(entry.record["spec"])
    Target.from_dict(entry.record["target"])
    if entry.parity is not None:
        Parity.from_dict(entry.parity)
    return entry


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield `name: old -> new` for every setting that differs."""
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            yield f"{name}: {old.get(name)} -> {new.get(name)}"
